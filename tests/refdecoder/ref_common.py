"""What the tests of refdecoder share beside fixtures."""

import torch
from torch import Tensor

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJK"


def tokens(n: int, seed: int = 1, below: int = 37) -> list[int]:
    """Random ids from 1 to ``below`` - 1."""
    return torch.randint(1, below, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def off(got: Tensor, wanted: Tensor) -> float:
    """Greatest error, in units of the spread of the logits."""
    return float((got.double() - wanted.double()).abs().max() / wanted.double().std())

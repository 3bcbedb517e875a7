"""Tiny loud Llama checkpoints, and transformers' model made exact in float64."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from ref_common import LETTERS
from tokenizers import Tokenizer, decoders, models
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding


@pytest.fixture(scope="session")
def save(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that saves a random Llama, with changes to its config, and returns the directory."""

    def build(seed: int = 0, shard: str = "1GB", **changes: Any) -> Path:
        sizes = {"vocab_size": 37, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 64}
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**sizes, **heads, **changes}))
        for name, parameter in model.named_parameters():  # loud, and neither norms nor biases at their neutral value
            torch.nn.init.normal_(parameter.data, mean=float("norm" in name), std=0.3)
        directory = tmp_path_factory.mktemp("llama")
        model.save_pretrained(directory, max_shard_size=shard)
        return directory

    return build


@pytest.fixture(scope="session")
def llama(save: Callable[..., Path]) -> Path:
    """A checkpoint with grouped queries, a head_dim that is not hidden_size / heads, and a tokenizer of letters."""
    directory = save(eos_token_id=36)
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(LETTERS)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture
def broken(llama: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that copies the checkpoint with keys of config.json changed, or removed where given None."""

    def change(**changes: Any) -> Path:
        for path in llama.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        config = json.loads((llama / "config.json").read_text()) | changes
        kept = {key: value for key, value in config.items() if value is not None}
        (tmp_path / "config.json").write_text(json.dumps(kept))
        return tmp_path

    return change


def frequencies(rope: dict[str, Any], head_dim: int) -> torch.Tensor:
    """Inverse frequencies in float64, written out with wavelengths and branches."""
    found = []
    for i in range(0, head_dim, 2):
        f = rope["rope_theta"] ** (-i / head_dim)
        if rope["rope_type"] == "linear":
            f /= rope["factor"]
        elif rope["rope_type"] == "llama3":
            length, wave = rope["original_max_position_embeddings"], 2 * math.pi / f
            if wave > length / rope["low_freq_factor"]:
                f /= rope["factor"]
            elif wave >= length / rope["high_freq_factor"]:
                low, high = rope["low_freq_factor"], rope["high_freq_factor"]
                smooth = (length / wave - low) / (high - low)
                f = (1 - smooth) * f / rope["factor"] + smooth * f
        found.append(f)
    return torch.tensor(found, dtype=torch.float64)


class ExactNorm(torch.nn.Module):
    """transformers' norm, whose own statistics are float32 whatever the model computes in, in float64."""

    def __init__(self, norm: LlamaRMSNorm) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps)


class ExactRotary(torch.nn.Module):
    """transformers' rotary table, whose own angles are float32 whatever the model computes in, in float64."""

    def __init__(self, rotary: LlamaRotaryEmbedding) -> None:
        super().__init__()
        self.frequencies = frequencies(rotary.config.rope_parameters, rotary.config.head_dim)

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angle = position_ids[..., None].double() * self.frequencies
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos(), angle.sin()


@pytest.fixture(scope="session")
def exact() -> Callable[[Path], transformers.LlamaForCausalLM]:
    """Return a function that loads transformers' model in float64, with no step left in float32."""

    def load(directory: Path) -> transformers.LlamaForCausalLM:
        model = transformers.LlamaForCausalLM.from_pretrained(
            directory, dtype=torch.float64, attn_implementation="sdpa"
        ).eval()
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, LlamaRMSNorm):
                    setattr(parent, name, ExactNorm(child))
                elif isinstance(child, LlamaRotaryEmbedding):
                    setattr(parent, name, ExactRotary(child))
        return model.requires_grad_(False)

    return load

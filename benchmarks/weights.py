"""Checkpoints with random weights, drawn by torch: an 8B model takes seconds where its device is a GPU.

Files are those that the suite writes too, but for the tokenizer: without one no engine turns ids into text while the
clock runs. Weights have the deviation that keeps activations near one, so that nothing overflows or turns denormal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lmconform.checkpoints.gguf import SUFFIX, write_gguf
from lmconform.checkpoints.layout import Checkpoint, Shape, StoredDType

SHARD_BYTES = 2**31
LEFT_OUT = ("tokenizer.json", "tokenizer_config.json")


def write_checkpoint(
    shape: Shape, folder: Path, dtype: StoredDType = "float32", device: torch.device | str = "cpu", seed: int = 0
) -> Path:
    """Write config.json, generation_config.json and the weights, in shards where they are large; return ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in Checkpoint(folder.name, shape.config(), {}).documents(dtype).items():
        if name not in LEFT_OUT:
            (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    shards = list(_shards(shape, dtype))
    total = 0
    generator = torch.Generator(device).manual_seed(seed)
    for number, names in enumerate(shards):
        tensors = {name: _draw(name, shape.tensors()[name], dtype, generator).cpu() for name in names}
        total += sum(tensor.nbytes for tensor in tensors.values())
        save_file(tensors, folder / _file(number, len(shards)), metadata={"format": "pt"})
    if len(shards) > 1:
        places = {name: _file(number, len(shards)) for number, names in enumerate(shards) for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return folder


def write_gguf_checkpoint(shape: Shape, folder: Path, dtype: StoredDType = "float32", seed: int = 0) -> Path:
    """Write the same model as one GGUF file; return its path. Raises as ``write_gguf`` does."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator("cpu").manual_seed(seed)
    weights = {name: _draw(name, size, dtype, generator).float().numpy() for name, size in shape.tensors().items()}
    return write_gguf(Checkpoint(folder.name, shape.config(), weights), folder / f"model{SUFFIX}", dtype)


def _draw(name: str, size: tuple[int, ...], dtype: StoredDType, generator: torch.Generator) -> Tensor:
    """One tensor: a norm's weight is ones, a matrix normal numbers of variance 1 / columns."""
    number, device = getattr(torch, dtype), generator.device
    if len(size) == 1:
        return torch.ones(size, dtype=number, device=device)
    drawn = torch.randn(size, dtype=number, device=device, generator=generator)
    return drawn if name == "model.embed_tokens.weight" else drawn * size[-1] ** -0.5


def _shards(shape: Shape, dtype: StoredDType) -> Iterator[list[str]]:
    """Names of the tensors of each file, which holds ``SHARD_BYTES`` at most, or one tensor."""
    names: list[str] = []
    held = 0
    for name, size in shape.tensors().items():
        nbytes = torch.Size(size).numel() * getattr(torch, dtype).itemsize
        if names and held + nbytes > SHARD_BYTES:
            yield names
            names, held = [], 0
        names.append(name)
        held += nbytes
    yield names


def _file(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"

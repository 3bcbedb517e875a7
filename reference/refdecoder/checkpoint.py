"""Load a Hugging Face llama checkpoint: config.json and safetensors. Nothing is unpickled; nothing is guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .config import DecoderConfig, read_json
from .errors import CheckpointError
from .model import Decoder

DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "bfloat16", "float16")}


def load(
    directory: Path | str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    build: Callable[[DecoderConfig], Decoder] = Decoder,
) -> Decoder:
    """Return the decoder of a checkpoint directory, with its weights in ``dtype`` on ``device``.

    Args:
        directory: holds config.json and model.safetensors, or shards with model.safetensors.index.json.
        dtype: one of ``DTYPES``; the model computes and caches in it.
        device: where the model lives.
        build: makes the decoder from its config; a way to choose the attention form or class.

    Raises:
        CheckpointError: the config is refused, a file is missing or broken, or a tensor is missing, left over,
            misshapen or not finite.
    """
    directory = Path(directory)
    config = DecoderConfig.from_directory(directory)
    with torch.device("meta"):  # shapes without memory: the weights below are the only copy
        model = build(config)
    files = _tensor_files(directory)
    if config.tie_word_embeddings:
        _drop_tied_head(files)
    wanted = {_stored_name(name): parameter for name, parameter in model.named_parameters()}
    _compare_names(set(wanted), set(files))
    state = {}
    for name, parameter in model.named_parameters():
        stored = _stored_name(name)
        state[name] = _read(files[stored], stored, tuple(parameter.shape), dtype).to(device)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def _stored_name(name: str) -> str:
    """Return the name of a parameter in the checkpoint: everything but the head lies below ``model.``."""
    return name if name.startswith("lm_head.") else f"model.{name}"


def _tensor_files(directory: Path) -> dict[str, Path]:
    """Return the file that holds each tensor."""
    index = directory / "model.safetensors.index.json"
    paths = [directory / "model.safetensors"]
    if not paths[0].exists() and index.exists():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise CheckpointError(f"{index} has no weight_map; it must give the file of each tensor.")
        for name in set(names.values()):
            if not isinstance(name, str) or Path(name).name != name:
                raise CheckpointError(f"{index} names the file {name!r}; a file beside the index was expected.")
        paths = [directory / name for name in sorted(set(names.values()))]
    found: dict[str, Path] = {}
    for path in paths:
        with _opened(path) as file:
            for name in sorted(file.keys()):
                if name in found:
                    raise CheckpointError(f"Tensor {name} is both in {found[name].name} and in {path.name}.")
                found[name] = path
    # Checkpoints of the first Llama releases also store the rotary frequencies, which the config determines.
    return {name: path for name, path in found.items() if not name.endswith("rotary_emb.inv_freq")}


def _drop_tied_head(files: dict[str, Path]) -> None:
    """Drop a stored copy of the embedding, as some savers write; refuse a head of its own."""
    if "lm_head.weight" in files and "model.embed_tokens.weight" in files:
        with _opened(files["lm_head.weight"]) as one, _opened(files["model.embed_tokens.weight"]) as other:
            if not torch.equal(one.get_tensor("lm_head.weight"), other.get_tensor("model.embed_tokens.weight")):
                raise CheckpointError("lm_head.weight differs from the embedding, but config.json ties them.")
        del files["lm_head.weight"]


def _compare_names(wanted: set[str], found: set[str]) -> None:
    """Refuse tensors that are missing or left over, by name."""
    for what, names in (("lacks", wanted - found), ("has, and the config gives no use for,", found - wanted)):
        if names:
            shown, rest = sorted(names)[:8], len(names) - 8
            raise CheckpointError(
                f"The checkpoint {what} {len(names)} tensor(s): {', '.join(shown)}{f' and {rest} more' * (rest > 0)}."
            )


def _read(path: Path, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return one tensor in ``dtype`` on the CPU; refuse it if its shape, its format or a number is not sound."""
    with _opened(path) as file:
        stored = tuple(file.get_slice(name).get_shape())
        if stored != shape:
            raise CheckpointError(f"Tensor {name} is {list(stored)}; config.json makes it {list(shape)}.")
        tensor: Tensor = file.get_tensor(name)
    if tensor.dtype not in DTYPES.values():
        raise CheckpointError(f"Tensor {name} is stored as {tensor.dtype}; it may be one of: {', '.join(DTYPES)}.")
    tensor = tensor.to(dtype)
    if not tensor.isfinite().all():
        raise CheckpointError(f"Tensor {name} holds NaN or infinite numbers, as stored or after rounding to {dtype}.")
    return tensor


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}.") from error

"""Load a Hugging Face checkpoint: config.json and safetensors. Nothing is unpickled; nothing is guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .config import Config, GPT2Config, config_from_directory, read_json
from .errors import CheckpointError
from .gpt2 import GPT2
from .model import CausalLM, Decoder

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""phi3's tensors, and the parameters whose rows they hold, one below the other."""
USELESS = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
"""Endings of tensors that the first llama and gpt2 releases hold and that say nothing: frequencies, causal masks."""
CPU = torch.device("cpu")
DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "bfloat16", "float16")}


def build(config: Config, attention: str = "eager") -> CausalLM:
    """Return a model of the config's family with random weights; ``attention`` is one of ``ATTENTION_FORMS``."""
    return GPT2(config, attention) if isinstance(config, GPT2Config) else Decoder(config, attention)


def load(
    directory: Path | str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    build: Callable[[Config], CausalLM] = build,
) -> CausalLM:
    """Return the model of a checkpoint directory, with its weights in ``dtype`` on ``device``.

    Args:
        directory: holds config.json and model.safetensors, or shards with model.safetensors.index.json.
        dtype: one of ``DTYPES``; the model computes and caches in it.
        device: where the model lives.
        build: makes the model from its config; a way to choose the attention form or class.

    Raises:
        CheckpointError: the config is refused, a file is missing or broken, or a tensor is missing, left over,
            misshapen or not finite.
    """
    directory = Path(directory)
    config = config_from_directory(directory)
    with torch.device("meta"):  # shapes without memory: the weights below are the only copy
        model = build(config)
    files = {name: path for name, path in _tensor_files(directory).items() if not name.endswith(USELESS)}
    stored, state = _stored(model, files), dict[str, Tensor](model.named_parameters())
    if "lm_head.weight" not in stored:
        embedding = model.embed_tokens.weight
        _drop_tied_head(files, next(name for name, (first, *_) in stored.items() if state[first] is embedding))
    _compare_names(set(stored), set(files))
    place = torch.empty(0, device=device).device  # with its index: "cuda" is the current one of torch
    with ExitStack() as open_files:
        shards = {path: open_files.enter_context(_opened(path, place)) for path in set(files.values())}
        for name, parts in stored.items():
            rows = [len(state[part]) for part in parts]
            tensor = _read(shards[files[name]], name, (sum(rows), *state[parts[0]].shape[1:]), dtype)
            state |= dict(zip(parts, tensor.split(rows), strict=True))
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def _stored(model: CausalLM, files: Mapping[str, Path]) -> dict[str, list[str]]:
    """Return the tensors that the checkpoint should hold, and the parameters in each, from the first row on."""
    if isinstance(model.config, GPT2Config):  # the released files leave the prefix away
        prefix = "transformer." if "transformer.wte.weight" in files else ""
    else:
        prefix = "model."
    fused = FUSED if not isinstance(model.config, GPT2Config) and model.config.fused else {}
    whole = {part: name for name, parts in fused.items() for part in parts}
    found: dict[str, list[str]] = {}
    for parameter, _ in model.named_parameters():  # q before k before v, gate before up
        place, _, part = parameter.removesuffix(".weight").rpartition(".")
        name = f"{place}.{whole[part]}.weight" if part in whole else parameter
        found.setdefault(name if name.startswith("lm_head.") else prefix + name, []).append(parameter)
    return found


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
    return found


def _drop_tied_head(files: dict[str, Path], embedding: str) -> None:
    """Drop a stored copy of the embedding, as some savers write; refuse a head of its own."""
    if "lm_head.weight" in files and embedding in files:
        with _opened(files["lm_head.weight"]) as one, _opened(files[embedding]) as other:
            if not torch.equal(one.get_tensor("lm_head.weight"), other.get_tensor(embedding)):
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


def _read(file: safe_open, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return one tensor in ``dtype``, where the file puts it; refuse it if its shape, format or a number is unsound."""
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
def _opened(path: Path, device: torch.device = CPU) -> Iterator[safe_open]:
    """Open a file, whose tensors will come straight to ``device``; raise CheckpointError for one that is not sound."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}.") from error

"""What a checkpoint's config.json says, as one frozen record. What is not understood is refused, never ignored."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CheckpointError

ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu")
ROPE_FIELDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
ROPE_COMMON = ("rope_theta", "rope_type", "type", "partial_rotary_factor", "original_max_position_embeddings")


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: its kind, its base, and the numbers that the kind needs (0 where it does not)."""

    kind: str = "default"
    theta: float = 10_000.0
    factor: float = 0.0
    low_freq_factor: float = 0.0
    high_freq_factor: float = 0.0
    original_max_position_embeddings: float = 0.0


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and choices of a llama decoder. Names are those of config.json; D is ``head_dim``, V ``vocab_size``."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: Rope
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> DecoderConfig:
        """Read the content of config.json, and of generation_config.json where there is one.

        Raises:
            CheckpointError: a key is missing or has an unusable value, or asks for what this decoder does not do.
        """
        if config.get("model_type") != "llama":
            raise CheckpointError(f"config.json has model_type {config.get('model_type')!r}; only 'llama' is offered.")
        for key in ("quantization_config", "sliding_window", "rope_interleaved"):
            if config.get(key):
                raise CheckpointError(f"config.json has {key} = {config[key]!r}, which this decoder does not offer.")
        heads, hidden = _whole(config, "num_attention_heads"), _whole(config, "hidden_size")
        kv_heads = heads if config.get("num_key_value_heads") is None else _whole(config, "num_key_value_heads")
        if heads % kv_heads:
            raise CheckpointError(
                f"config.json has num_attention_heads {heads}, which is no multiple of num_key_value_heads {kv_heads}."
            )
        if config.get("head_dim") is not None:
            head_dim = _whole(config, "head_dim")
        elif hidden % heads:
            raise CheckpointError(f"config.json has no head_dim, and {heads} heads do not divide hidden_size {hidden}.")
        else:
            head_dim = hidden // heads
        if head_dim % 2:
            raise CheckpointError(f"head_dim is {head_dim}; rotary embedding turns pairs, so it must be even.")
        activation = config.get("hidden_act", "silu")
        if activation not in ACTIVATIONS:
            raise CheckpointError(f"hidden_act is {activation!r}; it may be one of: {', '.join(ACTIVATIONS)}.")
        return cls(
            vocab_size=_whole(config, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=_whole(config, "intermediate_size"),
            num_hidden_layers=_whole(config, "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=_whole(config, "max_position_embeddings"),
            rms_norm_eps=_number(config, "rms_norm_eps", "config.json"),
            rope=_rope(config),
            hidden_act=activation,
            tie_word_embeddings=_flag(config, "tie_word_embeddings"),
            attention_bias=_flag(config, "attention_bias"),
            mlp_bias=_flag(config, "mlp_bias"),
            eos_token_ids=_eos(config, generation or {}),
        )

    @classmethod
    def from_directory(cls, directory: Path) -> DecoderConfig:
        """Read config.json and, where it exists, generation_config.json of a checkpoint directory.

        Raises:
            CheckpointError: no config.json, a file that is not a JSON object, or what ``from_dict`` refuses.
        """
        generation = directory / "generation_config.json"
        return cls.from_dict(
            read_json(directory / "config.json"), read_json(generation) if generation.exists() else None
        )


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in ``path``; raise CheckpointError if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); a checkpoint directory needs it.") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; a JSON object was expected.")
    return content


def _rope(config: Mapping[str, Any]) -> Rope:
    """Read ``rope_parameters`` (current spelling), or ``rope_theta`` with ``rope_scaling`` (older spelling)."""
    scaling, older = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping) or not isinstance(older, Mapping):
        raise CheckpointError(f"config.json has rope parameters {scaling or older!r}; an object was expected.")
    if scaling and any(scaling.get("rope_type" if key == "type" else key) != older[key] for key in older):
        raise CheckpointError(f"config.json has rope_parameters {scaling} and rope_scaling {older}; they must agree.")
    scaling = scaling or older
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if not isinstance(kind, str) or kind not in ROPE_FIELDS:
        raise CheckpointError(f"config.json has rope type {kind!r}; it may be one of: {', '.join(ROPE_FIELDS)}.")
    if scaling.get("partial_rotary_factor", config.get("partial_rotary_factor")) not in (None, 1, 1.0):
        raise CheckpointError("config.json has a partial_rotary_factor other than 1; all of a head is rotated here.")
    if unused := sorted(set(scaling) - {*ROPE_COMMON, *ROPE_FIELDS[kind]}):
        raise CheckpointError(f"Rope type {kind!r} makes no use of {', '.join(unused)}; config.json gives it.")
    theta = _number({"rope_theta": config.get("rope_theta") or 10_000.0, **scaling}, "rope_theta", "config.json")
    if config.get("rope_theta") not in (None, theta):
        raise CheckpointError(f"config.json has two rope_theta, {config['rope_theta']} and {theta}; they must agree.")
    rope = Rope(kind, theta, **{key: _number(scaling, key, "rope parameters") for key in ROPE_FIELDS[kind]})
    if kind == "llama3" and rope.high_freq_factor <= rope.low_freq_factor:
        raise CheckpointError("llama3 rope needs a high_freq_factor above its low_freq_factor.")
    return rope


def _eos(config: Mapping[str, Any], generation: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the end-of-sequence ids. Those of generation_config.json win, since that file is about generating."""
    found = generation.get("eos_token_id")
    found = config.get("eos_token_id") if found is None else found
    ids = [] if found is None else found if isinstance(found, list) else [found]
    if not all(type(one) is int and one >= 0 for one in ids):
        raise CheckpointError(f"eos_token_id is {found!r}; a token id or a list of token ids was expected.")
    return tuple(ids)


def _whole(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:  # type: a bool is an int to isinstance
        raise CheckpointError(_wrong(config, key, "config.json", "a whole number of 1 or more"))
    return value


def _number(config: Mapping[str, Any], key: str, place: str) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise CheckpointError(_wrong(config, key, place, "a finite number above 0"))
    return float(value)


def _flag(config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key, False)
    if type(value) is not bool:
        raise CheckpointError(_wrong(config, key, "config.json", "true or false"))
    return value


def _wrong(config: Mapping[str, Any], key: str, place: str, wanted: str) -> str:
    if key not in config:
        return f"Key {key} is missing in the {place}; it must be {wanted}."
    return f"Key {key} is {config[key]!r} in the {place}; it must be {wanted}."

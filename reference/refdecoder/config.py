"""What a checkpoint's config.json says, as one frozen record. What is not understood is refused, never ignored."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CheckpointError

ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
ROPE_FIELDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
ROPE_COMMON = ("rope_theta", "rope_type", "type", "partial_rotary_factor", "original_max_position_embeddings")
GPT2_OFFERED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "quantization_config": None,
}


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
    """Sizes and choices of a llama or phi3 decoder, named as in config.json; D is ``head_dim``, V ``vocab_size``."""

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
    fused: bool = False
    """phi3: the checkpoint holds projections of one input as one tensor. The decoder is llama's."""
    sliding_window: int | None = None
    """phi3: in every layer a position sees its last so many positions, its own among them; None for all of them."""

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> DecoderConfig:
        """Read the content of config.json, and of generation_config.json where there is one.

        Raises:
            CheckpointError: a key is missing or has an unusable value, or asks for what this decoder does not do.
        """
        phi3 = config.get("model_type") == "phi3"
        for key in ("quantization_config", "rope_interleaved", *(() if phi3 else ("sliding_window",))):
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
        return cls(
            vocab_size=_whole(config, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=_whole(config, "intermediate_size"),
            num_hidden_layers=_whole(config, "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=_whole(config, "max_position_embeddings"),
            rms_norm_eps=_number({"rms_norm_eps": 1e-5 if phi3 else 1e-6, **config}, "rms_norm_eps", "config.json"),
            rope=_rope(config),
            hidden_act=_activation(config, "hidden_act", "silu"),
            tie_word_embeddings=_flag(config, "tie_word_embeddings"),
            attention_bias=_flag(config, "attention_bias"),
            mlp_bias=_flag(config, "mlp_bias"),
            eos_token_ids=_eos(config, generation or {}),
            fused=phi3,
            sliding_window=None if config.get("sliding_window") is None else _whole(config, "sliding_window"),
        )


@dataclass(frozen=True)
class GPT2Config:
    """Sizes and choices of a gpt2 decoder, under the names that llama has for them."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    layer_norm_epsilon: float
    hidden_act: str = "gelu_new"
    eos_token_ids: tuple[int, ...] = ()

    @property
    def num_key_value_heads(self) -> int:
        """Each query head has a KV head of its own."""
        return self.num_attention_heads

    @property
    def head_dim(self) -> int:
        """D."""
        return self.hidden_size // self.num_attention_heads

    @property
    def sliding_window(self) -> None:
        """There is no window."""
        return None

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> GPT2Config:
        """Read the content of config.json, and of generation_config.json where there is one.

        Raises:
            CheckpointError: a key is missing or has an unusable value, or asks for what this decoder does not do.
        """
        for key, offered in GPT2_OFFERED.items():
            if config.get(key, offered) != offered:
                raise CheckpointError(f"config.json has {key} = {config[key]!r}, which this decoder does not offer.")
        heads, hidden = _whole(config, "n_head"), _whole(config, "n_embd")
        if hidden % heads:
            raise CheckpointError(f"config.json has n_embd {hidden}, which is no multiple of n_head {heads}.")
        return cls(
            vocab_size=_whole(config, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=4 * hidden if config.get("n_inner") is None else _whole(config, "n_inner"),
            num_hidden_layers=_whole(config, "n_layer"),
            num_attention_heads=heads,
            max_position_embeddings=_whole(config, "n_positions"),
            layer_norm_epsilon=_number({"layer_norm_epsilon": 1e-5, **config}, "layer_norm_epsilon", "config.json"),
            hidden_act=_activation(config, "activation_function", "gelu_new"),
            eos_token_ids=_eos(config, generation or {}),
        )


Config = DecoderConfig | GPT2Config
FAMILIES: dict[str, type[DecoderConfig] | type[GPT2Config]] = {
    "llama": DecoderConfig,
    "phi3": DecoderConfig,
    "gpt2": GPT2Config,
}
"""The families by ``model_type``."""


def config_from_dict(config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> Config:
    """Read the content of config.json of any family; raise CheckpointError for what is not offered."""
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise CheckpointError(
            f"config.json has model_type {family!r}; it may be one of: {', '.join(map(repr, FAMILIES))}."
        )
    return FAMILIES[family].from_dict(config, generation)


def config_from_directory(directory: Path) -> Config:
    """Read config.json and, where it exists, generation_config.json of a checkpoint directory.

    Raises:
        CheckpointError: no config.json, a file that is not a JSON object, or what ``config_from_dict`` refuses.
    """
    generation = directory / "generation_config.json"
    return config_from_dict(
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
    if any(place.get("partial_rotary_factor") not in (None, 1) for place in (scaling, config)):
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


def _activation(config: Mapping[str, Any], key: str, default: str) -> str:
    name = config.get(key, default)
    if name not in ACTIVATIONS:
        raise CheckpointError(f"{key} is {name!r}; it may be one of: {', '.join(ACTIVATIONS)}.")
    return str(name)


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

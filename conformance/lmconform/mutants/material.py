"""The corpus's checkpoints: tiny, loud, of every family, in every spelling of config.json that the reference reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.layout import Checkpoint, GPT2Shape, Shape, phi3_config, tokenizer
from lmconform.checkpoints.phi3 import fused

Config = dict[str, Any]
ABSENT = object()
"""In a change of a config: the key is left out."""
PIECES = ("a", "b", " ", "ab", "ba", "c", "bc", " a", "é", "cab", "x", "y", "z")
"""Text of the ids, of which a checkpoint has the first V: stop strings begin and end inside them."""
LLAMA = Shape(
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    intermediate_size=6,
    vocab_size=11,
    max_position_embeddings=24,
    rms_norm_eps=0.05,
)
GPT2 = GPT2Shape(
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=4,
    intermediate_size=12,
    vocab_size=12,
    max_position_embeddings=20,
    rms_norm_eps=0.05,
    tie_word_embeddings=True,
)
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 30}
LLAMAS: tuple[Config, ...] = (
    {"num_hidden_layers": 2},
    {"rope_parameters": ABSENT, "rope_theta": ABSENT},
    {"num_key_value_heads": 1, "rope_parameters": ABSENT, "rope_theta": 500.0},
    {"num_key_value_heads": ABSENT, "head_dim": ABSENT, "rope_parameters": ABSENT, "rope_theta": 100},
    {"num_key_value_heads": None, "head_dim": None, "rope_parameters": {"rope_theta": 50.0}, "rope_theta": ABSENT},
    {"num_key_value_heads": 4, "head_dim": 2, "rope_scaling": {"rope_type": "default"}, "num_hidden_layers": 2},
    {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 4, "rope_theta": ABSENT},
    {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 10},
    {"rope_parameters": ABSENT, "rope_theta": 300.0, "rope_scaling": {"type": "linear", "factor": 3.0}},
    {"rope_parameters": ABSENT, "rope_theta": 30.0, "rope_scaling": {"rope_type": "linear", "factor": 2}},
    {"rope_parameters": {"rope_type": "linear", "rope_theta": 70.0, "factor": 4.0}, "rope_theta": 70.0},
    {"rope_parameters": {"type": "linear", "factor": 1.5, "rope_theta": 20.0}, "rope_theta": ABSENT},
    {"rope_parameters": {"rope_type": "llama3", "rope_theta": 40.0, **LLAMA3}, "rope_theta": ABSENT},
    {"rope_parameters": ABSENT, "rope_theta": 90.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    {
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 9.0, **LLAMA3, "original_max_position_embeddings": 9},
        "rope_theta": ABSENT,
        "head_dim": 12,
    },
    {
        "rope_parameters": {"rope_type": "linear", "factor": 5.0, "partial_rotary_factor": 1.0},
        "rope_scaling": {"type": "linear", "factor": 5.0},
        "rope_theta": 60.0,
    },
    {"rope_parameters": {}, "rope_scaling": None, "rope_theta": None, "partial_rotary_factor": 1},
    {"tie_word_embeddings": True, "num_hidden_layers": 2},
    {"tie_word_embeddings": ABSENT, "attention_bias": ABSENT, "mlp_bias": ABSENT, "hidden_act": ABSENT},
    {"attention_bias": True},
    {"mlp_bias": True, "tie_word_embeddings": True},
    {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1},
    {"hidden_act": "gelu"},
    {"hidden_act": "gelu_new"},
    {"hidden_act": "gelu_pytorch_tanh"},
    {"hidden_act": "relu"},
    {"rms_norm_eps": 1, "num_hidden_layers": 3},
    {"max_position_embeddings": 9, "eos_token_id": 3},
    {"eos_token_id": [2, 5]},
    {"eos_token_id": 4, "generation": {"eos_token_id": [0, 7]}},
    {"eos_token_id": 6, "generation": {"eos_token_id": None}},
    {"eos_token_id": [1], "generation": None},
    {"quantization_config": None, "rope_interleaved": False, "sliding_window": None, "vocab_size": 2},
)
"""Changes of the llama's config.json; ``generation`` is generation_config.json, None leaves it out."""
PHI3S: tuple[Config, ...] = (
    {},
    {"sliding_window": 1},
    {"sliding_window": 2, "num_key_value_heads": 1},
    {"sliding_window": 3, "head_dim": ABSENT, "num_hidden_layers": 2},
    {"sliding_window": 5, "num_key_value_heads": 4},
    {"sliding_window": ABSENT, "tie_word_embeddings": True, "eos_token_id": 2},
    {
        "rope_parameters": {"rope_type": "default", "rope_theta": 25.0, "original_max_position_embeddings": 24},
        "rope_theta": ABSENT,
    },
)
GPT2S: tuple[Config, ...] = (
    {"eos_token_id": 3},
    {"n_inner": ABSENT, "activation_function": ABSENT, "layer_norm_epsilon": ABSENT},
    {"n_inner": None, "n_head": 1, "activation_function": "gelu"},
    {"n_head": 4, "n_layer": 2, "activation_function": "relu", "reorder_and_upcast_attn": False},
    {"n_positions": 8, "activation_function": "silu", "quantization_config": None, "layer_norm_epsilon": 1},
)


@dataclass(frozen=True)
class Made:
    """A checkpoint of the corpus on disk."""

    path: Path
    family: str
    vocab_size: int
    room: int
    """Most tokens of a sequence."""


def write_all(folder: Path) -> list[Made]:
    """Write all checkpoints into ``folder``, the same each time."""
    configs = [_changed(LLAMA.config(), change) for change in LLAMAS]
    configs += [_changed(phi3_config(LLAMA.config(), None), change) for change in PHI3S]
    configs += [_changed(GPT2.config(), change) for change in GPT2S]
    return [_written(folder / f"{number}", number, config) for number, config in enumerate(configs)]


def _changed(config: Config, change: Config) -> Config:
    """The config with another value for each key of ``change``, without those that are ABSENT."""
    return {key: value for key, value in (config | change).items() if value is not ABSENT}


def _written(path: Path, number: int, config: Config) -> Made:
    generation = config.pop("generation", {})
    family, generator = config["model_type"], np.random.default_rng([2024, number])
    weights = {name: _draw(generator, name, size) for name, size in _sizes(config).items()}
    files = {
        "generation_config.json": generation,
        "tokenizer.json": tokenizer(PIECES[: config["vocab_size"]]) if number % 4 else None,
    }
    weights = fused(weights) if family == "phi3" else weights
    Checkpoint(path.name, config, weights, files=files).write(path)
    room = config.get("n_positions") or config["max_position_embeddings"]
    return Made(path, family, config["vocab_size"], room)


def _sizes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor; of a phi3 those of the llama that it is."""
    if config["model_type"] == "gpt2":
        layers, heads, inner = config["n_layer"], config["n_head"], config.get("n_inner") or 4 * config["n_embd"]
        sizes = {"num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads}
        sizes |= {"head_dim": config["n_embd"] // heads, "intermediate_size": inner}
        return GPT2Shape(**vars(GPT2) | sizes | {"max_position_embeddings": config["n_positions"]}).tensors()
    heads = config["num_attention_heads"]
    given = {key: config[key] for key in vars(LLAMA) if config.get(key) is not None}
    given |= {"num_key_value_heads": config.get("num_key_value_heads") or heads}
    given |= {"head_dim": config.get("head_dim") or config["hidden_size"] // heads}
    given |= {"tie_word_embeddings": bool(config.get("tie_word_embeddings"))}
    found = Shape(**given).tensors()
    for kind, flag in (("self_attn", "attention_bias"), ("mlp", "mlp_bias")):
        biased = [name for name in found if f".{kind}." in name] if config.get(flag) else []
        found |= {name.removesuffix("weight") + "bias": found[name][:1] for name in biased}
    return found


def _draw(generator: np.random.Generator, name: str, size: tuple[int, ...]) -> Array:
    """A tensor of a size that matters: scores spread, and no norm or bias is at its neutral value."""
    drawn = generator.standard_normal(size)
    if name.endswith("bias"):
        drawn *= 0.4
    elif len(size) == 1:
        drawn = 1 + 0.3 * drawn
    elif "embed" not in name and "wte" not in name and "wpe" not in name:
        drawn *= 1.6 / size[-1] ** 0.5
    return np.asarray(drawn, np.float32)

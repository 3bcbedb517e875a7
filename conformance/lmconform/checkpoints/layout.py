"""The llama checkpoint on disk: its shape, its tensors, and the files that engines load.

Weights lie on a grid that bfloat16 and float16 hold exactly, so that an engine of either format computes the very
function that the oracle computes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from lmconform.adapter import Array

FIRST_CHARACTER = 0x4E00  # CJK ideographs: a long run of printable characters, one for each token id
SMALLEST = 2.0**-17  # below it a bfloat16 number is no longer exact in float16


@dataclass(frozen=True)
class Shape:
    """The sizes of a llama decoder. Field names are those of config.json."""

    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 16
    intermediate_size: int = 96
    vocab_size: int = 97
    max_position_embeddings: int = 512
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False

    def config(self) -> dict[str, Any]:
        """config.json, with the rope parameters in the current and in the older spelling."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "dtype": "float32",
            "torch_dtype": "float32",
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
            "use_cache": True,
            **vars(self),
        }

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor; a projection is [out, in]."""
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        for layer in range(self.num_hidden_layers):
            stem = f"model.layers.{layer}."
            found |= {
                stem + "input_layernorm.weight": (hidden,),
                stem + "self_attn.q_proj.weight": (queries, hidden),
                stem + "self_attn.k_proj.weight": (keys, hidden),
                stem + "self_attn.v_proj.weight": (keys, hidden),
                stem + "self_attn.o_proj.weight": (hidden, queries),
                stem + "post_attention_layernorm.weight": (hidden,),
                stem + "mlp.gate_proj.weight": (inner, hidden),
                stem + "mlp.up_proj.weight": (inner, hidden),
                stem + "mlp.down_proj.weight": (hidden, inner),
            }
        found["model.norm.weight"] = (hidden,)
        if not self.tie_word_embeddings:
            found["lm_head.weight"] = (self.vocab_size, hidden)
        return found


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A named decoder: its config.json and its tensors, ready to be written."""

    name: str
    config: Mapping[str, Any]
    weights: Mapping[str, Array]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """What makes this checkpoint again; kept with counterexamples."""

    @cached_property
    def vocab_size(self) -> int:
        return int(self.config["vocab_size"])

    def write(self, directory: Path) -> Path:
        """Write config.json, generation_config.json, tokenizer files and model.safetensors; return the directory."""
        directory.mkdir(parents=True, exist_ok=True)
        special = {name: self.config.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        _write_json(directory / "config.json", self.config)
        _write_json(directory / "generation_config.json", special)
        _write_json(directory / "tokenizer.json", tokenizer(self.vocab_size))
        _write_json(
            directory / "tokenizer_config.json",
            {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False},
        )
        weights = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in self.weights.items()}
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        return directory


def tokenizer(vocab_size: int) -> dict[str, Any]:
    """tokenizer.json in which every id is one printable character and nothing merges."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {character(token): token for token in range(vocab_size)},
            "merges": [],
        },
    }


def character(token: int) -> str:
    """The one printable character that stands for a token.

    The first six are a to f: transformers finds out what a tokenizer does to strings by having it spell "abcdef".
    """
    return "abcdef"[token] if token < 6 else chr(FIRST_CHARACTER + token)


def on_grid(values: Array) -> Array:
    """The nearest values that bfloat16 and float16 both hold exactly, as float32."""
    rounded = np.asarray(values, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)
    return np.where(np.abs(rounded) < SMALLEST, np.float32(0), rounded)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

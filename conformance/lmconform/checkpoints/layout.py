"""The checkpoint on disk: its shape, its tensors by family, and the files that engines load.

Weights lie on a grid that bfloat16 and float16 hold exactly, so that an engine of either format computes the very
function that the oracle computes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from lmconform.adapter import Array

FIRST_CHARACTER = 0x4E00  # CJK ideographs: a long run of printable characters, one for each token id
MORE_CHARACTERS = 0x20000  # a second, longer run of them
IN_FIRST_RUN = 0x9FFF - FIRST_CHARACTER  # ids from here on have their character in the second
SMALLEST = 2.0**-17  # below it a bfloat16 number is no longer exact in float16

StoredDType = Literal["float32", "float16", "bfloat16"]
"""Number formats in which a checkpoint can be stored."""


class CannotWrite(ValueError):
    """This file format, or this number format, cannot hold the checkpoint."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a llama decoder. Field names are those of its config.json."""

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

    family: ClassVar[str] = "llama"
    """``model_type`` of config.json."""

    def config(self) -> dict[str, Any]:
        """config.json, with the rope parameters in the current and in the older spelling."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": self.family,
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


@dataclass(frozen=True)
class Phi3Shape(Shape):
    """The sizes of a phi3 decoder: a llama whose projections of one input are stored as one matrix."""

    sliding_window: int | None = None
    """How many positions a position sees, its own among them; None for all up to its own."""

    family = "phi3"

    def config(self) -> dict[str, Any]:
        """config.json; the fields are llama's, and those that name a window."""
        return phi3_config(super().config(), self.sliding_window)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor; a projection is [out, in], queries before keys before values."""
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        found: dict[str, tuple[int, ...]] = {}
        for name, shape in super().tensors().items():
            if "q_proj" in name:
                found[name.replace("q_proj", "qkv_proj")] = (queries + 2 * keys, self.hidden_size)
            elif "gate_proj" in name:
                found[name.replace("gate_proj", "gate_up_proj")] = (2 * self.intermediate_size, self.hidden_size)
            elif not any(part in name for part in ("k_proj", "v_proj", "up_proj")):
                found[name] = shape
        return found


def phi3_config(llama: Mapping[str, Any], window: int | None) -> dict[str, Any]:
    """config.json of a phi3, from that of a llama. Fields whose default is an id of another vocabulary stay null."""
    return {
        **llama,
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "sliding_window": window,
        "original_max_position_embeddings": llama["max_position_embeddings"],
    }


class GPT2Shape(Shape):
    """The sizes of a gpt2 decoder: D = hidden_size / H, H_kv = H, and the head is the embedding."""

    family = "gpt2"

    def __post_init__(self) -> None:
        heads, width = self.num_attention_heads, self.head_dim
        if heads * width != self.hidden_size or self.num_key_value_heads != heads or not self.tie_word_embeddings:
            raise ValueError(f"gpt2 needs H·D = hidden_size, H_kv = H and a tied head; got {self}.")

    def config(self) -> dict[str, Any]:
        """config.json. Dropout is 0, for engines that would train."""
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": self.family,
            "vocab_size": self.vocab_size,
            "n_embd": self.hidden_size,
            "n_layer": self.num_hidden_layers,
            "n_head": self.num_attention_heads,
            "n_positions": self.max_position_embeddings,
            "n_ctx": self.max_position_embeddings,
            "n_inner": self.intermediate_size,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": self.rms_norm_eps,
            "scale_attn_weights": True,
            "tie_word_embeddings": True,
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "dtype": "float32",
            "torch_dtype": "float32",
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
            "use_cache": True,
        }

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor; a projection is [in, out]."""
        hidden, inner = self.hidden_size, self.intermediate_size
        layer = {
            "ln_1": (hidden,),
            "attn.c_attn": (hidden, 3 * hidden),
            "attn.c_proj": (hidden, hidden),
            "ln_2": (hidden,),
            "mlp.c_fc": (hidden, inner),
            "mlp.c_proj": (inner, hidden),
        }
        found: dict[str, tuple[int, ...]] = {
            "transformer.wte.weight": (self.vocab_size, hidden),
            "transformer.wpe.weight": (self.max_position_embeddings, hidden),
        }
        for number in range(self.num_hidden_layers):
            for name, shape in layer.items():
                found[f"transformer.h.{number}.{name}.weight"] = shape
                found[f"transformer.h.{number}.{name}.bias"] = shape[-1:]
        return found | {"transformer.ln_f.weight": (hidden,), "transformer.ln_f.bias": (hidden,)}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A named decoder: its config.json and its tensors, ready to be written."""

    name: str
    config: Mapping[str, Any]
    weights: Mapping[str, Array]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """What makes this checkpoint again; kept with counterexamples."""
    files: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    """By name of a JSON file: what it holds besides, or instead of, the usual; None leaves the file out."""

    @cached_property
    def vocab_size(self) -> int:
        return int(self.config["vocab_size"])

    def write(self, directory: Path, dtype: StoredDType = "float32") -> Path:
        """Write config.json, generation_config.json, tokenizer files and model.safetensors; return the directory.

        Raises CannotWrite if a tensor is not exact in ``dtype``.
        """
        tensors = self.tensors(dtype)
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self.documents(dtype).items():
            _write_json(directory / name, content)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return directory

    def tensors(self, dtype: StoredDType = "float32") -> dict[str, Array]:
        """All tensors in ``dtype``. Raises CannotWrite for one that is not exact in it."""
        return {name: _exactly(name, value, dtype) for name, value in self.weights.items()}

    def documents(self, dtype: StoredDType = "float32") -> dict[str, dict[str, Any]]:
        """By name, the JSON files that go with tensors in ``dtype``."""
        special = {name: self.config.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        usual: dict[str, Mapping[str, Any]] = {
            "config.json": {**self.config, "dtype": dtype, "torch_dtype": dtype},
            "generation_config.json": special,
            "tokenizer.json": tokenizer([character(token) for token in range(self.vocab_size)]),
            "tokenizer_config.json": {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "clean_up_tokenization_spaces": False,
            },
        }
        changes = {name: self.files.get(name, {}) for name in usual}
        return {name: {**usual[name], **change} for name, change in changes.items() if change is not None}


def tokenizer(pieces: Sequence[str]) -> dict[str, Any]:
    """tokenizer.json in which ``pieces[id]`` is the text of an id and nothing merges; no two may be equal."""
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
            "vocab": {piece: token for token, piece in enumerate(pieces)},
            "merges": [],
        },
    }


def character(token: int) -> str:
    """The one printable character that stands for a token.

    The first six are a to f: transformers finds out what a tokenizer does to strings by having it spell "abcdef".
    """
    if token < 6:
        return "abcdef"[token]
    return chr(FIRST_CHARACTER + token if token < IN_FIRST_RUN else MORE_CHARACTERS + token - IN_FIRST_RUN)


def on_grid(values: Array) -> Array:
    """The nearest values that bfloat16 and float16 both hold exactly, as float32."""
    rounded = np.asarray(values, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)
    return np.where(np.abs(rounded) < SMALLEST, np.float32(0), rounded)


def _exactly(name: str, value: Array, dtype: StoredDType) -> Array:
    """``value`` as a contiguous array of ``dtype``; raises CannotWrite where a number would change."""
    if dtype not in get_args(StoredDType):
        raise ValueError(f"The number format is {dtype!r}; it may be one of: {', '.join(get_args(StoredDType))}.")
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(value, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    changed = np.argwhere((stored.astype(np.float64) != value) & ~np.isnan(value))
    if len(changed):
        place = tuple(changed[0].tolist())
        raise CannotWrite(
            f"Tensor {name} is not exact in {dtype}: its element {list(place)} is {float(value[place])!r}, and the "
            f"nearest number is {float(stored[place])!r}."
        )
    return stored


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

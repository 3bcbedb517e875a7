"""An engine that loads GGUF files: read by the package gguf, computed by the reference."""

import codecs
import re
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch

from lmconform.adapter import Refused
from lmconform.checkpoints.byte_level import byte_tokenizer
from lmconform.checkpoints.layout import Checkpoint
from lmconform.engines.reference import Reference
from refdecoder import Attention

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
SIZES = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
}

DIVISORS = "rope_freqs.weight"


def fields(path):
    """The metadata of a GGUF file: strings, numbers and lists by key."""
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def stored(path):
    """By name, each tensor of a GGUF file as stored, and its format."""
    return {one.name: (one.data, one.tensor_type.name) for one in gguf.GGUFReader(path).tensors}


def read(path, turned=True):
    """A GGUF file as a checkpoint; unless ``turned``, rows of W_q and W_k stay in the order of the file."""
    known = fields(path)
    config = {ours: known[f"llama.{theirs}"] for theirs, ours in SIZES.items()}
    rope = {"rope_theta": known["llama.rope.freq_base"], "rope_type": "default"}
    if known.get("llama.rope.scaling.type") == "linear":
        rope |= {"rope_type": "linear", "factor": known["llama.rope.scaling.factor"]}
    eos = [known[key] for kind in ("eos", "eot", "eom") if (key := f"tokenizer.ggml.{kind}_token_id") in known]
    weights = {}
    for one in gguf.GGUFReader(path).tensors:
        if one.name == DIVISORS:  # for the engine
            continue
        _, layer, kind = re.fullmatch(r"(blk\.(\d+)\.)?(\w+)\.weight", one.name).groups()
        value = gguf.quants.dequantize(one.data, one.tensor_type)
        if turned and kind in ("attn_q", "attn_k"):
            places = np.arange(len(value)).reshape(-1, config["head_dim"])  # [H, D]
            value = value[np.concatenate([places[:, ::2], places[:, 1::2]], axis=1).ravel()]
        weights[f"{f'model.layers.{layer}.' if layer else ''}{NAMES[kind]}.weight"] = value
    config |= {"model_type": "llama", "rope_parameters": rope, "eos_token_id": eos or None}
    config |= {"rms_norm_eps": known["llama.attention.layer_norm_rms_epsilon"]}
    config |= {"tie_word_embeddings": "lm_head.weight" not in weights}
    pieces = [codecs.escape_decode(piece.encode())[0] for piece in known["tokenizer.ggml.tokens"]]
    return Checkpoint(path.stem, config, weights, files={"tokenizer.json": byte_tokenizer(pieces)})


class Divided(Attention):
    """Turns by the frequencies of the file, divided by what the file says."""

    divisors: np.ndarray | None = None

    def forward(self, x, positions, cos, sin, cache):
        if self.divisors is not None:
            size = self.config.head_dim
            frequency = self.config.rope.theta ** (-torch.arange(0, size, 2) / size) / torch.tensor(self.divisors)
            angle = positions.clamp(min=0)[:, :, None, None] * frequency  # [B, T, 1, D/2]
            cos, sin = angle.cos(), angle.sin()
        return super().forward(x, positions, cos, sin, cache)


class FromGGUF(Reference):
    name = "gguf-reader"
    format = "gguf"
    turned = True

    def load(self, checkpoint, needs):
        if not (checkpoint.is_file() and checkpoint.suffix == ".gguf"):
            raise Refused(f"{checkpoint.name} is no GGUF file.")
        divisors, _ = stored(checkpoint).get(DIVISORS, (None, None))
        self.attention_class = type("Attention", (Divided,), {"divisors": divisors})
        with tempfile.TemporaryDirectory() as folder:
            return super().load(read(checkpoint, self.turned).write(Path(folder)), needs)


class LeavesRowsAsTheyAre(FromGGUF):
    """Takes the rows of W_q and W_k for those of a Hugging Face checkpoint."""

    turned = False

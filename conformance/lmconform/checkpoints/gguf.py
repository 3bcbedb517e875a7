"""A llama checkpoint as one GGUF file, which is what llama.cpp and its relatives load.

GGUF's architecture ``llama`` has pairs of RoPE side by side, so the rows of W_q and W_k are put in that order. Scaling
of the type ``llama3`` is a tensor of its own, ``rope_freqs.weight``: what each pair's frequency is divided by.

The tokenizer is of the kind ``rwkv``, a list of byte strings of which the longest that fits is taken, with the same
piece for each id as in tokenizer.json. It alone lets a file name no EOS id: in llama.cpp the kinds ``llama`` and
``gpt2`` make ids 2 and 11 one where the file names none, and the kind ``none`` ends in a failed assertion as soon as
the text of a token is asked for. Bytes that are no whole character are escaped, as the kind has it. Byte tokens are not
added to the pieces, since an id stands for the same bytes in both formats; text of other characters than the pieces
cannot be tokenized.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.byte_level import pieces_of
from lmconform.checkpoints.layout import CannotWrite, Checkpoint, StoredDType
from lmconform.spec.decoder import Config, read_config
from lmconform.spec.rope import rope_frequencies

SUFFIX = ".gguf"
FILE_TYPES: dict[StoredDType, int] = {"float32": 0, "float16": 1, "bfloat16": 32}
"""``general.file_type``: the format of most tensors."""
EOG_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
"""Fields of the tokenizer that name one id each, at which generation ends."""
OF_MODEL = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
OF_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


class MissingPackage(ValueError):
    """The package ``gguf`` is not installed."""


def gguf_package() -> Any:
    """The module ``gguf``. Raises MissingPackage if it is not installed, or cannot be imported."""
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise MissingPackage(
            f"Writing a GGUF file needs the package gguf, which cannot be imported here ({error}). Install the extra: "
            'python -m pip install "lmconform[gguf]"'
        ) from error


def write_gguf(checkpoint: Checkpoint, path: Path, dtype: StoredDType = "float32") -> Path:
    """Write one GGUF file and return its path. Matrices are stored in ``dtype``, vectors always in float32.

    EOS ids are those of generation_config.json, or of config.json where that names none.

    Raises:
        CannotWrite: the decoder is none of GGUF's architecture llama, or a tensor is not exact in ``dtype``.
        MissingPackage: the package ``gguf`` is not installed.
    """
    gguf = gguf_package()
    documents = checkpoint.documents(dtype)
    config = _config(documents["config.json"])
    tensors = {_name(name): value for name, value in _arranged(checkpoint.tensors(dtype), config).items()}
    if config.rope["rope_type"] == "llama3":
        tensors["rope_freqs.weight"] = _divisors(config)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(checkpoint.name)
    writer.add_file_type(FILE_TYPES[dtype])
    _add_sizes(writer, gguf, config, documents["config.json"].get("max_position_embeddings"))
    _add_tokenizer(writer, documents)
    for name, value in tensors.items():
        _add_tensor(writer, gguf, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _config(fields: Mapping[str, Any]) -> Config:
    """What config.json says. Raises CannotWrite for what the architecture llama has no field for."""
    family = fields.get("model_type")
    if family != "llama":
        raise CannotWrite(f"A {family} checkpoint is not written as GGUF: only the family llama is.")
    try:
        # Whether H_kv divides H_q is for the engine to check.
        config = read_config({**fields, "num_key_value_heads": 1})
    except ValueError as error:
        raise CannotWrite(f"This checkpoint is not written as GGUF: {error}") from error
    assert isinstance(config, Config)
    if config.hidden_act != "silu":
        raise CannotWrite(
            f"GGUF cannot say hidden_act = {config.hidden_act!r}: its architecture llama has no such field and always "
            "means SiLU."
        )
    return replace(config, num_key_value_heads=fields.get("num_key_value_heads") or config.num_attention_heads)


def _arranged(weights: Mapping[str, Array], config: Config) -> dict[str, Array]:
    """The tensors with pairs of RoPE side by side, and without a stored copy of a tied head."""
    found = {}
    for name, value in weights.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        turned = name.endswith(("q_proj.weight", "k_proj.weight"))
        found[name] = _side_by_side(value, config.head_dim) if turned else value
    return found


def _side_by_side(rows: Array, D: int) -> Array:
    """Rows of heads, [H * D, hidden_size], with row i of each head at 2i and row i + D/2 at 2i + 1."""
    halves = rows.reshape(-1, 2, D // 2, rows.shape[1])  # [H * D, hidden] -> [H, 2, D/2, hidden]
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)  # [H, D/2, 2, hidden] -> [H * D, hidden]


def _divisors(config: Config) -> Array:
    """What the frequency of each pair is divided by, [D/2] in float32."""
    plain = {"rope_theta": config.rope["rope_theta"], "rope_type": "default"}
    asked = rope_frequencies(config.head_dim, config.rope)
    return (rope_frequencies(config.head_dim, plain) / asked).astype(np.float32)


def _name(name: str) -> str:
    """GGUF's name of a tensor. Raises CannotWrite for one that the architecture llama does not have."""
    stem, _, part = name.rpartition(".")
    if part == "weight" and stem in OF_MODEL:
        return f"{OF_MODEL[stem]}.weight"
    layer, _, kind = stem.removeprefix("model.layers.").partition(".")
    if part != "weight" or kind not in OF_LAYER:
        raise CannotWrite(f"GGUF's architecture llama has no tensor for {name}.")
    return f"blk.{layer}.{OF_LAYER[kind]}.weight"


def _add_sizes(writer: Any, gguf: Any, config: Config, context: int | None) -> None:
    if context is None:
        raise CannotWrite("GGUF needs a context length, and config.json does not say max_position_embeddings.")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)  # else it would be hidden_size / H_q
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope["rope_theta"])
    if config.rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope["factor"])


def _add_tokenizer(writer: Any, documents: Mapping[str, Mapping[str, Any]]) -> None:
    """The pieces of tokenizer.json, and the special ids."""
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list([_escaped(piece) for piece in pieces_of(documents["tokenizer.json"])])
    writer.add_add_bos_token(False)
    config, generation = documents["config.json"], documents.get("generation_config.json", {})
    if (bos := config.get("bos_token_id")) is not None:
        writer.add_bos_token_id(bos)
    eos = next((ids for ids in (_ids(generation), _ids(config)) if ids), [])
    if len(eos) > len(EOG_KEYS):
        raise CannotWrite(f"GGUF can name {len(EOG_KEYS)} ids at which generation ends; the checkpoint has {len(eos)}.")
    for key, token in zip(EOG_KEYS, eos, strict=False):
        writer.add_uint32(f"tokenizer.ggml.{key}", token)


def _escaped(piece: bytes) -> str:
    """The piece as the kind spells it: a byte that belongs to no whole character is ``\\x`` and two digits."""
    return piece.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def _ids(document: Mapping[str, Any]) -> list[int]:
    """The EOS ids that a file names: none, one, or a list."""
    named = document.get("eos_token_id")
    return [] if named is None else named if isinstance(named, list) else [named]


def _add_tensor(writer: Any, gguf: Any, name: str, value: Array) -> None:
    if value.ndim == 1:
        writer.add_tensor(name, value.astype(np.float32))
    elif value.dtype in (np.float32, np.float16):
        writer.add_tensor(name, value)
    else:  # the writer knows bfloat16 by its bytes alone
        writer.add_tensor(name, value.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)

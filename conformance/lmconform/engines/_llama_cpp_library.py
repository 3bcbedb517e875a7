"""llama.cpp's C interface, the calls of ``llama.h`` that the adapter makes, through ctypes.

The package xllamacpp offers llama.cpp's server alone, but its extension module exports the C functions too. They take
two structures by value, and ``llama.h`` promises no layout for them. They are declared here as they were in build
11549; a build whose default values do not stand where they stood then is refused when this module is imported.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import xllamacpp.xllamacpp as extension

from lmconform.adapter import Array, Refused

WORST_LINES = 3
"""Lines of llama.cpp's log that a refusal quotes."""
ERROR_LEVEL = 4
"""``GGML_LOG_LEVEL_ERROR``."""
ERRORS_ONLY = 1
"""The verbosity of llama.cpp's programs at which they log errors alone."""
SPARE = 256
"""Bytes behind the last known field, for builds that have more of them."""


class ModelParams(Structure):
    """``llama_model_params``; used with its defaults."""

    _fields_ = (
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("load_mode", c_int32),
        ("spare", c_int8 * SPARE),
    )


class ContextParams(Structure):
    """``llama_context_params``."""

    _fields_ = (
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int32),
        ("rope_scaling_type", c_int32),
        ("pooling_type", c_int32),
        ("attention_type", c_int32),
        ("flash_attn_type", c_int32),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int32),
        ("type_v", c_int32),
        ("moe_cache_size", c_size_t),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
        ("spare", c_int8 * SPARE),
    )


class Batch(Structure):
    """``llama_batch``."""

    _fields_ = (
        ("n_tokens", c_int32),
        ("token", c_void_p),
        ("embd", c_void_p),
        ("pos", c_void_p),
        ("n_seq_id", c_void_p),
        ("seq_id", c_void_p),
        ("logits", c_void_p),
    )


MODEL_DEFAULTS = {"n_gpu_layers": -1, "split_mode": 1, "load_mode": -1}
CONTEXT_DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_outputs_max_per_seq": 1,
    "rope_scaling_type": -1,
    "pooling_type": -1,
    "attention_type": -1,
    "flash_attn_type": -1,
    "yarn_ext_factor": -1.0,
    "defrag_thold": -1.0,
    "cb_eval": None,
    "type_k": 1,
    "type_v": 1,
    "moe_cache_size": 0,
    "abort_callback": None,
    "embeddings": False,
    "offload_kqv": True,
    "no_perf": True,
    "op_offload": True,
    "swa_full": True,
    "kv_unified": False,
    "samplers": None,
    "n_samplers": 0,
}
LOG_CALLBACK = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)
SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (LOG_CALLBACK, c_void_p)),
    "llama_model_default_params": (ModelParams, ()),
    "llama_context_default_params": (ContextParams, ()),
    "llama_model_load_from_file": (c_void_p, (c_char_p, ModelParams)),
    "llama_model_free": (None, (c_void_p,)),
    "llama_model_n_ctx_train": (c_int32, (c_void_p,)),
    "llama_model_get_vocab": (c_void_p, (c_void_p,)),
    "llama_vocab_n_tokens": (c_int32, (c_void_p,)),
    "llama_vocab_is_eog": (c_bool, (c_void_p, c_int32)),
    "llama_init_from_model": (c_void_p, (c_void_p, ContextParams)),
    "llama_free": (None, (c_void_p,)),
    "llama_n_ctx_seq": (c_uint32, (c_void_p,)),
    "llama_n_batch": (c_uint32, (c_void_p,)),
    "llama_get_memory": (c_void_p, (c_void_p,)),
    "llama_memory_clear": (None, (c_void_p, c_bool)),
    "llama_memory_seq_rm": (c_bool, (c_void_p, c_int32, c_int32, c_int32)),
    "llama_memory_seq_cp": (None, (c_void_p, c_int32, c_int32, c_int32, c_int32)),
    # Methods of the class that llama_get_memory returns for the family llama; their first argument is the object.
    "_ZNK14llama_kv_cache12size_k_bytesEv": (c_size_t, (c_void_p,)),
    "_ZNK14llama_kv_cache12size_v_bytesEv": (c_size_t, (c_void_p,)),
    # Of llama.cpp's own programs: what writes their log to stderr, and from which level on.
    "_Z27common_log_default_callback14ggml_log_levelPKcPv": (None, (c_int32, c_char_p, c_void_p)),
    "_Z30common_log_set_verbosity_tholdi": (None, (c_int32,)),
    "llama_decode": (c_int32, (c_void_p, Batch)),
    "llama_get_logits": (POINTER(c_float), (c_void_p,)),
}


def _library() -> Any:
    """The extension module as a C library, its layout checked."""
    library = ctypes.CDLL(extension.__file__)
    try:
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError as error:
        raise ImportError(
            f"This build of xllamacpp does not export what the adapter calls ({error}). Install the version that "
            "engines/requirements/llama-cpp.txt names."
        ) from error
    for what, params, wanted in (
        ("llama_model_params", library.llama_model_default_params(), MODEL_DEFAULTS),
        ("llama_context_params", library.llama_context_default_params(), CONTEXT_DEFAULTS),
    ):
        found = {name: getattr(params, name) for name in wanted}
        if odd := {name: value for name, value in found.items() if value != wanted[name]}:
            raise ImportError(
                f"llama.cpp's {what} has another layout, or other defaults, than in build 11549: {odd}. Install the "
                "version that engines/requirements/llama-cpp.txt names."
            )
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # a failed assertion would start a debugger before it is told
    library._Z30common_log_set_verbosity_tholdi(ERRORS_ONLY)
    library.llama_backend_init()
    return library


LIB = _library()
TO_STDERR = ctypes.cast(LIB._Z27common_log_default_callback14ggml_log_levelPKcPv, LOG_CALLBACK)


@contextmanager
def log() -> Iterator[list[tuple[int, str]]]:
    """Collect the level and the text of what llama.cpp logs meanwhile. Afterwards its errors go to stderr.

    The server's threads log too, so that no Python may be called for it while one runs a request.
    """
    lines: list[tuple[int, str]] = []

    @LOG_CALLBACK
    def keep(level: int, text: bytes, _: Any) -> None:
        lines.append((level, text.decode(errors="replace")))

    LIB.llama_log_set(keep, None)
    try:
        yield lines
    finally:
        LIB.llama_log_set(TO_STDERR, None)


def reason(lines: Sequence[tuple[int, str]]) -> str:
    """The last errors of a log, as one line."""
    errors = [text.strip() for level, text in lines if level == ERROR_LEVEL]
    return "; ".join(errors[-WORST_LINES:]) or "its log names no error"


@dataclass(frozen=True)
class Run:
    """Tokens that are appended to a sequence of a context."""

    sequence: int
    start: int
    tokens: Sequence[int]


class Weights:
    """A loaded GGUF file. Raises Refused where llama.cpp does not load it."""

    def __init__(self, path: Path) -> None:
        with log() as lines:
            self.handle = LIB.llama_model_load_from_file(str(path).encode(), LIB.llama_model_default_params())
        if not self.handle:
            raise Refused(f"llama.cpp does not load {path.name}: {reason(lines)}.")
        vocabulary = LIB.llama_model_get_vocab(self.handle)
        self.vocab_size: int = LIB.llama_vocab_n_tokens(vocabulary)
        self.trained_length: int = LIB.llama_model_n_ctx_train(self.handle)
        self.eog = [token for token in range(self.vocab_size) if LIB.llama_vocab_is_eog(vocabulary, token)]

    def close(self) -> None:
        """Release the weights. Contexts must be closed before."""
        LIB.llama_model_free(self.handle)


class Context:
    """A ``llama_context``: its KV cache, with room for several sequences, and its batches."""

    def __init__(self, weights: Weights, **settings: Any) -> None:
        params = LIB.llama_context_default_params()
        for name, value in settings.items():
            setattr(params, name, value)
        with log() as lines:
            self.handle = LIB.llama_init_from_model(weights.handle, params)
        if not self.handle:
            raise Refused(f"llama.cpp makes no context: {reason(lines)}.")
        self.vocab_size = weights.vocab_size
        self.length: int = LIB.llama_n_ctx_seq(self.handle)
        self.n_batch: int = LIB.llama_n_batch(self.handle)
        self.memory = LIB.llama_get_memory(self.handle)

    def append(self, runs: Sequence[Run]) -> list[Array]:
        """Decode the runs as one batch, cut where it exceeds ``n_batch``, and return the logits of each, [n, V].

        Raises Refused, and takes back what it appended, where the cache has no room.
        """
        tokens = np.array([token for run in runs for token in run.tokens], np.int32)
        positions = np.array([run.start + i for run in runs for i in range(len(run.tokens))], np.int32)
        sequences = np.array([run.sequence for run in runs for _ in run.tokens], np.int32)
        logits = np.empty((len(tokens), self.vocab_size), np.float32)
        for start in range(0, len(tokens), self.n_batch):
            part = slice(start, start + self.n_batch)
            status = self._decode(tokens[part], positions[part], sequences[part])
            if status != 0:
                for run in runs:
                    self.remove(run.sequence, run.start)
                raise _failure(status)
            count = len(tokens[part])
            logits[part] = np.ctypeslib.as_array(LIB.llama_get_logits(self.handle), (count, self.vocab_size))
        return np.split(logits, list(accumulate(len(run.tokens) for run in runs))[:-1])

    def remove(self, sequence: int, start: int) -> bool:
        """Forget a sequence's tokens from ``start`` on; false where the memory cannot."""
        done: bool = LIB.llama_memory_seq_rm(self.memory, sequence, start, -1)
        return done

    def copy(self, source: int, target: int) -> None:
        """Let the empty sequence ``target`` hold what ``source`` holds."""
        LIB.llama_memory_seq_cp(self.memory, source, target, -1, -1)

    def cache_bytes(self) -> int:
        """Bytes of the tensors of keys and values, of all sequences together."""
        keys: int = LIB._ZNK14llama_kv_cache12size_k_bytesEv(self.memory)
        values: int = LIB._ZNK14llama_kv_cache12size_v_bytesEv(self.memory)
        return keys + values

    def clear(self) -> None:
        """Forget all sequences."""
        LIB.llama_memory_clear(self.memory, True)

    def close(self) -> None:
        """Release the cache."""
        LIB.llama_free(self.handle)

    def _decode(self, tokens: Array, positions: Array, sequences: Array) -> int:
        count = len(tokens)
        ones = np.ones(count, np.int32)
        wanted = np.ones(count, np.int8)  # logits of every token
        places = sequences.ctypes.data + np.arange(count, dtype=np.uintp) * sequences.itemsize  # a list of one id each
        pointers = (array.ctypes.data for array in (tokens, positions, ones, places, wanted))
        token, pos, n_seq_id, seq_id, logits = pointers
        status: int = LIB.llama_decode(self.handle, Batch(count, token, None, pos, n_seq_id, seq_id, logits))
        return status


def _failure(status: int) -> Exception:
    """What ``llama_decode`` says by its return value."""
    if status == 1:
        return Refused("The KV cache has no room for so many tokens beside those of the other sequences.")
    return RuntimeError(f"llama_decode returned {status}")

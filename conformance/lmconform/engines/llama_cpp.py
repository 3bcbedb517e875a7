"""llama.cpp, through the package xllamacpp: scores and sessions by its C interface, ``generate`` by its server.

Scores are the logits of ``llama_decode``; a session is a sequence of a ``llama_context``, cut by
``llama_memory_seq_rm`` and copied by ``llama_memory_seq_cp``. Completions come from llama.cpp's own server, which runs
in this process and listens on the loopback interface; see ``_llama_cpp_server``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from lmconform.adapter import (
    Array,
    Choices,
    Completion,
    DType,
    Engine,
    Model,
    Needs,
    NotOffered,
    Precision,
    Refused,
    Request,
    Session,
)
from lmconform.engines._llama_cpp_library import Context, Run, Weights
from lmconform.engines._llama_cpp_server import CompletionServer
from lmconform.engines.common import check_tokens, choose, regime_settings, whole_number

CACHE_TYPES: dict[DType, int] = {"float32": 0, "float16": 1, "q8_0": 8, "bfloat16": 30}
"""``ggml_type`` of cached keys and values."""
FLASH = {"off": 0, "on": 1}
"""``llama_flash_attn_type``."""
OPERANDS: dict[DType, DType] = {
    "float32": "float32",
    "float16": "tf32",
    "bfloat16": "bfloat16",
    "q8_0": "bfloat16",
}
"""By the format of a matrix, or of the cache: what a product with it rounds its other operand to. ggml gives every
result in float32, but multiplies in the format of what is stored: a float16 cache makes it round queries and attention
weights to float16 too. tf32 has as many bits, in operands alone; bfloat16 stands for the 8 bits of q8_0."""
COARSER = ("float32", "tf32", "bfloat16")
ROUNDED_LENGTH = 256
"""Where each sequence has a buffer of its own, llama.cpp makes its length a multiple of this."""
SMALL_UBATCH = 4
FEW_SLOTS = 2


@dataclass(frozen=True)
class Settings:
    """How one checkpoint is run."""

    cache: DType
    flash_attention: Literal["on", "off"]
    batch: int
    ubatch: int
    threads: int
    unified: bool = True
    prefix_cache: bool = False
    slots: int | None = None

    @property
    def cache_type(self) -> int:
        """The ``ggml_type`` of the cache."""
        return CACHE_TYPES[self.cache]

    @property
    def flash(self) -> int:
        """The ``llama_flash_attn_type``."""
        return FLASH[self.flash_attention]

    def room(self, tokens: int) -> int:
        """How many tokens a sequence may hold where so many are needed."""
        return tokens if self.unified else -(-tokens // ROUNDED_LENGTH) * ROUNDED_LENGTH

    def context(self, sequences: int, tokens: int) -> dict[str, Any]:
        """Fields of ``llama_context_params``, with room for so many sequences of so many tokens."""
        return {
            "n_ctx": sequences * self.room(tokens),
            "n_batch": self.batch,
            "n_ubatch": self.ubatch,
            "n_seq_max": sequences,
            "n_outputs_max_per_seq": self.batch,
            "n_threads": self.threads,
            "n_threads_batch": self.threads,
            "flash_attn_type": self.flash,
            "type_k": self.cache_type,
            "type_v": self.cache_type,
            "kv_unified": self.unified,
        }


class LlamaCpp(Engine):
    """llama.cpp on CPU.

    Options: ``dtype`` (float32, float16, bfloat16), the format of the matrices in the GGUF file; ``cache`` (float32,
    float16, bfloat16, q8_0), of keys and values, where llama.cpp's own default is float16; ``flash_attention`` (off,
    on), whose default in llama.cpp is to decide by itself; ``batch`` and ``ubatch`` (tokens), ``threads``. A value that
    is not legal raises ValueError.
    """

    name = "llama.cpp"
    version = f"xllamacpp {version('xllamacpp')}"
    format = "gguf"
    choices = Choices(
        scores="logits",
        logprobs="raw",
        ties="first",  # llama_sampler_temp_impl keeps the first of equal logits, in the order of the ids
        sampler_order=("top_k", "top_p", "min_p", "temperature"),
        temperature_zero="greedy",
        stop_token="returned",
        stop_text="dropped",
        eos_files=("generation_config.json", "config.json"),  # what the suite writes into the GGUF file
        long_prompt="refused",
        long_continuation="stops",
        empty_prompt="refused",
    )

    def __init__(
        self,
        dtype: str = "float32",
        cache: str = "float32",
        flash_attention: str = "off",
        batch: str = "512",
        ubatch: str = "512",
        threads: str = "1",
    ) -> None:
        number: Any = choose("dtype", dtype, ("float32", "float16", "bfloat16"))
        stored: Any = choose("cache", cache, CACHE_TYPES)
        flash: Any = choose("flash_attention", flash_attention, FLASH)
        if stored == "q8_0" and flash == "off":
            raise ValueError("Option cache=q8_0 needs flash_attention=on: llama.cpp quantizes values only with it.")
        # Flash attention casts a float32 cache to float16 before it multiplies (llm_graph_context::build_attn_mha).
        held: DType = "float16" if flash == "on" and stored == "float32" else stored
        compute = max(OPERANDS[number], OPERANDS[held], key=COARSER.index)
        self.precision = Precision(weights=number, compute=compute, kv_cache=held)
        self.settings = Settings(
            cache=stored,
            flash_attention=flash,
            batch=whole_number("batch", batch),
            ubatch=whole_number("ubatch", ubatch),
            threads=whole_number("threads", threads),
        )
        self.server: CompletionServer | None = None

    def accepts(self, config: Mapping[str, Any]) -> str | None:
        """Return why this config.json cannot be loaded: GGUF files are written of the family llama alone."""
        family = config.get("model_type")
        return None if family == "llama" else f"checkpoints of the family {family} are not written as GGUF."

    def regimes(self) -> Mapping[str, Mapping[str, Any]]:
        """Chunked prefill, a KV buffer for each sequence instead of one for all, with 16-bit caches the other attention
        kernel; in ``generate`` also a prefix cache, and more requests than slots."""
        flash = "off" if self.settings.flash_attention == "on" else "on"
        found: dict[str, dict[str, Any]] = {
            "small-ubatch": {"ubatch": SMALL_UBATCH},
            "split-kv": {"unified": False},
            "prefix-cache": {"prefix_cache": True},
            "few-slots": {"slots": FEW_SLOTS},
        }
        if self.settings.cache in ("float16", "bfloat16"):  # the kernels agree on what they read
            found[f"flash-attention-{flash}"] = {"flash_attention": flash}
        return found

    def load(self, checkpoint: Path, needs: Needs) -> Model:
        """Load a GGUF file. Refuses what llama.cpp does not load, with the errors of its log."""
        settings = replace(self.settings, **regime_settings(self.regimes(), needs))
        return LlamaModel(self, Path(checkpoint), settings, needs)

    def close(self) -> None:
        """End the server, if one runs."""
        if self.server is not None:
            self.server.close()
            self.server = None


class LlamaModel(Model):
    """A GGUF file that llama.cpp has loaded, with a context for scores, and one for sessions once one is opened."""

    def __init__(self, engine: LlamaCpp, path: Path, settings: Settings, needs: Needs) -> None:
        self.engine, self.path, self.settings, self.needs = engine, path, settings, needs
        self.weights = Weights(path)
        self.vocab_size = self.weights.vocab_size
        self.room = settings.room(needs.max_tokens)
        self.max_length = min(self.room, self.weights.trained_length)  # the server's slots hold no more
        self.slots: int = min(settings.slots or needs.max_rows, needs.max_rows)
        self.rows = Context(self.weights, **settings.context(needs.max_rows, needs.max_tokens))
        self.sessions: Context | None = None
        self.unused = list(range(needs.max_sessions))

    def score(self, tokens: Sequence[int]) -> Array:
        """Return logits [T, V] of one sequence that is decoded as one batch."""
        return self.score_batch([tokens])[0]

    def score_batch(self, sequences: Sequence[Sequence[int]]) -> list[Array]:
        """Return logits [T_b, V] of each sequence; all tokens of all of them form one batch, without padding."""
        if len(sequences) > self.needs.max_rows:
            raise Refused(f"{len(sequences)} sequences in a batch; the context has room for {self.needs.max_rows}.")
        rows = [check_tokens(tokens, self.vocab_size, limit=self.max_length) for tokens in sequences]
        if not rows:
            return []
        try:
            return self.rows.append([Run(b, 0, row) for b, row in enumerate(rows)])
        finally:
            self.rows.clear()

    def open(self) -> Session:
        """Return a session; all of a model share one context, in which each has a sequence of its own."""
        return LlamaSession(self, self.unused_sequence())

    def unused_sequence(self) -> int:
        """Take a sequence id that no open session has. Raises Refused if there is none."""
        if not self.unused:
            raise Refused(f"{self.needs.max_sessions} sessions are open; the context has room for no more.")
        if self.sessions is None:
            settings = self.settings.context(self.needs.max_sessions, self.needs.max_tokens)
            self.sessions = Context(self.weights, **settings)
        return self.unused.pop(0)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Continue all requests at the same time, by llama.cpp's server; see ``_llama_cpp_server``."""
        for request in requests:
            check_tokens(request.prompt, self.vocab_size, limit=self.max_length)
        server = self.engine.server
        if server is None or server.model is not self:
            self.engine.close()
            server = self.engine.server = CompletionServer(self)
        return server.complete(requests)

    def close(self) -> None:
        """Release caches and weights."""
        if self.engine.server is not None and self.engine.server.model is self:
            self.engine.close()
        for context in (self.rows, self.sessions):
            if context is not None:
                context.close()
        self.weights.close()


class LlamaSession(Session):
    """One sequence of a context."""

    def __init__(self, owner: LlamaModel, sequence: int, length: int = 0) -> None:
        assert owner.sessions is not None
        self.owner, self.context, self.sequence, self.length = owner, owner.sessions, sequence, length
        self.closed = False

    def extend(self, tokens: Sequence[int]) -> Array:
        """Append a chunk and return its logits [n, V]."""
        self._check_open()
        ids = check_tokens(tokens, self.owner.vocab_size, held=self.length, limit=self.owner.max_length)
        (logits,) = self.context.append([Run(self.sequence, self.length, ids)])
        self.length += len(ids)
        return logits

    def fork(self) -> Session:
        """Return a session over a copy of the sequence."""
        self._check_open()
        twin = self.owner.unused_sequence()
        self.context.copy(self.sequence, twin)
        return LlamaSession(self.owner, twin, self.length)

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` tokens."""
        self._check_open()
        if not 0 <= length <= self.length:
            raise Refused(f"The session holds {self.length} tokens; it cannot be truncated to {length}.")
        if not self.context.remove(self.sequence, length):
            raise NotOffered("truncate: llama_memory_seq_rm cannot remove a part of this memory.")
        self.length = length

    def cache_bytes(self) -> int:
        """Bytes of an equal share of the context's keys and values, which all are allocated at once."""
        self._check_open()
        return self.context.cache_bytes() // self.owner.needs.max_sessions

    def close(self) -> None:
        """Empty the sequence and give its id back."""
        if not self.closed:
            self.closed = True
            self.context.remove(self.sequence, 0)
            self.owner.unused.append(self.sequence)

    def _check_open(self) -> None:
        if self.closed:
            raise Refused("The session is closed.")

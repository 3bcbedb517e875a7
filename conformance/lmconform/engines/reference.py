"""The adapter to refdecoder, the reference model of this project.

A faulty engine is this one with a part replaced: set one of the classes below, or override ``build``, whose decoder may
have modules of another class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

import lmconform
import refdecoder
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
from lmconform.engines.common import check_tokens, choose, regime_settings, whole_number
from lmconform.engines.tensors import numbers, torch_device
from refdecoder.cache import Cache, Side
from refdecoder.checkpoint import DTYPES, load
from refdecoder.model import ATTENTION_FORMS
from refdecoder.text import Text

CHUNK = 5  # tokens a pass in the regime "chunked-prefill": short, and no divisor of usual lengths


@contextmanager
def refusing() -> Iterator[None]:
    """Turn what refdecoder refuses on purpose into ``Refused``; anything else is a fault and passes through."""
    try:
        yield
    except (refdecoder.CheckpointError, refdecoder.InputError) as error:
        raise Refused(str(error)) from error


class Reference(Engine):
    """refdecoder. Options: ``dtype``, ``device``, ``attention`` (eager or sdpa), ``threads``, ``path``, ``compile``.

    ``path=fast`` judges the fused modules, the static cache and the steps of ``refdecoder.fast``, which have an
    attention of their own; ``compile=yes`` has torch compile these steps.
    """

    name = "refdecoder"
    attention_class: type[refdecoder.Attention] = refdecoder.Attention
    sampler_class: type[refdecoder.Sampler] = refdecoder.Sampler
    stops_class: type[refdecoder.Stops] = refdecoder.Stops
    model_class: type[ReferenceModel]
    session_class: type[ReferenceSession]

    def __init__(
        self,
        dtype: str = "float32",
        device: str = "cpu",
        attention: str = "eager",
        threads: str | None = None,
        path: str = "plain",
        compile: str = "no",
    ) -> None:
        """Raise ValueError if an option has a value that is not known or not available here."""
        number = cast(DType, choose("dtype", dtype, DTYPES))
        self.fast = choose("path", path, ("plain", "fast")) == "fast"
        self.compile = choose("compile", compile, ("no", "yes")) == "yes"
        if self.compile and not self.fast:
            raise ValueError("Option compile=yes is about the steps of the fast path; pass path=fast as well.")
        self.attention = choose("attention", attention, ATTENTION_FORMS)
        self.dtype, self.device = DTYPES[number], torch_device(device)
        if threads is not None:
            torch.set_num_threads(whole_number("threads", threads))
        self.version = f"{lmconform.__version__} (torch {torch.__version__})"
        wide: DType = "float64" if number == "float64" else "float32"
        self.precision = Precision(weights=number, compute=number, kv_cache=number, scores=number, logprobs=wide)
        self.choices = Choices(
            scores="logits",
            logprobs="raw",
            ties="first",
            sampler_order=("temperature", "top_k", "top_p", "min_p"),
            temperature_zero="greedy",
            stop_token="returned",
            stop_text="dropped",
            eos_files=("generation_config.json", "config.json"),
            zero_tokens="empty",
            min_tokens="mask",
            long_prompt="refused",
            long_continuation="stops",
            empty_prompt="refused",
        )

    def accepts(self, config: Mapping[str, Any]) -> str | None:
        """Return why refdecoder refuses this config.json, or None."""
        try:
            refdecoder.config_from_dict(config)
        except refdecoder.CheckpointError as error:
            return str(error)
        return None

    def regimes(self) -> Mapping[str, Mapping[str, Any]]:
        """Return padding on the left (the default is the right), prefill in chunks, and the other form of attention.

        On the fast path the last is steps that read the whole cache, as on GPUs.
        """
        (other,) = set(ATTENTION_FORMS) - {self.attention}
        return {
            "left-padding": {"padding": "left"},
            "chunked-prefill": {"chunk": CHUNK},
            **({"whole-cache": {"whole": True}} if self.fast else {other: {"attention": other}}),
        }

    def load(self, checkpoint: Path, needs: Needs) -> Model:
        """Load a checkpoint directory; raise Refused if refdecoder refuses it, or for an unknown regime."""
        settings: dict[str, Any] = {"attention": self.attention, "padding": "right", "chunk": None, "whole": False}
        settings |= regime_settings(self.regimes(), needs)
        with refusing():
            decoder = self.decoder(checkpoint, settings["attention"])
            text = Text(checkpoint) if (checkpoint / "tokenizer.json").exists() else None
        if self.fast:
            decoder = refdecoder.fused(decoder)
        feeding = {key: settings[key] for key in ("padding", "chunk", "whole")}
        return self.model_class(self, decoder, text, needs, **feeding)

    def decoder(self, checkpoint: Path, attention: str) -> refdecoder.CausalLM:
        """Return the model of a checkpoint directory; raise CheckpointError if refdecoder refuses it."""

        def build(config: refdecoder.Config) -> refdecoder.CausalLM:
            if isinstance(config, refdecoder.GPT2Config):
                return self.build_gpt2(config, attention)
            return self.build(config, attention)

        return load(checkpoint, self.dtype, self.device, build)

    def build(self, config: refdecoder.DecoderConfig, attention: str) -> refdecoder.Decoder:
        """Return the llama decoder that the weights of a llama or phi3 checkpoint are loaded into."""
        return refdecoder.Decoder(config, attention, self.attention_class)

    def build_gpt2(self, config: refdecoder.GPT2Config, attention: str) -> refdecoder.GPT2:
        """Return the decoder that the weights of a gpt2 checkpoint are loaded into."""
        return refdecoder.GPT2(config, attention)


class ReferenceModel(Model):
    """A loaded decoder, and how its batches are fed."""

    max_length: int

    def __init__(
        self,
        engine: Reference,
        decoder: refdecoder.CausalLM,
        text: Text | None,
        needs: Needs,
        *,
        padding: Side,
        chunk: int | None,
        whole: bool,
    ) -> None:
        self.engine, self.decoder, self.text, self.needs = engine, decoder, text, needs
        self.padding, self.chunk, self.whole = padding, chunk, whole
        self.generators: dict[int, refdecoder.FastGenerator] = {}  # of the fast path, by their rows
        self.vocab_size = decoder.config.vocab_size
        self.max_length = decoder.config.max_position_embeddings

    def score(self, tokens: Sequence[int]) -> Array:
        """Return the logits of one sequence, [T, V]."""
        return self.score_batch([tokens])[0]

    def score_batch(self, sequences: Sequence[Sequence[int]]) -> list[Array]:
        """Return the logits of each sequence, [T_b, V], from one padded batch."""
        return self._score([check_tokens(one, self.vocab_size, limit=self.max_length) for one in sequences])

    def open(self) -> ReferenceSession:
        """Return a session with room for ``needs.max_tokens`` tokens, or the whole context if that is shorter."""
        return self.engine.session_class(self, self.decoder.new_cache(1, min(self.needs.max_tokens, self.max_length)))

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Continue all requests in one batch."""
        if self.text is None and any(request.stop_strings for request in requests):
            raise NotOffered("Stop strings need the checkpoint's tokenizer.json, and it has none.")
        with refusing(), torch.inference_mode():
            rows = [row for request in requests for row in self._rows(request)]
            fast = self.engine.fast and rows
            generate = self._generator(rows).generate if fast else partial(refdecoder.generate, self.decoder)
            decode = None if self.text is None else self.text.decode
            done = generate(rows, decode=decode, chunk=self.chunk, padding=self.padding)
        streams = [request.stream for request in requests for _ in range(request.n)]
        return [self._completion(one, piecewise) for one, piecewise in zip(done, streams, strict=True)]

    def _generator(self, rows: Sequence[refdecoder.Request]) -> refdecoder.FastGenerator:
        """Return what continues ``rows`` on the fast path; it is kept for other batches of as many rows."""
        longest = max(len(row.prompt) + row.max_new_tokens for row in rows)
        capacity = min(max(longest, self.needs.max_tokens), self.max_length)
        found = self.generators.get(len(rows))
        if found is None or found.cache.capacity < capacity:
            found = refdecoder.FastGenerator(
                self.decoder, len(rows), capacity, compile=self.engine.compile, whole=self.whole
            )
            self.generators[len(rows)] = found
        return found

    def _score(self, sequences: Sequence[Sequence[int]], cache: Cache | None = None) -> list[Array]:
        if not sequences:
            return []
        with refusing(), torch.inference_mode():
            logits = refdecoder.score(self.decoder, sequences, cache=cache, chunk=self.chunk, padding=self.padding)
        return [numbers(one) for one in logits]

    def _rows(self, request: Request) -> list[refdecoder.Request]:
        """Return one refdecoder request for each of the ``n`` completions, all with seeds of their own."""
        check_tokens(request.prompt, self.vocab_size, limit=self.max_length)
        if request.n < 1:
            raise Refused(f"{request.n} completions were asked for; n must be 1 or more.")
        sampler = self.engine.sampler_class(request.temperature, request.top_k, request.top_p, request.min_p)
        ids = request.stop_ids + (self.decoder.config.eos_token_ids if request.eos else ())
        stops = self.engine.stops_class(ids, request.stop_sequences, request.stop_strings, request.min_new_tokens)
        return [
            refdecoder.Request(
                request.prompt, request.max_new_tokens, sampler, stops, _seed(request.seed, which), request.logprobs
            )
            for which in range(request.n)
        ]

    def _completion(self, done: refdecoder.Completion, piecewise: bool) -> Completion:
        return Completion(
            tokens=tuple(done.tokens),
            finish_reason=done.reason,
            text=None if self.text is None else done.text,
            logprobs=None if done.logprobs is None else tuple(done.logprobs),
            pieces=tuple((token,) for token in done.tokens) if piecewise else None,  # a stream event is one token
            cached_tokens=0,
        )


class ReferenceSession(Session):
    """One row of a KV cache."""

    def __init__(self, model: ReferenceModel, cache: Cache) -> None:
        self.model = model
        self.cache: Cache | None = cache

    def extend(self, tokens: Sequence[int]) -> Array:
        """Append ``tokens``; return their logits, [n, V]."""
        cache = self._open()
        ids = check_tokens(tokens, self.model.vocab_size, held=cache.lengths[0], limit=cache.capacity)
        return self.model._score([ids], cache)[0]

    def fork(self) -> ReferenceSession:
        """Return an independent copy."""
        with torch.inference_mode():
            return type(self)(self.model, self._open().fork())

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` tokens; raise Refused if there are fewer."""
        with refusing(), torch.inference_mode():
            self._open().truncate(0, length)

    def cache_bytes(self) -> int:
        """Return the bytes of keys and values: they are allocated when the session is opened."""
        return self._open().nbytes

    def close(self) -> None:
        """Release the cache. A closed session refuses everything else."""
        self.cache = None

    def _open(self) -> Cache:
        if self.cache is None:
            raise Refused("The session is closed.")
        return self.cache


Reference.model_class, Reference.session_class = ReferenceModel, ReferenceSession


def _seed(seed: int | None, which: int) -> int | None:
    """Return the seed of one of the completions of a request; close seeds give unrelated ones."""
    if seed is None:
        return None
    if seed < 0:
        raise Refused(f"The seed is {seed}; it must be 0 or more.")
    return int(np.random.SeedSequence((seed, which)).generate_state(1, np.uint64)[0])

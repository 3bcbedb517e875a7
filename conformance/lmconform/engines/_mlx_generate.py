"""mlx-lm's ways of generating, driven by requests.

``BatchGenerator`` runs the requests of a call side by side, each with a sampler, stops and a limit of its own.
``generate_step`` and ``speculative_generate_step`` continue one sequence; there its stop matcher is asked for each
token, as in mlx-lm's server. Samplers are those of ``make_sampler``, stops are its ``StopSequences``, and text comes
from its detokenizer and its ``TextStateMachine``, put together as in the server.

MLX has one generator of random numbers a process. A seeded request that samples therefore runs in a call of its own,
after ``mx.random.seed``; its ``n`` completions are rows of that call.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import mlx.core as mx
from mlx_lm.generate import (
    BatchGenerator,
    StopSequences,
    TextStateMachine,
    generate_step,
    make_text_state_machine,
    speculative_generate_step,
)
from mlx_lm.models.cache import LRUPromptCache
from mlx_lm.sample_utils import make_sampler

from lmconform.adapter import Completion, NotOffered, Refused, Request
from lmconform.engines._mlx_arrays import numbers
from lmconform.engines.common import check_tokens, top_logprobs

if TYPE_CHECKING:
    from lmconform.engines.mlx import MLXModel

Reason = Literal["stop", "length"]
DRAFT_TOKENS = 2
PROMPTS = 64
"""Prompts whose caches are kept in the regime ``prefix-cache``."""


def generate(model: MLXModel, requests: Sequence[Request]) -> list[Completion]:
    """Return ``n`` completions for each request, in the order of the requests.

    Raises:
        NotOffered: a minimum of new tokens; stop strings without a tokenizer.
        Refused: what mlx-lm refuses, such as no new tokens, or a filter out of its range.
    """
    for request in requests:
        if request.min_new_tokens:
            raise NotOffered("min_new_tokens: mlx-lm has no least number of new tokens.")
        if request.stop_strings and model.tokenizer is None:
            raise NotOffered("stop_strings: the checkpoint has no tokenizer.")
        if request.max_new_tokens < 1 or request.n < 1:
            raise Refused(f"max_new_tokens is {request.max_new_tokens} and n is {request.n}; both must be 1 or more.")
        if request.stop_ids:
            check_tokens(request.stop_ids, model.vocab_size)
    shared = [place for place, request in enumerate(requests) if not _seeded(request)]
    calls = [*([shared] if shared else []), *([place] for place, one in enumerate(requests) if _seeded(one))]
    rows: dict[int, list[_Row]] = {}
    for places in calls:
        for place in places:
            rows[place] = [_Row(model, requests[place]) for _ in range(requests[place].n)]
        together = [row for place in places for row in rows[place]]
        _give_samplers(model, together)
        with _from_seed(requests[places[0]]):
            _run(model, together)
    return [row.completion() for place in range(len(requests)) for row in rows[place]]


def _seeded(request: Request) -> bool:
    return request.temperature is not None and request.seed is not None


@contextmanager
def _from_seed(request: Request) -> Iterator[None]:
    """MLX's generator starts from the request's seed, and afterwards from a number that it drew before."""
    if not _seeded(request):
        yield
        return
    after = mx.random.randint(0, 2**31 - 1).item()
    mx.random.seed(request.seed)
    try:
        yield
    finally:
        mx.random.seed(after)


def _give_samplers(model: MLXModel, rows: list[_Row]) -> None:
    """Give each row its sampler; rows with equal parameters share one, and are then sampled in one call.

    mlx-lm looks at the range of a filter when it first draws, so each sampler draws once here.
    """
    samplers: dict[tuple[Any, ...], Any] = {}
    for row in rows:
        wanted = _sampling(row.request)
        if wanted not in samplers:
            samplers[wanted] = make_sampler(**dict(wanted))
            try:
                mx.eval(samplers[wanted](mx.zeros((1, model.vocab_size))))
            except ValueError as reason:
                # What MLX compiles over its random state, and then raises, leaves an array there that has no value.
                mx.random.seed(int.from_bytes(os.urandom(4), "little"))
                raise Refused(f"mlx-lm refuses the request: {' '.join(str(reason).split())}") from reason
        row.sampler = samplers[wanted]


def _run(model: MLXModel, rows: list[_Row]) -> None:
    """Generate until each row has ended."""
    if model.settings.loop == "batch":
        _batched(model, rows)
        return
    for row in rows:
        matcher = row.stops.matcher()
        for token, logprobs in _steps(model, row):
            reason: Reason | None = "length" if len(row.tokens) + 1 == row.request.max_new_tokens else None
            row.take(token, logprobs, "stop" if matcher.advance(token) else reason)
            if row.reason is not None:
                break


def _sampling(request: Request) -> tuple[tuple[str, Any], ...]:
    """Arguments of ``make_sampler``; it switches a filter off at 0."""
    if request.temperature is None:
        return (("temp", 0.0),)
    return (
        ("temp", float(request.temperature)),
        ("top_p", 0.0 if request.top_p is None else float(request.top_p)),
        ("min_p", 0.0 if request.min_p is None else float(request.min_p)),
        ("top_k", 0 if request.top_k is None else request.top_k),
    )


def _batched(model: MLXModel, rows: list[_Row]) -> None:
    """Run the rows through ``BatchGenerator``."""
    settings = model.settings
    generator = BatchGenerator(
        model.network,
        completion_batch_size=settings.completion_batch_size,
        prefill_batch_size=settings.prefill_batch_size,
        prefill_step_size=settings.prefill_step_size,
    )
    try:
        if settings.prefix_cache and model.prompt_caches is None:
            model.prompt_caches = LRUPromptCache(PROMPTS)
        caches = [_cached(model, row) for row in rows]
        uids = generator.insert(
            [list(row.request.prompt[row.cached :]) for row in rows],
            max_tokens=[row.request.max_new_tokens for row in rows],
            caches=caches,
            all_tokens=[list(row.request.prompt[: row.cached]) for row in rows],
            samplers=[row.sampler for row in rows],
            stop_sequences=[row.stops for row in rows],
        )
        by_uid = dict(zip(uids, rows, strict=True))
        while responses := generator.next_generated():
            for one in responses:
                by_uid[one.uid].take(one.token, one.logprobs, one.finish_reason)
                if one.finish_reason is not None and settings.prefix_cache:
                    model.prompt_caches.insert_cache("", one.all_tokens[:], one.prompt_cache)
    finally:
        generator.close()


def _cached(model: MLXModel, row: _Row) -> Any:
    """Return the cache of the longest prefix that is held, or None; the last token of a prompt is always fed."""
    if not model.settings.prefix_cache:
        return None
    known = list(row.request.prompt[:-1])
    cache, rest = model.prompt_caches.fetch_nearest_cache("", known)
    row.cached = len(known) - len(rest)
    return cache


def _steps(model: MLXModel, row: _Row) -> Iterator[tuple[int, mx.array]]:
    """Tokens and log-probabilities [V] of one row, by the loop of the settings."""
    settings, prompt = model.settings, mx.array(row.request.prompt)
    common = {
        "max_tokens": row.request.max_new_tokens,
        "sampler": row.sampler,
        "prefill_step_size": settings.prefill_step_size,
    }
    if settings.loop == "speculative":
        drafted = speculative_generate_step(prompt, model.network, model.draft, num_draft_tokens=DRAFT_TOKENS, **common)
        yield from ((token, logprobs) for token, logprobs, _ in drafted)
    else:
        quantised = {"kv_bits": settings.kv_bits, "kv_group_size": settings.kv_group_size, "quantized_kv_start": 0}
        yield from generate_step(prompt, model.network, **common, **quantised)


class _Row:
    """One completion under way."""

    def __init__(self, model: MLXModel, request: Request) -> None:
        self.model, self.request = model, request
        self.sampler: Any = None
        self.stops = StopSequences(_stops(model, request))
        self.cached = 0
        self.tokens: list[int] = []
        self.steps: list[dict[int, float]] = []
        self.reason: Reason | None = None
        self.text: list[str] = []
        if model.tokenizer is not None:
            self._words = model.tokenizer.detokenizer
            self._state = make_text_state_machine(model.tokenizer, list(request.stop_strings)).make_state()

    def take(self, token: int, logprobs: mx.array, reason: Reason | None) -> None:
        """Take the next token, its step's log-probabilities [V], and the reason if the row ends with it."""
        self.tokens.append(token)
        self.reason = reason
        if self.request.logprobs is not None:
            row = numbers(logprobs)
            self.steps.append({**top_logprobs(row, self.request.logprobs), token: float(row[token])})
        if self.model.tokenizer is not None:
            self._spell(token)

    def completion(self) -> Completion:
        """What came of the request. The text of a row with stop sequences of ids is left out: the server has none."""
        spelled = self.model.tokenizer is not None and not self.request.stop_sequences
        return Completion(
            tokens=tuple(self.tokens),
            finish_reason=self.reason or "unspecified",
            text="".join(self.text) if spelled else None,
            logprobs=tuple(self.steps) if self.request.logprobs is not None else None,
            pieces=tuple((token,) for token in self.tokens) if self.request.stream else None,
            cached_tokens=self.cached,
        )

    def _spell(self, token: int) -> None:
        """Add the token's text as the server does: not that of a stop, and no text that a stop string may hold."""
        if self.reason != "stop":
            self._words.add_token(token)
        if self.reason is not None:
            self._words.finalize()
        segment = self._words.last_segment
        if self.reason == "stop":  # the server passes over what the detokenizer still held
            return
        self._state, segments = TextStateMachine.split(self._state, segment)
        self.text += [text for _, text in segments]
        if self.reason == "length":
            self._state, held, _ = TextStateMachine.flush(self._state)
            self.text.append(held)


def _stops(model: MLXModel, request: Request) -> list[tuple[int, ...]]:
    """Sequences of ids that end the row; strings become ids as ``make_stop_sequences`` makes them."""
    words = [tuple(model.tokenizer.encode(text, add_special_tokens=False)) for text in request.stop_strings]
    ids = request.stop_ids + (model.eos_ids if request.eos else ())
    return [*((token,) for token in ids), *request.stop_sequences, *words]

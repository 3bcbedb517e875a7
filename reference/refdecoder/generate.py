"""Score sequences, and generate: ragged batches, chunked prefill, and a stream of events.

A batch is fed pass by pass. A pass gives every row some tokens or none; rows with fewer than others are padded, and a
row that has ended is padding from then on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from .cache import Cache, Side, pad
from .errors import InputError
from .model import CausalLM
from .rope import wide
from .sampling import Sampler
from .stopping import Decode, Detokenizer, Stops

Reason = Literal["stop", "length"]


@dataclass(frozen=True)
class Request:
    """One prompt to continue. Settings belong to the request; the rows of a batch may differ in all of them."""

    prompt: Sequence[int]
    """Token ids, at least one. None are added."""
    max_new_tokens: int = 16
    """At most so many new tokens; fewer where max_position_embeddings is reached."""
    sampler: Sampler = field(default_factory=Sampler)
    stops: Stops = field(default_factory=Stops)
    seed: int | None = None
    """Seed of this row's draws, from 0 to 2**64 - 1; None takes one from the operating system."""
    logprobs: int | None = None
    """Also give the log-probabilities of the n most probable ids, and of the drawn one, at every step."""


@dataclass(frozen=True)
class Event:
    """One new token of one row."""

    row: int
    """Index of the request."""
    token: int
    text: str
    """Text that became certain with this token; empty without ``decode``."""
    reason: Reason | None
    """Why the row ends with this token; None if it goes on."""
    logprobs: Mapping[int, float] | None
    """Natural logarithms of the model's own probabilities, before temperature, filters and masks."""


@dataclass
class Completion:
    """All that became of one request."""

    tokens: list[int] = field(default_factory=list)
    """New tokens; the id or sequence that stopped the row is among them."""
    text: str = ""
    """New text, without the stop string or the text of the stop id."""
    reason: Reason = "length"
    logprobs: list[Mapping[int, float]] | None = None


def score(
    model: CausalLM,
    sequences: Sequence[Sequence[int]],
    *,
    cache: Cache | None = None,
    chunk: int | None = None,
    padding: Side = "right",
) -> list[Tensor]:
    """Return the logits of every token of every sequence, [T_b, V] each.

    Args:
        model: a decoder of any family.
        sequences: B sequences of token ids, of any lengths above 0.
        cache: a cache of B rows that the sequences continue; None starts a fresh one.
        chunk: most tokens a row and pass; None feeds all at once.
        padding: side on which shorter rows are padded.

    Raises:
        InputError: an empty sequence, an id out of range, more tokens than fit; the cache is then as it was.
    """
    counts = [len(_checked(model, sequence)) for sequence in sequences]
    cache = model.new_cache(len(counts), max(counts, default=0)) if cache is None else cache
    cache.require(counts)
    pieces: list[list[Tensor]] = [[] for _ in counts]
    for parts in _passes(sequences, chunk):
        logits = _feed(model, cache, parts, padding)  # [B, T, V]
        T = logits.shape[1]
        for row, part in enumerate(parts):
            first = T - len(part) if padding == "left" else 0
            pieces[row].append(logits[row, first : first + len(part)])
    return [torch.cat(one) for one in pieces]


def stream(
    model: CausalLM,
    requests: Sequence[Request],
    *,
    decode: Decode | None = None,
    chunk: int | None = None,
    padding: Side = "right",
) -> Iterator[Event]:
    """Continue all requests in one batch, and yield every new token as soon as it is drawn.

    Args:
        model: a decoder of any family.
        requests: the prompts and their settings.
        decode: gives the text of ids; needed for stop strings.
        chunk: most prompt tokens a row and pass; None feeds whole prompts at once.
        padding: side on which shorter rows are padded.

    Raises:
        InputError: a request that cannot be met; before the first event.
    """
    rows = [Row(model, index, request, decode) for index, request in enumerate(requests)]
    rows = [row for row in rows if row.budget]
    if not rows:
        return
    cache = model.new_cache(len(rows), max(row.room for row in rows))
    logits = prefill(model, cache, [row.request.prompt for row in rows], chunk, padding)  # [B, V]
    live = dict(enumerate(rows))
    while True:
        drawn = torch.stack([row.draw(logits[b]) for b, row in live.items()]).tolist()  # the host waits here
        parts: list[list[int]] = [[] for _ in rows]
        for (b, row), token in zip(list(live.items()), drawn, strict=True):
            event = row.event(token, row.logprobs(token, logits[b]))
            if event.reason is None:
                parts[b] = [token]
            else:
                del live[b]
            yield event
        if not live:
            return
        logits = _feed(model, cache, parts, padding, last=True)


def generate(
    model: CausalLM,
    requests: Sequence[Request],
    *,
    decode: Decode | None = None,
    chunk: int | None = None,
    padding: Side = "right",
) -> list[Completion]:
    """Continue all requests in one batch and return a completion each; arguments and errors are those of stream."""
    return collected(requests, stream(model, requests, decode=decode, chunk=chunk, padding=padding))


def collected(requests: Sequence[Request], events: Iterable[Event]) -> list[Completion]:
    """Return what the events of a stream make of each request."""
    done = [Completion(logprobs=None if request.logprobs is None else []) for request in requests]
    for event in events:
        row = done[event.row]
        row.tokens.append(event.token)
        row.text += event.text
        row.reason = event.reason or row.reason
        if row.logprobs is not None and event.logprobs is not None:
            row.logprobs.append(event.logprobs)
    return done


class Row:
    """A request on its way: its random numbers, and what it has produced."""

    def __init__(self, model: CausalLM, index: int, request: Request, decode: Decode | None) -> None:
        prompt = _checked(model, request.prompt)
        if request.max_new_tokens < 0 or (request.logprobs is not None and request.logprobs < 0):
            raise InputError("max_new_tokens and logprobs must be 0 or more.")
        self.index, self.request = index, request
        self.budget = min(request.max_new_tokens, model.config.max_position_embeddings - len(prompt))
        self.watch = request.stops.watch(None if decode is None else Detokenizer(decode, prompt))
        device = model.embed_tokens.weight.device
        self.place = torch.device("cpu") if device.type == "mps" else device  # sampling works in float64; MPS has none
        self.generator = torch.Generator(self.place)
        if request.seed is None:
            self.generator.seed()
        elif 0 <= request.seed < 2**64:
            self.generator.manual_seed(request.seed)
        else:
            raise InputError(f"The seed is {request.seed}; it must be from 0 to 2**64 - 1.")

    @property
    def room(self) -> int:
        """Tokens that the row may come to hold."""
        return len(self.request.prompt) + self.budget

    def draw(self, logits: Tensor) -> Tensor:
        """Return the next id, a scalar tensor, for ``logits`` [V]."""
        logits = self.request.stops.mask(logits.to(self.place), len(self.watch.tokens))
        return self.request.sampler.draw(logits, self.generator)

    def event(self, token: int, logprobs: Mapping[int, float] | None) -> Event:
        """Take the drawn token and say what it means for the row."""
        last = len(self.watch.tokens) + 1 == self.budget
        text, stopped = self.watch.push(token, last)
        reason: Reason | None = "stop" if stopped else "length" if last else None
        return Event(self.index, token, text, reason, logprobs)

    def logprobs(self, token: int, logits: Tensor) -> dict[int, float] | None:
        """Return the log-probabilities that the request asks for, for ``logits`` [V] and the drawn token."""
        if self.request.logprobs is None:
            return None
        logprobs = logits.to(wide(logits.dtype)).log_softmax(dim=-1)
        best = logprobs.topk(min(self.request.logprobs, len(logprobs))).indices
        ids = dict.fromkeys([*best.tolist(), token])  # greatest first, each once
        return dict(zip(ids, logprobs[list(ids)].tolist(), strict=True))


def prefill(
    model: CausalLM, cache: Cache, prompts: Sequence[Sequence[int]], chunk: int | None, padding: Side
) -> Tensor:
    """Feed the prompts; return the logits of each one's last token, [B, V]."""
    rows: list[Tensor | None] = [None] * len(prompts)
    for parts in _passes(prompts, chunk):
        logits = _feed(model, cache, parts, padding, last=True)  # [B, V]
        rows = [logits[b] if part else rows[b] for b, part in enumerate(parts)]
    return torch.stack([row for row in rows if row is not None])


def _feed(model: CausalLM, cache: Cache, parts: Sequence[Sequence[int]], padding: Side, last: bool = False) -> Tensor:
    """Run one pass with ``parts[b]`` new for row b; return logits [B, T, V], or [B, V] with ``last``."""
    positions = cache.reserve([len(part) for part in parts], padding)
    tokens = pad(parts, 0, padding, positions.device)  # [B, T]; id 0 where there is padding
    logits: Tensor = model(tokens, positions, cache, last)
    return logits


def _passes(sequences: Sequence[Sequence[int]], chunk: int | None) -> Iterator[list[Sequence[int]]]:
    """Cut sequences into passes of at most ``chunk`` tokens a row."""
    width = max(map(len, sequences))
    if chunk is not None and chunk < 1:
        raise InputError(f"chunk is {chunk}; it must be 1 or more, or None to feed all at once.")
    for start in range(0, width, chunk or width):
        yield [one[start : start + (chunk or width)] for one in sequences]


def _checked(model: CausalLM, tokens: Sequence[int]) -> Sequence[int]:
    """Return ``tokens`` if the model can take them; raise InputError otherwise."""
    config = model.config
    if not 1 <= len(tokens) <= config.max_position_embeddings:
        raise InputError(f"A sequence of {len(tokens)} tokens was given; 1 to {config.max_position_embeddings} fit.")
    for token in tokens:
        if not 0 <= token < config.vocab_size:
            raise InputError(f"Token id {token} is out of range; ids are 0 to {config.vocab_size - 1}.")
    return tokens

"""Ten thousand calls of the reference in float64, the same each time: a mutant that answers all alike is equivalent.

Import this module only where the reference may be imported: a process that holds a mutant judges that mutant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

import refdecoder
from lmconform.adapter import Needs, Request
from lmconform.engines.reference import Reference
from lmconform.mutants.material import Made
from refdecoder.stopping import Detokenizer

SIZE = 10_000
"""Calls of the whole corpus."""
SEED = 5
FORMS, ADAPTER = ("eager", "sdpa"), "adapter"
CHUNKS = (None, None, 3, 5, 1)
BYTES = (b"a", b"b", b" ", b"ab", b"ba", b"c", b"\xc3", b"\xa9", b" a", b"\xf0\x9f", b"\x99", b"\x82", b"cab")
"""Text of the ids in calls with a ``decode`` of their own: some ids hold parts of a character."""
STRINGS = ("a", "b", "ab", "aba", "bab", "c", " a", "é", "ca", "abab", "b c", "\N{SLIGHTLY SMILING FACE}")


@dataclass(frozen=True)
class Loaded:
    """A checkpoint of the corpus, loaded."""

    made: Made
    model: Any
    """A ``refdecoder.CausalLM``; in calls of the adapter, its ``Model``."""


class Corpus:
    """The calls, on checkpoints that ``material.write_all`` wrote."""

    def __init__(self, checkpoints: Sequence[Made]) -> None:
        """Load nothing yet: most mutants show in the first few calls."""
        self._checkpoints = checkpoints
        self._engine = Reference(dtype="float64")
        self._regimes = [None, *self._engine.regimes()]
        self._loaded: dict[tuple[int, str], Loaded] = {}

    def answers(self, limit: int = SIZE) -> Iterator[bytes]:
        """The answers to the first ``limit`` calls, bit for bit; raises what the reference raises."""
        forms = [(place, form) for form in FORMS for place in range(len(self._checkpoints))]
        for number in range(limit):
            generator = np.random.default_rng([SEED, number])
            kind = KINDS[generator.integers(len(KINDS))]
            place, form = forms[generator.integers(len(forms))]
            if number < len(forms):  # each checkpoint in each form once, before any twice
                kind, (place, form) = _score, forms[number]
            yield _bytes(kind(self._load(place, ADAPTER if kind is _adapter else form), generator))

    def _load(self, place: int, form: str) -> Loaded:
        """A checkpoint with this form of attention, or through the adapter, in one of its regimes."""
        if (place, form) not in self._loaded:
            made = self._checkpoints[place]
            if form == ADAPTER:
                needs = Needs(max_tokens=made.room, regime=self._regimes[place % len(self._regimes)])
                model: Any = self._engine.load(made.path, needs)
            else:
                model = refdecoder.load(made.path, torch.float64, build=partial(refdecoder.build, attention=form))
            self._loaded[place, form] = Loaded(made, model)
        return self._loaded[place, form]


def _tokens(loaded: Made, generator: np.random.Generator, length: int) -> list[int]:
    return generator.integers(loaded.vocab_size, size=length).tolist()


def _one(generator: np.random.Generator, of: Sequence[Any]) -> Any:
    return of[int(generator.integers(len(of)))]


def _score(loaded: Loaded, generator: np.random.Generator) -> Any:
    """One sequence in one pass."""
    length = int(generator.integers(1, min(loaded.made.room, 12) + 1))
    return refdecoder.score(loaded.model, [_tokens(loaded.made, generator, length)])


def _batch(loaded: Loaded, generator: np.random.Generator) -> Any:
    """Rows of different lengths, some of them up to the last position, in one pass or in chunks."""
    chunk = _one(generator, CHUNKS)
    most = 4 if chunk == 1 else _one(generator, (4, 7, loaded.made.room))
    lengths = generator.integers(1, min(most, loaded.made.room) + 1, size=generator.integers(1, 5))
    sequences = [_tokens(loaded.made, generator, int(length)) for length in lengths]
    side = _one(generator, ("left", "right"))
    return refdecoder.score(loaded.model, sequences, chunk=chunk, padding=side)


def _session(loaded: Loaded, generator: np.random.Generator) -> Any:
    """A cache of one to three rows that is extended, forked and cut; every copy goes on by itself."""
    rows, room = int(generator.integers(1, 4)), int(generator.integers(6, loaded.made.room + 1))
    caches = [loaded.model.new_cache(rows, room)]
    seen: list[Any] = []
    for _ in range(int(generator.integers(2, 5))):
        cache = _one(generator, caches)
        row, move = int(generator.integers(rows)), generator.integers(6)
        if move == 0 and len(caches) < 3:
            caches.append(cache.fork())
        elif move <= 2:
            cache.truncate(row, int(generator.integers(cache.lengths[row] + 1)))
        else:
            seen += _extended(loaded, cache, generator)
        seen += [cache.lengths, cache.span, cache.nbytes]
    return seen + [_extended(loaded, cache, generator) for cache in caches if max(cache.lengths) < room]


def _extended(loaded: Loaded, cache: refdecoder.Cache, generator: np.random.Generator) -> list[Any]:
    """One to three more tokens in each row, as far as they fit."""
    counts = [min(int(generator.integers(1, 4)), cache.capacity - length) for length in cache.lengths]
    if not all(counts):
        return [counts]
    sequences = [_tokens(loaded.made, generator, count) for count in counts]
    side, chunk = _one(generator, ("left", "right")), _one(generator, CHUNKS)
    return list(refdecoder.score(loaded.model, sequences, cache=cache, chunk=chunk, padding=side))


def _generate(loaded: Loaded, generator: np.random.Generator) -> Any:
    """One to three requests with settings of their own, as events or as completions."""
    asked = [_request(loaded.made, generator) for _ in range(generator.integers(1, 4))]
    run = refdecoder.generate if generator.integers(2) else refdecoder.stream
    side, chunk = _one(generator, ("left", "right")), _one(generator, CHUNKS)
    return list(run(loaded.model, asked, decode=_decode, chunk=chunk, padding=side))


def _request(made: Made, generator: np.random.Generator) -> refdecoder.Request:
    short = generator.integers(1, 5) if generator.integers(4) else made.room - generator.integers(4)
    prompt = _tokens(made, generator, int(short))
    stops = _stops(made.vocab_size, generator)
    if generator.integers(30) == 0:
        return refdecoder.Request(prompt, stops=stops)
    return refdecoder.Request(
        prompt,
        max_new_tokens=int(_one(generator, (0, 1, 2, 3, 4))),
        sampler=_sampler(generator),
        stops=stops,
        seed=int(generator.integers(2**62)),
        logprobs=_one(generator, (None, None, 0, 1, 3, 99)),
    )


def _sampler(generator: np.random.Generator) -> refdecoder.Sampler:
    """Each setting off, at an edge, or inside."""
    return refdecoder.Sampler(
        temperature=_one(generator, (None, 0, 0.3, 1.0, 2.5, 1e-3)),
        top_k=_one(generator, (None, None, 1, 2, 4, 50)),
        top_p=_one(generator, (None, None, 0, 1e-9, 0.25, 0.5, 0.7, 0.95, 1)),
        min_p=_one(generator, (None, None, 0, 0.02, 0.3, 1)),
    )


def _stops(vocab_size: int, generator: np.random.Generator) -> refdecoder.Stops:
    def some(of: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(_one(generator, of) for _ in range(generator.integers(3)))

    sequences = [tuple(generator.integers(vocab_size, size=size).tolist()) for size in (1, 2, 2, 3)]
    return refdecoder.Stops(
        ids=some([*range(min(2, vocab_size - 1)), vocab_size, vocab_size + 3]),  # never all; two are no ids at all
        sequences=some(sequences),
        strings=some(STRINGS),
        min_new_tokens=_one(generator, (0, 0, 1, 3)),
    )


def _sampled(loaded: Loaded, generator: np.random.Generator) -> Any:
    """The distribution of random logits, with equals among them, and draws from it."""
    size = int(generator.integers(1, 14))
    logits = torch.tensor(generator.standard_normal(size) * _one(generator, (0, 0.2, 1, 5))).round(decimals=1)
    sampler, draws = _sampler(generator), torch.Generator()
    draws.manual_seed(int(generator.integers(2**62)))
    p = sampler.probabilities(logits) if sampler.temperature else None
    return p, [sampler.draw(logits, draws) for _ in range(3)]


def _watched(loaded: Loaded, generator: np.random.Generator) -> Any:
    """The text of a row, piece by piece, until a stop or the limit ends it; and the logits that may not stop."""
    stops, limit = _stops(len(BYTES), generator), int(generator.integers(1, 12))
    watch = stops.watch(Detokenizer(_decode, generator.integers(len(BYTES), size=generator.integers(9)).tolist()))
    pieces = []
    for count in range(1, limit + 1):
        piece, stopped = watch.push(int(generator.integers(len(BYTES))), count == limit)
        pieces.append((piece, stopped))
        if stopped:
            break
    return pieces, watch.text, stops.mask(torch.tensor(generator.standard_normal(9)), len(pieces))


def _adapter(loaded: Loaded, generator: np.random.Generator) -> Any:
    """Generation and a session through the adapter, where EOS ids, several completions and regimes come in."""
    made, model = loaded.made, loaded.model
    if generator.integers(3) == 0:
        session = model.open()
        first = session.extend(_tokens(made, generator, 3))
        fork = session.fork()
        session.truncate(int(generator.integers(1, 3)))
        return first, fork.extend(_tokens(made, generator, 2)), session.extend([0]), session.cache_bytes()
    request = Request(
        prompt=tuple(_tokens(made, generator, 3)),
        max_new_tokens=4,
        min_new_tokens=int(generator.integers(2)),
        temperature=_one(generator, (None, 1.0)),
        top_p=_one(generator, (None, 0.8)),
        seed=int(generator.integers(2**31)),
        eos=made.vocab_size > 2,
        n=int(generator.integers(1, 3)),
        logprobs=_one(generator, (None, 2)),
        stream=bool(generator.integers(2)),
    )
    return model.generate([request])


KINDS: tuple[Callable[[Loaded, np.random.Generator], Any], ...] = (
    *(_score, _batch, _batch, _session, _session, _generate, _generate, _generate, _adapter),
    *(_sampled, _sampled, _sampled, _sampled, _sampled, _watched, _watched, _watched, _watched, _watched),
)
"""What a call may be, the likelier the more often it stands here."""


def _decode(ids: Sequence[int]) -> str:
    """Text as a tokenizer of the sentencepiece kind gives it: a space at the very start is dropped."""
    return b"".join(BYTES[token] for token in ids).decode(errors="replace").removeprefix(" ")


def _bytes(value: Any) -> bytes:
    """The value, bit for bit."""
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}".encode() + value.tobytes()
    if is_dataclass(value):
        value = [getattr(value, one.name) for one in fields(value)]
    if isinstance(value, list | tuple):
        return b"(" + b",".join(map(_bytes, value)) + b")"
    return repr(value).encode()

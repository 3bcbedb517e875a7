"""The data sheet of a KV cache: what a token costs, and how the cache grows, shrinks and forks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd

import numpy as np

from lmconform.judging.memory import ITEM_BYTES, SCALE_BYTES, bytes_a_token
from lmconform.measure.attempt import attempt
from lmconform.measure.sheet import UNSPECIFIED, Entry, declared, missing, number
from lmconform.spec.decoder import read_config
from lmconform.suite.findings import Unfit
from lmconform.suite.subject import SessionUnderTest, Subject

SECTION = "cache"
SINGLY = 34
"""So many tokens come one by one, so that pages of up to 16 are seen from both sides twice."""
PAGE = 16
"""After them come both sides of each multiple of this."""
ROOMS = (64, 128)
"""What a cache that is allocated in advance is given room for: multiples of usual pages."""
COST, GROWTH = "bytes a token", "growth"


def cache(model: Subject) -> list[Entry]:
    """All lines of the section; ``model`` is any checkpoint, and is loaded anew where the cache does not grow."""
    if "open" not in model.doors:
        return [missing(SECTION, COST, "", "the engine does not offer open")]
    measured = _Measured(model)
    return [
        *attempt(SECTION, "truncate to half", UNSPECIFIED, lambda: [measured.truncated()]),
        *attempt(SECTION, "fork", UNSPECIFIED, lambda: [measured.forked()]),
        *attempt(SECTION, COST, f"{measured.wanted:g}", measured.growth),
    ]


@dataclass(frozen=True)
class Grown:
    """The bytes of one session at growing lengths."""

    lengths: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def steps(self) -> dict[int, int]:
        """The lengths at which it was seen to have grown, and by how many bytes."""
        pairs = zip(self.lengths[1:], pairwise(self.sizes), strict=True)
        return {length: new - old for length, (old, new) in pairs if new != old}

    @property
    def page(self) -> tuple[int, float] | None:
        """Tokens and bytes of a page, if it grows by pages of equal size; pages of one token are no pages."""
        first, *_ = places = [*self.steps]
        tokens = gcd(*(new - old for old, new in pairwise(places)))
        if not tokens:
            return None
        pages = [(length - first) // tokens for length in self.lengths]
        size = (self.sizes[-1] - self.sizes[0]) / (pages[-1] - pages[0])
        even = all(self.sizes[0] + size * (one - pages[0]) == held for one, held in zip(pages, self.sizes, strict=True))
        return (tokens, size) if even else None

    def cost(self) -> tuple[float, float]:
        """Bytes a token, and by how much they may be wrong: by half a byte, or by the largest step that was seen."""
        if self.page is not None:
            tokens, size = self.page
            return size / tokens, 0.5
        slope = float(np.polyfit(self.lengths, self.sizes, 1)[0])
        return slope, max(map(abs, self.steps.values())) / (self.lengths[-1] - self.lengths[0])

    def words(self) -> str:
        """How it grows."""
        if self.page is None:
            return f"unevenly, at {', '.join(map(str, [*self.steps][:6]))} tokens"
        return "token by token" if self.page[0] == 1 else f"by pages of {self.page[0]} tokens"


class _Measured:
    """Readings of one model's sessions."""

    def __init__(self, model: Subject) -> None:
        self._model = model
        self._room = min(model.case.max_tokens, model.max_length or model.case.max_tokens)
        config, self._number = model.material.checkpoint.config, model.yardstick.precision.kv_cache
        self._sizes = read_config(config)
        _, self.wanted = bytes_a_token(config, self._number)

    def growth(self) -> list[Entry]:
        """What a token costs, and how the cache grows."""
        grown = self._grow()
        if not grown.steps:
            return self._in_advance(grown.sizes[0])
        got, bound = grown.cost()
        return [self._cost(got, bound), declared(SECTION, GROWTH, grown.words(), UNSPECIFIED)]

    def truncated(self) -> Entry:
        """What becomes of the bytes of the last half of the tokens."""
        with self._model.open() as session:
            session.feed(self._tokens(2 * PAGE))
            before = session.cache_bytes()
            session.truncate(PAGE)
            return self._reported("truncate to half", session, before)

    def forked(self) -> Entry:
        """What a copy says that it takes."""
        with self._model.open() as session:
            session.feed(self._tokens(2 * PAGE))
            with session.fork() as twin:
                return self._reported("fork", twin, session.cache_bytes())

    @staticmethod
    def _reported(quantity: str, session: SessionUnderTest, before: int) -> Entry:
        share = session.cache_bytes() / before
        return declared(SECTION, quantity, f"{share:.0%} of the bytes", UNSPECIFIED)

    def _grow(self) -> Grown:
        """The bytes of a session that is fed token by token, and then around multiples of ``PAGE``."""
        edges = [length + more for length in range(0, self._room, PAGE) for more in (0, 1)]
        lengths = [length for length in sorted({*range(1, SINGLY + 1), *edges[1:]}) if length <= self._room]
        sizes: list[int] = []
        with self._model.open() as session:
            for length in lengths:
                session.feed(self._tokens(length - len(session.tokens)))
                sizes.append(session.cache_bytes())
        return Grown(tuple(lengths), tuple(sizes))

    def _in_advance(self, size: int) -> list[Entry]:
        """A cache that does not grow: what a token costs is how its bytes follow the room that it was given."""
        limit = self._model.max_length or max(ROOMS)
        rooms = ROOMS if limit >= max(ROOMS) else (limit // 2, limit)
        allocated = [self._allocated(room) for room in rooms]
        cost = (allocated[1] - allocated[0]) / (rooms[1] - rooms[0])
        if not cost:
            raise Unfit(f"the cache takes {size} bytes, whatever it holds and has room for")
        grows = f"constant, room for {size / cost:.0f} tokens"
        where = f"rooms for {rooms[0]} and {rooms[1]} tokens"
        return [self._cost(cost, 0.5, where), declared(SECTION, GROWTH, grows, UNSPECIFIED)]

    def _allocated(self, room: int) -> int:
        with self._model.with_room(room).open() as session:
            session.feed(self._tokens(1))
            return session.cache_bytes()

    def _cost(self, got: float, bound: float, where: str = "") -> Entry:
        """The line for the cost, beside 2 · L · H_kv · D numbers; formats of 8 bits may do without a scale."""
        sizes = self._sizes
        if ITEM_BYTES[self._number] == 1:
            bound += 2 * sizes.num_hidden_layers * sizes.num_key_value_heads * SCALE_BYTES
        ratio = f"{got / self.wanted:.3g} times the keys and values of {sizes.num_key_value_heads} KV heads"
        return number(
            SECTION, COST, got, self.wanted, bound, telling=self.wanted, where="; ".join(filter(None, (ratio, where)))
        )

    def _tokens(self, count: int) -> Sequence[int]:
        return [token % self._model.vocab_size for token in range(count)]

"""Right ways to feed a batch: padding, waves, chunks, and one row after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from lmconform.adapter import Array, Completion, Request
from lmconform.engines.reference import Reference, ReferenceModel
from lmconform.faults.legal.legal import Prepared, legal
from refdecoder.cache import Cache


class LeftPadding(Prepared):
    """Shorter rows are padded on the left."""

    name = "legal: left padding"

    def prepare(self, model: ReferenceModel) -> None:
        model.padding = "left"


class _Chunks(Prepared):
    size: ClassVar[int]

    def prepare(self, model: ReferenceModel) -> None:
        model.chunk = self.size


class ChunksOf5(_Chunks):
    """Prompts and sequences are fed 5 tokens at a time."""

    name = "legal: chunks of 5"
    size = 5


class ChunksOf1(_Chunks):
    """Prompts and sequences are fed token by token."""

    name = "legal: chunks of 1"
    size = 1


class _Waves(ReferenceModel):
    """At most ``slots`` rows run side by side; further ones wait."""

    slots = 8

    def _score(self, sequences: Sequence[Sequence[int]], cache: Cache | None = None) -> list[Array]:
        found: list[Array] = []
        for start in range(0, len(sequences), self.slots):
            found += super()._score(sequences[start : start + self.slots], cache)
        return found

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        for request in requests:  # a request that cannot be met refuses the call, in whichever wave it is
            self._rows(request)
        found: list[Completion] = []
        wave: list[Request] = []
        for request in requests:
            if sum(one.n for one in wave) + request.n > self.slots and wave:
                found += super().generate(wave)
                wave = []
            wave.append(request)
        return found + super().generate(wave)


class WavesOf8(Reference):
    """Batches of at most 8 rows."""

    name = "legal: waves of 8"
    model_class = _Waves


class _Single(_Waves):
    slots = 1


class RowByRow(Reference):
    """Batches of one row."""

    name = "legal: row by row"
    model_class = _Single


class _Filled(ReferenceModel):
    """Batches have 32 rows or more; rows that nobody asked for fill them up, as in graphs of one width."""

    width = 32

    def _score(self, sequences: Sequence[Sequence[int]], cache: Cache | None = None) -> list[Array]:
        filling = [] if cache is not None else [[0, 0]] * (self.width - len(sequences))
        return super()._score([*sequences, *filling], cache)[: len(sequences)]

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        filling = [Request(prompt=(0, 0), max_new_tokens=2)] * (self.width - len(requests))
        wanted = sum(request.n for request in requests)
        return super().generate([*requests, *filling])[:wanted]


class FilledBatches(Reference):
    """Batches filled up to 32 rows."""

    name = "legal: filled batches"
    model_class = _Filled


class _Sorted(ReferenceModel):
    """Rows are batched by falling length, and handed back in the order of the requests."""

    def _score(self, sequences: Sequence[Sequence[int]], cache: Cache | None = None) -> list[Array]:
        order = sorted(range(len(sequences)), key=lambda place: -len(sequences[place]))
        found = super()._score([sequences[place] for place in order], cache)
        return [one for _, one in sorted(zip(order, found, strict=True), key=lambda pair: pair[0])]

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        order = sorted(range(len(requests)), key=lambda place: -len(requests[place].prompt))
        rows = iter(super().generate([requests[place] for place in order]))
        done = {place: [next(rows) for _ in range(requests[place].n)] for place in order}
        return [one for place in range(len(requests)) for one in done[place]]


class LongestFirst(Reference):
    """Batches sorted by length."""

    name = "legal: longest rows first"
    model_class = _Sorted


class _LastTokenApart(ReferenceModel):
    """The last token of a prompt is fed as a decode step."""

    def _score(self, sequences: Sequence[Sequence[int]], cache: Cache | None = None) -> list[Array]:
        if cache is None and all(len(one) > 1 for one in sequences):
            cache = self.decoder.new_cache(len(sequences), max(map(len, sequences)))
            first = super()._score([one[:-1] for one in sequences], cache)
            last = super()._score([one[-1:] for one in sequences], cache)
            return [np.concatenate(pair) for pair in zip(first, last, strict=True)]
        return super()._score(sequences, cache)


class LastTokenApart(Reference):
    """The last token of a sequence is a decode step of its own."""

    name = "legal: last token apart"
    model_class = _LastTokenApart


class _Portions(ReferenceModel):
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return [
            one if one.pieces is None else replace(one, pieces=tuple(_portions(one.tokens)))
            for one in super().generate(requests)
        ]


def _portions(tokens: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [tokens[start : start + 3] for start in range(0, len(tokens), 3)]


class StreamsInPortions(Reference):
    """A stream hands out three tokens at a time."""

    name = "legal: stream in portions"
    model_class = _Portions


LEGAL = (
    legal(LeftPadding, "shorter rows padded on the left by default: padding is hidden, on whichever side"),
    legal(LeftPadding, "the same in bfloat16", dtype="bfloat16"),
    legal(ChunksOf5, "every sequence and prompt in chunks of 5: a chunk sees all that was cached before it"),
    legal(ChunksOf1, "every sequence and prompt token by token: prefill by decode steps"),
    legal(ChunksOf1, "the same in bfloat16", dtype="bfloat16"),
    legal(WavesOf8, "8 slots; more requests are served in waves: a row does not depend on when it runs"),
    legal(RowByRow, "one row at a time: a row does not depend on its neighbours"),
    legal(FilledBatches, "batches filled up to 32 rows with rows that nobody asked for, as graphs of one width are"),
    legal(LongestFirst, "rows sorted by length, and handed back in order: a row does not depend on its place"),
    legal(LastTokenApart, "the last token of a sequence as a decode step, as servers do after a full prefix hit"),
    legal(StreamsInPortions, "streams of three tokens at a time: pieces join to the same tokens"),
)

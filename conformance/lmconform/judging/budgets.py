"""How far a right engine may be from the oracle, for one checkpoint, one precision and these tokens.

The rule (``spec/numerics.md``): e = got - oracle, centred per row. The errors of eight naive variants and four noise
runs give S (the size of a legal error), S_t (the same a row) and M (its largest element). e passes when
rms(e) <= c·S, every row's rms_t <= c_t·S_t and max|e| <= c_m·M. The difference of two results of the engine carries
two such errors: S, S_t and M grow by sqrt(2).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import sqrt
from typing import Literal

import numpy as np

from lmconform.adapter import Array, Precision
from lmconform.checkpoints.layout import Checkpoint
from lmconform.judging.arithmetic import NAIVE_VARIANTS, NOISE_RUNS, UNIT_ROUNDOFF, noise, variants
from lmconform.judging.naive import decode, told_apart
from lmconform.spec.categorical_output import log_softmax
from lmconform.spec.decoder import Config, decoder, read_config

FACTORS: dict[str, tuple[float, float, float]] = {
    "float64": (8, 8, 8),
    "float32": (8, 8, 8),
    "tf32": (4, 6, 4),
    "float16": (4, 6, 4),
    "bfloat16": (3, 6, 4),
    "fp8_e4m3": (3, 6, 4),
    "fp8_e5m2": (3, 6, 4),
    "q8_0": (3, 6, 4),
    "int8": (3, 6, 4),
}
"""(c, c_t, c_m) by compute format; measured in spec/numerics.md."""

CERTAIN = 16.0
"""An error of so many budgets is no noise and needs no second look: legal ones stay below 1."""

UNFIT = 0.05
"""A checkpoint with S/sigma beyond this cannot tell right from wrong in this format."""

LARGE = 10_000_000
"""Weights beyond which a quarter of the variants and noise runs must do, since each takes seconds."""

KEPT_BYTES = 96_000_000
"""Of tables that a yardstick keeps."""
FEWEST_KEPT = 6
"""Tables kept however large they are: as many as tests share sequences."""
KEPT_BUDGETS = 128
"""Budgets that a yardstick keeps: engines that are judged one after the other are asked the same."""

Reading = Callable[[Array], Array]
Rounded = Literal["scores", "logprobs"] | None


@dataclass(frozen=True)
class Budget:
    """Bounds on an error array [n, K]."""

    size: float
    """S, the root mean square of a legal error, before any factor."""
    spread: float
    """Standard deviation of the oracle's scores, for scale."""
    overall: float
    """Bound on the rms over all elements."""
    rows: Array
    """Bound on the rms of each row, [n]."""
    largest: float
    """Bound on the largest element."""
    reading: Array
    """Bound on the largest element of each row, [n]: for readings of an instrument, whose rows differ in size.

    Infinite for a row that some legal way cannot read, such as a share of 0/0: nothing can be said of it.
    """

    @property
    def unfit(self) -> bool:
        """Legal errors are too large a part of the scores' spread to tell right from wrong."""
        return self.size > UNFIT * self.spread

    def shares(self, error: Array) -> tuple[float, float, float]:
        """What part of each bound ``error`` [n, K] uses: over all, in its worst row, and in its largest element."""
        overall = sqrt(np.mean(error**2)) / self.overall
        rows = np.sqrt((error**2).mean(axis=1)) / self.rows
        return overall, float(rows.max()), float(np.abs(error).max() / self.largest)

    def excess(self, error: Array) -> float:
        """By what factor ``error`` [n, K] exceeds the tightest of the three bounds; at most 1 is within budget."""
        return max(self.shares(error)) if np.isfinite(error).all() else float("inf")


def sum_bound(logprobs: Array, precision: Precision) -> float:
    """Bound on |log of the sum of probabilities| of one row [V]: each is rounded, the large ones count most."""
    error = (np.exp(logprobs) * (1 + np.abs(logprobs))).sum() * UNIT_ROUNDOFF[precision.logprobs]
    return float(FACTORS[precision.logprobs][0] * error)


class Yardstick:
    """Oracle and legal errors of one checkpoint in one precision, computed once a sequence."""

    def __init__(self, checkpoint: Checkpoint, precision: Precision) -> None:
        self.checkpoint = checkpoint
        self.precision = precision
        every = NOISE_RUNS if sum(value.size for value in checkpoint.weights.values()) > LARGE else 1
        naive = variants(precision)[:NAIVE_VARIANTS:every]
        self._ways = [*map(told_apart, naive), noise(precision, runs=NOISE_RUNS // every)]
        self._weights = {name: np.asarray(value, np.float64) for name, value in checkpoint.weights.items()}
        self._tables = Tables(self._compute)
        self._budgets = lru_cache(maxsize=KEPT_BUDGETS)(self._budget)
        self.oracle = lru_cache(maxsize=8)(self._oracle)
        self.edited = lru_cache(maxsize=32)(self._edited)

    @cached_property
    def _config(self) -> Config:
        """Read when first asked for: an engine may be offered a checkpoint that is no decoder."""
        return read_config(self.checkpoint.config)

    def _oracle(self, tokens: tuple[int, ...]) -> Array:
        """The standard's scores, [T, V], without the legal ways: a search for what an engine did asks for many."""
        return decoder(self._config, self._weights, tokens)

    def faulty(self, tokens: Sequence[int], visible: Callable[[int, int], Array]) -> Array:
        """The oracle's scores [T, V] under another mask, to see what a fault would do."""
        return decoder(self._config, self._weights, tokens, visible=visible)

    def _edited(self, edit: Callable[[Checkpoint], Checkpoint]) -> Edited:
        """The oracle of the edited checkpoint, to see what a fault would do."""
        return Edited(edit(self.checkpoint))

    def _compute(self, tokens: tuple[int, ...]) -> Array:
        """Scores of the oracle and of every legal way, [1 + ways, T, V]."""
        found = {how: decode(self._config, self.checkpoint.weights, tokens, how) for how in set(self._ways)}
        return np.concatenate([self._oracle(tokens)[None], *(found[how] for how in self._ways)])

    def budget(
        self,
        places: Sequence[tuple[tuple[int, ...], int]],
        columns: Sequence[int] | None = None,
        *,
        logprobs: Rounded = None,
        reading: Reading | None = None,
        sides: int = 1,
    ) -> tuple[Array, Budget]:
        """Oracle rows [n, K] at ``places`` (tokens, position), and the budget of an error against them.

        ``logprobs``: the format that rounds log-probabilities, whose errors are larger than those of logits near 0;
        None where the scores are logits.
        ``reading`` turns rows of scores into rows of what is compared; without it rows are centred, since scores are
        defined up to a constant. ``sides`` is 2 for the difference of two results of the engine. What is returned is
        shared by all who ask the same, so that it cannot be written to.
        """
        return self._budgets(tuple(places), None if columns is None else tuple(columns), logprobs, reading, sides)

    def _budget(
        self,
        places: tuple[tuple[tuple[int, ...], int], ...],
        columns: tuple[int, ...] | None,
        logprobs: Rounded,
        reading: Reading | None,
        sides: int,
    ) -> tuple[Array, Budget]:
        rows = self.ways(places, columns, logprobs=logprobs)
        wanted, found = judge(rows, self.precision, reading=reading, sides=sides)
        for values in (wanted, found.rows, found.reading):
            values.setflags(write=False)
        return wanted, found

    def ways(
        self,
        places: Sequence[tuple[tuple[int, ...], int]],
        columns: Sequence[int] | None = None,
        *,
        logprobs: Rounded = None,
    ) -> Array:
        """Rows at ``places`` of the oracle, and then of every legal way, [1 + ways, n, K]."""
        rows = self._tables.rows([*places])  # [1 + ways, n, V]
        if logprobs:
            rows = log_softmax(rows)
            first = 1
            for how in self._ways:
                own = slice(first, first + how.runs)
                rows[own] = getattr(how, logprobs)(rows[own])
                first = own.stop
        return rows if columns is None else rows[:, :, list(columns)]


class Edited:
    """The oracle of a checkpoint, without legal errors."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._config = read_config(checkpoint.config)
        self._weights = {name: np.asarray(value, np.float64) for name, value in checkpoint.weights.items()}
        self.oracle = lru_cache(maxsize=32)(self._oracle)

    def _oracle(self, tokens: tuple[int, ...]) -> Array:
        return decoder(self._config, self._weights, tokens)


class Tables:
    """Scores of sequences, [runs, T, V] each, by ``compute``; those of a sequence hold those of all its prefixes."""

    def __init__(self, compute: Callable[[tuple[int, ...]], Array]) -> None:
        self._compute = compute
        self._known: OrderedDict[tuple[int, ...], Array] = OrderedDict()

    def __getitem__(self, tokens: tuple[int, ...]) -> Array:
        """The table of ``tokens``, or of a longer sequence that starts with them."""
        for known in self._known:
            if known[: len(tokens)] == tokens:
                self._known.move_to_end(known)
                return self._known[known]
        for known in [one for one in self._known if tokens[: len(one)] == one]:
            del self._known[known]  # the new table holds it
        self._known[tokens] = found = self._compute(tokens)
        while sum(table.nbytes for table in self._known.values()) > KEPT_BYTES and len(self._known) > FEWEST_KEPT:
            self._known.popitem(last=False)
        return found

    def rows(self, places: Sequence[tuple[tuple[int, ...], int]]) -> Array:
        """The rows at ``places`` (tokens, position), [runs, n, V]."""
        asked = sorted({tokens for tokens, _ in places}, key=len, reverse=True)  # so that prefixes cost nothing
        tables = {tokens: self[tokens] for tokens in asked}
        return np.stack([tables[tokens][:, position] for tokens, position in places], axis=1)


def judge(rows: Array, precision: Precision, *, reading: Reading | None = None, sides: int = 1) -> tuple[Array, Budget]:
    """From rows [1 + ways, n, K] of oracle and legal ways: what is compared, of the oracle, and its budget."""
    with np.errstate(divide="ignore", invalid="ignore"):  # in coarse formats a legal way may have nothing to read
        values = np.array([_flat((reading or centred)(row)) for row in rows])
    return values[0], bounds(values[1:] - values[0], values[0], precision, sides)


def _flat(values: Array) -> Array:
    """[n, ...] as [n, K]."""
    return values.reshape(len(values), -1)


def centred(rows: Array) -> Array:
    """Rows minus their means; a score of -inf (a masked id) is left out of the mean."""
    finite = np.where(np.isfinite(rows), rows, np.nan)
    return rows - np.nanmean(finite, axis=-1, keepdims=True)


def bounds(legal: Array, wanted: Array, precision: Precision, sides: int = 1) -> Budget:
    """From legal errors [runs, n, K]. The rounding of the returned scores themselves is part of S."""
    first_noise = len(legal) * NAIVE_VARIANTS // (NAIVE_VARIANTS + NOISE_RUNS)
    naive, noise = legal[:first_noise], legal[first_noise:]
    unit = max(UNIT_ROUNDOFF[format] for format in (precision.compute, precision.scores))
    tops = np.abs(wanted).max(axis=1)  # [n]
    floor = (unit * tops.max()) ** 2
    size = sqrt((naive**2).mean() + (noise**2).mean() + floor)
    rows = np.sqrt((naive**2).mean((0, 2)) + (noise**2).mean((0, 2)) + floor + (size / 4) ** 2)
    reading = np.maximum(np.abs(legal).max((0, 2)), unit * tops)
    reading = np.where(np.isnan(reading), np.inf, reading)
    largest = max(float(np.abs(legal).max()), unit * float(tops.max()) / 2)
    c, c_t, c_m = (factor * sqrt(sides) for factor in FACTORS[precision.compute])
    return Budget(size, float(wanted.std()), c * size, c_t * rows, c_m * largest, c_m * reading)

"""Right ways to return a row of scores, which is defined up to a constant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lmconform.adapter import Array
from lmconform.engines.reference import Reference, ReferenceModel
from lmconform.faults.legal.legal import legal
from refdecoder.cache import Cache


class _Moved(ReferenceModel):
    """Adds a number to each row."""

    def offset(self, logits: Array) -> Array:
        """Return what is taken from each row of logits [T, V], [T, 1]."""
        raise NotImplementedError

    def _score(self, sequences: Sequence[Sequence[int]], cache: Cache | None = None) -> list[Array]:
        return [one - self.offset(one) for one in super()._score(sequences, cache)]


class _LogProbabilities(_Moved):
    def offset(self, logits: Array) -> Array:
        return np.logaddexp.reduce(logits, axis=-1, keepdims=True)


class ReturnsLogProbabilities(Reference):
    """Scores are log-probabilities."""

    name = "legal: log-probabilities"
    model_class = _LogProbabilities

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.choices = replace(self.choices, scores="log-probabilities")


class _GreatestIsZero(_Moved):
    def offset(self, logits: Array) -> Array:
        return logits.max(axis=-1, keepdims=True)


class _FirstIsZero(_Moved):
    def offset(self, logits: Array) -> Array:
        return logits[:, :1]


class _SaysNothing(Reference):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.choices = replace(self.choices, scores="unspecified")


class GreatestScoreIsZero(_SaysNothing):
    """Each row less its greatest score."""

    name = "legal: greatest score 0"
    model_class = _GreatestIsZero


class FirstScoreIsZero(_SaysNothing):
    """Each row less the score of id 0."""

    name = "legal: first score 0"
    model_class = _FirstIsZero


LEGAL = (
    legal(ReturnsLogProbabilities, "scores are log-probabilities, and declared as such"),
    legal(ReturnsLogProbabilities, "log-probabilities of bfloat16 logits, as servers return them", dtype="bfloat16"),
    legal(
        GreatestScoreIsZero, "each row less its greatest score, stage unspecified: rows are defined up to a constant"
    ),
    legal(FirstScoreIsZero, "each row less the score of id 0, another constant in each row, stage unspecified"),
)

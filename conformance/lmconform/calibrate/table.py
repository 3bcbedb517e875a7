"""What right engines used, kept by what was asked and by the way of working that was asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmconform.adapter import Array
from lmconform.judging.budgets import FACTORS, Budget


@dataclass
class Use:
    """Comparisons of one kind: the largest part that each used of its bounds, and in units of S, S_t and M."""

    shares: list[float] = field(default_factory=list)
    units: list[tuple[float, float, float]] = field(default_factory=list)
    """rms(e)/S, the largest rms_t/S_t and max|e|/M; none where a reading has one bound a row."""
    unfit: int = 0
    """Comparisons that decide nothing in this format; they are in no other figure."""
    not_finite: int = 0
    """Answers with NaN or infinity: here the engine is wrong, and nothing can be compared."""

    def add(self, error: Array, budget: Budget, dtype: str) -> None:
        """Count an error [n, K] against the three bounds."""
        if budget.unfit:
            self.unfit += 1
            return
        parts = budget.shares(error)
        self.shares.append(max(parts))
        c, c_t, c_m = FACTORS[dtype]
        self.units.append((c * parts[0], c_t * parts[1], c_m * parts[2]))

    def read(self, error: Array, bounds: Array) -> None:
        """Count what a reading is off by, each element against a bound of its own; 0 allows no error."""
        parts = np.divide(error, bounds, out=np.full_like(error, np.inf), where=bounds > 0)
        self.shares.append(float(np.where(error == 0, 0, parts).max()))

    def __iadd__(self, other: Use) -> Use:
        self.shares += other.shares
        self.units += other.units
        self.unfit += other.unfit
        self.not_finite += other.not_finite
        return self

    def figures(self) -> dict[str, Any]:
        """Maxima and counts."""
        return {
            "n": len(self.shares),
            "unfit": self.unfit,
            "not_finite": self.not_finite,
            "share": max(self.shares, default=0.0),
            "units": np.max(self.units, axis=0).tolist() if self.units else None,
        }


class Table:
    """Uses in one format, by (what was asked, way of working)."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.uses: dict[tuple[str, str], Use] = {}

    def at(self, what: str, way: str) -> Use:
        """The use to count a comparison in."""
        return self.uses.setdefault((what, way), Use())

    @property
    def ways(self) -> set[str]:
        """All ways of working that were asked; operators are none."""
        return {way for _, way in self.uses if not way.startswith("operator ")}

    def content(self) -> dict[str, dict[str, Any]]:
        """What was asked, with all figures over all ways, the way that used most, and each way's own figures."""
        found: dict[str, dict[str, Any]] = {}
        for what in dict.fromkeys(what for what, _ in self.uses):
            each = {way: use for (one, way), use in self.uses.items() if one == what}
            total = Use()
            for use in each.values():
                total += use
            worst = max(each, key=lambda way: each[way].figures()["share"])
            ways = {way: use.figures() for way, use in each.items()}
            found[what] = {**total.figures(), "most": worst, "ways": ways}
        return found

    def lines(self) -> Iterator[str]:
        """The table as text, a line for each thing that was asked."""
        for what, row in self.content().items():
            units = " ".join(f"{value:5.2f}" for value in row["units"]) if row["units"] else " " * 17
            counts = (
                f"{len(row['ways']):3} ways {row['n']:6} comparisons {row['unfit']:4} unfit {row['not_finite']:3} NaN"
            )
            yield f"{self.dtype:9} {what:45} {row['share']:5.2f}  {units}  {counts}  most: {row['most']}"

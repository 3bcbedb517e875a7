"""From the logits of one row to the next token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError


@dataclass(frozen=True)
class Sampler:
    """How the next token is drawn. Filters apply in the order of the fields, each to what the one before left over.

    ``temperature`` None or 0 is greedy decoding: the most probable id, of several the lowest.
    """

    temperature: float | None = None
    """Logits are divided by it."""
    top_k: int | None = None
    """Keep the k most probable ids (Fan et al. 2018, arXiv:1805.04833); of equals the lower ids."""
    top_p: float | None = None
    """Keep the fewest most probable ids whose mass reaches p (Holtzman et al. 2019, arXiv:1904.09751)."""
    min_p: float | None = None
    """Keep ids with at least min_p times the greatest probability (Nguyen et al. 2024, arXiv:2407.01082)."""

    def __post_init__(self) -> None:
        """Raise InputError if a setting is out of range."""
        if self.temperature is not None and not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature is {self.temperature}; it must be a finite number of 0 or more.")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k is {self.top_k}; it must be 1 or more, or None to keep all.")
        if self.top_p is not None and not 0 <= self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; it must be from 0 to 1, or None to keep all.")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise InputError(f"min_p is {self.min_p}; it must be from 0 to 1, or None to keep all.")

    def draw(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """Return one id, a scalar tensor, for ``logits`` [V]. ``generator`` lives on the device of the logits."""
        if not self.temperature:
            return logits.argmax()
        return torch.multinomial(self.probabilities(logits), 1, generator=generator)[0]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the distribution that is drawn from, [V] in float64; needs a temperature above 0."""
        assert self.temperature, "greedy decoding draws from no distribution"
        scores, ids = (logits.double() / self.temperature).sort(descending=True, stable=True)
        p = scores.softmax(dim=0)  # [V], greatest first
        if self.top_k is not None:
            p[self.top_k :] = 0
            p = p / p.sum()
        if self.top_p is not None and self.top_p < 1:  # at 1 rounding of the sum must not cut the tail
            short = p.cumsum(dim=0) < self.top_p  # the mass down to this id is too little, so the next one stays too
            p = torch.cat((p[:1], torch.where(short[:-1], p[1:], 0)))
        if self.min_p is not None:
            p = torch.where(p >= self.min_p * p[0], p, 0)
        return torch.zeros_like(p).scatter(0, ids, p / p.sum())

"""Right ways to draw: other tie rules and orders where they are declared, other ways to draw from a distribution."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

import refdecoder
from lmconform.adapter import Completion, Refused, Request
from lmconform.engines.common import top_logprobs
from lmconform.engines.reference import Reference, ReferenceModel
from lmconform.faults.legal.legal import Legal, legal
from refdecoder import Sampler


class _LastOfEquals(Sampler):
    def draw(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        if self.temperature:
            return super().draw(logits, generator)
        return len(logits) - 1 - logits.flip(0).argmax()


class _AnyOfEquals(Sampler):
    def draw(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        if self.temperature:
            return super().draw(logits, generator)
        return torch.multinomial((logits == logits.max()).double(), 1, generator=generator)[0]


class TakesTheLastOfEquals(Reference):
    """Of equal scores the highest id."""

    name = "legal: last of equals"
    sampler_class = _LastOfEquals

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.choices = replace(self.choices, ties="last")


class TakesAnyOfEquals(Reference):
    """Of equal scores any id."""

    name = "legal: any of equals"
    sampler_class = _AnyOfEquals

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.choices = replace(self.choices, ties="random")


class _Ordered(Sampler):
    """Filters in the order of ``order``, on probabilities [V] in float64."""

    order: ClassVar[tuple[str, ...]]

    def probabilities(self, logits: Tensor) -> Tensor:
        p = logits.double().softmax(dim=0)
        for name in self.order:
            setting = getattr(self, name)
            if setting is not None:
                p = _FILTERS[name](p, setting)
                p = p / p.sum()
        return p


def _heat(p: Tensor, temperature: float) -> Tensor:
    return (p.log() / temperature).softmax(dim=0)


def _keep_top_k(p: Tensor, k: int) -> Tensor:
    kept = p.argsort(descending=True, stable=True)[:k]
    return torch.zeros_like(p).scatter(0, kept, p[kept])


def _keep_top_p(p: Tensor, mass: float) -> Tensor:
    ranked, ids = p.sort(descending=True, stable=True)
    before = ranked.cumsum(dim=0) - ranked  # what more probable ids have
    return torch.zeros_like(p).scatter(0, ids, torch.where((before < mass) | (mass >= 1), ranked, 0))


def _keep_min_p(p: Tensor, share: float) -> Tensor:
    return torch.where(p >= share * p.max(), p, 0)


_FILTERS: Mapping[str, Callable[[Tensor, Any], Tensor]] = {
    "temperature": _heat,
    "top_k": _keep_top_k,
    "top_p": _keep_top_p,
    "min_p": _keep_min_p,
}


class AnyOrder(Reference):
    """Temperature and filters in the order of the option ``order``, which is declared."""

    name = "legal: another order"

    def __init__(self, order: str = "temperature,top_k,top_p,min_p", **options: Any) -> None:
        """Raise ValueError if ``order`` does not hold each of the four once."""
        super().__init__(**options)
        names = tuple(order.split(","))
        if sorted(names) != sorted(_FILTERS):
            raise ValueError(f"Option order={order} is not legal; it must hold each of {', '.join(_FILTERS)} once.")
        self.sampler_class = type("Ordered", (_Ordered,), {"order": names})
        self.choices = replace(self.choices, sampler_order=names)


class _Gumbel(Sampler):
    """The greatest of log p + noise (Gumbel-max)."""

    def draw(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        if not self.temperature:
            return super().draw(logits, generator)
        p = _sound(self.probabilities(logits))
        noise = -torch.empty_like(p).exponential_(generator=generator).log()
        return (p.log() + noise).argmax()


def _sound(p: Tensor) -> Tensor:
    """Return p [V]; raise ValueError if it is no distribution, which torch.multinomial does by itself."""
    if not bool(p.isfinite().all()):
        raise ValueError("A probability is NaN or infinite.")
    return p


class DrawsByGumbel(Reference):
    """Gumbel-max."""

    name = "legal: Gumbel-max"
    sampler_class = _Gumbel


class _Inverse(Sampler):
    """The first id whose cumulated probability exceeds a uniform number."""

    def draw(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        if not self.temperature:
            return super().draw(logits, generator)
        reached = _sound(self.probabilities(logits)).cumsum(dim=0)  # [V], in the order of ids
        u = torch.rand(1, dtype=reached.dtype, device=reached.device, generator=generator)
        return torch.searchsorted(reached, u * reached[-1], right=True)[0]


class DrawsByInverse(Reference):
    """Inverse of the cumulated distribution."""

    name = "legal: inverse distribution"
    sampler_class = _Inverse


class _Narrow(Sampler):
    """All in float32, as most engines do."""

    def probabilities(self, logits: Tensor) -> Tensor:
        assert self.temperature
        scores = logits.float() / self.temperature
        ranked, ids = scores.sort(descending=True, stable=True)
        if self.top_k is not None:
            ranked[self.top_k :] = float("-inf")
        if self.top_p is not None and self.top_p < 1:
            p = ranked.softmax(dim=0)
            ranked = ranked.masked_fill(p.cumsum(dim=0) - p >= self.top_p, float("-inf"))
        if self.min_p:
            ranked = ranked.masked_fill(ranked < ranked[0] + math.log(self.min_p), float("-inf"))
        return torch.zeros_like(ranked).scatter(0, ids, ranked.softmax(dim=0))


class DrawsInFloat32(Reference):
    """Filters on scores in float32, min-p on their logarithms."""

    name = "legal: sampler in float32"
    sampler_class = _Narrow


class _Processed(ReferenceModel):
    """Log-probabilities of what is drawn from."""

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        everything = [one if one.logprobs is None else replace(one, logprobs=self.vocab_size) for one in requests]
        owners = [request for request in requests for _ in range(request.n)]
        return [self._processed(one, done) for one, done in zip(owners, super().generate(everything), strict=True)]

    def _processed(self, request: Request, done: Completion) -> Completion:
        if done.logprobs is None or request.logprobs is None:
            return done
        sampler = self.engine.sampler_class(request.temperature, request.top_k, request.top_p, request.min_p)
        steps = []
        for token, step in zip(done.tokens, done.logprobs, strict=True):
            row = torch.tensor([step[i] for i in range(self.vocab_size)], dtype=torch.float64)  # [V]
            row = sampler.probabilities(row).log() if sampler.temperature else row
            steps.append({**top_logprobs(row.numpy(), request.logprobs), token: float(row[token])})
        return replace(done, logprobs=tuple(steps))


class ReportsWhatIsDrawnFrom(Reference):
    """Log-probabilities after temperature and filters."""

    name = "legal: processed log-probabilities"
    model_class = _Processed

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.choices = replace(self.choices, logprobs="processed")


class _NoZero(ReferenceModel):
    def _rows(self, request: Request) -> list[refdecoder.Request]:
        if request.temperature == 0:
            raise Refused("The temperature is 0; leave it out for greedy decoding.")
        return super()._rows(request)


class RefusesTemperatureZero(Reference):
    """A temperature of 0 is refused."""

    name = "legal: temperature 0 refused"
    model_class = _NoZero

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.choices = replace(self.choices, temperature_zero="refused")


ORDERS = (
    "top_k,top_p,min_p,temperature",
    "temperature,top_p,top_k,min_p",
    "min_p,temperature,top_k,top_p",
    "top_p,min_p,temperature,top_k",
)
LEGAL: tuple[Legal, ...] = (
    legal(TakesTheLastOfEquals, "the last of equal scores, as declared"),
    legal(TakesAnyOfEquals, "any of equal scores, as declared: which one is not a matter of the scores"),
    *(legal(AnyOrder, f"temperature and filters in the declared order {one}", order=one) for one in ORDERS),
    legal(DrawsByGumbel, "the greatest of log p plus Gumbel noise: it is i with probability p(i)"),
    legal(DrawsByInverse, "the first id at which the cumulated probability exceeds a uniform number"),
    legal(DrawsInFloat32, "filters in float32, min-p as score >= top + log(min_p): the same test in logarithms"),
    legal(ReportsWhatIsDrawnFrom, "log-probabilities after temperature and filters, as declared"),
    legal(RefusesTemperatureZero, "a temperature of 0 is refused, as declared; greedy decoding is asked without one"),
)

"""Logits, draws and requests that are handled otherwise, to the same effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from lmconform.adapter import Completion, Request
from lmconform.engines.reference import Reference, ReferenceModel
from lmconform.faults.fault import Rebuilt
from lmconform.faults.legal.legal import Legal, legal
from refdecoder import GPT2, Cache, CausalLM, Decoder, Sampler


class _Raised(CausalLM):
    def forward(self, tokens: Tensor, positions: Tensor, cache: Cache, last: bool = False) -> Tensor:
        return super().forward(tokens, positions, cache, last) + 2.0**-10


class _RaisedDecoder(_Raised, Decoder):
    pass


class _RaisedGPT2(_Raised, GPT2):
    pass


class AddsToAllLogits(Rebuilt):
    """All logits are greater by 2^-10. A large constant would cost the digits of small logits, and is not equal."""

    name = "equivalent: logits + 2^-10"
    parts: ClassVar = {Decoder: _RaisedDecoder, GPT2: _RaisedGPT2}


class _OtherPadding(CausalLM):
    def forward(self, tokens: Tensor, positions: Tensor, cache: Cache, last: bool = False) -> Tensor:
        tokens = torch.where(positions < 0, self.config.vocab_size - 1, tokens)
        return super().forward(tokens, positions, cache, last)


class _OtherPaddingDecoder(_OtherPadding, Decoder):
    pass


class _OtherPaddingGPT2(_OtherPadding, GPT2):
    pass


class PadsWithTheLastId(Rebuilt):
    """Padding holds the last id of the vocabulary."""

    name = "equivalent: another id as padding"
    parts: ClassVar = {Decoder: _OtherPaddingDecoder, GPT2: _OtherPaddingGPT2}


class _OfLogProbabilities(Sampler):
    def probabilities(self, logits: Tensor) -> Tensor:
        return super().probabilities(logits.double().log_softmax(dim=0))


class DividesLogProbabilities(Reference):
    """The temperature divides log-probabilities."""

    name = "equivalent: temperature on log-probabilities"
    sampler_class = _OfLogProbabilities


class _TwoRoots(Sampler):
    def probabilities(self, logits: Tensor) -> Tensor:
        assert self.temperature
        root = self.temperature**0.5
        return replace(self, temperature=root).probabilities_of(logits.double() / root)

    def probabilities_of(self, logits: Tensor) -> Tensor:
        return Sampler.probabilities(self, logits)


class DividesByTheRootTwice(Reference):
    """Logits are divided by the root of the temperature, twice."""

    name = "equivalent: root of the temperature, twice"
    sampler_class = _TwoRoots


class _Logarithms(Sampler):
    def probabilities(self, logits: Tensor) -> Tensor:
        p = replace(self, min_p=None).all_but_min_p(logits)
        if self.min_p:
            log_p = p.log()
            p = torch.where(log_p - log_p.max() >= torch.tensor(self.min_p).double().log(), p, 0)
        return p / p.sum()

    def all_but_min_p(self, logits: Tensor) -> Tensor:
        return Sampler.probabilities(self, logits)


class ComparesMinPInLogarithms(Reference):
    """Min-p compares logarithms of probabilities."""

    name = "equivalent: min-p in logarithms"
    sampler_class = _Logarithms


class _Wasteful(Sampler):
    def draw(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        torch.rand(3, device=logits.device, generator=generator)
        return super().draw(logits, generator)


class WastesRandomNumbers(Reference):
    """Three random numbers are drawn and thrown away before each draw."""

    name = "equivalent: random numbers wasted"
    sampler_class = _Wasteful


class _Renamed(ReferenceModel):
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return super().generate([self.renamed(request) for request in requests])

    def renamed(self, request: Request) -> Request:
        """Return a request that asks for the same."""
        raise NotImplementedError


class _OtherSeeds(_Renamed):
    def renamed(self, request: Request) -> Request:
        return request if request.seed is None else replace(request, seed=request.seed ^ 0x5DEECE66D)


class RenamesTheSeeds(Reference):
    """Seeds are other numbers inside."""

    name = "equivalent: other seeds"
    model_class = _OtherSeeds


class _StopsTwice(_Renamed):
    def renamed(self, request: Request) -> Request:
        return replace(
            request,
            stop_ids=2 * request.stop_ids[::-1],
            stop_strings=2 * request.stop_strings[::-1],
            stop_sequences=2 * request.stop_sequences[::-1],
        )


class ListsStopsTwice(Reference):
    """Stops are listed in reverse, twice."""

    name = "equivalent: stops twice"
    model_class = _StopsTwice


EQUIVALENT: tuple[Legal, ...] = (
    legal(AddsToAllLogits, "2^-10 added to all logits: a row is defined up to a constant, and so is what is drawn"),
    legal(PadsWithTheLastId, "padding of another id: padding is hidden, so what it holds is never read"),
    legal(DividesLogProbabilities, "the temperature on log-probabilities: they differ from logits by a constant a row"),
    legal(DividesByTheRootTwice, "the root of the temperature, twice: the product of both is the temperature"),
    legal(ComparesMinPInLogarithms, "min-p as a difference of logarithms: the logarithm keeps the order"),
    legal(WastesRandomNumbers, "random numbers thrown away: draws stay independent, and a seed still repeats them"),
    legal(RenamesTheSeeds, "other seeds inside: a seed names a stream, and says nothing of what is in it"),
    legal(ListsStopsTwice, "stops in another order, and twice: they are sets"),
)

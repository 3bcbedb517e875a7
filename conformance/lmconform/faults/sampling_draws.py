"""Planted faults of draws: which row, which random numbers, which ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

import refdecoder
from lmconform.adapter import Completion, Request
from lmconform.engines.reference import Reference, ReferenceModel
from lmconform.faults.fault import Fault
from refdecoder import Sampler


class _OneBack(ReferenceModel):
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        drawn = [one.temperature is not None and len(one.prompt) > 1 for one in requests]
        cut = [dataclasses.replace(one, prompt=one.prompt[:-1]) for one in requests]
        return super().generate(
            [other if found else one for one, other, found in zip(requests, cut, drawn, strict=True)]
        )


class ReadsThePositionBefore(Reference):
    """The first id drawn comes from the scores of the last position but one."""

    name = "fault: last position but one"
    model_class = _OneBack


class _Swapped(ReferenceModel):
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        prompts = [request.prompt for request in requests]
        swapped = [
            dataclasses.replace(request, prompt=prompt)
            for request, prompt in zip(requests, prompts[1:] + prompts[:1], strict=True)
        ]
        return super().generate(swapped)


class ReadsTheNextRow(Reference):
    """Each row of a batch is drawn from the scores of the next row."""

    name = "fault: scores of the next row"
    model_class = _Swapped


class _CoarseNoise(Sampler):
    def draw(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        if not self.temperature:
            return super().draw(logits, generator)
        noise = torch.randint(8, (), generator=generator).double() / 8  # 3 random bits
        sums = self.probabilities(logits).cumsum(dim=0)
        return (sums > noise).int().argmax()


class DrawsWithFewBits(Reference):
    """Draws invert the sum of probabilities at one of 8 places."""

    name = "fault: 3 random bits"
    sampler_class = _CoarseNoise


class _SharedNoise(ReferenceModel):
    def _rows(self, request: Request) -> list[refdecoder.Request]:
        return [dataclasses.replace(row, seed=self.seed) for row in super()._rows(request)]

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        self.seed = int(torch.randint(2**62, ()))
        return super().generate(requests)


class SharesNoiseInABatch(Reference):
    """All rows of a batch draw with the same random numbers."""

    name = "fault: rows share their noise"
    model_class = _SharedNoise


class _Stale(Sampler):
    def draw(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        count, before = _PAST.get(generator, (0, generator.get_state()))
        now = generator.get_state()
        if count % 10 == 9:
            generator.set_state(before)
        _PAST[generator] = count + 1, now
        return super().draw(logits, generator)


_PAST: WeakKeyDictionary[torch.Generator, tuple[int, Tensor]] = WeakKeyDictionary()


class RepeatsNoiseOfTheStepBefore(Reference):
    """Every tenth step of a row draws with the random numbers of the step before."""

    name = "fault: noise repeats"
    sampler_class = _Stale


class _FirstForAll(ReferenceModel):
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        first = {name: getattr(requests[0], name) for name in ("temperature", "top_k", "top_p", "min_p")}
        return super().generate([dataclasses.replace(request, **first) for request in requests])


class FirstSettingsForAll(Reference):
    """The sampling settings of the first request are used for the whole batch."""

    name = "fault: settings of the first row"
    model_class = _FirstForAll


class _Seedless(ReferenceModel):
    def _rows(self, request: Request) -> list[refdecoder.Request]:
        return super()._rows(dataclasses.replace(request, seed=None))


class IgnoresSeeds(Reference):
    """Seeds do not reach the draws."""

    name = "fault: seed ignored"
    model_class = _Seedless


class _Padded(Sampler):
    def draw(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        return super().draw(torch.nn.functional.pad(logits, (0, -len(logits) % 64)), generator)


class PaddedColumnsWin(Reference):
    """The vocabulary is padded to a multiple of 64 with scores of 0, and the padding takes part in the draw."""

    name = "fault: padded columns"
    sampler_class = _Padded


class _PaddedToTheLast(Sampler):
    def draw(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        drawn = super().draw(torch.nn.functional.pad(logits, (0, -len(logits) % 64)), generator)
        return drawn.clamp(max=len(logits) - 1)


class PaddedColumnsWinAsTheLastId(Reference):
    """Padded columns take part in the draw, and are returned as the last id."""

    name = "fault: padded columns as the last id"
    sampler_class = _PaddedToTheLast


class _NeverTheLast(Sampler):
    def draw(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        return super().draw(logits[:-1], generator)


class NeverDrawsTheLastId(Reference):
    """The last id of the vocabulary is never drawn."""

    name = "fault: last id out of reach"
    sampler_class = _NeverTheLast


class _Blind(Sampler):
    def draw(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        return super().draw(logits.nan_to_num(0.0), generator)


class TakesNanForZero(Reference):
    """NaN among the scores is taken for 0, and an id is drawn."""

    name = "fault: NaN taken for 0"
    sampler_class = _Blind


class _OneSeed(ReferenceModel):
    def _rows(self, request: Request) -> list[refdecoder.Request]:
        rows = super()._rows(request)
        return rows if request.seed is None else rows[:1] * len(rows)


class CompletionsShareTheirSeed(Reference):
    """All completions of a request with a seed draw with that seed."""

    name = "fault: completions share their seed"
    model_class = _OneSeed


class _ShortSeeds(ReferenceModel):
    def _rows(self, request: Request) -> list[refdecoder.Request]:
        seed = None if request.seed is None else request.seed % 2**16
        return super()._rows(dataclasses.replace(request, seed=seed))


class SeedsOf16Bits(Reference):
    """Of a seed the lowest 16 bits count."""

    name = "fault: seeds of 16 bits"
    model_class = _ShortSeeds


class _LargestK(ReferenceModel):
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        most = max((one.top_k for one in requests if one.top_k is not None), default=None)
        return super().generate(
            [one if one.top_k is None else dataclasses.replace(one, top_k=most) for one in requests]
        )


class LargestTopKForAll(Reference):
    """All rows of a batch with a top-k have the largest of them."""

    name = "fault: largest top-k"
    model_class = _LargestK


FAULTS = (
    Fault(ReadsThePositionBefore, "CAT-3", "llama-cpp-python#1179", "sampler.rows"),
    Fault(ReadsTheNextRow, "CAT-3", "BIDMach#51", "sampler.rows"),
    Fault(DrawsWithFewBits, "CAT-13", "torch7#165", "sampler.noise"),
    Fault(SharesNoiseInABatch, "CAT-14", "vllm#50440", "sampler.noise"),
    Fault(RepeatsNoiseOfTheStepBefore, "CAT-14", "vllm#50440", "sampler.noise"),
    Fault(FirstSettingsForAll, "CAT-15", "mlx-vlm#1647", "sampler.settings"),
    Fault(IgnoresSeeds, "CAT-16", "llama.cpp#7381", "sampler.noise"),
    Fault(PaddedColumnsWin, "CAT-17", "mirage#751", "sampler.vocabulary"),
    Fault(PaddedColumnsWinAsTheLastId, "CAT-17", "sockeye#866", "sampler.vocabulary"),
    Fault(NeverDrawsTheLastId, "CAT-18", "swift-transformers#384", "sampler.vocabulary"),
    Fault(TakesNanForZero, "CAT-19", "colibri#369", "sampler.vocabulary"),
    Fault(CompletionsShareTheirSeed, "CAT-14", "vllm#10852", "sampler.noise"),
    Fault(SeedsOf16Bits, "CAT-14", "pytorch-lightning#21399", "sampler.noise"),
    Fault(LargestTopKForAll, "CAT-15", "mlx-vlm#1647", "sampler.settings"),
)

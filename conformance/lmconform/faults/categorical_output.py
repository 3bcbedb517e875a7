"""Planted faults of categorical output: of the sampler, of its settings, and of the log-probabilities."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

import refdecoder
from lmconform.adapter import Completion, Request
from lmconform.engines.reference import Reference, ReferenceModel
from lmconform.faults.fault import Fault
from refdecoder import Sampler


class _Unnormalised(ReferenceModel):
    def _completion(self, done: refdecoder.Completion, piecewise: bool) -> Completion:
        right = super()._completion(done, piecewise)
        steps = None if right.logprobs is None else tuple(_below_the_top(step) for step in right.logprobs)
        return dataclasses.replace(right, logprobs=steps)


def _below_the_top(step: Mapping[int, float]) -> dict[int, float]:
    return {token: value - max(step.values()) for token, value in step.items()}


class LogprobsBelowTheTop(Reference):
    """Log-probabilities are scores minus the greatest score."""

    name = "fault: log-probabilities not normalised"
    model_class = _Unnormalised


class _AfterTemperature(ReferenceModel):
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return [
            dataclasses.replace(done, logprobs=_divided(done.logprobs, request.temperature))
            for request in requests
            for done in super(_AfterTemperature, self).generate([request])
        ]


def _divided(
    steps: Sequence[Mapping[int, float]] | None, temperature: float | None
) -> tuple[Mapping[int, float], ...] | None:
    if steps is None or not temperature:
        return None if steps is None else tuple(steps)
    tables = [torch.tensor(list(step.values()), dtype=torch.float64) / temperature for step in steps]
    return tuple(
        dict(zip(step, table.log_softmax(dim=0).tolist(), strict=True))
        for step, table in zip(steps, tables, strict=True)
    )


class LogprobsAfterTemperature(Reference):
    """Log-probabilities that are declared as the model's own are those after the temperature."""

    name = "fault: log-probabilities of another stage"
    model_class = _AfterTemperature


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


class _TenPercentHot(Sampler):
    def probabilities(self, logits: Tensor) -> Tensor:
        return super().probabilities(logits / 1.1)


class TemperatureTenPercentHigh(Reference):
    """The temperature is 10 % higher than asked for."""

    name = "fault: temperature times 1.1"
    sampler_class = _TenPercentHot


class _Twice(Sampler):
    def probabilities(self, logits: Tensor) -> Tensor:
        return super().probabilities(logits / (self.temperature or 1))


class TemperatureTwice(Reference):
    """Scores are divided by the temperature twice."""

    name = "fault: temperature squared"
    sampler_class = _Twice


class _Ignored(Sampler):
    def probabilities(self, logits: Tensor) -> Tensor:
        return super().probabilities(logits * (self.temperature or 1))


class TemperatureIgnored(Reference):
    """Scores are not divided by the temperature."""

    name = "fault: temperature ignored"
    sampler_class = _Ignored


class _Clamped(Sampler):
    def probabilities(self, logits: Tensor) -> Tensor:
        return dataclasses.replace(self, temperature=max(0.2, self.temperature or 1)).right(logits)

    def right(self, logits: Tensor) -> Tensor:
        return super().probabilities(logits)


class TemperatureClamped(Reference):
    """A temperature below 0.2 is taken for 0.2."""

    name = "fault: temperature clamped"
    sampler_class = _Clamped


class _Drawn(Sampler):
    def draw(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        return (
            super().draw(logits, generator)
            if self.temperature
            else dataclasses.replace(self, temperature=1.0).draw(logits, generator)
        )


class GreedyIsDrawn(Reference):
    """Greedy decoding falls back to temperature 1."""

    name = "fault: greedy is drawn"
    sampler_class = _Drawn


class _LastOfTies(Sampler):
    def draw(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        return super().draw(logits, generator) if self.temperature else (logits == logits.max()).nonzero().amax()


class TakesTheLastOfTies(Reference):
    """Greedy decoding takes the highest of equal ids and declares the lowest."""

    name = "fault: last of ties"
    sampler_class = _LastOfTies


class _OneMore(Sampler):
    def probabilities(self, logits: Tensor) -> Tensor:
        if self.top_k is None:
            return super().probabilities(logits)
        scores = logits.double() / (self.temperature or 1)
        kth = scores.sort(descending=True).values[min(self.top_k, len(scores) - 1)]  # the scores are counted from 0
        return scores.where(scores >= kth, float("-inf")).softmax(dim=0)


class KeepsOneMoreThanK(Reference):
    """Top-k keeps k + 1 ids."""

    name = "fault: top-k keeps k + 1"
    sampler_class = _OneMore


class _Short(Sampler):
    def probabilities(self, logits: Tensor) -> Tensor:
        scores, ids = (logits.double() / (self.temperature or 1)).sort(descending=True, stable=True)
        kept = scores.softmax(dim=0).cumsum(dim=0) <= (1 if self.top_p is None else self.top_p)
        kept[0] = True
        return torch.zeros_like(scores).scatter(0, ids, scores.where(kept, float("-inf")).softmax(dim=0))


class DropsTheCrossingId(Reference):
    """Top-p drops the id with which the sum reaches p."""

    name = "fault: crossing id dropped"
    sampler_class = _Short


class _Unsorted(Sampler):
    def probabilities(self, logits: Tensor) -> Tensor:
        right = super().probabilities(logits)
        if self.top_p is None or self.top_p >= 1:
            return right
        own = (logits.double() / (self.temperature or 1)).softmax(dim=0)
        kept = torch.zeros_like(own)
        kept[own.nonzero().flatten()[: int((right > 0).sum())]] = 1  # as many, in the order of the ids
        return kept * own / (kept * own).sum()


class KeepsTheWrongIds(Reference):
    """Top-p keeps as many ids as it should, in the order of the ids instead of that of their scores."""

    name = "fault: top-p not scattered back"
    sampler_class = _Unsorted


class _OneIsGreedy(Sampler):
    def probabilities(self, logits: Tensor) -> Tensor:
        right = super().probabilities(logits)
        return right if self.top_p != 1 else torch.nn.functional.one_hot(right.argmax(), len(right)).double()


class TopPOfOneIsGreedy(Reference):
    """With top-p of 1 no sum exceeds p, and the most probable id alone is left."""

    name = "fault: top-p of 1 is greedy"
    sampler_class = _OneIsGreedy


class _CutsTheTail(Sampler):
    def probabilities(self, logits: Tensor) -> Tensor:
        right = super().probabilities(logits)
        return right if self.top_p != 1 else dataclasses.replace(self, top_p=0.98).cut(logits)

    def cut(self, logits: Tensor) -> Tensor:
        return super().probabilities(logits)


class TopPOfOneCutsTheTail(Reference):
    """With top-p of 1 a sum that is rounded reaches p before its end."""

    name = "fault: top-p of 1 cuts the tail"
    sampler_class = _CutsTheTail


class _Absolute(Sampler):
    def probabilities(self, logits: Tensor) -> Tensor:
        p = dataclasses.replace(self, min_p=None).right(logits)
        kept = p * (p >= min(self.min_p or 0, float(p.max())))
        return kept / kept.sum()

    def right(self, logits: Tensor) -> Tensor:
        return super().probabilities(logits)


class MinPRelativeToOne(Reference):
    """Min-p is compared with the probabilities themselves."""

    name = "fault: min-p not relative"
    sampler_class = _Absolute


class _OnScores(Sampler):
    def probabilities(self, logits: Tensor) -> Tensor:
        if self.min_p is None:
            return super().probabilities(logits)
        scores = logits.double() / (self.temperature or 1)
        threshold = min(float(scores.max()) + float(scores.max().abs()) * (self.min_p - 1), float(scores.max()))
        return scores.where(scores >= threshold, float("-inf")).softmax(dim=0)


class MinPOnScores(Reference):
    """Min-p is compared among scores instead of probabilities."""

    name = "fault: min-p on scores"
    sampler_class = _OnScores


class _TemperatureLast(Sampler):
    def probabilities(self, logits: Tensor) -> Tensor:
        kept = dataclasses.replace(self, temperature=1.0).right(logits)
        return (kept.log() / (self.temperature or 1)).softmax(dim=0)

    def right(self, logits: Tensor) -> Tensor:
        return super().probabilities(logits)


class TemperatureAfterTheFilters(Reference):
    """The temperature is applied after the filters and declared before them."""

    name = "fault: temperature last"
    sampler_class = _TemperatureLast


class _TopPFirst(Sampler):
    def probabilities(self, logits: Tensor) -> Tensor:
        if self.top_k is None or self.top_p is None:
            return super().probabilities(logits)
        nucleus = dataclasses.replace(self, top_k=None, min_p=None).right(logits)
        return dataclasses.replace(self, temperature=1.0, top_p=None).right(nucleus.log())

    def right(self, logits: Tensor) -> Tensor:
        return super().probabilities(logits)


class TopPBeforeTopK(Reference):
    """Top-p is applied before top-k and declared after it."""

    name = "fault: top-p before top-k"
    sampler_class = _TopPFirst


class _Leaky(Sampler):
    def probabilities(self, logits: Tensor) -> Tensor:
        unfiltered = (logits.double() / (self.temperature or 1)).softmax(dim=0)
        return 0.98 * super().probabilities(logits) + 0.02 * unfiltered


class RemovedIdsComeThrough(Reference):
    """Two draws in a hundred pass by the filters."""

    name = "fault: filters leak"
    sampler_class = _Leaky


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


FAULTS = (
    Fault(LogprobsBelowTheTop, "CAT-1", "vllm#9453"),
    Fault(LogprobsAfterTemperature, "CAT-2", "vllm#9453"),
    Fault(ReadsThePositionBefore, "CAT-3", "llama-cpp-python#1179"),
    Fault(ReadsTheNextRow, "CAT-3", "BIDMach#51"),
    Fault(TemperatureTenPercentHigh, "CAT-4", "sglang-jax#289"),
    Fault(TemperatureTwice, "CAT-4", "sglang-jax#289"),
    Fault(TemperatureIgnored, "CAT-4", "vllm#15241"),
    Fault(TemperatureClamped, "CAT-4", "vllm#15241"),
    Fault(GreedyIsDrawn, "CAT-5", "tinker-cookbook#198"),
    Fault(TakesTheLastOfTies, "CAT-6", "sglang#33539"),
    Fault(KeepsOneMoreThanK, "CAT-7", "mesh-transformer-jax#164"),
    Fault(DropsTheCrossingId, "CAT-8", "fish-speech#1171"),
    Fault(KeepsTheWrongIds, "CAT-8", "flashinfer#2202"),
    Fault(TopPOfOneIsGreedy, "CAT-9", "mlx-lm#388"),
    Fault(TopPOfOneCutsTheTail, "CAT-9", "TensorRT-LLM#19485"),
    Fault(MinPRelativeToOne, "CAT-10", "sglang#15648"),
    Fault(MinPOnScores, "CAT-10", "vllm-metal#728"),
    Fault(TemperatureAfterTheFilters, "CAT-11", "llama.cpp#4091"),
    Fault(TopPBeforeTopK, "CAT-11", "llama.cpp#4091"),
    Fault(RemovedIdsComeThrough, "CAT-12", "sglang#33423"),
    Fault(DrawsWithFewBits, "CAT-13", "torch7#165"),
    Fault(SharesNoiseInABatch, "CAT-14", "vllm#50440"),
    Fault(RepeatsNoiseOfTheStepBefore, "CAT-14", "vllm#50440"),
    Fault(FirstSettingsForAll, "CAT-15", "mlx-vlm#1647"),
    Fault(IgnoresSeeds, "CAT-16", "llama.cpp#7381"),
    Fault(PaddedColumnsWin, "CAT-17", "mirage#751"),
    Fault(PaddedColumnsWinAsTheLastId, "CAT-17", "sockeye#866"),
    Fault(NeverDrawsTheLastId, "CAT-18", "swift-transformers#384"),
    Fault(TakesNanForZero, "CAT-19", "colibri#369"),
)

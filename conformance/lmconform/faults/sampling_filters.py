"""Planted faults of the sampler's filters, their order, and their settings."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from lmconform.engines.reference import Reference
from lmconform.faults.fault import Fault
from refdecoder import Sampler


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


# Filters that go wrong beside others, at their ends, or where none was asked for.


class _FusedFilters(Sampler):
    def probabilities(self, logits: Tensor) -> Tensor:
        filtered = (self.top_k, self.top_p, self.min_p) != (None, None, None)
        return super().probabilities(logits * (self.temperature or 1) if filtered else logits)


class FiltersForgetTheTemperature(Reference):
    """Where there is a filter, scores are not divided by the temperature; T = 1 hides it."""

    name = "fault: no temperature beside filters"
    sampler_class = _FusedFilters


class _Modulo(Sampler):
    def probabilities(self, logits: Tensor) -> Tensor:
        k = None if self.top_k is None else max(self.top_k % len(logits), 1)
        return dataclasses.replace(self, top_k=k).right(logits)

    def right(self, logits: Tensor) -> Tensor:
        return super().probabilities(logits)


class TopKOfAllIsOne(Reference):
    """A top-k as large as the vocabulary keeps one id."""

    name = "fault: top-k of all is 1"
    sampler_class = _Modulo


class _AtLeastTwo(Sampler):
    def probabilities(self, logits: Tensor) -> Tensor:
        right = super().probabilities(logits)
        if self.top_p is None or int((right > 0).sum()) > 1:
            return right
        return dataclasses.replace(self, top_k=2, top_p=None, min_p=None).right(logits)

    def right(self, logits: Tensor) -> Tensor:
        return super().probabilities(logits)


class TopPKeepsTwoAtLeast(Reference):
    """Top-p keeps two ids even where the first has a probability of p."""

    name = "fault: top-p keeps two at least"
    sampler_class = _AtLeastTwo


class _OneNucleus(Sampler):
    def probabilities(self, logits: Tensor) -> Tensor:
        return dataclasses.replace(self, min_p=None if self.top_p is not None else self.min_p).right(logits)

    def right(self, logits: Tensor) -> Tensor:
        return super().probabilities(logits)


class TopPForgetsMinP(Reference):
    """Beside top-p, min-p is not applied."""

    name = "fault: no min-p beside top-p"
    sampler_class = _OneNucleus


class _FiftyByDefault(Sampler):
    def probabilities(self, logits: Tensor) -> Tensor:
        return dataclasses.replace(self, top_k=50 if self.top_k is None else self.top_k).right(logits)

    def right(self, logits: Tensor) -> Tensor:
        return super().probabilities(logits)


class KeepsFiftyUnasked(Reference):
    """A draw without top-k is of the 50 most probable ids."""

    name = "fault: top-k of 50 by default"
    sampler_class = _FiftyByDefault


FAULTS = (
    Fault(KeepsOneMoreThanK, "CAT-7", "mesh-transformer-jax#164", "sampler.top_k"),
    Fault(DropsTheCrossingId, "CAT-8", "fish-speech#1171", "sampler.top_p"),
    Fault(KeepsTheWrongIds, "CAT-8", "flashinfer#2202", "sampler.top_p"),
    Fault(TopPOfOneIsGreedy, "CAT-9", "mlx-lm#388", "sampler.top_p"),
    Fault(TopPOfOneCutsTheTail, "CAT-9", "TensorRT-LLM#19485", "sampler.top_p"),
    Fault(MinPRelativeToOne, "CAT-10", "sglang#15648", "sampler.min_p"),
    Fault(MinPOnScores, "CAT-10", "vllm-metal#728", "sampler.min_p"),
    Fault(TemperatureAfterTheFilters, "CAT-11", "llama.cpp#4091", "sampler.order"),
    Fault(TopPBeforeTopK, "CAT-11", "llama.cpp#4091", "sampler.order"),
    Fault(RemovedIdsComeThrough, "CAT-12", "sglang#33423", "sampler.noise"),
    Fault(TopKOfAllIsOne, "CAT-7", "TransformerLens#1347", "sampler.top_k"),
    Fault(TopPKeepsTwoAtLeast, "CAT-8", "ChatRWKV#170", "sampler.top_p"),
    Fault(TopPForgetsMinP, "CAT-10", "sglang#15648", "sampler.min_p"),
    Fault(FiltersForgetTheTemperature, "CAT-11", "vllm#15241", "sampler.temperature"),
    Fault(KeepsFiftyUnasked, "CAT-13", "trl#3494", "sampler.settings"),
)

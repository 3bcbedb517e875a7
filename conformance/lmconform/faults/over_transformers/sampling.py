"""The sampler and its settings, broken in transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lmconform.adapter import Completion, Request
from lmconform.engines.transformers import TransformersModel
from lmconform.faults.over_transformers.patch import Broken


class _OtherProcessors(Broken):
    """transformers whose logits processors of some classes are replaced by faulty ones."""

    parts: ClassVar[dict[type[LogitsProcessor], type[LogitsProcessor]]] = {}

    def change(self, llama: Any) -> None:
        right = llama._get_logits_processor

        def processors(generation_config: Any, *given: Any, **named: Any) -> Any:
            found = right(generation_config, *given, **named)
            for one in found:
                if type(one) in self.parts:
                    one.__class__ = self.parts[type(one)]
            found.extend(self.more(generation_config))
            return found

        llama._get_logits_processor = processors

    def more(self, generation_config: Any) -> list[LogitsProcessor]:
        """Processors behind all others."""
        return []


class _TenPercentHot(TemperatureLogitsWarper):
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores / (1.1 * self.temperature)


class TemperatureTenPercentHigh(_OtherProcessors):
    """The temperature is 10 % higher than asked for."""

    parts: ClassVar = {TemperatureLogitsWarper: _TenPercentHot}


class _Twice(TemperatureLogitsWarper):
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores / self.temperature**2


class TemperatureTwice(_OtherProcessors):
    """Scores are divided by the temperature twice."""

    parts: ClassVar = {TemperatureLogitsWarper: _Twice}


class _Ignored(TemperatureLogitsWarper):
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores


class TemperatureIgnored(_OtherProcessors):
    """Scores are not divided by the temperature."""

    parts: ClassVar = {TemperatureLogitsWarper: _Ignored}


class _OneMore(TopKLogitsWarper):
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        kth = scores.topk(min(self.top_k + 1, scores.shape[-1])).values[:, -1:]  # the scores are counted from 0
        return scores.masked_fill(scores < kth, self.filter_value)


class KeepsOneMoreThanK(_OtherProcessors):
    """Top-k keeps k + 1 ids."""

    parts: ClassVar = {TopKLogitsWarper: _OneMore}


class _Short(TopPLogitsWarper):
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        ordered, ids = scores.sort(descending=True)
        beyond = ordered.softmax(dim=-1).cumsum(dim=-1) > self.top_p
        beyond[:, 0] = False
        return scores.masked_fill(beyond.scatter(1, ids, beyond), self.filter_value)


class DropsTheCrossingId(_OtherProcessors):
    """Top-p drops the id with which the sum reaches p."""

    parts: ClassVar = {TopPLogitsWarper: _Short}


class _OneNoise(LogitsProcessor):
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        drawn = (scores.softmax(dim=-1).cumsum(dim=-1) > torch.rand(())).int().argmax(dim=-1, keepdim=True)
        return torch.full_like(scores, float("-inf")).scatter(1, drawn, 0.0)


class SharesNoiseInABatch(_OtherProcessors):
    """All rows of a batch draw with the same random numbers."""

    def more(self, generation_config: Any) -> list[LogitsProcessor]:
        return [_OneNoise()] if generation_config.do_sample else []


class _FirstForAll(TransformersModel):
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        first = {name: getattr(requests[0], name) for name in ("temperature", "top_k", "top_p", "min_p")}
        return super().generate([replace(request, **first) for request in requests])


class FirstSettingsForAll(Broken):
    """The sampling settings of the first request are used for the whole batch."""

    model_class = _FirstForAll


class IgnoresSeeds(Broken):
    """Seeds do not reach the draws."""

    def change(self, llama: Any) -> None:
        right = llama.generate

        def generate(**given: Any) -> Any:
            torch.seed()
            return right(**given)

        llama.generate = generate


ENGINES: tuple[type[Broken], ...] = (
    TemperatureTenPercentHigh,
    TemperatureTwice,
    TemperatureIgnored,
    KeepsOneMoreThanK,
    DropsTheCrossingId,
    SharesNoiseInABatch,
    FirstSettingsForAll,
    IgnoresSeeds,
)

"""Planted faults of the sampler: temperature, and greedy decoding."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from lmconform.engines.reference import Reference
from lmconform.faults.fault import Fault
from refdecoder import Sampler


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


FAULTS = (
    Fault(TemperatureTenPercentHigh, "CAT-4", "sglang-jax#289", "sampler.temperature"),
    Fault(TemperatureTwice, "CAT-4", "sglang-jax#289", "sampler.temperature"),
    Fault(TemperatureIgnored, "CAT-4", "vllm#15241", "sampler.temperature"),
    Fault(TemperatureClamped, "CAT-4", "vllm#15241", "sampler.temperature"),
    Fault(GreedyIsDrawn, "CAT-5", "tinker-cookbook#198", "sampler.greedy"),
    Fault(TakesTheLastOfTies, "CAT-6", "sglang#33539", "sampler.greedy"),
)

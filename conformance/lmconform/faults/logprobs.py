"""Planted faults of the log-probabilities."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

import refdecoder
from lmconform.adapter import Completion, Request
from lmconform.engines.reference import Reference, ReferenceModel
from lmconform.faults.fault import Fault


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


class _StepBefore(ReferenceModel):
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        owners = [one for one in requests for _ in range(one.n)]
        return [self.shifted(one, done) for one, done in zip(owners, super().generate(requests), strict=True)]

    def shifted(self, request: Request, done: Completion) -> Completion:
        if done.logprobs is None or not done.tokens or not request.temperature:
            return done
        whole = torch.tensor(self.score((*request.prompt, *done.tokens))).log_softmax(dim=-1)
        first = max(len(request.prompt) - 2, 0)
        steps = zip(done.logprobs, whole[first:].tolist(), strict=False)
        return dataclasses.replace(done, logprobs=tuple({one: row[one] for one in step} for step, row in steps))


class LogprobsOfTheStepBefore(Reference):
    """Where ids are drawn, the log-probabilities of a step are those of the step before it."""

    name = "fault: log-probabilities one step late"
    model_class = _StepBefore


class _Narrow(ReferenceModel):
    def _completion(self, done: refdecoder.Completion, piecewise: bool) -> Completion:
        right = super()._completion(done, piecewise)
        steps = None if right.logprobs is None else tuple(_in_bfloat16(step) for step in right.logprobs)
        return dataclasses.replace(right, logprobs=steps)


def _in_bfloat16(step: Mapping[int, float]) -> dict[int, float]:
    return dict(zip(step, torch.tensor(list(step.values())).to(torch.bfloat16).tolist(), strict=True))


class LogprobsInBfloat16(Reference):
    """An engine of bfloat16 rounds its log-probabilities to bfloat16 and declares them as float32."""

    name = "fault: log-probabilities in bfloat16, undeclared"
    model_class = _Narrow

    def __init__(self, dtype: str = "bfloat16", **options: Any) -> None:
        super().__init__(dtype, **options)


FAULTS = (
    Fault(LogprobsBelowTheTop, "CAT-1", "vllm#9453", "logprobs.value"),
    Fault(LogprobsAfterTemperature, "CAT-2", "vllm#9453", "logprobs.stage"),
    Fault(LogprobsInBfloat16, "CAT-1", "vllm#42580", "logprobs.value"),
    Fault(LogprobsOfTheStepBefore, "CAT-2", "maxtext#2103", "logprobs.stage"),
)

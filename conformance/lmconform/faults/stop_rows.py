"""Planted faults of rows that end side by side, of streams, and of what is returned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lmconform.adapter import Completion, Request
from lmconform.engines.reference import Reference, ReferenceModel
from lmconform.faults.fault import Fault


class _EndsAll(ReferenceModel):
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        done = super().generate(requests)
        stopped = [len(one.tokens) for one in done if one.finish_reason == "stop"]
        return [_cut(one, min(stopped)) if stopped else one for one in done]


class OneRowEndsTheBatch(Reference):
    """The first row that stops ends all rows of the batch."""

    name = "fault: one row ends the batch"
    model_class = _EndsAll


class _FirstRowsStops(ReferenceModel):
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        ids, strings = requests[0].stop_ids, requests[0].stop_strings
        return super().generate([replace(request, stop_ids=ids, stop_strings=strings) for request in requests])


class UsesTheFirstRowsStops(Reference):
    """All rows of a batch have the stops of the first."""

    name = "fault: stops of the first row"
    model_class = _FirstRowsStops


class _FirstRowsLimit(ReferenceModel):
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        most = max((request.max_new_tokens for request in requests), default=0)
        return super().generate([replace(request, max_new_tokens=most) for request in requests])


class RunsToTheLongestLimit(Reference):
    """Rows of a batch go on to the largest limit of all of them."""

    name = "fault: largest limit"
    model_class = _FirstRowsLimit


class _Fills(ReferenceModel):
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        done = super().generate(requests)
        longest = max(len(one.tokens) for one in done)
        return [
            replace(one, tokens=one.tokens + one.tokens[-1:] * (longest - len(one.tokens)))
            if one.finish_reason == "stop"
            else one
            for one in done
        ]


class FillsEndedRows(Reference):
    """A row that has stopped is filled with its stop id until the last row ends."""

    name = "fault: ended rows are filled"
    model_class = _Fills


class _CountsTogether(ReferenceModel):
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        done, total, found = super().generate(requests), 0, []
        owners = [request for request in requests for _ in range(request.n)]
        for request, one, before in zip(owners, done, [None, *owners[:-1]], strict=True):
            total = len(one.tokens) + (total if request is before else 0)
            full = request.n > 1 and total >= request.max_new_tokens
            found.append(replace(one, finish_reason="length") if full else one)
        return found


class CountsCompletionsTogether(Reference):
    """The reason of a completion depends on the tokens of those before it, too."""

    name = "fault: completions counted together"
    model_class = _CountsTogether


class _EndsTogether(ReferenceModel):
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        done = iter(super().generate(requests))
        groups = [[next(done) for _ in range(request.n)] for request in requests]
        return [_cut(one, min(len(other.tokens) for other in group)) for group in groups for one in group]


class EndsCompletionsTogether(Reference):
    """All completions of a request end with the first."""

    name = "fault: completions end together"
    model_class = _EndsTogether


class _DropsAtTheEnd(ReferenceModel):
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        owners = [request for request in requests for _ in range(request.n)]
        return [
            replace(one, tokens=one.tokens[:-1]) if {*one.tokens[-1:]} & {*request.stop_ids} else one
            for request, one in zip(owners, super().generate(requests), strict=True)
        ]


class StreamsWhatWasDropped(Reference):
    """The stop id is dropped from the tokens, and is in the pieces of a stream."""

    name = "fault: stream runs ahead"
    model_class = _DropsAtTheEnd

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.choices = replace(self.choices, stop_token="dropped")


class ReturnsADroppedStop(Reference):
    """The stop id is in the tokens, and is declared to be dropped."""

    name = "fault: stop id returned"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.choices = replace(self.choices, stop_token="dropped")


def _cut(one: Completion, count: int) -> Completion:
    """The completion after ``count`` of its tokens."""
    return one if len(one.tokens) <= count else replace(one, tokens=one.tokens[:count], finish_reason="length")


class _EmptyLast(ReferenceModel):
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return sorted(super().generate(requests), key=lambda one: not one.tokens)


class EmptyRowsComeLast(Reference):
    """Rows of no tokens are answered after all others, whatever their place in the batch."""

    name = "fault: empty rows come last"
    model_class = _EmptyLast


class _ByPrompt(ReferenceModel):
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        first = {one.prompt: one for one in reversed(requests)}
        return super().generate([replace(one, stop_ids=first[one.prompt].stop_ids) for one in requests])


class KeepsStopsByPrompt(Reference):
    """Requests of a batch with the same prompt have the stop ids of the first of them."""

    name = "fault: stops kept by prompt"
    model_class = _ByPrompt


class _HeldBack(ReferenceModel):
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        owners = [request for request in requests for _ in range(request.n)]
        return [
            replace(one, pieces=one.pieces[:-1])
            if one.pieces and request.stop_strings and one.finish_reason == "length"
            else one
            for request, one in zip(owners, super().generate(requests), strict=True)
        ]


class StreamKeepsWhatItHeldBack(Reference):
    """A stream that waits for a stop string does not hand out its last piece at the limit."""

    name = "fault: stream keeps its last piece"
    model_class = _HeldBack


class _DropsTheLastId(ReferenceModel):
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        owners = [request for request in requests for _ in range(request.n)]
        done = super().generate(requests)
        return [
            replace(one, tokens=one.tokens[:-1]) if one.finish_reason == "stop" and not request.stop_strings else one
            for request, one in zip(owners, done, strict=True)
        ]


class DropsTheLastIdOfASequence(Reference):
    """Of a stop sequence, which is declared to be dropped, the last id is dropped alone."""

    name = "fault: last id of a sequence dropped"
    model_class = _DropsTheLastId

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.choices = replace(self.choices, stop_token="dropped")


FAULTS = (
    Fault(OneRowEndsTheBatch, "STOP-16", "open-instruct#22", "stops.rows"),
    Fault(UsesTheFirstRowsStops, "STOP-16", "open-instruct#22", "stops.rows"),
    Fault(RunsToTheLongestLimit, "STOP-17", "optimum-habana#1408", "stops.rows"),
    Fault(FillsEndedRows, "STOP-17", "onnxruntime-genai#436", "stops.rows"),
    Fault(CountsCompletionsTogether, "STOP-18", "ms-swift#5025", "stops.rows"),
    Fault(EndsCompletionsTogether, "STOP-18", "open-instruct#22", "stops.rows"),
    Fault(StreamsWhatWasDropped, "STOP-19", "vllm#3574", "stops.stream"),
    Fault(ReturnsADroppedStop, "STOP-20", "dynamo#12562", "stops.ids"),
    Fault(EmptyRowsComeLast, "STOP-7", "transformers#28579", "stops.rows"),
    Fault(KeepsStopsByPrompt, "STOP-16", "open-instruct#22", "stops.rows"),
    Fault(StreamKeepsWhatItHeldBack, "STOP-19", "vllm#3574", "stops.stream"),
    Fault(DropsTheLastIdOfASequence, "STOP-20", "dynamo#12562", "stops.sequence"),
)

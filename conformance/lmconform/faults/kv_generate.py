"""Planted faults of batches, prefix caches, the context limit, and the cost of a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor

from lmconform.adapter import Completion, Request
from lmconform.engines.reference import Reference, ReferenceModel
from lmconform.faults.fault import Fault
from lmconform.faults.kv_cache import FaultyCache, WithCache
from refdecoder.cache import Side


class _SwappedRows(FaultyCache):
    swapped = False

    def reserve(self, counts: Sequence[int], padding: Side = "right") -> Tensor:
        if max(self.lengths) and len(counts) > 1 and not self.swapped:
            self.swapped = True
            self.swap([1, 0, *range(2, len(counts))])
        return super().reserve(counts, padding)


class SwapsTwoRows(WithCache):
    """After the prefill the first two rows of a batch read each other's cache."""

    name = "fault: rows swapped"
    cache_class = _SwappedRows


class _ShiftedRows(FaultyCache):
    ended = 0

    def reserve(self, counts: Sequence[int], padding: Side = "right") -> Tensor:
        ended = sum(not count for count in counts)
        if ended > self.ended:
            self.ended = ended
            self.swap([*range(1, len(counts)), 0])
        return super().reserve(counts, padding)


class ShiftsRowsWhenOneEnds(WithCache):
    """When a row of a batch ends, the others read the cache of their neighbour."""

    name = "fault: an end shifts the rows"
    cache_class = _ShiftedRows


class _FourSlots(ReferenceModel):
    slots = 4

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        first = [requests[place % self.slots].prompt for place in range(len(requests))]
        return super().generate([replace(one, prompt=prompt) for one, prompt in zip(requests, first, strict=True)])


class ReusesALiveSlot(Reference):
    """The fifth request of a call finds the first one's prompt in its slot."""

    name = "fault: live slot reused"
    model_class = _FourSlots


class _PrefixCache(ReferenceModel):
    def entry(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        """The key under which the keys and values of ``prompt`` are kept."""
        raise NotImplementedError

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        kept = vars(self).setdefault("_kept", {})
        found = [kept.setdefault((self.entry(one.prompt), len(one.prompt)), one.prompt) for one in requests]
        return super().generate([replace(one, prompt=prompt) for one, prompt in zip(requests, found, strict=True)])


class _WithoutTheLast(_PrefixCache):
    def entry(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        return prompt[:-1] or prompt


class ForgetsTheLastTokenInItsKey(Reference):
    """The key of the prefix cache leaves out the last token of the prompt."""

    name = "fault: prefix key without the last token"
    model_class = _WithoutTheLast


class _FirstBlock(_PrefixCache):
    def entry(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        return prompt[:16]


class LooksAtTheFirstBlockAlone(Reference):
    """Prompts of one length that share their first 16 tokens share everything."""

    name = "fault: prefix key of one block"
    model_class = _FirstBlock


# --- limits and cost --------------------------------------------------------------------------------------------------


class _Sliding(ReferenceModel):
    counts: Literal["prompt", "all"] = "all"

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        def cut(one: Request) -> Request:
            needed = len(one.prompt) + (one.max_new_tokens if self.counts == "all" else 0)
            over = needed > self.max_length
            return replace(one, prompt=one.prompt[-(self.max_length - one.max_new_tokens) :]) if over else one

        return super().generate([cut(one) for one in requests])


class _Undeclared(Reference):
    """Says nothing of what it does at the context limit."""

    def __init__(self, **options: str) -> None:
        super().__init__(**options)
        self.choices = replace(self.choices, long_prompt="unspecified", long_continuation="unspecified")


class DropsTheOldestTokens(_Undeclared):
    """A request that leads past the context limit loses its oldest tokens."""

    name = "fault: context shifted"
    model_class = _Sliding


class _CutPrompts(_Sliding):
    counts = "prompt"


class CutsLongPrompts(_Undeclared):
    """A prompt past the context limit is cut to its end."""

    name = "fault: long prompt cut"
    model_class = _CutPrompts


class _QueryHeads(FaultyCache):
    @property
    def nbytes(self) -> int:
        return self.group * super().nbytes


class CachesEveryQueryHead(WithCache):
    """Keys and values are repeated for every query head before they are cached."""

    name = "fault: a cache for every query head"
    cache_class = _QueryHeads


FAULTS = (
    Fault(SwapsTwoRows, "KV-9", "vllm#41841"),
    Fault(ShiftsRowsWhenOneEnds, "KV-9", "vllm#41841"),
    Fault(ReusesALiveSlot, "KV-9", "vllm#41841"),
    Fault(ForgetsTheLastTokenInItsKey, "KV-10", "openvino.genai#3722"),
    Fault(LooksAtTheFirstBlockAlone, "KV-10", "vllm#49125"),
    Fault(CutsLongPrompts, "KV-12", "ollama#8099"),
    Fault(DropsTheOldestTokens, "KV-13", "llama.cpp#3825"),
    Fault(CachesEveryQueryHead, "KV-14", "torchtune#38"),
)

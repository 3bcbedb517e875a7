"""Planted faults of batches, prefix caches, the context limit, and the cost of a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

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


# --- rows and prefixes, in part of the calls --------------------------------------------------------------------------


class _PaddingAtZero(FaultyCache):
    def write(self, layer: int, positions: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        idle = (positions < 0).all(dim=1).nonzero().flatten()  # rows with no token in this pass
        self.keys[layer, idle, 0] = keys[idle, 0]
        self.values[layer, idle, 0] = values[idle, 0]
        return super().write(layer, positions, keys, values)


class PaddingTakesSlotZero(WithCache):
    """A row that waits for longer prompts in chunks gets its padding written to its first slot."""

    name = "fault: padding in slot 0"
    cache_class = _PaddingAtZero


class _TakenOver(ReferenceModel):
    slots = 4

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        done: list[Completion] = []
        for start in range(0, len(requests), self.slots):
            wave = [
                replace(one, prompt=(requests[row - self.slots].prompt[0], *one.prompt[1:])) if start else one
                for row, one in enumerate(requests[start : start + self.slots], start)
            ]
            done += super().generate(wave)
        return done


class KeepsATokenOfTheRowBefore(Reference):
    """A request that takes over the slot of an ended row keeps that row's first token."""

    name = "fault: first token of the row before"
    model_class = _TakenOver


class _FullHits(ReferenceModel):
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        kept = vars(self).setdefault("_kept", set())
        hits = [one.prompt in kept and len(one.prompt) % 16 == 0 for one in requests]
        kept.update(one.prompt for one in requests)
        return super().generate(
            [replace(one, prompt=one.prompt[:-1]) if hit else one for one, hit in zip(requests, hits, strict=True)]
        )


class FullHitsGiveThePositionBefore(Reference):
    """A prompt of whole blocks of 16 that is found in the prefix cache continues from the scores before its end."""

    name = "fault: full prefix hit one position back"
    model_class = _FullHits


class _Doubled(FaultyCache):
    @property
    def nbytes(self) -> int:
        return 2 * super().nbytes


class CachesInFloat32(WithCache):
    """The cache is float32, in an engine of bfloat16 that declares a cache of its own format."""

    name = "fault: cache in float32, undeclared"
    cache_class = _Doubled

    def __init__(self, dtype: str = "bfloat16", **options: Any) -> None:
        super().__init__(dtype, **options)


class _KeysAlone(FaultyCache):
    @property
    def nbytes(self) -> int:
        return self.keys.nbytes


class CountsKeysAlone(WithCache):
    """The bytes that a session reports are those of its keys."""

    name = "fault: values not counted"
    cache_class = _KeysAlone


FAULTS = (
    Fault(SwapsTwoRows, "KV-9", "vllm#41841", "cache.rows"),
    Fault(ShiftsRowsWhenOneEnds, "KV-9", "vllm#41841", "cache.rows"),
    Fault(ReusesALiveSlot, "KV-9", "vllm#41841", "cache.rows"),
    Fault(ForgetsTheLastTokenInItsKey, "KV-10", "openvino.genai#3722", "cache.prefix"),
    Fault(LooksAtTheFirstBlockAlone, "KV-10", "vllm#49125", "cache.prefix"),
    Fault(CutsLongPrompts, "KV-12", "ollama#8099", "cache.limit"),
    Fault(DropsTheOldestTokens, "KV-13", "llama.cpp#3825", "cache.limit"),
    Fault(PaddingTakesSlotZero, "CM-8", "vllm#41841", "cache.rows", regime="chunked-prefill"),
    Fault(KeepsATokenOfTheRowBefore, "KV-9", "vllm#41841", "cache.stale"),
    Fault(FullHitsGiveThePositionBefore, "KV-10", "openvino.genai#3722", "cache.prefix"),
    Fault(CachesInFloat32, "KV-14", "torchtune#38", "cache.memory"),
    Fault(CountsKeysAlone, "KV-14", "LMCache#688", "cache.memory"),
)

"""Planted faults of the sliding window."""

from __future__ import annotations

import torch
from torch import Tensor

import refdecoder
from lmconform.engines.reference import Reference
from lmconform.faults.fault import Fault
from refdecoder import Attention
from refdecoder.cache import Cache
from refdecoder.rope import cos_sin

LONG = 64
"""Positions from which LongSequencesHaveNoWindow takes another kernel."""


class _Resized(Attention):
    """The window is replaced when the layer is built."""

    def __init__(self, config: refdecoder.DecoderConfig, layer_index: int, form: str = "eager") -> None:
        super().__init__(config, layer_index, form)
        if self.window is not None:
            self.window = self.resized(self.window)

    def resized(self, window: int) -> int | None:
        raise NotImplementedError


class _OneWider(_Resized):
    def resized(self, window: int) -> int | None:
        return window + 1


class OwnPositionNotCounted(Reference):
    """The window is of W positions besides the own one."""

    name = "fault: window of W + 1"
    attention_class = _OneWider


class _OneNarrower(_Resized):
    def resized(self, window: int) -> int | None:
        return window - 1


class WindowOneTooNarrow(Reference):
    """The window is of W - 1 positions."""

    name = "fault: window of W - 1"
    attention_class = _OneNarrower


class _NoWindow(_Resized):
    def resized(self, window: int) -> int | None:
        return None


class IgnoresTheWindow(Reference):
    """Every position sees all before it."""

    name = "fault: window ignored"
    attention_class = _NoWindow


class _EveryOtherLayer(_Resized):
    def resized(self, window: int) -> int | None:
        return window if self.layer_index % 2 == 0 else None


class WindowInEveryOtherLayer(Reference):
    """Layers of odd number have no window."""

    name = "fault: window in every other layer"
    attention_class = _EveryOtherLayer


class _Unwindowed(Attention):
    """Some queries see all before them."""

    def visible(self, positions: Tensor, slots: Tensor) -> Tensor:
        right = super().visible(positions, slots)
        return slots <= positions[:, :, None] if self.forgets(positions) else right

    def forgets(self, positions: Tensor) -> bool:
        raise NotImplementedError


class _OneToken(_Unwindowed):
    def forgets(self, positions: Tensor) -> bool:
        return positions.shape[1] == 1


class DecodesWithoutTheWindow(Reference):
    """A pass of one token sees all that is cached."""

    name = "fault: window ignored in decode steps"
    attention_class = _OneToken


class _OverACache(_Unwindowed):
    def forgets(self, positions: Tensor) -> bool:
        return positions.shape[1] > 1 and int(positions.clamp(min=0).amin()) > 0


class ChunksWithoutTheWindow(Reference):
    """A chunk over a cache sees all that is cached."""

    name = "fault: window ignored in a chunk over a cache"
    attention_class = _OverACache


class _Otherwise(Attention):
    """Causal, through a window that is computed in a way of its own."""

    def visible(self, positions: Tensor, slots: Tensor) -> Tensor:
        causal = slots <= positions[:, :, None]
        return causal if self.window is None else causal & self.within(self.window, positions, slots)

    def within(self, window: int, positions: Tensor, slots: Tensor) -> Tensor:
        """Which of ``slots`` [S] lie in the window of a query at ``positions`` [B, T]; broadcasts to [B, T, S]."""
        raise NotImplementedError


def _first(positions: Tensor) -> Tensor:
    """Position of each row's first token in this pass, [B, 1, 1]."""
    return positions.clamp(min=0).amin(dim=1)[:, None, None]


class _FromTheChunk(_Otherwise):
    def within(self, window: int, positions: Tensor, slots: Tensor) -> Tensor:
        return slots > _first(positions) - window


class CountsTheWindowFromTheChunk(Reference):
    """All queries of a chunk see back as far as its first."""

    name = "fault: window counted from the chunk's start"
    attention_class = _FromTheChunk


class _UpperLeft(_Otherwise):
    def within(self, window: int, positions: Tensor, slots: Tensor) -> Tensor:
        rows = torch.arange(positions.shape[1], device=slots.device)
        return slots > rows[None, :, None] - window


class CountsTheWindowFromTheRow(Reference):
    """Query i of a chunk sees back to i - W, whatever the cache holds."""

    name = "fault: window aligned at the upper left"
    attention_class = _UpperLeft


class _DropsEarly(_Otherwise):
    def within(self, window: int, positions: Tensor, slots: Tensor) -> Tensor:
        kept = slots > _first(positions) - window + 1
        return kept & (slots > positions[:, :, None] - window)


class DropsAKeyEarly(Reference):
    """The cache keeps W - 2 keys from one pass to the next, where the next needs W - 1."""

    name = "fault: cache one key too short"
    attention_class = _DropsEarly


class _CountsWhatIsLeft(Attention):
    def forward(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        if self.window is not None and positions.shape[1] == 1:
            left = positions.clamp(min=0, max=self.window - 1)
            cos, sin = cos_sin(left, self.config.rope, self.config.head_dim, x.dtype)
        return super().forward(x, positions, cos, sin, cache)


class CountsPositionsFromTheOldestKey(Reference):
    """Once the window is full, every decode step is rotated as the last of its W keys."""

    name = "fault: positions counted from the oldest key left"
    attention_class = _CountsWhatIsLeft


class _BlockWise(_Otherwise):
    block = 4

    def within(self, window: int, positions: Tensor, slots: Tensor) -> Tensor:
        oldest = (positions[:, :, None] - window + 1).clamp(min=0)
        return slots // self.block >= oldest // self.block


class SlidesByBlocks(Reference):
    """Keys leave the window four at a time."""

    name = "fault: window slides by blocks"
    attention_class = _BlockWise


class _LongestRow(_Otherwise):
    def within(self, window: int, positions: Tensor, slots: Tensor) -> Tensor:
        last = positions.amax(dim=0)[None, :, None]  # [1, T, 1]
        return (slots > last - window) | (slots == positions[:, :, None])  # its own, so that no row is empty


class TakesTheWindowOfTheLongestRow(Reference):
    """In a batch every row's window stands where that of the longest row does."""

    name = "fault: window of the longest row"
    attention_class = _LongestRow


class _WiderStep(_Otherwise):
    def within(self, window: int, positions: Tensor, slots: Tensor) -> Tensor:
        return slots > positions[:, :, None] - window - int(positions.shape[1] == 1)


class DecodesThroughAWiderWindow(Reference):
    """A decode step sees W + 1 positions, as a kernel does that counts those to the left."""

    name = "fault: window of W + 1 in decode steps"
    attention_class = _WiderStep


class _LongUnwindowed(_Unwindowed):
    def forgets(self, positions: Tensor) -> bool:
        return int(positions.amax()) >= LONG


class LongSequencesHaveNoWindow(Reference):
    """A pass that reaches position 64 runs in a kernel that knows no window."""

    name = "fault: window ignored from position 64 on"
    attention_class = _LongUnwindowed


class _Dropped(_Otherwise):
    furthest: Tensor
    """Last position that each row has held before this pass, [B, 1, 1]."""

    def forward(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        self.furthest = vars(cache).get("furthest", torch.full_like(positions[:, :1, None], -1))
        out = super().forward(x, positions, cos, sin, cache)
        if self.layer_index == self.config.num_hidden_layers - 1:
            vars(cache)["furthest"] = self.furthest.maximum(positions.amax(dim=1)[:, None, None])
        return out

    def within(self, window: int, positions: Tensor, slots: Tensor) -> Tensor:
        dropped = (slots <= self.furthest - window) & (slots < _first(positions))
        return (slots > positions[:, :, None] - window) & ~dropped


class TruncationFindsDroppedKeys(Reference):
    """A truncated session misses the keys that had left the window before, and that its new end should see again."""

    name = "fault: dropped keys missing after a truncation"
    attention_class = _Dropped


FAULTS = (
    Fault(WindowOneTooNarrow, "CM-10", "vllm#3385", "mask.window"),
    Fault(TakesTheWindowOfTheLongestRow, "CM-10", "transformers#29109", "mask.window"),
    Fault(OwnPositionNotCounted, "CM-11", "onnxruntime#25927", "mask.window"),
    Fault(IgnoresTheWindow, "CM-11", "mobius#371", "mask.window"),
    Fault(SlidesByBlocks, "CM-11", "vllm#23969", "mask.window"),
    Fault(CountsTheWindowFromTheChunk, "CM-11", "openvino#35253", "mask.window"),
    Fault(DecodesWithoutTheWindow, "CM-12", "mistral.rs#246", "mask.window"),
    Fault(ChunksWithoutTheWindow, "CM-12", "vllm#15738", "mask.window"),
    Fault(CountsTheWindowFromTheRow, "CM-12", "openvino#35253", "mask.window"),
    Fault(DropsAKeyEarly, "CM-12", "transformers#37574", "cache.slots"),
    Fault(CountsPositionsFromTheOldestKey, "CM-12", "efficient-transformers#1250", "rope.positions"),
    Fault(WindowInEveryOtherLayer, "CM-13", "transformers#31775", "mask.window"),
    Fault(DecodesThroughAWiderWindow, "CM-11", "transformers#39408", "mask.window"),
    Fault(LongSequencesHaveNoWindow, "CM-13", "vllm#21863", "mask.window"),
    Fault(TruncationFindsDroppedKeys, "CM-12", "mlx-vlm#1715", "cache.truncate"),
)

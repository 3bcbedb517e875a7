"""The KV cache, broken in transformers."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from lmconform.adapter import Session
from lmconform.engines.transformers import TransformersModel
from lmconform.faults.over_transformers.patch import Broken, Rebuilt


class _OneLater(LlamaRotaryEmbedding):
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        turned: tuple[Tensor, Tensor] = super().forward(x, position_ids + (position_ids[:, :1] > 0))
        return turned


class StandsOneTooLate(Rebuilt):
    """A chunk over a cache stands one position too late."""

    parts: ClassVar = {LlamaRotaryEmbedding: _OneLater}


class _OtherContents(Broken):
    """Changes what the cache holds of a layer, after each pass."""

    def change(self, llama: Any) -> None:
        def after(module: Any, given: Any, named: dict[str, Any], out: Any) -> None:
            if named["past_key_values"] is not None:
                self.store(named["past_key_values"], module.layer_idx, named["hidden_states"].shape[1])

        for layer in llama.model.layers:
            layer.self_attn.register_forward_hook(after, with_kwargs=True)

    def store(self, cache: Any, layer: int, T: int) -> None:
        """Change ``cache.layers[layer]``, to which a pass of ``T`` tokens has appended its keys and values."""
        raise NotImplementedError


class CachesTheFirstLayersValues(_OtherContents):
    """All layers cache the values of the first."""

    def store(self, cache: Any, layer: int, T: int) -> None:
        cache.layers[layer].values = cache.layers[0].values


class CachesKeysAsValues(_OtherContents):
    """The value cache is updated from the keys."""

    def store(self, cache: Any, layer: int, T: int) -> None:
        cache.layers[layer].values = cache.layers[layer].keys


class SwapsTwoRows(_OtherContents):
    """After the prefill the first two rows of a batch read each other's cache."""

    def store(self, cache: Any, layer: int, T: int) -> None:
        held = cache.layers[layer]
        rows = len(held.keys)
        if rows > 1 and held.keys.shape[2] == T:
            held.batch_select_indices([1, 0, *range(2, rows)])


class _KeepsOne(DynamicCache):
    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove + 1)


class _Keeping(TransformersModel):
    def open(self) -> Session:
        session: Any = super().open()
        session.cache.__class__ = _KeepsOne
        return session


class TruncatesOneTooFew(Broken):
    """Truncation keeps one token too many."""

    model_class = _Keeping


ENGINES: tuple[type[Broken], ...] = (
    StandsOneTooLate,
    CachesTheFirstLayersValues,
    CachesKeysAsValues,
    SwapsTwoRows,
    TruncatesOneTooFew,
)

"""How transformers is patched: classes whose loaded Llama is changed, and nothing outside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb, eager_attention_forward

from lmconform.adapter import Model, Needs
from lmconform.engines.transformers import Transformers, TransformersModel


class Broken(Transformers):
    """transformers with eager attention, whose Llama is changed after it was loaded."""

    model_class: type[TransformersModel] = TransformersModel

    def __init__(self) -> None:
        super().__init__(attention="eager")

    def regimes(self) -> dict[str, dict[str, Any]]:
        return {}

    def load(self, checkpoint: Path, needs: Needs) -> Model:
        loaded = super().load(checkpoint, needs)
        assert isinstance(loaded, TransformersModel)
        if isinstance(loaded.model, LlamaForCausalLM):
            loaded.__class__ = self.model_class
            self.change(loaded.model)
        return loaded

    def change(self, llama: Any) -> None:
        """Change the loaded ``llama``, a LlamaForCausalLM."""


class Rebuilt(Broken):
    """transformers in which modules of some classes are replaced by faulty ones."""

    parts: ClassVar[dict[type[nn.Module], type[nn.Module]]] = {}

    def change(self, llama: Any) -> None:
        for module in list(llama.modules()):
            if type(module) in self.parts:
                module.__class__ = self.parts[type(module)]


def rebound(function: Any, **names: Any) -> Callable[..., Any]:
    """``function`` of a module of transformers, which finds these ``names`` instead of the module's own."""
    found = {**function.__globals__, **names}
    return FunctionType(function.__code__, found, function.__name__, function.__defaults__, function.__closure__)


class OtherAttention(Broken):
    """transformers whose attention calls ``turn`` and ``attend`` where it calls its own functions."""

    def change(self, llama: Any) -> None:
        forward = rebound(LlamaAttention.forward, apply_rotary_pos_emb=self.turn, eager_attention_forward=self.attend)
        for layer in llama.model.layers:
            layer.self_attn.forward = MethodType(forward, layer.self_attn)

    def turn(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [B, H_q, T, D] and keys [B, H_kv, T, D], turned by cosines and sines [B, T, D]."""
        turned: tuple[Tensor, Tensor] = apply_rotary_pos_emb(q, k, cos, sin)
        return turned

    def attend(
        self, layer: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """Outputs [B, T, H_q, D] and weights [B, H_q, T, S]; ``mask`` [B, 1, T, S] is added to the scores."""
        return eager_attention_forward(layer, q, k, v, mask, scaling)

"""Planted faults of the other families: fused projections of phi3; norms, positions, activation and layout of gpt2."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import refdecoder
from lmconform.adapter import Model, Needs
from lmconform.engines.reference import Reference, ReferenceModel
from lmconform.faults.fault import Fault
from refdecoder.cache import Cache
from refdecoder.gpt2 import GPT2MLP, GPT2Attention, LayerNorm, Projection
from refdecoder.model import Attention, Block


class _Recut(Reference):
    """The fused projections of a phi3 are cut in another way."""

    def load(self, checkpoint: Path, needs: Needs) -> Model:
        model = cast(ReferenceModel, super().load(checkpoint, needs))
        config = model.decoder.config
        if isinstance(config, refdecoder.DecoderConfig) and config.fused:
            for layer in cast(refdecoder.Decoder, model.decoder).layers:
                self.recut(cast(Block, layer))
        return model

    def recut(self, layer: Block) -> None:
        raise NotImplementedError


class CutsQkvByGroup(_Recut):
    """phi3: the rows of qkv_proj are read group by group, the query heads of a group before its key and its value."""

    name = "fault: qkv_proj cut by groups"

    def recut(self, layer: Block) -> None:
        own: Attention = layer.self_attn
        H_kv, D = own.config.num_key_value_heads, own.config.head_dim
        rows = torch.cat([own.q_proj.weight, own.k_proj.weight, own.v_proj.weight])  # as it is stored
        groups = rows.unflatten(0, (H_kv, -1, D))  # [(H_q + 2 H_kv) D, hidden] to [H_kv, G + 2, D, hidden]
        for projection, part in (
            (own.q_proj, groups[:, :-2]),
            (own.k_proj, groups[:, -2]),
            (own.v_proj, groups[:, -1]),
        ):
            projection.weight = nn.Parameter(part.reshape_as(projection.weight), requires_grad=False)


class SwapsGateAndUp(_Recut):
    """phi3: the first half of gate_up_proj is taken for up_proj."""

    name = "fault: gate_up_proj read as up and gate"

    def recut(self, layer: Block) -> None:
        mlp = layer.mlp
        mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj


class _Swapped(Reference):
    """gpt2 with the classes of some modules replaced, by the ending of their name."""

    parts: ClassVar[dict[str, type[nn.Module]]]

    def build_gpt2(self, config: refdecoder.GPT2Config, attention: str) -> refdecoder.GPT2:
        decoder = super().build_gpt2(config, attention)
        for name, module in decoder.named_modules():
            for ending, part in self.parts.items():
                if name.endswith(ending):
                    module.__class__ = part
        return decoder


class _Transposed(Projection):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class TransposesTheSquareProjection(_Swapped):
    """gpt2: the matrix of attn.c_proj, which is square, is taken for [out, in]."""

    name = "fault: gpt2 square projection transposed"
    parts: ClassVar = {"attn.c_proj": _Transposed}


class _FromZero(nn.Embedding):
    def forward(self, positions: Tensor) -> Tensor:
        return super().forward(positions - positions.amin(dim=1, keepdim=True))


class CountsPositionsFromTheChunk(_Swapped):
    """gpt2: the first token of every pass reads row 0 of the table of positions."""

    name = "fault: gpt2 positions from 0 in every pass"
    parts: ClassVar = {"wpe": _FromZero}


class _OneLater(nn.Embedding):
    def forward(self, positions: Tensor) -> Tensor:
        return super().forward((positions + 1).clamp(max=self.num_embeddings - 1))


class PositionsOneLater(_Swapped):
    """gpt2: position t reads row t + 1 of the table of positions."""

    name = "fault: gpt2 positions one later"
    parts: ClassVar = {"wpe": _OneLater}


class ExactGelu(Reference):
    """gpt2: the exact GELU stands in for gelu_new."""

    name = "fault: gpt2 exact GELU"

    def build_gpt2(self, config: refdecoder.GPT2Config, attention: str) -> refdecoder.GPT2:
        decoder = super().build_gpt2(config, attention)
        for module in decoder.modules():
            if isinstance(module, GPT2MLP):
                module.activation = F.gelu
        return decoder


class LayerNormEps1e6(Reference):
    """gpt2: every LayerNorm adds 1e-6, whatever the checkpoint says."""

    name = "fault: gpt2 eps of 1e-6"

    def build_gpt2(self, config: refdecoder.GPT2Config, attention: str) -> refdecoder.GPT2:
        decoder = super().build_gpt2(config, attention)
        for module in decoder.modules():
            if isinstance(module, LayerNorm):
                module.eps = 1e-6
        return decoder


# --- alive in part of a family ----------------------------------------------------------------------------------------


class InterleavesGateAndUp(_Recut):
    """phi3: rows of gate_up_proj are taken in turn for gate_proj and for up_proj."""

    name = "fault: gate_up_proj read in turn"

    def recut(self, layer: Block) -> None:
        mlp = layer.mlp
        rows = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])  # as it is stored
        for projection, part in ((mlp.gate_proj, rows[::2]), (mlp.up_proj, rows[1::2])):
            projection.weight = nn.Parameter(part, requires_grad=False)


class _ByHead(GPT2Attention):
    def forward(self, x: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        q, k, v = self.c_attn(x).unflatten(-1, (-1, 3, self.head_dim)).unbind(3)  # [B, T, H, 3, D] to 3 [B, T, H, D]
        return self.c_proj(self.gather(q, k, v, positions, cache))


class CutsCAttnByHead(_Swapped):
    """gpt2: the columns of c_attn are read head by head, query, key and value of each."""

    name = "fault: gpt2 c_attn cut by heads"
    parts: ClassVar = {".attn": _ByHead}


class _ByLayer(GPT2Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        return super().attend(q / (self.layer_index + 1), k, v, visible)


class DividesScoresByTheLayer(_Swapped):
    """gpt2: attention scores are divided by the number of the layer, from 1 on, which the checkpoint does not ask."""

    name = "fault: gpt2 scores divided by the layer"
    parts: ClassVar = {".attn": _ByLayer}


class _Columns(nn.Embedding):
    before: Tensor | int = 0
    """Columns of padding before each row, [B, 1]."""

    def forward(self, positions: Tensor) -> Tensor:
        return super().forward((positions + self.before).clamp(max=self.num_embeddings - 1))


class _ByColumn(refdecoder.GPT2):
    def forward(self, tokens: Tensor, positions: Tensor, cache: Cache, last: bool = False) -> Tensor:
        started = (positions >= 0).int().cummax(dim=1).values
        vars(self.wpe)["before"] = (1 - started).sum(dim=1, keepdim=True)
        return super().forward(tokens, positions, cache, last)


class CountsThePaddingOnTheLeft(_Swapped):
    """gpt2: in a batch that is padded on the left, positions are counted from the padding."""

    name = "fault: gpt2 padding counted"
    parts: ClassVar = {"wpe": _Columns}

    def build_gpt2(self, config: refdecoder.GPT2Config, attention: str) -> refdecoder.GPT2:
        decoder = super().build_gpt2(config, attention)
        decoder.__class__ = _ByColumn
        return decoder


class _NoBias(LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - self.bias


class LastNormWithoutItsBias(_Swapped):
    """gpt2: the last LayerNorm does not shift."""

    name = "fault: gpt2 last norm without bias"
    parts: ClassVar = {"ln_f": _NoBias}


FAULTS = (
    Fault(CutsQkvByGroup, "DEC-2", "NVIDIA-NeMo/RL#2802", "decoder.layout"),
    Fault(SwapsGateAndUp, "DEC-2", "openvino#32683", "decoder.layout"),
    Fault(TransposesTheSquareProjection, "DEC-2", "nntile#370", "decoder.layout"),
    Fault(CountsPositionsFromTheChunk, "DEC-2", "mlx-lm#93", "decoder.positions"),
    Fault(PositionsOneLater, "DEC-2", "nnsight#672", "decoder.positions"),
    Fault(ExactGelu, "DEC-2", "CTranslate2#1658", "decoder.activation"),
    Fault(LayerNormEps1e6, "DEC-2", "CTranslate2#951", "norm.eps"),
    Fault(InterleavesGateAndUp, "DEC-2", "openvino#32683", "decoder.layout"),
    Fault(CutsCAttnByHead, "DEC-2", "transformers#12004", "decoder.layout"),
    Fault(DividesScoresByTheLayer, "DEC-2", "transformers#12004", "attention.scale"),
    Fault(CountsThePaddingOnTheLeft, "DEC-2", "transformers#29109", "decoder.positions", regime="left-padding"),
    Fault(LastNormWithoutItsBias, "DEC-2", "keys_values#139", "norm.weight"),
)

"""Weights in another order or of another size, consistently: the numbers inside change, and the scores do not."""

from __future__ import annotations

from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

import refdecoder
from lmconform.engines.reference import Reference, ReferenceModel
from lmconform.faults.legal.legal import Legal, Prepared, legal
from refdecoder import GPT2, Attention, Decoder
from refdecoder.model import MLP, RMSNorm

Kind = TypeVar("Kind", bound=nn.Module)


def every(model: ReferenceModel, kind: type[Kind]) -> list[Kind]:
    """Return the modules of a class."""
    return [module for module in model.decoder.modules() if isinstance(module, kind)]


def reorder(linear: nn.Linear, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
    """Put rows (outputs) and columns (inputs) of a projection into another order."""
    if rows is not None:
        linear.weight = _fixed(linear.weight[rows])
        linear.bias = None if linear.bias is None else _fixed(linear.bias[rows])
    if columns is not None:
        linear.weight = _fixed(linear.weight[:, columns])


def _scale(linear: nn.Linear, factor: float, bias: bool) -> None:
    linear.weight = _fixed(linear.weight * factor)
    if bias and linear.bias is not None:
        linear.bias = _fixed(linear.bias * factor)


def _fixed(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


class DoublesTheValues(Prepared):
    """Values are twice as large, and o_proj half."""

    name = "equivalent: values doubled"

    def prepare(self, model: ReferenceModel) -> None:
        for attention in every(model, Attention):
            _scale(attention.v_proj, 2.0, bias=True)
            _scale(attention.o_proj, 0.5, bias=False)


class QuartersTheKeys(Prepared):
    """Keys are a quarter, and queries four times as large."""

    name = "equivalent: keys quartered"

    def prepare(self, model: ReferenceModel) -> None:
        for attention in every(model, Attention):
            _scale(attention.q_proj, 4.0, bias=True)
            _scale(attention.k_proj, 0.25, bias=True)


class ReversesTheHeads(Prepared):
    """KV heads are cached in reverse, and so are the groups of query heads and the columns of o_proj."""

    name = "equivalent: heads in reverse"

    def prepare(self, model: ReferenceModel) -> None:
        for attention in every(model, Attention):
            D, H_kv = attention.config.head_dim, attention.config.num_key_value_heads
            group = attention.config.num_attention_heads // H_kv
            queries = torch.arange(H_kv * group * D).unflatten(0, (H_kv, group * D)).flip(0).flatten()
            keys = torch.arange(H_kv * D).unflatten(0, (H_kv, D)).flip(0).flatten()
            reorder(attention.q_proj, rows=queries)
            reorder(attention.k_proj, rows=keys)
            reorder(attention.v_proj, rows=keys)
            reorder(attention.o_proj, columns=queries)


class SwapsHeadsOfAGroup(Prepared):
    """Query heads of one group change places, and so do their columns of o_proj."""

    name = "equivalent: heads of a group swapped"

    def prepare(self, model: ReferenceModel) -> None:
        for attention in every(model, Attention):
            D, H_kv = attention.config.head_dim, attention.config.num_key_value_heads
            order = torch.arange(attention.config.num_attention_heads * D).unflatten(0, (H_kv, -1, D))
            order = order.flip(1).flatten()
            reorder(attention.q_proj, rows=order)
            reorder(attention.o_proj, columns=order)


class ReversesTheValues(Prepared):
    """The dimensions of values are in reverse in each head, and so are the columns of o_proj."""

    name = "equivalent: values in reverse"

    def prepare(self, model: ReferenceModel) -> None:
        for attention in every(model, Attention):
            D = attention.config.head_dim
            values = torch.arange(len(attention.v_proj.weight)).unflatten(0, (-1, D)).flip(1).flatten()
            gathered = torch.arange(attention.o_proj.in_features).unflatten(0, (-1, D)).flip(1).flatten()
            reorder(attention.v_proj, rows=values)
            reorder(attention.o_proj, columns=gathered)


class ReversesTheNeurons(Prepared):
    """The neurons of each MLP are in reverse, in all three projections."""

    name = "equivalent: neurons in reverse"

    def prepare(self, model: ReferenceModel) -> None:
        for mlp in every(model, MLP):
            order = torch.arange(mlp.gate_proj.out_features).flip(0)
            reorder(mlp.gate_proj, rows=order)
            reorder(mlp.up_proj, rows=order)
            reorder(mlp.down_proj, columns=order)


class _TwiceEmbedding(nn.Embedding):
    def forward(self, tokens: Tensor) -> Tensor:
        return 2.0 * super().forward(tokens)


class DoublesTheStream(Prepared):
    """The stream is twice as large, with four times the eps; the head reads the embedding as it is stored."""

    name = "equivalent: stream doubled"
    parts: ClassVar = {nn.Embedding: _TwiceEmbedding}

    def build_gpt2(self, config: refdecoder.GPT2Config, attention: str) -> GPT2:
        return Reference.build_gpt2(self, config, attention)

    def prepare(self, model: ReferenceModel) -> None:
        for projection in [one.o_proj for one in every(model, Attention)] + [
            one.down_proj for one in every(model, MLP)
        ]:
            _scale(projection, 2.0, bias=True)
        for norm in every(model, RMSNorm):
            norm.eps *= 4.0


class ReversesTheStream(Prepared):
    """All entries of the stream are in reverse: embedding, norms, projections, head."""

    name = "equivalent: stream in reverse"

    def prepare(self, model: ReferenceModel) -> None:
        decoder = model.decoder
        if not isinstance(decoder, Decoder):
            return
        order = torch.arange(decoder.config.hidden_size).flip(0)
        decoder.embed_tokens.weight = _fixed(decoder.embed_tokens.weight[:, order])
        if not decoder.config.tie_word_embeddings:
            reorder(decoder.lm_head, columns=order)
        for norm in every(model, RMSNorm):
            norm.weight = _fixed(norm.weight[order])
        for attention in every(model, Attention):
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                reorder(projection, columns=order)
            reorder(attention.o_proj, rows=order)
        for mlp in every(model, MLP):
            reorder(mlp.gate_proj, columns=order)
            reorder(mlp.up_proj, columns=order)
            reorder(mlp.down_proj, rows=order)


EQUIVALENT: tuple[Legal, ...] = (
    legal(DoublesTheValues, "values twice as large, o_proj half: powers of two are exact, and cancel"),
    legal(QuartersTheKeys, "keys a quarter, queries four times as large: their products are the same"),
    legal(ReversesTheHeads, "KV heads in reverse with their query heads and columns of o_proj: a sum in another order"),
    legal(SwapsHeadsOfAGroup, "query heads of a group in reverse, with their columns of o_proj: the same sum"),
    legal(ReversesTheValues, "dimensions of values in reverse, with the columns of o_proj: the same sum"),
    legal(ReversesTheNeurons, "neurons of the MLP in reverse in all three projections: the same sum"),
    legal(DoublesTheStream, "a stream twice as large, with four times the eps: each norm divides it out"),
    legal(ReversesTheStream, "entries of the stream in reverse in all that reads or writes it: names of dimensions"),
)

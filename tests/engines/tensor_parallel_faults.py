"""Cuts of a model among ranks that get something wrong. Every rank imports this module."""

from pathlib import Path

import torch
from torch.distributed.device_mesh import DeviceMesh

from lmconform.engines.reference import Reference
from lmconform.engines.reference_tp import ReferenceTP
from refdecoder import Decoder
from refdecoder.parallel import parallelize


class Miscut(ReferenceTP):
    """Something is done to the whole model before each rank takes its share."""

    def share(self, mesh: DeviceMesh, checkpoint: str, attention: str) -> Decoder:
        model = Reference.decoder(self, Path(checkpoint), attention)
        with torch.no_grad():
            self.spoil(model, mesh.size())
        return parallelize(model, mesh)

    def spoil(self, model: Decoder, ranks: int) -> None:
        raise NotImplementedError


class AddsTheBiasOnEachRank(Miscut):
    """Each rank adds the bias of a row-wise product to its part, so that the sum has it once for each rank."""

    def spoil(self, model: Decoder, ranks: int) -> None:
        for layer in model.layers:
            for product in (layer.self_attn.o_proj, layer.mlp.down_proj):
                if product.bias is not None:
                    product.bias *= ranks


class GivesKVHeadsToOtherRanks(Miscut):
    """Keys and values of a rank are those that the query heads of the next rank should read."""

    def spoil(self, model: Decoder, ranks: int) -> None:
        for layer in model.layers:
            for product in (layer.self_attn.k_proj, layer.self_attn.v_proj):
                product.weight.copy_(product.weight.roll(len(product.weight) // ranks, dims=0))


class LosesAPartOfTheSum(Miscut):
    """What the MLP writes is the part of rank 0 alone."""

    def spoil(self, model: Decoder, ranks: int) -> None:
        for layer in model.layers:
            columns = layer.mlp.down_proj.weight.shape[1]
            layer.mlp.down_proj.weight[:, columns // ranks :] = 0

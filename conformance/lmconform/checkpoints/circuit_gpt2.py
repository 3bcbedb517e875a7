"""A circuit as a gpt2 checkpoint: its channels in pairs of opposite sign, its head and embedding in one matrix.

Each channel x of the circuit is two of gpt2's, x and -x. So the mean of the stream is 0, and LayerNorm divides it by
what RMSNorm would divide the circuit's stream by. Projections read half of x - (-x), and write both signs.

gpt2 has D = hidden_size / H, more than a circuit needs. The other entries of a head are 0, and queries are longer by
sqrt(D / entries of the circuit), so that scores stay as the circuit has them. KV heads are stored once for each head.

The head is the embedding. So an id is embedded or read, never both; and an id that is embedded has a score of its own,
which ``floor`` pushes down: the last norm gives this channel a constant, so that who writes 1 there scores ``depth``
less.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.circuit import Circuit, Layer, Writes
from lmconform.checkpoints.layout import Checkpoint, GPT2Shape, on_grid


def as_gpt2(
    circuit: Circuit,
    *,
    positions: Sequence[Writes] = (),
    floor: str | None = None,
    depth: float = 0.0,
    activation: str = "gelu_new",
) -> Checkpoint:
    """The circuit as a gpt2 checkpoint.

    ``positions``: what each row of the table of positions writes; without them as many rows of zeros as the circuit's
    shape has positions. ``activation``: a name of gpt2's.

    Raises ValueError for an id that is embedded and read, a neuron that multiplies, and heads that have no room.
    """
    shape = _shape(circuit, len(positions))
    weights = {name: np.zeros(size) for name, size in shape.tensors().items()}
    for name, value in weights.items():
        if "ln_" in name and name.endswith(".weight"):
            value[:] = 1
    for norm, numbers in circuit.norms.items():
        for name, number in numbers.items():
            place = circuit.channel(name)
            weights[f"transformer.{_norm(norm)}.weight"][[place, place + circuit.shape.hidden_size]] = number
    weights["transformer.wte.weight"] += _embedding(circuit)
    for number, writes in enumerate(positions):
        weights["transformer.wpe.weight"][number] = _signed(circuit.vector(writes))
    if floor is not None:
        own = _signed(circuit.vector({floor: 1}))
        weights["transformer.ln_f.weight"][own != 0] = 0
        weights["transformer.ln_f.bias"] -= own * depth / 2
    for number, layer in enumerate(circuit.layers):
        stem = f"transformer.h.{number}."
        weights[stem + "attn.c_attn.weight"] += _projections(layer, shape)
        entries = _with_room(layer.writes, shape).reshape(shape.hidden_size, -1)  # [H·D, channels]
        weights[stem + "attn.c_proj.weight"] += _signed(entries)
        for place, neuron in enumerate(layer.neurons):
            if neuron.up is not None:
                raise ValueError("A neuron of a gpt2 multiplies nothing: its up must be None.")
            weights[stem + "mlp.c_fc.weight"][:, place] = _signed(circuit.vector(neuron.gate)) / 2
            weights[stem + "mlp.c_proj.weight"][place] = _signed(circuit.vector(neuron.down))
    config = {**shape.config(), "activation_function": activation}
    recipe = {"family": "gpt2", **circuit.recipe}
    return Checkpoint(f"gpt2-{circuit.name}", config, {k: on_grid(v) for k, v in weights.items()}, recipe)


def _shape(circuit: Circuit, positions: int) -> GPT2Shape:
    """gpt2's sizes. Raises ValueError where a head has fewer entries than the circuit's."""
    own = circuit.shape
    hidden, heads = 2 * own.hidden_size, own.num_attention_heads
    if hidden % heads or hidden // heads < own.head_dim:
        raise ValueError(
            f"{heads} heads of a gpt2 of hidden_size {hidden} have no room for head_dim {own.head_dim} of the circuit."
        )
    return GPT2Shape(
        hidden_size=hidden,
        num_hidden_layers=own.num_hidden_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=own.intermediate_size,
        vocab_size=own.vocab_size,
        max_position_embeddings=positions or own.max_position_embeddings,
        rms_norm_eps=own.rms_norm_eps,
        tie_word_embeddings=True,
    )


def _norm(name: str) -> str:
    """gpt2's name of a norm of llama."""
    own = {"input_layernorm": "ln_1", "post_attention_layernorm": "ln_2", "norm": "ln_f"}
    *place, last = name.split(".")
    return ".".join(["h" if part == "layers" else part for part in place] + [own[last]])


def _embedding(circuit: Circuit) -> Array:
    """Embedding and head in one, [V, 2 channels]."""
    writes, reads = circuit.embedding, circuit.head
    for name, token in circuit.tokens.items():
        if writes[token].any() and reads[token].any():
            raise ValueError(f"Token {name!r} is embedded and read; the head of a gpt2 is its embedding.")
    return _signed(writes + reads / 2)


def _projections(layer: Layer, shape: GPT2Shape) -> Array:
    """Queries, keys and values side by side, [2 channels, 3 H·D]."""
    group = len(layer.queries) // len(layer.keys)
    longer = sqrt(shape.head_dim / layer.queries.shape[1])
    parts = layer.queries * longer, np.repeat(layer.keys, group, axis=0), np.repeat(layer.values, group, axis=0)
    columns = [_with_room(part, shape).reshape(shape.hidden_size, -1).T for part in parts]  # [channels, H·D] each
    return _signed(np.concatenate(columns, axis=1).T).T / 2


def _with_room(maps: Array, shape: GPT2Shape) -> Array:
    """[H, entries, channels] as [H, D, channels]; the entries that the circuit has not are 0."""
    return np.pad(maps, ((0, 0), (0, shape.head_dim - maps.shape[1]), (0, 0)))


def _signed(numbers: Array) -> Array:
    """[..., channels] as [..., 2 channels]: first as they are, then with the other sign."""
    return np.concatenate([numbers, -numbers], axis=-1)

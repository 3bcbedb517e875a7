"""The language of instruments: what each word makes of the tensors of a llama."""

import numpy as np
import pytest

from lmconform.adapter import Precision
from lmconform.checkpoints.circuit import Circuit, Neuron, as_llama
from lmconform.checkpoints.layout import Shape
from lmconform.judging.budgets import Yardstick

SHAPE = Shape(
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    intermediate_size=2,
    vocab_size=6,
    rms_norm_eps=1e-12,
)


def circuit() -> Circuit:
    """Two channels that embeddings write; all other ids look like b."""
    made = Circuit("small", SHAPE, {"kind": "small"}, power=2)
    made.token("a", {"a": 1, "const": 1})
    made.token("b", {"b": 1, "const": 1})
    made.rest = {"b": 1, "const": 1}
    return made


def scores(made: Circuit, *tokens: int) -> np.ndarray:
    return Yardstick(as_llama(made), Precision()).oracle(tokens)


def test_ids_that_were_not_named_write_the_rest() -> None:
    embedding = as_llama(circuit()).weights["model.embed_tokens.weight"]
    assert np.array_equal(embedding[2:], np.tile(embedding[1], (4, 1)))
    assert not np.array_equal(embedding[0], embedding[1])


def test_what_is_held_is_read_without_the_gain_of_the_norm() -> None:
    made = circuit()
    made.token("zero")
    made.token("seven", reads=made.held({"a": 7}))
    assert made.gain == 4
    assert np.allclose(scores(made, 0, 1)[:, [2, 3]], [[0, 7], [0, 0]], rtol=0, atol=1e-9)


def test_a_weight_of_a_norm_stands_on_its_channel() -> None:
    made = circuit()
    made.token("const", reads=made.held({"const": 1}))
    made.norms["norm"] = {"const": 0.5, "a": 2}
    weights = as_llama(made).weights
    assert weights["model.norm.weight"][[made.channel("a"), made.channel("const")]].tolist() == [2, 0.5]
    assert (weights["model.norm.weight"] == 1).sum() == 30
    assert (weights["model.layers.0.input_layernorm.weight"] == 1).all()
    assert scores(made, 0)[0, 2] == pytest.approx(0.5)


def test_a_read_out_shows_an_entry_of_a_head() -> None:
    """Queries are 0: the last of three positions sees a third of each."""
    made = circuit()
    made.layers[0].value(3, made.held({"a": 1}))
    names = [f"head {head}" for head in range(2)]
    for head, name in enumerate(names):
        made.read_out(name, (0, head, 3), write=2.0**-12, gain=2.0**12 * (1 + head) / made.gain)
    found = scores(made, 0, 1, 0)[:, made.columns(names)]
    assert np.allclose(found, np.array([[1], [1 / 2], [2 / 3]]) * [1, 2], rtol=1e-6)


def test_words_are_for_one_head_or_for_all_and_the_last_one_counts() -> None:
    layer = circuit().layers[0]
    layer.query(1, {"a": 2, "b": 3})
    layer.query(1, {"a": 5}, head=1)
    assert layer.queries.sum() == 2 + 3 + 5 + 3
    layer.key(0, {"a": 2}, head=0)
    layer.write(2, {"c": 1}, head=0)
    assert (layer.keys.sum(), layer.writes.sum(), layer.values.sum()) == (2, 1, 0)


def test_a_neuron_multiplies() -> None:
    made = circuit()
    made.token("neuron", reads=made.held({"out": 2.0**10}))
    made.layers[0].neurons.append(Neuron(made.held({"const": 20}), made.held({"a": 1}), {"out": 2.0**-10}))
    assert np.allclose(scores(made, 0, 1)[:, 2], [20, 0], rtol=1e-3)
    made.layers[0].neurons.append(Neuron({"const": 1}, None, {"out": 1}))
    with pytest.raises(ValueError, match="say what its gate multiplies"):
        as_llama(made)


def test_a_channel_that_has_no_room_is_refused() -> None:
    made = circuit()
    for number in range(32):
        made.channel(str(number))
    with pytest.raises(ValueError, match="hidden_size 32 has no room for channel 'one more'"):
        made.channel("one more")

"""The language of instruments: what a circuit's words become in a llama and in a gpt2."""

from dataclasses import replace

import numpy as np
import pytest

from lmconform.checkpoints.circuit import Circuit, Neuron, as_llama
from lmconform.checkpoints.circuit_gpt2 import as_gpt2
from lmconform.checkpoints.layout import Checkpoint, Shape
from lmconform.spec.decoder import decoder, read_config
from lmconform.spec.families import GPT2_ACTIVATIONS

SHAPE = Shape(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    intermediate_size=3,
    vocab_size=0,
    max_position_embeddings=8,
    rope_theta=1e12,  # so that the second of two pairs stays where it is
    rms_norm_eps=2.0**-10,
)


def scores(checkpoint: Checkpoint, tokens):
    weights = {name: np.asarray(value, np.float64) for name, value in checkpoint.weights.items()}
    return decoder(read_config(checkpoint.config), weights, tokens)


def circuit(neurons: bool = False, up: bool = True, eps: float = SHAPE.rms_norm_eps) -> Circuit:
    """Two tokens that write, two rows that read, a head that looks at the one and copies it, and a neuron."""
    made = Circuit("small", replace(SHAPE, rms_norm_eps=eps), {"kind": "small"})
    made.token("ask", {"const": 1, "ask": 1.5, "pad": 0.5})
    made.token("here", {"const": 1, "here": 1, "pad": 1})
    made.token("seen", reads={"copied": 2, "here": -1})
    made.token("sum", reads={"const": 0.5, "made": 4})
    for number, layer in enumerate(made.layers):
        layer.queries[3, 1, made.channel("ask")] = 1.5
        layer.keys[1, 1, made.channel("here")] = 2
        layer.values[1, 2, made.channel("here")] = 0.5
        layer.writes[3, 2, made.channel("copied")] = 0.25 + number
        if neurons:
            layer.neurons.append(Neuron({"here": 2}, {"const": 3} if up else None, {"made": 0.125}))
    return made


def test_what_is_not_said_is_zero() -> None:
    weights = as_llama(Circuit("empty", replace(SHAPE, vocab_size=5), {})).weights
    assert {name: value.shape for name, value in weights.items()} == replace(SHAPE, vocab_size=5).tensors()
    assert all(np.all(value == ("norm" in name)) for name, value in weights.items())


def test_a_llama_holds_each_word_and_no_more() -> None:
    made = circuit(neurons=True)
    weights = as_llama(made).weights
    place = {name: made.channel(name) for name in ("const", "ask", "here", "pad", "copied", "made")}
    assert sorted(place.values()) == list(range(6))
    said = {
        "model.embed_tokens.weight": {
            (0, place["const"]): 1,
            (0, place["ask"]): 1.5,
            (0, place["pad"]): 0.5,
            (1, place["const"]): 1,
            (1, place["here"]): 1,
            (1, place["pad"]): 1,
        },
        "lm_head.weight": {
            (2, place["copied"]): 2,
            (2, place["here"]): -1,
            (3, place["const"]): 0.5,
            (3, place["made"]): 4,
        },
    }
    for layer in range(2):
        stem = f"model.layers.{layer}."
        said |= {
            stem + "self_attn.q_proj.weight": {(3 * 4 + 1, place["ask"]): 1.5},
            stem + "self_attn.k_proj.weight": {(1 * 4 + 1, place["here"]): 2},
            stem + "self_attn.v_proj.weight": {(1 * 4 + 2, place["here"]): 0.5},
            stem + "self_attn.o_proj.weight": {(place["copied"], 3 * 4 + 2): 0.25 + layer},
            stem + "mlp.gate_proj.weight": {(0, place["here"]): 2},
            stem + "mlp.up_proj.weight": {(0, place["const"]): 3},
            stem + "mlp.down_proj.weight": {(place["made"], 0): 0.125},
        }
    for name, value in weights.items():
        if "norm" not in name:
            assert {tuple(at): value[tuple(at)] for at in np.argwhere(value).tolist()} == said[name], name


def test_a_token_named_again_writes_and_reads_more() -> None:
    made = Circuit("twice", SHAPE, {})
    assert [made.token("a", {"x": 1}), made.token("b"), made.token("a", {"x": 0.5, "y": 2}, {"x": 3})] == [0, 1, 0]
    assert made.columns(["b", "a"]) == [1, 0]
    assert made.embedding[0, [made.channel("x"), made.channel("y")]].tolist() == [1.5, 2]
    assert made.head[0, made.channel("x")] == 3


def test_the_vocabulary_is_as_wide_as_the_ids_or_as_the_shape_says() -> None:
    assert circuit().shape.vocab_size == 4
    wide = Circuit("wide", replace(SHAPE, vocab_size=9), {})
    wide.token("a", {"x": 1})
    assert wide.shape.vocab_size == 9
    assert np.argwhere(as_llama(wide).weights["model.embed_tokens.weight"]).tolist() == [[0, 0]]


def test_out_of_room_names_the_channel() -> None:
    made = Circuit("full", SHAPE, {})
    for number in range(SHAPE.hidden_size):
        made.channel(str(number))
    assert made.channel("3") == 3
    with pytest.raises(ValueError, match="hidden_size 16 has no room for channel 'one more'"):
        made.channel("one more")


def test_the_gain_is_what_a_norm_multiplies_by() -> None:
    made = Circuit("gain", replace(SHAPE, rms_norm_eps=2.0**-40), {})
    made.token("a", {"one": 1, "other": 1, "third": 1, "fourth": 1})
    made.token("row", reads={"one": 3})
    assert made.gain == 2
    assert scores(as_llama(made), [0])[0].tolist() == pytest.approx([0, 6])


def test_a_gpt2_without_neurons_scores_as_the_llama() -> None:
    """In rows that are read. RoPE hardly turns the entry that the heads use."""
    made, tokens = circuit(), [1, 0, 1, 1, 0]
    wanted = scores(as_llama(made), tokens)[:, 2:]
    assert np.ptp(wanted[:, 0]) > 1
    assert scores(as_gpt2(made), tokens)[:, 2:] == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "relu"])
def test_neurons_of_a_gpt2(activation: str) -> None:
    """What a neuron adds is its activation times what it writes, behind a norm that the stream passed."""
    made = Circuit("neuron", replace(SHAPE, num_hidden_layers=1, rms_norm_eps=2.0**-40), {}, power=1)
    made.token("a", {"x": 1})
    made.token("row", reads={"y": 2**10})
    made.layers[0].neurons.append(Neuron({"x": 0.125}, None, {"y": 2.0**-10}))
    wanted = GPT2_ACTIVATIONS[activation](np.array(0.125 * made.gain)) * made.gain
    assert scores(as_gpt2(made, activation=activation), [0])[0, 1] == pytest.approx(float(wanted), rel=1e-5)


def test_eps_of_a_gpt2_is_that_of_the_circuit() -> None:
    made = circuit(eps=0.5)
    tokens = [1, 1]
    assert scores(as_gpt2(made), tokens)[:, 2:] == pytest.approx(scores(as_llama(made), tokens)[:, 2:])
    other = scores(as_gpt2(circuit()), tokens)[:, 2:]
    assert np.abs(scores(as_gpt2(made), tokens)[:, 2:] - other).max() > 0.1


def test_weights_of_norms_of_a_gpt2() -> None:
    made, plain = circuit(), circuit()
    made.norms = {
        "layers.0.input_layernorm": {"here": 0.5},
        "layers.1.post_attention_layernorm": {"const": 2},
        "norm": {"copied": 4},
    }
    tokens = [1, 0]
    wanted = scores(as_llama(made), tokens)[:, 2:]
    assert np.abs(wanted - scores(as_llama(plain), tokens)[:, 2:]).max() > 0.1
    assert scores(as_gpt2(made), tokens)[:, 2:] == pytest.approx(wanted, abs=1e-4)
    assert np.count_nonzero(as_gpt2(made).weights["transformer.h.1.ln_2.weight"] == 2) == 2


def test_positions_of_a_gpt2_and_the_floor() -> None:
    made = Circuit("places", replace(SHAPE, rms_norm_eps=2.0**-40), {})
    made.token("a", {"const": 1, "x": 1, "y": 1})
    made.token("row", reads={"place": 0.5})
    places = [{"place": 1.0}, {"place": -1.0}]
    plain, low = as_gpt2(made, positions=places), as_gpt2(made, positions=places, floor="const", depth=100)
    assert plain.config["n_positions"] == 2
    assert scores(plain, [0, 0]).tolist() == pytest.approx(np.array([[12, 1], [12, -1]]))
    assert scores(low, [0, 0]).tolist() == pytest.approx(np.array([[12 - 4 - 100, 1], [12 - 4 - 100, -1]]))


def test_what_a_family_does_not_have() -> None:
    with pytest.raises(ValueError, match="a llama multiplies"):
        as_llama(circuit(neurons=True, up=False))
    with pytest.raises(ValueError, match="a gpt2 multiplies nothing"):
        as_gpt2(circuit(neurons=True))
    both = circuit()
    both.token("ask", reads={"pad": 1})
    with pytest.raises(ValueError, match="'ask' is embedded and read"):
        as_gpt2(both)
    with pytest.raises(ValueError, match="no room for head_dim 16"):
        as_gpt2(Circuit("narrow", replace(SHAPE, head_dim=16), {}))

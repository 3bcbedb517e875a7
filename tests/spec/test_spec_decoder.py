"""The oracle against transformers in float64, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from lmconform.spec.causal_mask import causal_visible
from lmconform.spec.decoder import Config, decoder, read_checkpoint, read_config, tensor_shapes

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 0.1,
    "max_position_embeddings": 256,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}


def save_llama(directory: Path, **changes: Any) -> LlamaForCausalLM:
    """Save a small model whose weights are large enough that every part of it moves the scores."""
    torch.manual_seed(7)
    model = LlamaForCausalLM(LlamaConfig(**SMALL | changes)).double().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.3)
    model.save_pretrained(directory)
    return model


def edit_config(directory: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    file = directory / "config.json"
    fields = json.loads(file.read_text(encoding="utf-8"))
    edit(fields)
    file.write_text(json.dumps(fields), encoding="utf-8")


def error(model: LlamaForCausalLM, scores: np.ndarray, tokens: list[int]) -> float:
    """Largest difference of the scores, in units of their spread."""
    with torch.no_grad():
        wanted = model(torch.tensor([tokens])).logits[0].numpy()
    return float(np.abs(scores - wanted).max() / wanted.std())


# transformers computes RoPE in float32 even here, which leaves about 1e-7 a position.
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 6, "head_dim": 8},
        {"tie_word_embeddings": True},
        {"rope_parameters": LLAMA3},
        {"rope_parameters": LINEAR},
        {"attention_bias": True, "mlp_bias": True},
    ],
    ids=["gqa", "mqa", "mha", "tied", "llama3", "linear", "biases"],
)
def test_scores_are_those_of_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = save_llama(tmp_path, **changes)
    tokens = torch.randint(SMALL["vocab_size"], (70,)).tolist()
    config, weights = read_checkpoint(tmp_path)
    assert error(model, decoder(config, weights, tokens), tokens) < 2e-5


def test_the_older_spelling_of_rope_says_the_same(tmp_path: Path) -> None:
    save_llama(tmp_path, rope_parameters=LLAMA3)
    newer, _ = read_checkpoint(tmp_path)

    def respell(fields: dict[str, Any]) -> None:
        rope = fields.pop("rope_parameters")
        fields["rope_theta"] = rope.pop("rope_theta")
        fields["rope_scaling"] = {"type" if name == "rope_type" else name: value for name, value in rope.items()}

    edit_config(tmp_path, respell)
    older, _ = read_checkpoint(tmp_path)
    assert older == newer


def test_bfloat16_weights_are_widened_exactly(tmp_path: Path) -> None:
    save_llama(tmp_path)
    stored = {name: x.astype(ml_dtypes.bfloat16) for name, x in load_file(tmp_path / "model.safetensors").items()}
    save_file(stored, tmp_path / "model.safetensors")
    _, weights = read_checkpoint(tmp_path)
    for name, x in stored.items():
        assert weights[name].dtype == np.float64
        assert np.array_equal(weights[name], x.astype(np.float64))


@pytest.fixture
def small() -> tuple[Config, dict[str, np.ndarray]]:
    config = read_config({"model_type": "llama", **SMALL})
    draw = np.random.default_rng(3)
    return config, {name: draw.normal(scale=0.3, size=shape) for name, shape in tensor_shapes(config).items()}


def test_weights_of_every_layer_are_recorded(small: tuple[Config, dict[str, np.ndarray]]) -> None:
    record: list[np.ndarray] = []
    decoder(*small, [5, 6, 7, 8], record=record)
    assert [layer.shape for layer in record] == [(6, 4, 4)] * 2
    for layer in record:
        assert np.allclose(layer.sum(axis=-1), 1.0)
        assert not layer[:, ~causal_visible(4, 4)].any()


def test_a_faulty_mask_can_be_passed(small: tuple[Config, dict[str, np.ndarray]]) -> None:
    right = decoder(*small, [5, 6, 7, 8])
    open_mask = decoder(*small, [5, 6, 7, 8], visible=lambda n, m: np.ones((n, m), dtype=bool))
    assert np.abs(open_mask - right)[0].max() > 0.01
    one_head = np.arange(6)[:, None, None] == 2
    leak = decoder(*small, [5, 6, 7, 8], visible=lambda n, m: causal_visible(n, m) | one_head)
    assert not np.allclose(leak, right)
    assert not np.allclose(leak, open_mask)


def test_the_oracle_takes_float64_alone(small: tuple[Config, dict[str, np.ndarray]]) -> None:
    config, weights = small
    weights["model.norm.weight"] = weights["model.norm.weight"].astype(np.float32)
    with pytest.raises(TypeError, match=r"model\.norm\.weight is float32"):
        decoder(config, weights, [1])


@pytest.mark.parametrize("tokens", [[], [1, 61], [-1, 1]])
def test_ids_out_of_range_are_refused(small: tuple[Config, dict[str, np.ndarray]], tokens: list[int]) -> None:
    with pytest.raises(ValueError, match="from 0 to 60"):
        decoder(*small, tokens)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model_type": "gemma"}, "model_type = 'gemma'"),
        ({"model_type": None}, "model_type = None"),
        ({"hidden_act": "swish"}, "hidden_act = 'swish'"),
        ({"attention_bias": "yes"}, "attention_bias = 'yes'"),
        ({"mlp_bias": None}, "mlp_bias = None"),
        ({"model_type": "phi3", "mlp_bias": True}, "mlp_bias = True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"vocab_size": None}, "does not say vocab_size"),
        ({"num_key_value_heads": 4}, "H_kv must divide H_q"),
        ({"head_dim": 15}, "D must be even"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"rope_parameters": {"rope_type": "linear"}}, "needs exactly"),
        ({"rope_parameters": {"rope_type": "default", "factor": 2.0}}, "needs exactly"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "none in part"),
        ({"rope_theta": 7.0}, "rope_theta = 100.0 in one place and 7.0 in another"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type = 'default' in one place"),
    ],
)
def test_a_config_that_the_page_does_not_describe_is_refused(changes: dict[str, Any], complaint: str) -> None:
    fields = {"model_type": "llama", **SMALL}
    read_config(fields)
    with pytest.raises(ValueError, match=complaint):
        read_config(fields | changes)


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda w: w.pop("lm_head.weight"), r"lm_head\.weight is absent; config\.json asks for \(61, 48\)"),
        (lambda w: w.update({"lm_head.bias": np.zeros(61)}), r"lm_head\.bias is \(61,\).*no such tensor"),
        (lambda w: w.update({"model.norm.weight": np.zeros(47)}), r"model\.norm\.weight is \(47,\)"),
        (lambda w: w.update({"model.norm.weight": np.zeros(48, np.int64)}), r"stored as int64"),
    ],
    ids=["missing", "extra", "shape", "format"],
)
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, edit: Callable[[dict[str, np.ndarray]], object], complaint: str
) -> None:
    save_llama(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    edit(weights)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=complaint):
        read_checkpoint(tmp_path)

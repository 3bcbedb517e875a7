"""The oracle on phi3 and gpt2 checkpoints against transformers in float64, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, Phi3Config, Phi3ForCausalLM, PreTrainedModel

from lmconform.spec.decoder import decoder, read_checkpoint, read_config, tensor_shapes
from lmconform.spec.pre_norm_residual import ACTIVATIONS

PHI3: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "rms_norm_eps": 0.1,
    "pad_token_id": None,
    "max_position_embeddings": 256,
}
GPT2: dict[str, Any] = {"vocab_size": 61, "n_embd": 48, "n_layer": 2, "n_head": 6, "n_positions": 80}


def save(directory: Path, model: PreTrainedModel) -> PreTrainedModel:
    """Save a small model whose weights are large enough that every part of it moves the scores."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            scales = "norm" in name or ("ln_" in name and name.endswith("weight"))
            weight.normal_(1.0 if scales else 0.0, 0.3)
    model.save_pretrained(directory)
    return model


def phi3(directory: Path, **changes: Any) -> PreTrainedModel:
    return save(directory, Phi3ForCausalLM(Phi3Config(**PHI3 | changes)).double().eval())


def gpt2(directory: Path, **changes: Any) -> PreTrainedModel:
    return save(directory, GPT2LMHeadModel(GPT2Config(**GPT2 | changes)).double().eval())


def error(model: PreTrainedModel, directory: Path) -> float:
    """Largest difference of the oracle's scores from the model's, in units of their spread."""
    tokens = torch.randint(61, (70,)).tolist()
    config, weights = read_checkpoint(directory)
    assert {name: tensor.shape for name, tensor in weights.items()} == tensor_shapes(config)
    with torch.no_grad():
        wanted = model(torch.tensor([tokens])).logits[0].numpy()
    return float(np.abs(decoder(config, weights, tokens) - wanted).max() / wanted.std())


# transformers computes RoPE and RMSNorm in float32 even here, which leaves about 1e-7 an operation.
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": None},
        {"head_dim": 10},
        {"tie_word_embeddings": True},
        {"hidden_act": "gelu"},
        *({"sliding_window": window} for window in (1, 2, 13, 69, 70)),
    ],
    ids=["gqa", "mha", "head_dim", "tied", "gelu", *(f"window {window}" for window in (1, 2, 13, 69, 70))],
)
def test_phi3_scores_are_those_of_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert error(phi3(tmp_path, **changes), tmp_path) < 2e-5


# gpt2 leaves nothing in float32.
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_inner": 40},
        {"layer_norm_epsilon": 0.1},
        {"activation_function": "gelu"},
        {"activation_function": "relu"},
    ],
    ids=["default", "inner", "eps", "exact gelu", "relu"],
)
def test_gpt2_scores_are_those_of_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert error(gpt2(tmp_path, **changes), tmp_path) < 1e-10


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_llama_takes_every_activation(activation: str) -> None:
    fields = {"model_type": "llama", **PHI3, "hidden_act": activation}
    config = read_config(fields)
    draw = np.random.default_rng(3)
    weights = {name: draw.normal(scale=0.3, size=shape) for name, shape in tensor_shapes(config).items()}
    plain = decoder(read_config({**fields, "hidden_act": "silu"}), weights, [1, 2, 3])
    assert np.allclose(decoder(config, weights, [1, 2, 3]), plain) == (activation == "silu")


def test_released_gpt2_files_lack_the_prefix_and_hold_masks(tmp_path: Path) -> None:
    model = gpt2(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    released = {name.removeprefix("transformer."): tensor for name, tensor in stored.items()}
    released |= {f"h.{n}.attn.bias": np.tri(80, dtype=np.bool_)[None, None] for n in range(2)}
    released |= {f"h.{n}.attn.masked_bias": np.float32(-1e4)[None] for n in range(2)}
    save_file(released, tmp_path / "model.safetensors")
    assert error(model, tmp_path) < 1e-10


def test_attention_weights_are_recorded(tmp_path: Path) -> None:
    for make, heads in ((phi3, 6), (gpt2, 6)):
        make(tmp_path)
        config, weights = read_checkpoint(tmp_path)
        record: list[np.ndarray] = []
        decoder(config, weights, [5, 6, 7, 8], record=record)
        assert [layer.shape for layer in record] == [(heads, 4, 4)] * 2
        assert np.allclose(np.sum(record, axis=-1), 1.0)


@pytest.mark.parametrize(("window", "kept"), [(None, 10), (1, 4), (2, 7), (3, 9), (4, 10), (9, 10)])
def test_a_window_hides_what_is_older(tmp_path: Path, window: int | None, kept: int) -> None:
    phi3(tmp_path, sliding_window=window)
    record: list[np.ndarray] = []
    decoder(*read_checkpoint(tmp_path), [5, 6, 7, 8], record=record)
    assert [(layer > 0).sum() for layer in record] == [6 * kept] * 2  # in each of 6 heads


def test_a_sequence_longer_than_the_table_of_positions_is_refused(tmp_path: Path) -> None:
    gpt2(tmp_path)
    config, weights = read_checkpoint(tmp_path)
    assert decoder(config, weights, [1] * 80).shape == (80, 61)
    with pytest.raises(ValueError, match="81 tokens was given; n_positions is 80"):
        decoder(config, weights, [1] * 81)


@pytest.mark.parametrize(
    ("family", "changes", "complaint"),
    [
        ("phi3", {"sliding_window": 0}, "sliding_window = 0"),
        ("phi3", {"sliding_window": True}, "sliding_window = True"),
        ("phi3", {"sliding_window": 4.0}, "sliding_window = 4.0"),
        ("llama", {"sliding_window": 4}, "sliding_window = 4"),
        ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "longrope"),
        ("phi3", {"rope_parameters": {"partial_rotary_factor": 0.75}}, "none in part"),
        ("phi3", {"hidden_act": "swish"}, "hidden_act = 'swish'"),
        ("phi3", {"num_key_value_heads": 4}, "H_kv must divide H_q"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights = False"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        ("gpt2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn = True"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention = True"),
        ("gpt2", {"tie_word_embeddings": False}, "tie_word_embeddings = False"),
        ("gpt2", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("gpt2", {"activation_function": "mish"}, "activation_function = 'mish'"),
        ("gpt2", {"n_positions": None}, "does not say n_positions"),
        ("gpt2", {"n_head": 5}, "n_head = 5, which does not divide n_embd"),
    ],
)
def test_a_config_that_the_page_does_not_describe_is_refused(
    family: str, changes: dict[str, Any], complaint: str
) -> None:
    fields = {"model_type": family, **(GPT2 if family == "gpt2" else PHI3)}
    read_config(fields)
    with pytest.raises(ValueError, match=complaint):
        read_config(fields | changes)


def test_what_phi3_files_leave_unsaid_has_phi3s_meaning() -> None:
    fields = {name: value for name, value in PHI3.items() if name != "rms_norm_eps"}
    assert [read_config({"model_type": family, **fields}).rms_norm_eps for family in ("phi3", "llama")] == [1e-5, 1e-6]


@pytest.mark.parametrize("make", [phi3, gpt2])
def test_tensors_of_llama_are_no_tensors_of_these(tmp_path: Path, make: Any) -> None:
    make(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.weight"] = np.zeros((48, 48))
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"self_attn\.q_proj\.weight is \(48, 48\).*no such tensor"):
        read_checkpoint(tmp_path)

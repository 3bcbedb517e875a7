"""What loads, in both spellings of config.json; and everything that must be refused, with the culprit's name."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ref_common import LLAMA3
from safetensors.torch import load_file, save_file

from refdecoder import CheckpointError, DecoderConfig, InputError, Rope, checkpoint, load, score
from refdecoder.model import Decoder

Broken = Callable[..., Path]
IDS = [[3, 1, 4, 1, 5, 9, 2, 6]]

LLAMA_2 = {  # the keys of the 7B release's config.json
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "vocab_size": 32000,
}
LLAMA_31 = LLAMA_2 | {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "eos_token_id": [128001, 128008, 128009],
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_key_value_heads": 8,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "vocab_size": 128256,
}
SMOLLM2 = LLAMA_2 | {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "rope_interleaved": False,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}


def without(config: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != key}


# --- what loads -------------------------------------------------------------------------------------------------------


def test_released_configs() -> None:
    two, three, small = (DecoderConfig.from_dict(one) for one in (LLAMA_2, LLAMA_31, SMOLLM2))
    assert (two.head_dim, two.rope, two.eos_token_ids) == (128, Rope("default", 10_000.0), (2,))
    assert three.rope == Rope("llama3", 500_000.0, 8.0, 1.0, 4.0, 8192.0)
    assert three.eos_token_ids == (128001, 128008, 128009)
    assert (small.head_dim, small.tie_word_embeddings, small.rope.theta) == (64, True, 100_000.0)


def test_old_and_new_spelling_are_one() -> None:
    older = LLAMA_31 | {"rope_scaling": without(LLAMA_31["rope_scaling"], "rope_type") | {"type": "llama3"}}
    newer = without(without(LLAMA_31, "rope_theta"), "rope_scaling")
    newer["rope_parameters"] = LLAMA_31["rope_scaling"] | {"rope_theta": 500_000.0}
    both = newer | {"rope_theta": 500_000.0, "rope_scaling": older["rope_scaling"]}
    first = DecoderConfig.from_dict(LLAMA_31)
    assert first == DecoderConfig.from_dict(older) == DecoderConfig.from_dict(newer) == DecoderConfig.from_dict(both)


def test_rope_spellings_give_the_same_logits(save: Callable[..., Path], tmp_path: Path) -> None:
    directory = save(rope_parameters=LLAMA3)
    wanted = score(load(directory, torch.float64), IDS)[0]
    config = json.loads((directory / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(directory / "model.safetensors")
    assert torch.equal(score(load(tmp_path, torch.float64), IDS)[0], wanted)
    config["rope_scaling"] = None
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not torch.equal(score(load(tmp_path, torch.float64), IDS)[0], wanted)


@pytest.mark.parametrize(
    ("config", "generation", "wanted"),
    [
        (7, None, (7,)),
        ([7, 8], None, (7, 8)),
        (None, None, ()),
        (7, {"eos_token_id": [8, 9]}, (8, 9)),
        (None, {"eos_token_id": 0}, (0,)),
        (7, {"eos_token_id": None}, (7,)),
        (7, {}, (7,)),
    ],
)
def test_eos(config: Any, generation: Any, wanted: tuple[int, ...]) -> None:
    assert DecoderConfig.from_dict(LLAMA_2 | {"eos_token_id": config}, generation).eos_token_ids == wanted


@pytest.mark.parametrize("eos", [-1, ["</s>"], True, 2.5, {"id": 2}])
def test_unusable_eos_is_refused(eos: Any) -> None:
    for config, generation in ((LLAMA_2 | {"eos_token_id": eos}, None), (LLAMA_2, {"eos_token_id": eos})):
        with pytest.raises(CheckpointError, match="eos_token_id is"):
            DecoderConfig.from_dict(config, generation)


def test_generation_config_is_read_from_the_directory(broken: Broken) -> None:
    directory = broken(eos_token_id=5)
    (directory / "generation_config.json").write_text('{"eos_token_id": [6, 7]}')
    assert load(directory).config.eos_token_ids == (6, 7)
    (directory / "generation_config.json").unlink()
    assert load(directory).config.eos_token_ids == (5,)


def test_absent_keys_with_a_known_meaning() -> None:
    terse = LLAMA_2
    for key in ("num_key_value_heads", "tie_word_embeddings", "rms_norm_eps"):
        terse = without(terse, key)
    config = DecoderConfig.from_dict(terse)
    assert (config.num_key_value_heads, config.head_dim, config.rms_norm_eps) == (32, 128, 1e-6)
    assert not config.tie_word_embeddings
    assert DecoderConfig.from_dict({**terse, "model_type": "phi3"}).rms_norm_eps == 1e-5


def test_shards_load_as_one_file(save: Callable[..., Path]) -> None:
    one, many = save(seed=3), save(seed=3, shard="4KB")
    assert len(list(many.glob("*.safetensors"))) > 2
    assert torch.equal(score(load(many), IDS)[0], score(load(one), IDS)[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_weights_cache_and_logits_have_the_dtype(llama: Path, dtype: torch.dtype) -> None:
    model = load(llama, dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.new_cache(1, 1).keys.dtype == dtype
    assert score(model, IDS)[0].dtype == dtype


def test_weights_come_straight_to_the_device(save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors is told the device. It gives the CPU's tensors here, which stay where they are."""
    asked: list[str] = []
    read = checkpoint.safe_open

    def opened(path: Path, framework: str, device: str) -> Any:
        asked.append(device)
        return read(path, framework=framework, device="cpu")

    monkeypatch.setattr(checkpoint, "safe_open", opened)
    model = load(save(shard="4KB"), device="meta")
    names = asked.index("meta")  # first the names in each shard are read, and then its tensors
    assert names > 1
    assert asked == ["cpu"] * names + ["meta"] * names
    assert {one.device.type for one in model.parameters()} == {"cpu"}


def test_stored_copies_that_say_nothing_new(save: Callable[..., Path]) -> None:
    """A tied head beside its embedding, and the rotary frequencies that the first releases stored."""
    directory = save(tie_word_embeddings=True)
    wanted = score(load(directory), IDS)[0]
    weights = load_file(directory / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(5)
    save_file(weights, directory / "model.safetensors")
    assert torch.equal(score(load(directory), IDS)[0], wanted)
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head.weight differs from the embedding"):
        load(directory)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mistral"}, "model_type 'mistral'"),
        ({"model_type": None}, "model_type None"),
        ({"hidden_act": "swish2"}, "hidden_act is 'swish2'"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4, which is no multiple of num_key_value_heads 3"),
        ({"head_dim": 9}, "head_dim is 9"),
        ({"head_dim": None, "hidden_size": 22}, "4 heads do not divide hidden_size 22"),
        ({"head_dim": None, "hidden_size": 20}, "head_dim is 5"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"sliding_window": 8}, "sliding_window"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope type 'yarn'"),
        ({"rope_parameters": {"rope_type": ["linear"]}}, "rope type \\['linear'\\]"),
        ({"rope_parameters": [1]}, "an object was expected"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "factor is missing in the rope parameters"),
        ({"rope_parameters": {"rope_type": "linear", "factor": -1.0}}, "factor is -1.0"),
        ({"rope_parameters": {"rope_type": "default", "factor": 2.0}}, "makes no use of factor"),
        ({"rope_parameters": LLAMA3 | {"high_freq_factor": 1.0}}, "high_freq_factor above"),
        ({"rope_parameters": without(LLAMA3, "original_max_position_embeddings")}, "original_max_position_embeddings"),
        ({"rope_theta": 5.0}, "two rope_theta, 5.0 and 10000.0"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "they must agree"),
        ({"rope_parameters": {"rope_theta": True}}, "rope_theta is True"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"hidden_size": "24"}, "hidden_size is '24'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"max_position_embeddings": None}, "max_position_embeddings is missing"),
        ({"intermediate_size": None}, "intermediate_size is missing"),
        ({"attention_bias": "yes"}, "attention_bias is 'yes'"),
        ({"num_hidden_layers": 3}, r"lacks 9 tensor\(s\): model.layers.2"),
        ({"num_hidden_layers": 1}, r"no use for, 9 tensor\(s\): model.layers.1.*and 1 more"),
        ({"attention_bias": True}, r"lacks 8 tensor\(s\): model.layers.0.self_attn.k_proj.bias"),
        ({"mlp_bias": True}, r"lacks 6 tensor\(s\): model.layers.0.mlp.down_proj.bias"),
        ({"num_key_value_heads": 4}, r"k_proj.weight is \[20, 24\]; config.json makes it \[40, 24\]"),
        ({"vocab_size": 38}, r"embed_tokens.weight is \[37, 24\]"),
        ({"tie_word_embeddings": True}, "lm_head.weight differs"),
    ],
)
def test_configs_that_are_refused(broken: Broken, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(broken(**changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("lm_head.weight"), r"lacks 1 tensor\(s\): lm_head.weight"),
        (lambda w: w.update({"model.extra": torch.ones(1)}), r"no use for, 1 tensor\(s\): model.extra"),
        (lambda w: w["model.norm.weight"].fill_(float("nan")), "model.norm.weight holds NaN"),
        (lambda w: w["model.norm.weight"].fill_(float("-inf")), "model.norm.weight holds NaN or infinite"),
        (lambda w: w.update({"model.norm.weight": torch.ones(24, dtype=torch.int8)}), "stored as torch.int8"),
        (lambda w: w.update({"model.norm.weight": torch.ones(1, 24)}), r"norm.weight is \[1, 24\]"),
    ],
)
def test_tensors_that_are_refused(broken: Broken, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    directory = broken()
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load(directory)


def test_weights_beyond_the_dtype_are_refused(broken: Broken) -> None:
    directory = broken()
    weights = load_file(directory / "model.safetensors")
    weights["model.norm.weight"][0] = 1e5
    save_file(weights, directory / "model.safetensors")
    load(directory, torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"model.norm.weight holds .* after rounding to torch.float16"):
        load(directory, torch.float16)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "config.json cannot be read"),
        ("config.json", b"{", "config.json is not JSON"),
        ("config.json", b"[]", "config.json holds a list"),
        ("generation_config.json", b"\xff", "generation_config.json is not JSON"),
        ("model.safetensors", None, "model.safetensors cannot be read"),
        ("model.safetensors", struct.pack("<Q", 10**9), "model.safetensors cannot be read"),
    ],
)
def test_files_that_are_refused(broken: Broken, name: str, content: bytes | None, message: str) -> None:
    directory = broken()
    if content is None:
        (directory / name).unlink()
    else:
        (directory / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load(directory)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": {"a": "../model.safetensors"}}, "a file beside the index"),
        ({"weight_map": {"a": 3}}, "a file beside the index"),
        ({"weight_map": {"a": "gone.safetensors"}}, "gone.safetensors cannot be read"),
        ({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}, "is both in one.safetensors and in two"),
    ],
)
def test_indexes_that_are_refused(broken: Broken, index: dict[str, Any], message: str) -> None:
    directory = broken()
    (directory / "model.safetensors").rename(directory / "one.safetensors")
    (directory / "two.safetensors").write_bytes((directory / "one.safetensors").read_bytes())
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        load(directory)


def test_pickles_are_not_touched(broken: Broken) -> None:
    directory = broken()
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read"):
        load(directory)


def test_an_unknown_attention_form_is_refused(llama: Path) -> None:
    with pytest.raises(InputError, match="'flash' is not known"):
        load(llama, build=lambda config: Decoder(config, attention="flash"))

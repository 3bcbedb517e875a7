"""GGUF files: other readers than ours get the same function from them, and what GGUF cannot say is refused."""

import contextlib
import io
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from gguf_engine import fields, read, stored
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lmconform.adapter import Precision
from lmconform.checkpoints.byte_level import pieces_of
from lmconform.checkpoints.edits import edited
from lmconform.checkpoints.eos import EOS
from lmconform.checkpoints.gguf import MissingPackage, write_gguf
from lmconform.checkpoints.layout import CannotWrite, character
from lmconform.checkpoints.random import FAMILIES, SHAPES, random_checkpoint
from lmconform.checkpoints.split_tape import split_tape
from lmconform.checkpoints.tape import stop_tape
from lmconform.judging.budgets import Yardstick
from lmconform.suite.instruments import INSTRUMENTS

TOKENS = (5, 2, 60, 17, 3, 3, 44, 9, 30, 12, 58)
PLAIN = random_checkpoint(SHAPES[0], "loud", 0)
TIED = random_checkpoint(replace(SHAPES[0], tie_word_embeddings=True), "loud", 1)
ROPE = {"rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 = {**ROPE, "rope_type": "llama3", "original_max_position_embeddings": 64}


def with_config(**changes):
    return replace(PLAIN, config={**PLAIN.config, **changes})


def oracle(checkpoint):
    return Yardstick(checkpoint, Precision()).oracle(TOKENS)


@pytest.mark.parametrize("checkpoint", [PLAIN, TIED], ids=["untied", "tied"])
def test_transformers_reads_the_same_decoder(checkpoint, tmp_path) -> None:
    config = checkpoint.config
    assert config["head_dim"] != config["hidden_size"] // config["num_attention_heads"]
    assert config["num_key_value_heads"] not in (1, config["num_attention_heads"])
    path = write_gguf(checkpoint, tmp_path / "model.gguf")
    with contextlib.redirect_stderr(io.StringIO()):  # bars
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    assert model.config.tie_word_embeddings is config["tie_word_embeddings"]
    with torch.no_grad():
        got = model(torch.tensor([TOKENS])).logits[0].numpy()
    assert np.abs(got - oracle(checkpoint)).max() < 2e-5
    assert np.abs(oracle(read(path, turned=False)) - oracle(checkpoint)).max() > 1, "the order of rows must matter"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.num_attention_heads}x{shape.head_dim}")
def test_the_weights_come_back(shape, dtype, tmp_path) -> None:
    checkpoint = random_checkpoint(shape, "loud", 0)
    found = read(write_gguf(checkpoint, tmp_path / "model.gguf", dtype))
    assert found.weights.keys() == checkpoint.weights.keys()
    assert all(np.array_equal(found.weights[name], value) for name, value in checkpoint.weights.items())
    for name, value in found.config.items():
        assert value == pytest.approx(checkpoint.config[name]), name
    formats = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    for name, (_, kind) in stored(tmp_path / "model.gguf").items():
        assert kind == ("F32" if "norm" in name else formats[dtype]), name


def test_every_id_has_the_piece_of_the_other_format(tmp_path) -> None:
    known = fields(write_gguf(PLAIN, tmp_path / "model.gguf"))
    assert known["tokenizer.ggml.tokens"] == [character(token) for token in range(PLAIN.vocab_size)]
    assert (known["tokenizer.ggml.model"], known["tokenizer.ggml.add_bos_token"]) == ("rwkv", False)
    assert not [name for name in known if name.endswith("_token_id")], "no id ends generation, or begins it"
    made = stop_tape()
    known = fields(write_gguf(made.checkpoint, tmp_path / "tape.gguf"))
    assert known["tokenizer.ggml.tokens"] == [piece.decode() for piece in made.pieces]


def test_bytes_that_are_no_character_are_escaped(tmp_path) -> None:
    made = split_tape()
    path = write_gguf(made.checkpoint, tmp_path / "tape.gguf")
    spelled = fields(path)["tokenizer.ggml.tokens"]
    assert spelled[made.pieces.index(b"y\xe2")] == r"y\xe2"
    assert spelled[made.pieces.index("é€".encode())] == "é€"
    assert tuple(pieces_of(read(path).files["tokenizer.json"])) == made.pieces


@pytest.mark.parametrize(
    ("edit", "ids"), [("eos", EOS), ("eos-in-generation-config", EOS), ("eos-in-config", EOS), ("eos-apart", EOS[:1])]
)
def test_eos_ids_are_named_one_by_one(edit, ids, tmp_path) -> None:
    known = fields(write_gguf(edited(stop_tape().checkpoint, edit), tmp_path / "model.gguf"))
    named = [known.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    assert [one for one in named if one is not None] == list(ids)


def test_a_bos_id_is_named_and_not_added(tmp_path) -> None:
    known = fields(write_gguf(with_config(bos_token_id=7), tmp_path / "model.gguf"))
    assert (known["tokenizer.ggml.bos_token_id"], known["tokenizer.ggml.add_bos_token"]) == (7, False)


def test_linear_scaling_is_a_factor(tmp_path) -> None:
    checkpoint = edited(PLAIN, "linear-rope")
    found = read(write_gguf(checkpoint, tmp_path / "model.gguf"))
    assert np.allclose(oracle(found), oracle(checkpoint), atol=1e-6)
    assert np.abs(oracle(found) - oracle(PLAIN)).max() > 0.1


def test_llama3_scaling_is_a_divisor_of_each_pair(tmp_path) -> None:
    checkpoint = with_config(rope_parameters=LLAMA3)
    divisors, kind = stored(write_gguf(checkpoint, tmp_path / "model.gguf"))["rope_freqs.weight"]
    config = transformers.LlamaConfig(hidden_size=96, num_attention_heads=6, head_dim=16, rope_parameters=LLAMA3)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 10_000.0 ** (-np.arange(8) / 8)
    assert kind == "F32"
    assert np.allclose(plain / scaled.numpy(), divisors, rtol=1e-6)
    assert len({round(float(one), 3) for one in divisors}) > 2, "some pairs stay, some are scaled, one lies between"
    assert divisors.min() == 1
    assert divisors.max() == 8


def test_heads_that_do_not_divide_are_left_for_the_engine_to_refuse(tmp_path) -> None:
    known = fields(write_gguf(edited(PLAIN, "uneven-heads"), tmp_path / "model.gguf"))
    assert (known["llama.attention.head_count"], known["llama.attention.head_count_kv"]) == (6, 4)


def test_a_tied_head_is_left_out_even_if_a_copy_is_stored(tmp_path) -> None:
    copy = {**TIED.weights, "lm_head.weight": TIED.weights["model.embed_tokens.weight"]}
    assert "output.weight" not in stored(write_gguf(replace(TIED, weights=copy), tmp_path / "model.gguf"))
    untied = replace(TIED, weights=copy, config={**TIED.config, "tie_word_embeddings": False})
    assert "output.weight" in stored(write_gguf(untied, tmp_path / "model.gguf"))


LLAMAS = [name for name, make in INSTRUMENTS.items() if make(Precision()).checkpoint.config["model_type"] == "llama"]


@pytest.mark.parametrize("name", LLAMAS)
def test_every_instrument_is_written_in_the_format_it_is_made_for(name, tmp_path) -> None:
    for dtype in ("float32", "float16", "bfloat16"):
        made = INSTRUMENTS[name](Precision(weights=dtype, compute=dtype)).checkpoint
        path = write_gguf(made, tmp_path / f"{dtype}.gguf", dtype)
        assert fields(path)["general.file_type"] == {"float32": 0, "float16": 1, "bfloat16": 32}[dtype]


@pytest.mark.parametrize(
    ("checkpoint", "words"),
    [
        (random_checkpoint(FAMILIES[0], "loud", 0), "A gpt2 checkpoint is not written as GGUF: only the family llama"),
        (random_checkpoint(FAMILIES[1], "loud", 0), "A phi3 checkpoint is not written as GGUF"),
        (edited(PLAIN, "gelu-gate"), "GGUF cannot say hidden_act = 'gelu'"),
        (with_config(rope_parameters={**ROPE, "rope_type": "yarn"}), "config.json asks for RoPE .*'yarn'"),
        (with_config(max_position_embeddings=None), "needs a context length, .* max_position_embeddings"),
        (with_config(eos_token_id=[1, 2, 3, 4]), "GGUF can name 3 ids at which generation ends; .* has 4"),
        (
            replace(PLAIN, weights={**PLAIN.weights, "model.layers.0.self_attn.q_proj.bias": np.zeros(96)}),
            r"has no tensor for model\.layers\.0\.self_attn\.q_proj\.bias",
        ),
    ],
    ids=["gpt2", "phi3", "gelu", "yarn", "length", "eos", "bias"],
)
def test_what_gguf_cannot_say_is_refused(checkpoint, words, tmp_path) -> None:
    with pytest.raises(CannotWrite, match=words) as error:
        write_gguf(checkpoint, tmp_path / "new" / "model.gguf")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


def test_the_missing_package_is_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingPackage, match=r'needs the package gguf.*python -m pip install "lmconform\[gguf\]"$'):
        write_gguf(PLAIN, tmp_path / "model.gguf")

"""Checkpoints in float32, float16 and bfloat16: the same decoder in each, or none at all."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers

from lmconform.checkpoints.gguf import write_gguf
from lmconform.checkpoints.layout import CannotWrite, character
from lmconform.checkpoints.random import SHAPES, random_checkpoint
from lmconform.spec.decoder import read_checkpoint
from refdecoder.checkpoint import load

PLAIN = random_checkpoint(SHAPES[0], "loud", 0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_safetensors_in_each_format_hold_the_same_decoder(dtype, tmp_path) -> None:
    PLAIN.write(tmp_path, dtype)
    _, weights = read_checkpoint(tmp_path)
    assert all(np.array_equal(weights[name], value) for name, value in PLAIN.weights.items())
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert model.dtype == getattr(torch, dtype), "config.json says what the file holds"
    ours = load(tmp_path).state_dict()
    theirs = model.state_dict()
    for name, value in PLAIN.weights.items():
        assert np.array_equal(theirs[name].float().numpy(), value)
        assert np.array_equal(ours[name.removeprefix("model.")].numpy(), value)


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [
        (2.0**17, "float16", "nearest number is inf"),
        (2.0**-26, "float16", r"nearest number is 0\.0"),
        (1 + 2.0**-9, "bfloat16", r"nearest number is 1\.0"),
        (1 + 2.0**-30, "float32", r"nearest number is 1\.0"),
    ],
)
@pytest.mark.parametrize("write", [lambda one, path, dtype: one.write(path, dtype), write_gguf], ids=["hf", "gguf"])
def test_an_inexact_cast_is_refused_by_the_tensors_name(write, value, dtype, words, tmp_path) -> None:
    weights = {name: np.array(one, np.float64) for name, one in PLAIN.weights.items()}
    weights["lm_head.weight"][3, 5] = value
    message = rf"^Tensor lm_head\.weight is not exact in {dtype}: its element \[3, 5\] .*{words}"
    with pytest.raises(CannotWrite, match=message):
        write(replace(PLAIN, weights=weights), tmp_path / "new", dtype)
    assert not (tmp_path / "new").exists()


def test_numbers_that_are_none_are_kept() -> None:
    weights = {"model.norm.weight": np.array([np.nan, np.inf, 1.0], np.float32)}
    kept = replace(PLAIN, weights=weights).tensors("bfloat16")["model.norm.weight"]
    assert kept.dtype == ml_dtypes.bfloat16
    assert np.array_equal(kept.astype(np.float32), weights["model.norm.weight"], equal_nan=True)


def test_ids_beyond_the_first_characters_have_characters_too() -> None:
    text = "".join(map(character, range(50_000)))
    assert len(set(text)) == 50_000
    assert text.isprintable()
    assert text.encode().decode() == text

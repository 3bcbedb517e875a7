"""Broken checkpoints: each reader names the file, the field or the tensor, and none computes with it."""

import json
from pathlib import Path

import numpy as np
import pytest
from cli_common import ENGINES
from safetensors.numpy import save_file

from lmconform.adapter import Needs, Refused
from lmconform.checkpoints.layout import Shape
from lmconform.checkpoints.random import random_checkpoint
from lmconform.engines.reference import Reference
from lmconform.suite.plan import given_material
from refdecoder.__main__ import main

QUERY = "model.layers.0.self_attn.q_proj.weight"
CHECKPOINT = random_checkpoint(Shape(), "loud", 0)


def write(directory: Path, config: object = None, text: str | None = None, **tensors: object) -> Path:
    """The checkpoint with some fields and tensors replaced; a tensor that is None is left out."""
    CHECKPOINT.write(directory)
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    if text is not None:
        (directory / "config.json").write_text(text)
    weights = {name: np.asarray(value, np.float32) for name, value in CHECKPOINT.weights.items()} | tensors
    save_file({name: value for name, value in weights.items() if value is not None}, directory / "model.safetensors")
    return directory


def fields(**changed: object) -> dict[str, object]:
    return {**CHECKPOINT.config, **changed}


def poisoned() -> np.ndarray:
    values = np.array(CHECKPOINT.weights[QUERY], np.float32)
    values[3, 5] = np.nan
    return values


BROKEN = {
    "missing tensor": ({QUERY: None}, [QUERY]),
    "misshapen tensor": ({QUERY: np.zeros((3, 64), np.float32)}, [QUERY, "3, 64", "64, 64"]),
    "extra tensor": ({"model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)}, ["q_proj.bias"]),
    "integers": ({QUERY: np.zeros((64, 64), np.int32)}, [QUERY, "int32"]),
    "NaN": ({QUERY: poisoned()}, [QUERY, "NaN"]),
    "KV heads": ({"config": fields(num_key_value_heads=3)}, ["4", "3"]),
    "odd head_dim": ({"config": fields(head_dim=15)}, ["15", "even"]),
    "size as text": ({"config": fields(hidden_size="64")}, ["hidden_size", "'64'"]),
    "rope as text": ({"config": fields(rope_parameters="default")}, ["'default'"]),
    "other model": ({"config": fields(model_type="mamba")}, ["model_type", "'mamba'", "'llama'", "'phi3'", "'gpt2'"]),
    "no JSON": ({"text": "{"}, ["config.json", "is not JSON"]),
    "no object": ({"config": [1]}, ["config.json", "list", "object was expected"]),
}
FILES = {
    "no config.json": ("config.json", None, "config.json"),
    "no weights": ("model.safetensors", None, "model.safetensors"),
    "unreadable weights": ("model.safetensors", b"these are no tensors", "cannot be read as safetensors"),
}


@pytest.fixture(params=[*BROKEN, *FILES])
def broken(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list[str]]:
    """A broken checkpoint, and the words that a message about it must hold."""
    if request.param in BROKEN:
        changes, words = BROKEN[request.param]
        return write(tmp_path / "model", **changes), words
    name, content, word = FILES[request.param]
    path = write(tmp_path / "model") / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    return path.parent, [word]


def test_each_reader_names_the_culprit(broken: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    directory, words = broken
    with pytest.raises(ValueError, match="cannot be judged") as oracle:
        given_material(directory)
    assert str(oracle.value).endswith(
        ". A directory with config.json and model.safetensors was expected, as the page decoder describes them."
    )
    with pytest.raises(Refused) as reference:
        Reference().load(directory, Needs())
    assert main(["generate", str(directory), "abc"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    for message in (str(oracle.value), str(reference.value), printed.err):
        assert "Traceback" not in message
        assert "\n" not in message.strip()
        for word in words:
            assert word in message


def test_the_checkpoint_itself_is_sound(tmp_path: Path) -> None:
    directory = write(tmp_path / "model")
    assert given_material(directory).checkpoint.vocab_size == 97
    assert Reference().load(directory, Needs()).vocab_size == 97


@pytest.mark.parametrize("what", ["NaN", "nowhere"])
def test_check_stops_before_it_starts_the_engine(check, tmp_path, what):
    directory = write(tmp_path / "model", **BROKEN["NaN"][0]) if what == "NaN" else tmp_path / "nowhere"
    done = check("--checkpoint", directory, engine=f"{ENGINES}:Dear")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"ERROR: The checkpoint {directory} cannot be judged: ")
    assert (f"tensor {QUERY} holds NaN" if what == "NaN" else "config.json: No such file or directory.") in done.err


def test_laws_alone_are_judged_on_a_checkpoint_of_the_users(check, tmp_path):
    directory = write(tmp_path / "model")
    done = check("--checkpoint", directory, "--only", "CM-9")
    assert (done.code, done.verdicts) == (2, {})
    assert f"No test fits what was asked for: --only CM-9, --checkpoint {directory}." in done.out

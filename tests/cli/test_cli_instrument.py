"""lmconform model instrument: writes the suite's checkpoints by name."""

import json
import sys

import gguf
import numpy as np
import pytest
from typer.testing import CliRunner

from lmconform.checkpoints.random import FAMILIES, SHAPES, random_checkpoint
from lmconform.cli import app
from lmconform.spec.decoder import read_checkpoint
from lmconform.suite.export import RANDOM
from lmconform.suite.instruments import INSTRUMENTS


def run(*arguments):
    done = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["model", "instrument", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def test_an_instrument_in_bfloat16(tmp_path) -> None:
    done = run("ladder", tmp_path / "new", "--dtype", "bfloat16")
    assert (done.exit_code, done.stderr) == (0, "")
    config, weights = read_checkpoint(tmp_path / "new")
    count = sum(value.size for value in weights.values())
    assert done.stdout == (
        f"Wrote {tmp_path / 'new'}: ladder, a llama of {count:,} weights in bfloat16, with {config.vocab_size} ids.\n"
    )
    assert json.loads((tmp_path / "new" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_random_checkpoint_as_gguf(tmp_path) -> None:
    done = run("quiet-2", tmp_path, "--format", "gguf", "--dtype", "float16", "--seed", 5)
    assert done.exit_code == 0
    assert done.stdout.startswith(f"Wrote {tmp_path / 'quiet-2.gguf'}: quiet-2, a llama of ")
    assert [path.name for path in tmp_path.iterdir()] == ["quiet-2.gguf"]
    tensors = {one.name: one.data for one in gguf.GGUFReader(tmp_path / "quiet-2.gguf").tensors}
    made = random_checkpoint(SHAPES[2], "quiet", 5)
    assert np.array_equal(tensors["token_embd.weight"], made.weights["model.embed_tokens.weight"])
    assert tensors["token_embd.weight"].dtype == np.float16


def test_a_checkpoint_is_made_for_its_number_format(tmp_path) -> None:
    """The overflow of `poison` is one of float16 there, and its weights fit."""
    for dtype, gain in (("float32", 2.0**126), ("float16", 2.0**14)):
        run("poison", tmp_path / dtype, "--dtype", dtype)
        _, weights = read_checkpoint(tmp_path / dtype)
        assert max(np.abs(value).max() for value in weights.values()) == gain


def test_every_shape_and_family_has_a_name() -> None:
    assert {shape for _, shape in RANDOM.values()} == {*SHAPES, *FAMILIES}
    assert not RANDOM.keys() & INSTRUMENTS.keys()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("scop", [], "There is no checkpoint 'scop'. Did you mean 'scope'? There are: scope, "),
        ("nonsense!", [], "There is no checkpoint 'nonsense!'. There are: scope, "),
        ("loud-gpt2", ["--format", "gguf"], "A gpt2 checkpoint is not written as GGUF: only the family llama is."),
    ],
)
def test_what_cannot_be_written(name, options, words, tmp_path) -> None:
    done = run(name, tmp_path / "new", *options)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(words)
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(tmp_path) -> None:
    (tmp_path / "mine").write_text("mine")
    done = run("ladder", tmp_path)
    assert done.exit_code == 2
    assert done.stderr == f"{tmp_path} exists and is not an empty directory. Name a new or an empty one.\n"
    done = run("ladder", tmp_path / "mine" / "below")
    assert done.exit_code == 2
    assert "cannot be written: Not a directory. Give another path." in done.stderr
    assert (tmp_path / "mine").read_text() == "mine"


def test_gguf_without_the_package(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    done = run("ladder", tmp_path / "new", "--format", "gguf")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.endswith('python -m pip install "lmconform[gguf]"\n')

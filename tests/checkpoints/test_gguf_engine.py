"""An engine that loads GGUF files is judged on them, as others are on directories."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf_engine
import pytest

FILE = Path(gguf_engine.__file__)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "2000", "NO_COLOR": "1"}
WITHOUT_PACKAGE = "import sys; sys.modules['gguf'] = None; from lmconform.cli import main; main()"


@pytest.fixture
def command(tmp_path):
    """Run a command of lmconform; the engine's own process has the package gguf in any case."""

    def run(*arguments, package=True):
        start = ["-m", "lmconform"] if package else ["-c", WITHOUT_PACKAGE]
        return subprocess.run(
            [sys.executable, *start, *arguments],
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            cwd=tmp_path,
            timeout=100,
        )

    return run


def records(folder):
    return [json.loads(line) for line in (folder / "lmconform-report" / "records.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_right_reader_conforms(command, tmp_path, dtype) -> None:
    """Heads that must be refused, pairs, scaled frequencies, EOS ids and the text of tokens."""
    only = ["GQA-5", "ROPE-3", "ROPE-10", "STOP-2", "STOP-9", "STOP-22"]
    done = command("check", f"{FILE}:FromGGUF", "--option", f"dtype={dtype}", "--only", ",".join(only))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    found = records(tmp_path)
    assert {one["verdict"] for one in found} == {"pass"}
    assert sorted({one["requirement"] for one in found}) == sorted(only)


def test_rows_in_another_order_are_noticed_and_replayed(command, tmp_path) -> None:
    done = command("check", f"{FILE}:LeavesRowsAsTheyAre", "--only", "ROPE-3", "--access", "score")
    assert (done.returncode, {one["verdict"] for one in records(tmp_path)}) == (1, {"fail"}), done.stdout
    recorded = next((tmp_path / "lmconform-report" / "counterexamples").iterdir())
    assert command("replay", str(recorded)).returncode == 1
    assert command("replay", str(recorded), "--engine", f"{FILE}:FromGGUF").returncode == 0
    without = command("replay", str(recorded), package=False)
    assert (without.returncode, without.stdout) == (2, "")
    assert without.stderr.startswith("Writing a GGUF file needs the package gguf, which cannot be imported here")


def test_what_the_format_cannot_hold_is_not_held_against_the_engine(command, tmp_path) -> None:
    """PNR-10 asks for other activations too, and DEC-2 for other families."""
    done = command("check", f"{FILE}:FromGGUF", "--only", "PNR-10,DEC-2", "--access", "score")
    assert done.returncode == 0, done.stdout
    reasons = {one["case"]: one["reason"] for one in records(tmp_path) if one["verdict"] == "unsupported"}
    beginning = "the engine does not offer another format than GGUF. "
    assert reasons["huge-balance"].startswith(beginning + "GGUF cannot say hidden_act = ")
    assert reasons["quiet-gpt2"].startswith(beginning + "A gpt2 checkpoint is not written as GGUF")


def test_a_run_does_not_start_without_the_package(command) -> None:
    done = command("check", f"{FILE}:FromGGUF", package=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ERROR: Writing a GGUF file needs the package gguf, which cannot be imported here")
    assert done.stderr.strip().endswith('Install the extra: python -m pip install "lmconform[gguf]"')

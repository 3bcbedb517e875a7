"""docs/your-engine.md: its traffic is what the example answers, and its program works."""

import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from language_common import ORACLE, tiny

from lmconform.suite.export import export

PAGE = Path(__file__).parents[2] / "docs" / "your-engine.md"
NODE = shutil.which("node")
VERSION = r'"version": "NumPy [^"]*"'


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def same(got, wanted):
    """Whether two JSON values are the same but for the rounding of numbers, and of an array's."""
    if isinstance(wanted, dict):
        if "base64" in wanted:
            got, wanted = ({**one, "base64": array(one).round(3).tolist()} for one in (got, wanted))
        return got.keys() == wanted.keys() and all(same(got[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return len(got) == len(wanted) and all(map(same, got, wanted))
    return got == pytest.approx(wanted, rel=1e-4) if isinstance(wanted, float) else got == wanted


def array(tag):
    return np.frombuffer(base64.b64decode(tag["base64"]), "<f4")


def test_the_traffic_is_that_of_the_example(tmp_path):
    export("loud-0", tmp_path / "loud", "float32", "hf", 0)
    lines = "".join(blocks("")).replace("/tmp/loud", str(tmp_path / "loud")).splitlines()
    sent, wanted = ([line[2:] for line in lines if line.startswith(mark)] for mark in "><")
    run = subprocess.run(
        [sys.executable, str(ORACLE)], input="\n".join(sent), capture_output=True, text=True, timeout=60, check=True
    )
    got = run.stdout.splitlines()
    assert len(got) == len(wanted) == len(sent) == 15 + 1
    for request, ours, theirs in zip(sent, wanted, got, strict=True):
        ours, theirs = (re.sub(VERSION, '"version": ""', one) for one in (ours, theirs))
        assert same(json.loads(theirs), json.loads(ours)), (request, theirs)


@pytest.mark.skipif(NODE is None, reason="there is no node")
def test_the_program_in_javascript_works(start, tmp_path):
    (program,) = blocks("js")
    ours = """
const engine = {
  load: () => ({ vocab_size: 11 }),
  score: (model, tokens) => Float32Array.from(tokens.flatMap((t) => [...Array(11).keys()].map((c) => 100 * t + c))),
};
"""
    (tmp_path / "engine.js").write_text(ours + program)
    model = start(NODE, tmp_path / "engine.js").load(tiny(tmp_path))
    wanted = np.array([[100 * token + column for column in range(11)] for token in (3, 7)], np.float32)
    np.testing.assert_array_equal(model.score([3, 7]), wanted)
    np.testing.assert_array_equal(model.score([3, 7], rows=[1], columns=[4, 0]), wanted[1:][:, [4, 0]])

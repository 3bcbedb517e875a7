"""Both examples conform."""

import json
import subprocess
import sys

import pytest
from language_common import ORACLE


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["C", "Python"])
def test_the_example_conforms(request, tmp_path, engine):
    program = request.getfixturevalue("c_engine") if engine == "C" else f"{sys.executable} {ORACLE}"
    command = [sys.executable, "-m", "lmconform", "check", "--command", program, "--no-controls"]
    run = subprocess.run(
        [*command, "--minutes", "30", "--report", tmp_path], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    verdicts = {one["id"]: one["verdict"] for one in report["requirements"]}
    assert list(verdicts.values()).count("pass") > 80
    assert set(verdicts.values()) == {"pass", "unsupported"}

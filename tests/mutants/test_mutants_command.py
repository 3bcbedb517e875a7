"""``lmconform mutants`` from end to end, in a process of its own: it forks, and holds the libraries to one thread."""

import json
import os
import subprocess
import sys

from lmconform.mutants.mutate import mutants


def identifier(line: str) -> str:
    """The id of the mutant with this line."""
    return next(one.id for one in mutants() if one.diff()[1] == line)


SCALE = identifier("self.scale = config.head_dim ** -1.0")
DEVICE = identifier("rows = torch.arange(len(self.lengths))[:, None]")  # there is but one device
HEAT = identifier("scores, ids = (logits.double() * self.temperature).sort(descending=True, stable=True)")
BROKEN = identifier("k, v = cache.write(positions, self.layer_index, k, v)")


def run(*arguments) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lmconform", "mutants", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_a_killed_a_surviving_an_equivalent_and_a_broken_mutant(tmp_path) -> None:
    chosen = [part for one in (SCALE, DEVICE, HEAT, BROKEN) for part in ("--mutant", one)]
    done = run(*chosen, "--only", "SDP-1", "--calls", 140, "--report", tmp_path)
    assert (done.returncode, done.stderr) == (1, ""), done.stdout + done.stderr
    content = json.loads((tmp_path / "mutants.json").read_text())
    fates = {one["id"]: one["fate"] for one in content["mutants"]}
    assert fates == {SCALE: "killed", DEVICE: "equivalent", HEAT: "survived", BROKEN: "crash"}
    assert (content["killed"], content["live"]) == (1, 2)
    assert f"{HEAT} survived\n- scores, ids = " in done.stdout
    assert "The suite kills 1 of 2 live mutants, 50.0%." in done.stdout


def test_a_mutant_is_shown_and_an_unknown_one_is_not() -> None:
    done = run("--show", SCALE)
    assert done.stdout.splitlines() == [
        SCALE,
        "- self.scale = config.head_dim ** (-0.5)",
        "+ self.scale = config.head_dim ** -1.0",
    ]
    done = run("--mutant", "model.py:1:2:scale:0")
    assert done.returncode == 2
    assert "There is no mutant 'model.py:1:2:scale:0'. Near are: " in done.stderr

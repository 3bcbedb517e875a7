"""The benchmarks as people run them: pytest with its options, exit codes and files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bench_common import SLOW

from benchmarks.results import read

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "benchmarks", "-p", "no:xdist", "-p", "no:randomly"]
    command += ["--size", "tiny", "--suite-profile", "none", "--results", str(folder), *arguments]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


COUNT = ("--benchmark-disable", "--baseline", "none", "--option", "attention=sdpa")


def test_counts_are_kept_and_a_slowdown_fails_the_next_run(tmp_path: Path) -> None:
    first = bench(tmp_path, *COUNT)
    assert first.returncode == 0, first.stdout
    [path] = tmp_path.glob("*.json")
    assert {record.kind for record in read(path).records} == {"decode", "cache", "gqa"}
    clean = bench(tmp_path, *COUNT, "--compare")
    assert clean.returncode == 0, clean.stdout
    assert "none regressed" in clean.stdout
    slow = bench(tmp_path, *COUNT, "--compare", str(path), "--engine", f"{SLOW}:SecondForward")
    assert slow.returncode == 1, slow.stdout
    assert "regressed: decode[tiny-16], operations of a step's projections" in slow.stdout
    assert "2 times as much" in slow.stdout
    assert [one.name for one in tmp_path.glob("*.json")] == [path.name]  # what was compared is not the next to beat
    assert len(list((tmp_path / "compared").glob("*.json"))) >= 1


def test_a_warning_of_an_engine_fails_nothing(tmp_path: Path) -> None:
    done = bench(tmp_path, *COUNT, "--engine", f"{SLOW}:Warns", "-k", "decode")
    assert done.returncode == 0, done.stdout
    assert "this engine is old" in done.stdout
    assert "2 passed" in done.stdout


def test_a_run_is_timed_in_turns_and_reported(tmp_path: Path) -> None:
    done = bench(tmp_path, "--baseline", "reference,attention=sdpa", "--seconds", "1", "-k", "decode or batch")
    assert done.returncode == 0, done.stdout
    [path] = tmp_path.glob("*.json")
    found = read(path)
    assert [record.name for record in found.records] == [
        *("batch[tiny-1]", "batch[tiny-2]", "batch[tiny-4]", "decode[tiny-16]", "decode[tiny-48]")
    ]
    for record in found.records:
        rounds = len(record.times["subject"])
        assert rounds >= 3
        assert {len(seconds) for seconds in record.times.values()} == {rounds}
        assert set(record.ratios) == {"speed against reference,attention=sdpa", "share of the memory bandwidth"}
    assert found.calibration["bytes_per_second"] > 0
    for words in ("floor : measured", "tiny: bandwidth and compute balance", f"Wrote {path}"):
        assert words in done.stdout
    assert "<svg" in (path.with_suffix("") / "report.html").read_text(encoding="utf-8")


def test_what_cannot_be_measured_fails_and_is_told(tmp_path: Path) -> None:
    done = bench(tmp_path, "--baseline", "none", "--engine", f"{SLOW}:StopsEarly", "-k", "prefill or cache")
    assert done.returncode == 0, done.stdout  # one token can be had of it
    assert "cache[tiny]: 2 new tokens were asked of refdecoder" in done.stdout
    done = bench(tmp_path, "--baseline", "none", "--engine", f"{SLOW}:StopsEarly", "-k", "cache")
    assert done.returncode == 1, done.stdout
    assert "Nothing was measured." in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--compare",), "Run once without it"),
        (("--size", "7B"), "There is no size '7B'"),
        (("--engine", "referenze"), "Did you mean 'reference'"),
    ],
)
def test_what_no_run_can_use_is_said_at_once(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    done = bench(tmp_path, *arguments)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert words in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


# --- the GPU run, on the CPU ------------------------------------------------------------------------------------------


def gpu(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--results", str(folder)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_gpu_run_needs_no_install_and_writes_its_results(tmp_path: Path) -> None:
    done = gpu(tmp_path, "--minutes", "5", "--only", "tiny:float32", "--baseline", "none")
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = tmp_path.glob("cpu-float32-*.json")
    found = read(path)
    kinds = {record.kind for record in found.records}
    assert kinds == {"decode", "prefill", "cache", "gqa", "batch"}, found.left_out
    assert found.engine["options"] == {"dtype": "float32", "device": "cpu"}
    assert found.machine["versions"]["torch"]
    assert json.loads(path.read_text())["schema"] == 1


def test_a_part_that_fails_is_told_and_the_rest_runs(tmp_path: Path) -> None:
    done = gpu(tmp_path, "--minutes", "3", "--only", "tiny:float31", "--only", "3B:float32")
    assert done.returncode == 1
    assert "float31" in done.stderr
    assert "tiny:float31: nothing was measured; the process ended with code" in done.stdout
    assert "There is no size '3B'" in done.stderr
    assert "3B:float32: nothing was measured" in done.stdout
    assert gpu(tmp_path, "--only", "tiny").returncode == 2

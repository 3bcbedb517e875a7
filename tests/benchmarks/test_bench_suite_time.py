"""The suite's own time, on an engine that is judged in seconds."""

import re
from pathlib import Path

import pytest

from benchmarks.lab import Impossible
from benchmarks.suite_time import time_suite
from lmconform.transport.client import EngineSpec

KERNELS = EngineSpec("torch-kernels", options={"dtype": "float32"})


@pytest.mark.slow
def test_the_suite_is_timed_and_its_verdicts_are_told(tmp_path: Path) -> None:
    record = time_suite(KERNELS, "quick", tmp_path / "report")
    assert record.name == "suite[quick]"
    assert record.times == {"subject": [record.figures["seconds"]]}
    assert record.figures["seconds"] > record.figures["seconds in the engine"] > 0
    assert record.figures["calls"] > 10
    assert record.figures["conforms"] is True
    assert re.search(r"\d+ pass", record.figures["verdicts"])


def test_a_suite_that_takes_too_long_is_left_out(tmp_path: Path) -> None:
    with pytest.raises(Impossible, match="did not end within 0 s"):
        time_suite(KERNELS, "quick", tmp_path, limit=0.1)


def test_a_suite_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(Impossible, match=r"wrote no report: .*no option 'colour'"):
        time_suite(EngineSpec("torch-kernels", options={"colour": "red"}), "quick", tmp_path / "report")

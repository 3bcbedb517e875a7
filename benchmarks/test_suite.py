"""The conformance suite: how long it takes to judge this engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lab import Impossible, Lab
from benchmarks.results import Record
from benchmarks.suite_time import time_suite


@pytest.mark.benchmark(group="suite")
def test_suite(lab: Lab, keep: Callable[[Record], None], benchmark: Any, profile: str, tmp_path: Path) -> None:
    if benchmark.disabled:
        pytest.skip("nothing of it is counted, and --benchmark-disable times nothing")
    try:
        keep(benchmark.pedantic(time_suite, args=(lab.subject.spec, profile, tmp_path), rounds=1))
    except Impossible as reason:
        lab.results.left_out[f"suite[{profile}]"] = str(reason)
        pytest.skip(str(reason))

"""Batches: the time of a step as rows are added, up to where bandwidth and compute balance."""

import pytest

from benchmarks.conftest import Bench
from benchmarks.shapes import Size
from benchmarks.trials import sweep


@pytest.mark.benchmark(group="batch")
def test_batch(bench: Bench, size: Size, batch: int) -> None:
    bench.run(f"batch[{size.name}-{batch}]", lambda lab: sweep(lab, size, batch))

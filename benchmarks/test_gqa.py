"""Grouped queries: time and bytes against the same model with a KV head for each query head."""

import pytest

from benchmarks.conftest import Bench
from benchmarks.shapes import Size
from benchmarks.trials import grouped_queries


@pytest.mark.benchmark(group="gqa")
def test_gqa(bench: Bench, size: Size) -> None:
    bench.run(f"gqa[{size.name}]", lambda lab: grouped_queries(lab, size))

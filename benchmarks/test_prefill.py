"""Prefill: the time to the first token of prompts of several lengths, against the baseline and the matmul rate."""

import pytest

from benchmarks.conftest import Bench
from benchmarks.shapes import Size
from benchmarks.trials import first_token


@pytest.mark.benchmark(group="prefill")
def test_prefill(bench: Bench, size: Size, context: int) -> None:
    bench.run(f"prefill[{size.name}-{context}]", lambda lab: first_token(lab, size, context))

"""Decode: the time of a step at several lengths, against the baseline and against the bandwidth."""

import pytest

from benchmarks.conftest import Bench
from benchmarks.shapes import Size
from benchmarks.trials import decode


@pytest.mark.benchmark(group="decode")
def test_decode(bench: Bench, size: Size, context: int) -> None:
    bench.run(f"decode[{size.name}-{context}]", lambda lab: decode(lab, size, context))

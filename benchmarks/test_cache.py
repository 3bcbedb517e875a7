"""The KV cache: generation with it and without, and how the cost of a token grows."""

import pytest

from benchmarks.conftest import Bench
from benchmarks.shapes import Size
from benchmarks.trials import cache_gain


@pytest.mark.benchmark(group="cache")
def test_cache(bench: Bench, size: Size) -> None:
    bench.run(f"cache[{size.name}]", lambda lab: cache_gain(lab, size))

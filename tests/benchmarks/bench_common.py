"""A lab over tiny models, for tests: no baseline, and a small stream."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.lab import Lab
from benchmarks.paired import Ratio, ratio_of
from benchmarks.results import Record, Results
from benchmarks.shapes import SIZES
from benchmarks.trials import cache_gain, decode, grouped_queries
from lmconform.transport.client import EngineSpec

TINY = SIZES["tiny"]
SLOW = Path(__file__).with_name("slow_engines.py")
STREAM_BYTES = 2**22


def lab(target: str = "reference", baselines: Sequence[str] = (), **options: str) -> Lab:
    return Lab(EngineSpec(target, options=options, in_process=True), baselines, stream_bytes=STREAM_BYTES)


def counted(target: str) -> Results:
    """What is counted of an engine on the tiny model, without a clock."""
    made = lab(target, attention="sdpa")
    trials = [decode(made, TINY, context) for context in TINY.contexts]
    made.results.records = [trial.bare() for trial in [*trials, cache_gain(made, TINY), grouped_queries(made, TINY)]]
    made.close()
    return made.results


def results(
    ratios: dict[str, Ratio | Sequence[float]] | None = None,
    counts: dict[str, float] | None = None,
    name: str = "decode[8M-16]",
    **machine: object,
) -> Results:
    """A run of one benchmark, with rounds of ratios as given."""
    made = {key: one if isinstance(one, Ratio) else ratio_of(one) for key, one in (ratios or {}).items()}
    record = Record(name, "decode", {"size": "8M", "new": 33}, made, counts or {}, times={"subject": [0.1]})
    facts = {"processor": "P", "usable_cores": 2, "threads": 2, "device": "cpu", "commit": None, "changed": None}
    versions = {"torch": "2", "transformers": "5"}
    engine = {"label": "engine", "name": "mine", "version": "1", "options": {}}
    baseline = {"label": "transformers", "name": "transformers", "version": "5", "options": {}}
    about = {"python": "3.11", "versions": versions, **facts, **machine}
    return Results(about, {}, engine, [baseline], "2027-01-31T14:25:01+00:00", [record])

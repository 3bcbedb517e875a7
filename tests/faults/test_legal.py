"""Right engines that work otherwise, and faults that are none, pass every requirement that could notice them."""

import pytest
from faults_common import judge

from lmconform.faults.legal import EQUIVALENT, LEGAL, Legal
from lmconform.judging.verdict import Verdict

ENGINES = (*LEGAL, *EQUIVALENT)
MODELS = ("CM-1", "GQA-1", "KV-2", "DEC-4")
TELLING = {
    "attention": ("CM-1", "SDP-2", "GQA-1", "KV-2", "DEC-4"),
    "products": ("PNR-1", "PNR-5", "PNR-11", "DEC-4"),
    "positions": ("ROPE-1", "ROPE-4", "ROPE-7", "ROPE-8"),
    "scores": ("CAT-1", "CM-1", "DEC-1", "ROPE-1", "ROPE-2"),
    "caches": ("CM-5", "SDP-7", "KV-2", "KV-4", "KV-8", "KV-11", "KV-14"),
    "batches": ("CM-7", "CAT-3", "STOP-16", "STOP-19"),
    "sampling": ("CAT-2", "CAT-5", "CAT-6", "CAT-8", "CAT-11", "CAT-19"),
    "endings": ("KV-13", "STOP-5", "STOP-7", "STOP-10", "STOP-13", "STOP-20"),
    "formats": MODELS,
    "equivalents": ("CM-2", "SDP-2", "ROPE-1", "ROPE-7"),
    "equal_weights": ("GQA-2", "PNR-1", "PNR-5", "DEC-4"),
    "equal_draws": ("CAT-1", "CAT-4", "CAT-10", "STOP-1", "STOP-15"),
}
"""Requirements that the subject of a module could break, among them the cheapest."""


def telling(engine: Legal) -> tuple[str, ...]:
    """Return the requirements that are judged here; the whole suite is run apart."""
    if engine.engine == "torch-kernels":
        return ("SDP-10", "ROPE-13", "PNR-7")
    module, _, _ = engine.engine.partition(":")
    return TELLING.get(module.rpartition(".")[2], MODELS)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_a_right_engine_passes(engine) -> None:
    records = judge(engine.engine, *telling(engine), options=engine.options)
    quiet = (Verdict.PASS, Verdict.UNSUPPORTED, Verdict.UNRESOLVED)
    alarms = [(one.requirement, one.test, one.reason) for one in records if one.verdict not in quiet]
    assert not alarms
    assert any(one.verdict == Verdict.PASS and one.bites for one in records)


def test_there_are_many_and_each_says_why() -> None:
    assert len(LEGAL) >= 28
    assert len(EQUIVALENT) >= 10
    assert len({engine.name for engine in ENGINES}) == len(ENGINES)
    assert all(engine.doc and "\n" not in engine.doc for engine in ENGINES)

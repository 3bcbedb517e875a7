"""Sections of data sheets, by quantity, of engines that run in this process."""

from collections.abc import Callable, Mapping

from lmconform.measure.desk import Desk
from lmconform.measure.sheet import Entry, Outcome
from lmconform.suite.subject import Subject
from lmconform.transport.client import Connection, EngineSpec

Section = Callable[[Subject], list[Entry]]


def sheet(
    section: Section, checkpoint: str, engine: str = "reference", regime: str | None = None, **options: str
) -> Mapping[str, Entry]:
    """The lines of a section; no two have the same quantity."""
    with Desk(Connection.start(EngineSpec(engine, options=options, in_process=True))) as desk:
        lines = section(desk.subject(checkpoint, regime))
    found = {line.quantity: line for line in lines}
    assert len(found) == len(lines)
    return found


def differing(lines: Mapping[str, Entry]) -> dict[str, str]:
    """What differs, as it was measured."""
    return {name: line.measured for name, line in lines.items() if line.outcome is Outcome.DIFFERS}


def outcomes(lines: Mapping[str, Entry]) -> set[Outcome]:
    """Which outcomes occur."""
    return {line.outcome for line in lines.values()}

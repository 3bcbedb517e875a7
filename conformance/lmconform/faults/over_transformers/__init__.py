"""Planted faults written again as patches of transformers' Llama: the suite's power is not our reference's.

Each is an engine like any other, and has the name of its twin, the same fault of the reference:

    lmconform check lmconform.faults.over_transformers.attention:LeaksOneAhead
"""

from __future__ import annotations

from dataclasses import dataclass

from lmconform.adapter import Engine
from lmconform.engines.reference import Reference
from lmconform.faults import FAULTS, Fault
from lmconform.faults.over_transformers import attention, blocks, cache, rope, sampling, stops


@dataclass(frozen=True)
class Patched:
    """transformers with one fault."""

    engine: type[Engine]
    """The faulty engine; the first line of its docstring says what is wrong."""
    fault: str
    """Name of its twin in ``FAULTS``."""

    @property
    def twin(self) -> Fault:
        """The same fault of the reference. Faults of operators may have the same name."""
        (twin,) = (one for one in FAULTS if one.name == self.fault and issubclass(one.engine, Reference))
        return twin

    @property
    def requirement(self) -> str:
        """The one requirement that it breaks first of all."""
        return self.twin.requirement

    @property
    def seen_in(self) -> str:
        """A public bug of this kind."""
        return self.twin.seen_in

    @property
    def site(self) -> str:
        """The place in a decoder's code that is wrong."""
        return self.twin.site

    @property
    def target(self) -> str:
        """What ``lmconform check`` takes."""
        return f"{self.engine.__module__}:{self.engine.__name__}"


PATCHED: tuple[Patched, ...] = tuple(
    Patched(engine, engine.__name__)
    for module in (attention, rope, blocks, cache, sampling, stops)
    for engine in module.ENGINES
)

__all__ = ["PATCHED", "Patched"]

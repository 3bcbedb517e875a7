"""What is known of a planted fault."""

from __future__ import annotations

from dataclasses import dataclass

from lmconform.engines.reference import Reference


@dataclass(frozen=True)
class Fault:
    """An engine with one fault."""

    engine: type[Reference]
    """The faulty engine; the first line of its docstring says what is wrong."""
    requirement: str
    """The one requirement that it breaks first of all."""
    seen_in: str
    """A public bug of this kind."""

    @property
    def name(self) -> str:
        return self.engine.__name__

    @property
    def summary(self) -> str:
        return (self.engine.__doc__ or "").partition("\n")[0]

"""What is known of a planted fault."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

import refdecoder
from lmconform.adapter import Engine
from lmconform.engines.reference import Reference


@dataclass(frozen=True)
class Fault:
    """An engine with one fault."""

    engine: type[Engine]
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


class Rebuilt(Reference):
    """A reference in which modules of some classes are replaced by faulty ones."""

    parts: ClassVar[dict[type[nn.Module], type[nn.Module]]] = {}

    def build(self, config: refdecoder.DecoderConfig, attention: str) -> refdecoder.Decoder:
        decoder = super().build(config, attention)
        for module in list(decoder.modules()):
            if type(module) in self.parts:
                module.__class__ = self.parts[type(module)]
        return decoder

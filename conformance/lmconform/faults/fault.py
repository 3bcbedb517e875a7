"""What is known of a planted fault."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from torch import nn

import refdecoder
from lmconform.adapter import Engine
from lmconform.engines.reference import Reference, ReferenceModel

Built = TypeVar("Built", bound=nn.Module)
OF_THE_ENGINE = (
    *("__init__", "accepts", "regimes", "operators", "load", "close"),
    *("build", "build_gpt2", "attention_class", "session_class"),
)
OF_THE_MODEL = ("__init__", "score", "score_batch", "open", "_score", "close")
"""What ``score`` and sessions come from."""


@dataclass(frozen=True)
class Fault:
    """An engine with one fault."""

    engine: type[Engine]
    """The faulty engine; the first line of its docstring says what is wrong."""
    requirement: str
    """The one requirement that it breaks first of all."""
    seen_in: str
    """A public bug of this kind."""
    site: str = ""
    """The place in a decoder's code that is wrong, such as ``rope.pairs``. Faults of one site are a family."""
    regime: str | None = None
    """The regime of the engine outside of which it does nothing; None if it shows in the default one."""

    @property
    def name(self) -> str:
        return self.engine.__name__

    @property
    def target(self) -> str:
        """What ``lmconform check`` takes."""
        return f"{self.engine.__module__}:{self.name}"

    @property
    def mechanism(self) -> str:
        """Prefix of the page whose requirement it breaks, such as ROPE."""
        return self.requirement.partition("-")[0]

    @property
    def summary(self) -> str:
        return (self.engine.__doc__ or "").partition("\n")[0]

    @property
    def in_generate_alone(self) -> bool:
        """Whether scores and sessions come from the reference's own code, so that only ``generate`` can show it."""
        engine, model = self.engine, getattr(self.engine, "model_class", None)
        same = (getattr(engine, name, None) is getattr(Reference, name) for name in OF_THE_ENGINE)
        return all(same) and all(getattr(model, name) is getattr(ReferenceModel, name) for name in OF_THE_MODEL)


class Rebuilt(Reference):
    """A reference in which modules of some classes are replaced by others."""

    parts: ClassVar[Mapping[type[nn.Module], type[nn.Module]]] = {}

    def build(self, config: refdecoder.DecoderConfig, attention: str) -> refdecoder.Decoder:
        return self._rebuilt(super().build(config, attention))

    def build_gpt2(self, config: refdecoder.GPT2Config, attention: str) -> refdecoder.GPT2:
        return self._rebuilt(super().build_gpt2(config, attention))

    def _rebuilt(self, decoder: Built) -> Built:
        for module in list(decoder.modules()):
            if type(module) in self.parts:
                module.__class__ = self.parts[type(module)]
        return decoder

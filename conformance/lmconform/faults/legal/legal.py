"""What is known of an engine that must never fail, and the parts that such engines are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

import refdecoder
from lmconform.adapter import Needs
from lmconform.engines.reference import ReferenceModel
from lmconform.faults.fault import Rebuilt
from refdecoder.gpt2 import GPT2Attention


@dataclass(frozen=True)
class Legal:
    """An engine that works in another way than the reference, and is right."""

    engine: str
    """What ``lmconform check`` takes: ``module:Class``, or the name of an adapter."""
    doc: str
    """What it does differently, and why that is right."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Arguments of the adapter's constructor."""

    @property
    def name(self) -> str:
        settings = ",".join(f"{key}={value}" for key, value in self.options.items())
        return self.engine.rpartition(":")[2] + (f"[{settings}]" if settings else "")


class Prepared(Rebuilt):
    """A reference whose modules are replaced, and whose loaded model is changed before it is asked anything."""

    def load(self, checkpoint: Path, needs: Needs) -> ReferenceModel:
        model = super().load(checkpoint, needs)
        assert isinstance(model, ReferenceModel)
        self.prepare(model)
        return model

    def prepare(self, model: ReferenceModel) -> None:
        """Change the loaded model. The default leaves it."""


def legal(engine: type[Any], doc: str, **options: str) -> Legal:
    """Return what is known of an engine of this package."""
    return Legal(f"{engine.__module__}:{engine.__name__}", doc, options)


def attending(form: type[Any]) -> Mapping[type[nn.Module], type[nn.Module]]:
    """Return the attention of each family with the methods of ``form`` in place of its own."""
    classes: tuple[type[nn.Module], ...] = (refdecoder.Attention, GPT2Attention)
    return {cls: type(f"{form.__name__}{cls.__name__}", (form, cls), {}) for cls in classes}

"""Checkpoints as engines load them, with their oracles and legal errors: made once, and shared by engines."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Hashable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, cast, get_args

from lmconform.adapter import NotOffered
from lmconform.checkpoints.gguf import SUFFIX, write_gguf
from lmconform.checkpoints.layout import CannotWrite, StoredDType
from lmconform.judging.budgets import Yardstick
from lmconform.judging.operators import OperatorYardstick
from lmconform.suite.instruments import Material
from lmconform.suite.plan import Plan


class Item(NamedTuple):
    """One checkpoint: what it is, what its scores are judged with, and where it lies."""

    material: Material
    yardstick: Yardstick
    path: Path


class Shelf:
    """The checkpoints of one plan. Oracles take many times longer than engines, so they are worth keeping."""

    def __init__(self, folder: Path, form: str) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self._owner = os.getpid()
        self._form = form
        self._items: dict[str, Item] = {}

    @property
    def names(self) -> list[str]:
        """Checkpoints made so far."""
        return list(self._items)

    def made(self, name: str) -> Item | None:
        """The checkpoint ``name`` if it was made already."""
        return self._items.get(name)

    def item(self, name: str, plan: Plan) -> Item:
        """The checkpoint ``name``; raises as ``Plan.material`` does, and NotOffered for what GGUF cannot say."""
        if name not in self._items:
            material = plan.material(name)
            path = self._written(material, name, plan)
            self._items[name] = Item(material, Yardstick(material.checkpoint, plan.precision), path)
        return self._items[name]

    def _written(self, material: Material, name: str, plan: Plan) -> Path:
        """What the engine loads: the directory of a checkpoint, or its GGUF file in the format of its weights."""
        folder = self.folder
        if os.getpid() != self._owner:  # a forked child: another may write a checkpoint of the same name now
            folder /= str(os.getpid())
            folder.mkdir(exist_ok=True)
        path = folder / name
        if self._form == "hf":
            return material.path or material.checkpoint.write(path)
        declared = plan.precision.weights
        dtype = cast(StoredDType, declared if declared in get_args(StoredDType) else "float32")
        try:
            return write_gguf(material.checkpoint, path.with_name(name + SUFFIX), dtype)
        except CannotWrite as error:
            raise NotOffered(f"another format than GGUF. {error}") from error


class Stock:
    """Shelves by what their checkpoints depend on; engines that agree in all of it share one."""

    def __init__(self) -> None:
        self._shelves: dict[Hashable, Shelf] = {}
        self._operators: dict[Hashable, OperatorYardstick] = {}

    @cached_property
    def _folder(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="lmconform-")

    def shelf(self, plan: Plan, form: str) -> Shelf:
        """The shelf for this plan and format of checkpoints."""
        given = None if plan.given is None else plan.given.path
        key = plan.profile.name, plan.seed, plan.precision, form, tuple(plan.shapes), given
        if key not in self._shelves:
            self._shelves[key] = Shelf(Path(self._folder.name) / f"{len(self._shelves)}-{os.getpid()}", form)
        return self._shelves[key]

    def operators(self, plan: Plan) -> OperatorYardstick:
        """What calls of operators are judged with, in the plan's precision."""
        return self._operators.setdefault(plan.precision, OperatorYardstick(plan.precision))

    def remove(self) -> None:
        """Remove the checkpoints from the disk."""
        self._folder.cleanup()

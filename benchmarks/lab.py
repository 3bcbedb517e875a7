"""The engines of a run, the checkpoints that they load, and what is timed beside them."""

from __future__ import annotations

import hashlib
import inspect
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast, get_args

import torch

from benchmarks.calibrate import Calibration
from benchmarks.counting import BYTES, Formats
from benchmarks.machine import machine
from benchmarks.results import Results
from benchmarks.shapes import Size
from benchmarks.weights import write_checkpoint, write_gguf_checkpoint
from lmconform.adapter import Needs, NotOffered, Refused
from lmconform.checkpoints.gguf import MissingPackage
from lmconform.checkpoints.layout import Shape, StoredDType
from lmconform.engines import UnknownEngine, resolve
from lmconform.transport.client import Connection, EngineSpec, RemoteModel, StartError
from lmconform.transport.locate import Unusable, engine_class
from lmconform.transport.spec import options_of

CALL_SECONDS = 600.0
"""Time limit of one call, for engines in processes of their own."""
INHERITED = ("dtype", "device", "threads")
"""Options that a baseline takes over from the engine, if it has them and was not given others."""
COMPUTES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
"""Formats in which a product is calibrated; float32 for all others."""


class Impossible(Exception):
    """This engine cannot be asked this, or not here; the message says why. The benchmark is left out."""


class Party:
    """An engine that takes turns: its connection, and the models that it has loaded."""

    def __init__(self, label: str, spec: EngineSpec) -> None:
        """Start the engine. Raises StartError."""
        self.label, self.spec = label, spec
        self.connection = Connection.start(spec, time_limit=CALL_SECONDS)
        self._models: dict[tuple[Size, Shape], RemoteModel] = {}

    @property
    def formats(self) -> Formats:
        """Bytes of a weight and of a cached number."""
        precision = self.connection.description.precision
        return Formats(BYTES[precision.weights], BYTES[precision.kv_cache])

    @property
    def stored(self) -> StoredDType:
        """The number format in which its checkpoints are written."""
        weights = self.connection.description.precision.weights
        return cast(StoredDType, weights) if weights in get_args(StoredDType) else "float32"

    def model(self, size: Size, shape: Shape, folder: Path, device: torch.device) -> RemoteModel:
        """The model of this shape, loaded for all that ``size`` asks; models of other sizes are closed.

        Raises Impossible where the engine declines it.
        """
        if (size, shape) in self._models:
            return self._models[size, shape]
        for other in [key for key in self._models if key[0] != size]:
            self._models.pop(other).close()
        try:
            if reason := self.connection.accepts(shape.config()):
                raise Impossible(f"{self.label} does not take this model: {reason}")
            path = self._checkpoint(shape, folder, device)
            needs = Needs(max_tokens=size.longest, max_rows=size.rows, max_sessions=1)
            loaded = self.connection.load(path, needs)
        except (MissingPackage, NotOffered, Refused) as reason:
            raise Impossible(f"{self.label} does not load this model: {reason}") from reason
        self._models[size, shape] = loaded
        return loaded

    def close(self) -> None:
        """Release the models and end the engine."""
        for model in self._models.values():
            model.close()
        self._models.clear()
        self.connection.close()

    def record(self) -> dict[str, Any]:
        """What results say of it."""
        description = self.connection.description
        about = {"name": description.name, "version": description.version, "precision": asdict(description.precision)}
        return {"label": self.label, **about, **self.spec.record()}

    def _checkpoint(self, shape: Shape, folder: Path, device: torch.device) -> Path:
        """Write what this engine loads, unless another party has; return its path."""
        form = self.connection.description.format
        digest = hashlib.sha256(repr(shape).encode()).hexdigest()[:12]
        place = folder / f"{form}-{self.stored}-{digest}"
        if form == "gguf":
            path = place / "model.gguf"
            return path if path.exists() else write_gguf_checkpoint(shape, place, self.stored)
        return place if place.exists() else write_checkpoint(shape, place, self.stored, device)


class Lab:
    """The subject, its baselines, the device, the calibration, and the results so far."""

    def __init__(
        self,
        subject: EngineSpec,
        baselines: Sequence[str] = ("transformers",),
        folder: Path | None = None,
        stream_bytes: int | None = None,
    ) -> None:
        """Start all engines. Each baseline is ``NAME`` or ``NAME,KEY=VALUE,...``; ``folder`` takes the checkpoints.

        Raises ValueError for words that name no engine, and StartError where one cannot be started.
        """
        self.device = torch.device(subject.options.get("device", "cpu"))
        self.parties: list[Party] = []
        self._temporary = tempfile.TemporaryDirectory(prefix="lmconform-bench-")
        self.folder = folder or Path(self._temporary.name)
        try:
            self.parties.append(Party("engine", subject))
            for words in dict.fromkeys(baselines):
                self.parties.append(Party(words, baseline(words, subject)))
        except BaseException:
            self.close()
            raise
        compute = self.subject.connection.description.precision.compute
        self.calibration = Calibration(self.device, COMPUTES.get(compute, torch.float32), stream_bytes)

    @property
    def subject(self) -> Party:
        """The engine that is asked about."""
        return self.parties[0]

    @property
    def baselines(self) -> list[Party]:
        """The engines that it is held against."""
        return self.parties[1:]

    @cached_property
    def results(self) -> Results:
        """What was found so far; ``calibrate`` adds what the machine can do."""
        return Results(
            machine(self.device),
            {},
            self.subject.record(),
            [one.record() for one in self.baselines],
        )

    def calibrate(self) -> None:
        """Measure the stream and the product, unless that was done, and keep it with the results."""
        if not self.results.calibration:
            self.results.calibration = self.calibration.record()

    def model(self, party: Party, size: Size, shape: Shape | None = None) -> RemoteModel:
        """The model of ``size``, or one of another shape asked alike, as this party loads it. Raises Impossible."""
        return party.model(size, shape or size.shape, self.folder, self.device)

    def close(self) -> None:
        """End all engines, and remove the checkpoints unless a folder keeps them."""
        for party in self.parties:
            party.close()
        self._temporary.cleanup()


def baseline(words: str, subject: EngineSpec) -> EngineSpec:
    """The engine of ``NAME`` or ``NAME,KEY=VALUE,...``, in this process, with what it inherits from the subject.

    Raises ValueError for other words, and StartError for an engine that there is not.
    """
    name, *options = words.split(",")
    given = options_of(options)
    try:
        takes = inspect.signature(engine_class(resolve(name))).parameters
    except (UnknownEngine, Unusable) as error:
        raise StartError(f"The baseline {words} cannot be used. {error}") from error
    shared = {key: value for key, value in subject.options.items() if key in INHERITED and key in takes}
    return replace(EngineSpec(name, in_process=True), options={**shared, **given})

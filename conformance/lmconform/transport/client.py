"""What the suite holds: a connection to one engine, its loaded models and their sessions.

    with Connection.start(EngineSpec("reference")) as engine:
        model = engine.load(checkpoint, Needs(max_tokens=64))
        scores = model.score([1, 2, 3])                        # [3, V]

A call raises ``adapter.NotOffered``, ``adapter.Refused``, or an ``EngineFault`` (see ``errors``). After a death or a
time-out the next ``load`` starts the engine again, and a model that was loaded before loads itself again when it is
used next; a session cannot.
"""

from __future__ import annotations

import collections
import contextlib
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..adapter import Choices, Description, Needs, NotOffered, Operator, Precision, Refused
from . import checks, protocol
from .checks import Malformed
from .errors import (
    BadResult,
    EngineDied,
    EngineFault,
    EngineRaised,
    EngineTimeout,
    NotFinite,
    ProtocolError,
    StartError,
    UnknownId,
)
from .fields import Violation
from .links import Gone, InProcess, Late, Process
from .remote import RemoteModel, RemoteSession, remote_operator
from .spec import EngineSpec

__all__ = [
    "BadResult",
    "Connection",
    "Counts",
    "EngineDied",
    "EngineFault",
    "EngineRaised",
    "EngineSpec",
    "EngineTimeout",
    "NotFinite",
    "ProtocolError",
    "RemoteModel",
    "RemoteSession",
    "StartError",
    "UnknownId",
]

FAILED_STARTS = 3
"""After so many failed restarts in a row the engine is not started again."""
CLOSING_SECONDS = 5.0
"""How long an engine may take to say goodbye."""


@dataclass
class Counts:
    """What the connection has cost so far."""

    calls: collections.Counter[str] = field(default_factory=collections.Counter)
    seconds: collections.defaultdict[str, float] = field(default_factory=lambda: collections.defaultdict(float))
    """Wall-clock seconds in the calls of a kind."""
    loads_of: collections.Counter[str] = field(default_factory=collections.Counter)
    """How often each checkpoint was loaded, by the name of its directory."""
    restarts: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0

    @property
    def loads(self) -> int:
        """Checkpoints loaded or attempted, reloads included."""
        return self.calls["load"]


class Connection:
    """One engine, in a process that is started again when it died. Not for several threads at once."""

    description: Description

    def __init__(self, spec: EngineSpec, time_limit: float, load_limit: float) -> None:
        self.spec = spec
        self.time_limit = time_limit
        self.load_limit = load_limit
        self.counts = Counts()
        self._folder = str(Path.cwd())  # a restart must find the same files, whatever the tests change to
        self._link: Process | InProcess
        self._epitaph = ""
        self._number = 0
        self._failed_starts = 0
        self._closed = False

    @classmethod
    def start(cls, spec: EngineSpec, time_limit: float = 60.0, load_limit: float = 600.0) -> Connection:
        """Start the engine. ``time_limit`` seconds bound a call, ``load_limit`` a start and a load.

        Raises StartError if the target, an option, the interpreter or the constructor is at fault.
        """
        connection = cls(spec, time_limit, load_limit)
        try:
            connection._start()
        except EngineFault as fault:
            raise StartError(f"{spec.label} could not be started. {fault}", fault.detail) from fault
        return connection

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """How messages call the engine."""
        described = getattr(self, "description", None)
        if described is None:
            return self.spec.label
        return described.name if described.version == "unknown" else f"{described.name} {described.version}"

    @property
    def alive(self) -> bool:
        """Whether the engine is running now."""
        return not self._closed and self._link.alive

    def accepts(self, config: Mapping[str, Any]) -> str | None:
        """Return why the engine cannot load a checkpoint with this config.json, or None if it can."""
        self.ensure()
        try:
            reason: str | None = self.call("accepts", {"config": config})["reason"]
        except (NotOffered, Refused) as error:
            return str(error) or type(error).__name__
        return reason

    def load(self, checkpoint: Path | str, needs: Needs | None = None) -> RemoteModel:
        """Load a checkpoint; starts the engine again if it died."""
        return RemoteModel(self, Path(checkpoint).resolve(), needs or Needs())

    def operators(self) -> dict[str, Operator]:
        """The kernels that the engine offers by themselves; each ``run`` asks the engine."""
        self.ensure()
        given = self.call("operators", {}, self.load_limit)["operators"]
        return {name: remote_operator(self, name, dict(one)) for name, one in given.items()}

    def close(self) -> None:
        """Say goodbye and end the process. Never raises what the engine does about it."""
        if self._closed:
            return
        if self._link.alive:
            with contextlib.suppress(EngineFault, NotOffered, Refused):
                self.call("bye", {}, CLOSING_SECONDS)
            self._link.end(grace=CLOSING_SECONDS)
        self._closed = True

    def ensure(self) -> Process | InProcess:
        """Return the link to a running engine, starting it again if it died."""
        if self._closed:
            raise RuntimeError(f"the connection to {self.name} is closed")
        if not self._link.alive:
            if self._failed_starts >= FAILED_STARTS:
                raise EngineDied(
                    f"{self.name} could not be started again {self._failed_starts} times in a row and is not tried any"
                    f" more. The last attempt: {self._epitaph}"
                )
            self.counts.restarts += 1
            try:
                self._start()
            except (EngineFault, StartError) as error:
                self._failed_starts += 1
                self._epitaph = str(error)
                raise EngineDied(f"{self.name} could not be started again. {error}", error.detail) from error
        return self._link

    def call(self, name: str, arguments: Mapping[str, Any], limit: float | None = None) -> dict[str, Any]:
        """Make one call and return its result, arrays decoded. The engine must be running."""
        if not self._link.alive:
            raise EngineDied(f"{self.name} is not running, so {name} could not be asked. {self._epitaph}")
        link, limit = self._link, self.time_limit if limit is None else limit
        self._number += 1
        message = link.written(self._number, name, arguments)  # what cannot be written is no fault of the engine
        started, sent, received = time.monotonic(), link.bytes_sent, link.bytes_received
        try:
            reply, payload = link.exchange(message, self._number, name, limit)
        except Gone as error:
            raise self._dead(EngineDied, f"{self.name} died during {name}: {error}.") from None
        except Late:
            link.end()
            raise self._dead(
                EngineTimeout,
                f"{self.name} did not answer {name} within {limit:g} s, so its process was killed. If it is only slow,"
                " allow more time with --time-limit.",
            ) from None
        except Violation as error:
            link.end()
            raise self._dead(
                ProtocolError,
                f"{self.name} answered {name} with something that is not a message of the protocol: {error}. Its"
                " process was killed. Only replies may go over the wire; schema.json describes them.",
            ) from None
        except BaseException:
            link.end()  # interrupted: the reply would be taken for the answer to the next call
            self._epitaph = f"It was killed when {name} was interrupted."
            raise
        finally:
            self.counts.calls[name] += 1
            if name == "load":
                self.counts.loads_of[Path(arguments["checkpoint"]).name] += 1
            self.counts.seconds[name] += time.monotonic() - started
            self.counts.bytes_sent += link.bytes_sent - sent
            self.counts.bytes_received += link.bytes_received - received
        if reply.error is not None:
            raise self._error(name, reply.error) from link.cause
        return reply.decoded(payload)

    def bad(self, name: str, error: Malformed | str) -> BadResult:
        """The fault for an answer to ``name`` that a check turned down."""
        if isinstance(error, checks.NotFinite):
            return NotFinite(f"{self.name}, {name}: {error}", error.value, error.where)
        if isinstance(error, checks.OutsideVocabulary):
            return UnknownId(f"{self.name}, {name}: {error}", error.token)
        return BadResult(f"{self.name}, {name}: {error}")

    def _start(self) -> None:
        """Start the engine and ask who it is."""
        self._link = self.spec.connect(self._folder)
        weakref.finalize(self, self._link.end)
        try:
            self.description = self._hello()
        except BaseException:
            self._link.end()
            raise
        self._failed_starts = 0

    def _hello(self) -> Description:
        try:
            given = self.call("hello", {"protocol": protocol.VERSION}, self.load_limit)
        except EngineRaised as error:
            raise StartError(
                f"{self.spec.label} could not be constructed: it raised {error.type}: {_ended(error.engine_message)}",
                error.detail,
            ) from error
        except (NotOffered, Refused) as error:
            raise StartError(f"{self.spec.label} cannot be used. {_ended(str(error))}") from error
        if given["protocol"] != protocol.VERSION:
            raise StartError(
                f"{self.spec.label} speaks version {given['protocol']} of the protocol; this is version"
                f" {protocol.VERSION}. Use an adapter and an lmconform that fit together."
            )
        return Description(
            name=given["name"],
            version=given.get("version", "unknown"),
            format=given.get("format", "hf"),
            precision=given.get("precision", Precision()),
            choices=given.get("choices", Choices()),
            regimes=given.get("regimes", {}),
            offers=tuple(given.get("offers", ())),
        )

    def _dead(self, kind: type[EngineFault], message: str) -> EngineFault:
        tail = self._link.stderr_tail()
        if tail:
            lines = tail.splitlines()  # after a signal, Python's fault handler says what it was, and then much more
            told = next((line for line in lines if line.startswith("Fatal Python error")), lines[-1])
            message += f" Its last words: {told.strip()}"
        self._epitaph = message
        return kind(message, tail and f"Last lines of the engine's output:\n{tail}")

    def _error(self, name: str, error: protocol.ErrorReport) -> BaseException:
        if error.kind == "not-offered":
            return NotOffered(error.message)
        if error.kind == "refused":
            return Refused(error.message)
        if error.kind == "bad-result":
            return self.bad(name, error.message)
        if error.kind == "protocol":
            return ProtocolError(
                f"{self.name} did not understand {name}: {error.message}. If the engine speaks the protocol itself,"
                " compare it with schema.json."
            )
        return EngineRaised(
            f"{self.name} raised {error.type} in {name}: {_ended(error.message or '(no message)')} An adapter may raise"
            " only NotOffered and Refused; anything else is a fault of the engine or of its adapter.",
            error.type,
            error.message,
            error.traceback,
        )


def _ended(words: str) -> str:
    """The words with a full stop, since a sentence may follow them."""
    return words if words.endswith((".", "!", "?")) else words + "."

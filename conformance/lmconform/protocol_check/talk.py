"""A conversation with a program, closer to the wire than the suite's: what is wrong is told, and does not end it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmconform.adapter import Choices
from lmconform.protocol_check.rules import Broken, NotExercised
from lmconform.spec.decoder import decoder, read_checkpoint
from lmconform.transport import arrays, protocol
from lmconform.transport.fields import Violation
from lmconform.transport.links import Gone, Late, Process
from lmconform.transport.spec import EngineSpec

LOAD_SECONDS = 600.0
"""For a start, and for a load."""
NEEDS = {"max_tokens": 64, "max_rows": 4, "max_sessions": 8, "top_n": 4}


@dataclass(frozen=True)
class Material:
    """The checkpoint that the program is asked to load."""

    hf: Path
    """As a directory, which the oracle reads."""
    path: Path
    """As the program wants it."""

    @property
    def fields(self) -> dict[str, Any]:
        """Its config.json."""
        content: dict[str, Any] = json.loads((self.hf / "config.json").read_text(encoding="utf-8"))
        return content

    def scores(self, tokens: list[int]) -> Any:
        """The oracle's, [T, V]."""
        return decoder(*read_checkpoint(self.hf), tokens)


@dataclass(frozen=True)
class Answer:
    """One reply as it came."""

    call: str
    number: int | None
    """Id of the request; None where it had none."""
    message: dict[str, Any]
    payload: bytes

    @property
    def told(self) -> str:
        """The reply in a few words."""
        text = json.dumps(self.message)
        return text if len(text) <= 160 else text[:157] + "..."

    @property
    def kind(self) -> str | None:
        """Of the error; None for a result."""
        error = self.message.get("error")
        return str(error.get("kind")) if isinstance(error, dict) else None

    def result(self) -> dict[str, Any]:
        """What the call gave, with its arrays. Raises Broken if that is not what schema.json says."""
        if "result" not in self.message:
            raise Broken(f"a result of {self.call}", self.told)
        try:
            given: dict[str, Any] = protocol.RESULTS[self.call](self.message["result"], "result")
            reply = protocol.Reply(given, size=len(self.payload))
            arrays.check_payload(reply.tags, reply.size)
            return reply.decoded(self.payload)
        except Violation as error:
            raise Broken(f"a result of {self.call} as schema.json says", str(error)) from None

    def error(self, *kinds: str) -> None:
        """Raises Broken unless the reply is an error of one of these kinds."""
        if self.kind not in kinds:
            raise Broken(f"an error of the kind {' or '.join(kinds)}", self.told)


class Talk:
    """One program, started when it is asked something, and again after it broke down; ``limit`` bounds a call, in s."""

    def __init__(self, spec: EngineSpec, material: Callable[[str], Material], limit: float) -> None:
        self.spec = spec
        self.limit = limit
        self.violations: list[str] = []
        """What was no message of the protocol, over the whole conversation."""
        self._material = material
        self._process: Process | None = None
        self._answered = False
        """The first answer of a program waits for its start."""
        self._number = 0
        self._greeting: dict[str, Any] | None = None
        self._loaded: dict[str, Any] | None = None

    @property
    def process(self) -> Process:
        """The running program. Raises StartError."""
        if self._process is None or not self._process.alive:
            self.end()
            started = self.spec.connect(str(Path.cwd()))
            assert isinstance(started, Process)
            self._process, self._answered = started, False
        return self._process

    def end(self) -> None:
        """End the program; the next question starts it again."""
        if self._process is not None:
            self._process.end()
        self._process = self._greeting = self._loaded = None

    def raw(self, data: bytes, call: str = "", number: int | None = None) -> Answer:
        """Send bytes, and read one reply. Raises Broken if none comes."""
        process = self.process
        seconds = self.limit if self._answered and call != "load" else max(self.limit, LOAD_SECONDS)
        deadline = time.monotonic() + seconds
        what = f"a reply to {call or repr(data[:60])}"
        try:
            process.send(data, deadline)
            line = process.read_line(deadline)
            message = protocol.parse_json(line)
            if not isinstance(message, dict):
                raise Violation(f"a reply is an object; this one is {line[:80]!r}")
            size = message.get("bytes", 0)
            payload = bytes(process.read(size, deadline)) if type(size) is int and size > 0 else b""
        except Gone as error:
            words = process.stderr_tail().splitlines()
            self.end()
            raise Broken(
                what, f"the end of the program, {error}{'; its last words: ' + words[-1] if words else ''}"
            ) from None
        except Late:
            self.end()
            raise Broken(what, f"nothing within {seconds:g} s") from None
        except Violation as error:
            self.violations.append(str(error))
            self.end()
            raise Broken(what, str(error)) from None
        self._answered = True
        self._look(line, call, number)
        return Answer(call, number, message, payload)

    def ask(self, call: str, **arguments: Any) -> Answer:
        """Send a request of any content, with the next id."""
        self._number += 1
        return self.raw(protocol.request_bytes(self._number, call, arguments), call, self._number)

    @property
    def greeting(self) -> dict[str, Any]:
        """The result of ``hello``, which is asked first."""
        _ = self.process  # if it was started again, it was not greeted
        if self._greeting is None:
            self._greeting = self.ask("hello", protocol=protocol.VERSION).result()
        return self._greeting

    def greet(self) -> None:
        """Say hello to a program that was not greeted yet."""
        _ = self.greeting

    @property
    def choices(self) -> Choices:
        """What the program declares."""
        found: Choices = self.greeting.get("choices", Choices())
        return found

    def material(self) -> Material:
        """The checkpoint in the program's format."""
        return self._material(self.greeting.get("format", "hf"))

    def loaded(self) -> dict[str, Any]:
        """The result of ``load``. Raises NotExercised if the program loads nothing."""
        if "load" not in self.greeting.get("offers", ()):
            raise NotExercised("the program offers no load")
        if self._loaded is None:
            self._loaded = self.ask("load", checkpoint=str(self.material().path), needs=NEEDS).result()
        return self._loaded

    def model(self, *offers: str) -> int:
        """The handle of a model that has these abilities. Raises NotExercised."""
        model = self.loaded()
        for name in offers:
            if name not in model["offers"]:
                raise NotExercised(f"the model offers no {name}")
        return int(model["model"])

    def session(self, *offers: str) -> int:
        """The handle of a new session that has these abilities. Raises NotExercised."""
        given = self.ask("open", model=self.model("open")).result()
        for name in ("extend", *offers):
            if name not in given["offers"]:
                raise NotExercised(f"the session offers no {name}")
        return int(given["session"])

    def legal(self) -> dict[str, Mapping[str, Any]]:
        """A legal request of each call that the program offers and that changes little, with handles that are open."""
        self.greet()
        found: dict[str, Mapping[str, Any]] = {"hello": {"protocol": protocol.VERSION}}
        if "accepts" in self.greeting.get("offers", ()):
            found["accepts"] = {"config": self.material().fields}
        if "load" not in self.greeting.get("offers", ()):
            return found
        model = self.loaded()
        found["load"] = {"checkpoint": str(self.material().path), "needs": NEEDS}
        asked: dict[str, dict[str, Any]] = {
            "score": {"tokens": [1, 2], "rows": [0], "columns": [1]},
            "score_batch": {"sequences": [[1], [2, 3]], "rows": [[0], [1]], "columns": [0]},
            "generate": {"requests": [{"prompt": [1], "max_new_tokens": 1, "n": 1, "stop_ids": [2], "eos": False}]},
            "open": {},
        }
        found |= {name: {"model": model["model"], **rest} for name, rest in asked.items() if name in model["offers"]}
        if "open" in model["offers"]:
            given = self.ask("open", model=model["model"]).result()
            session = {"session": given["session"]}
            known: dict[str, dict[str, Any]] = {
                "extend": {"tokens": [1, 2], "rows": [0]},
                "truncate": {"length": 0},
                "fork": {},
                "cache_bytes": {},
            }
            found |= {name: {**session, **rest} for name, rest in known.items() if name in given["offers"]}
            found["close"] = session
        return found

    def _look(self, line: bytes, call: str, number: int | None) -> None:
        """Remember what schema.json does not allow in this reply, but for its id, which has rules of its own."""
        try:
            message = json.loads(line)
            if number is not None and message.get("id") is not None:
                message["id"] = number
            known = call if call in protocol.RESULTS else "hello"
            protocol.parse_reply(json.dumps(message).encode(), message.get("id") or 0, known)
        except (Violation, TypeError) as error:
            self.violations.append(f"{error}, in {line[:80].decode('utf-8', 'replace')}")

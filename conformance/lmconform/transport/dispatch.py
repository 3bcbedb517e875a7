"""Answering requests with an adapter: handles, slices, and every exception turned into a reply."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..adapter import Engine, Model, NotOffered, Operator, Refused, Request, Session, offered
from . import checks, protocol
from .checks import Malformed
from .fields import Violation
from .locate import Unusable
from .protocol import VERSION

LONGEST_MESSAGE = 4000


class Dispatcher:
    """One engine and what it has open. ``build`` constructs the engine when ``hello`` comes."""

    def __init__(self, build: Callable[[], Engine]) -> None:
        self.build = build
        self.finished = False
        """After ``bye``."""
        self.error: BaseException | None = None
        """What the last call raised, for a debugger in the same process."""
        self._engine: Engine | None = None
        self._models: dict[int, Model] = {}
        self._sessions: dict[int, tuple[Session, int]] = {}
        self._kernels: dict[str, Operator] = {}
        self._last_handle = 0

    def answer(self, line: bytes, read: Callable[[int], bytes] = bytes) -> list[bytes | memoryview]:
        """Return the reply to one line, as buffers to write. ``read`` takes what follows the line. Raises nothing."""
        self.error, number = None, None
        try:
            message = protocol.parse_json(line)
            if isinstance(message, dict) and type(message.get("id")) is int:
                number = message["id"]
            number, call, arguments = protocol.parse_request(message, protocol.read_payload(message, read))
            return self._sendable(number, call, self._result(call, arguments))
        except BaseException as error:
            self.error = error
            return protocol.dump({"id": number, "error": _report(error)})

    def reply(self, call: str, arguments: Mapping[str, Any]) -> protocol.Reply:
        """Answer a call from this process; the arrays of the result are copies. Raises nothing."""
        self.error = None
        try:
            return protocol.Reply(protocol.arrived(self._result(call, arguments)))
        except BaseException as error:
            self.error = error
            return protocol.Reply(error=_report(error))

    def _result(self, call: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if self._engine is None and call not in ("hello", "bye"):
            raise Violation(f"{call} came before hello")
        result: dict[str, Any] = getattr(self, f"_{call}")(**arguments)
        return result

    def _sendable(self, number: int, call: str, result: dict[str, Any]) -> list[bytes | memoryview]:
        try:
            return protocol.dump({"id": number, "result": result})
        except (TypeError, ValueError, KeyError) as error:
            raise Malformed(f"what {call} returned cannot be written as JSON: {error}.") from error

    def _hello(self, protocol: int) -> dict[str, Any]:
        if self._engine is None:
            self._engine = self.build()
        engine = self._engine
        regimes = engine.regimes()
        if not isinstance(regimes, Mapping) or not all(isinstance(value, Mapping) for value in regimes.values()):
            raise Unusable(f"regimes returned {regimes!r}; a mapping of names to mappings of settings was expected.")
        return {
            "protocol": VERSION,
            "name": engine.name,
            "version": engine.version,
            "format": engine.format,
            "precision": engine.precision,
            "choices": engine.choices,
            "regimes": regimes,
            "offers": offered(engine),
        }

    def _accepts(self, config: dict[str, Any]) -> dict[str, Any]:
        reason = self.engine.accepts(config)
        if not (reason is None or isinstance(reason, str)):
            raise Malformed(f"accepts returned {reason!r}; a reason (str) or None was expected.")
        return {"reason": reason}

    def _load(self, checkpoint: str, needs: Any) -> dict[str, Any]:
        model = self.engine.load(Path(checkpoint), needs)
        if not isinstance(model, Model):
            raise Malformed(f"load returned {type(model).__name__}; a lmconform.adapter.Model was expected.")
        limits = {
            name: None if value is None else checks.whole_number(value, f"Model.{name}", 0)
            for name, value in (("max_length", model.max_length), ("slots", model.slots))
        }
        vocab_size = checks.whole_number(model.vocab_size, "Model.vocab_size", 1)
        number = self._new_handle()
        self._models[number] = model
        return {"model": number, "vocab_size": vocab_size, "offers": offered(model), **limits}

    def _score(
        self, model: int, tokens: list[int], rows: list[int] | None = None, columns: list[int] | None = None
    ) -> dict[str, Any]:
        one = self._model(model)
        _check_part(len(tokens), one.vocab_size, rows, columns)
        return {"scores": _part(one.score(tokens), len(tokens), one.vocab_size, rows, columns)}

    def _score_batch(
        self,
        model: int,
        sequences: list[list[int]],
        rows: list[list[int]] | None = None,
        columns: list[int] | None = None,
    ) -> dict[str, Any]:
        one = self._model(model)
        if rows is not None and len(rows) != len(sequences):
            raise Violation(f"arguments.rows has {len(rows)} lists; the batch has {len(sequences)} sequences")
        wanted: Sequence[list[int] | None] = rows or [None] * len(sequences)
        for tokens, some in zip(sequences, wanted, strict=True):
            _check_part(len(tokens), one.vocab_size, some, columns)
        arrays = one.score_batch(sequences)
        if not isinstance(arrays, (list, tuple)) or len(arrays) != len(sequences):
            count = f"{len(arrays)} arrays" if isinstance(arrays, (list, tuple)) else type(arrays).__name__
            raise Malformed(f"score_batch returned {count}; a list of {len(sequences)} arrays was expected.")
        return {
            "scores": [
                _part(array, len(tokens), one.vocab_size, some, columns, f"array {i}")
                for i, (array, tokens, some) in enumerate(zip(arrays, sequences, wanted, strict=True))
            ]
        }

    def _open(self, model: int) -> dict[str, Any]:
        return self._opened(self._model(model).open(), model, "open")

    def _extend(
        self, session: int, tokens: list[int], rows: list[int] | None = None, columns: list[int] | None = None
    ) -> dict[str, Any]:
        one, model = self._session(session)
        vocab_size = self._model(model).vocab_size
        _check_part(len(tokens), vocab_size, rows, columns)  # before the session grows
        return {"scores": _part(one.extend(tokens), len(tokens), vocab_size, rows, columns)}

    def _fork(self, session: int) -> dict[str, Any]:
        one, model = self._session(session)
        return self._opened(one.fork(), model, "fork")

    def _truncate(self, session: int, length: int) -> dict[str, Any]:
        self._session(session)[0].truncate(length)
        return {}

    def _cache_bytes(self, session: int) -> dict[str, Any]:
        return {"cache_bytes": checks.whole_number(self._session(session)[0].cache_bytes(), "the result", 0)}

    def _generate(self, model: int, requests: list[Request]) -> dict[str, Any]:
        given = self._model(model).generate(requests)
        if not isinstance(given, (list, tuple)):
            raise Malformed(f"generate returned {type(given).__name__}; a list of Completion was expected.")
        return {"completions": [checks.portable_completion(one, f"completion {i}") for i, one in enumerate(given)]}

    def _operators(self) -> dict[str, Any]:
        self._kernels = checks.operators(self.engine.operators())
        return {"operators": self._kernels}

    def _attention(
        self,
        operator: str,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        causal: bool,
        visible: np.ndarray | None = None,
    ) -> dict[str, Any]:
        return self._output(operator, "attention", q, k, v, causal, visible)

    def _rope(self, operator: str, x: np.ndarray, positions: list[int], base: float) -> dict[str, Any]:
        if positions and max(positions) > np.iinfo(np.int64).max:
            raise Violation(f"arguments.positions holds {max(positions)}, which 64 bits do not")
        return self._output(operator, "rope", x, np.array(positions, np.int64), base)

    def _rms_norm(self, operator: str, x: np.ndarray, weight: np.ndarray, eps: float) -> dict[str, Any]:
        return self._output(operator, "rms_norm", x, weight, eps)

    def _output(self, name: str, kind: str, *inputs: Any) -> dict[str, Any]:
        if name not in self._kernels:
            self._operators()
        kernel = self._kernels.get(name)
        if kernel is None or kernel.kind != kind:
            raise Violation(f"there is no {kind} operator {name!r}; the operators are: {', '.join(self._kernels)}")
        return {"output": checks.operator_output(kernel.run(*inputs), inputs[0].shape)}

    def _close(self, model: int | None = None, session: int | None = None) -> dict[str, Any]:
        if session is not None:
            one, _ = self._session(session)
            del self._sessions[session]
            one.close()
        if model is not None:
            closing = self._model(model)
            for number in [number for number, (_, owner) in self._sessions.items() if owner == model]:
                self._close(session=number)
            del self._models[model]
            closing.close()
        return {}

    def _bye(self) -> dict[str, Any]:
        self.close()
        return {}

    def close(self) -> None:
        """Close everything that is open, and the engine."""
        if self.finished:
            return
        self.finished = True
        for model in list(self._models):
            self._close(model=model)
        if self._engine is not None:
            self._engine.close()

    @property
    def engine(self) -> Engine:
        assert self._engine is not None
        return self._engine

    def _new_handle(self) -> int:
        self._last_handle += 1
        return self._last_handle

    def _model(self, number: int) -> Model:
        if number not in self._models:
            raise Violation(f"no model {number} is open; open are: {sorted(self._models)}")
        return self._models[number]

    def _session(self, number: int) -> tuple[Session, int]:
        if number not in self._sessions:
            raise Violation(f"no session {number} is open; open are: {sorted(self._sessions)}")
        return self._sessions[number]

    def _opened(self, session: Any, model: int, call: str) -> dict[str, Any]:
        if not isinstance(session, Session):
            raise Malformed(f"{call} returned {type(session).__name__}; a lmconform.adapter.Session was expected.")
        number = self._new_handle()
        self._sessions[number] = (session, model)
        return {"session": number, "offers": offered(session)}


def _check_part(length: int, vocab_size: int, rows: list[int] | None, columns: list[int] | None) -> None:
    """Raise Violation for a row or a column that scores [T, V] do not have."""
    for name, wanted, size in (("rows", rows, length), ("columns", columns, vocab_size)):
        if wanted and max(wanted) >= size:
            raise Violation(f"arguments.{name} holds {max(wanted)}; the scores have {size} {name}")


def _part(
    scores: Any,
    length: int,
    vocab_size: int,
    rows: list[int] | None = None,
    columns: list[int] | None = None,
    what: str = "the result",
) -> np.ndarray:
    """Check all scores [T, V] and return the rows and columns that were asked for."""
    part = checks.score_shape(scores, length, vocab_size, what)
    part = part if rows is None else part[rows]
    return part if columns is None else part[:, columns]


def _report(error: BaseException) -> protocol.ErrorReport:
    if isinstance(error, Violation):
        return protocol.ErrorReport("protocol", _message(error))
    if isinstance(error, Malformed):
        return protocol.ErrorReport("bad-result", _message(error))
    kinds = ((NotOffered, "not-offered"), (Refused, "refused"), (Unusable, "refused"))
    kind = next((kind for cls, kind in kinds if isinstance(error, cls)), "raised")
    frames = traceback.format_exception(type(error), error, _beyond_transport(error.__traceback__))
    return protocol.ErrorReport(
        kind, _message(error), type(error).__qualname__, "".join(frames)[-4 * LONGEST_MESSAGE :]
    )


def _beyond_transport(frames: TracebackType | None) -> TracebackType | None:
    """Drop the frames of the transport and of Python's import: the reader's code starts below them."""
    here = str(Path(__file__).parent)
    while frames is not None:
        place = frames.tb_frame.f_code.co_filename
        if not (place.startswith("<frozen importlib") or (place.startswith(here) and frames.tb_next)):
            break
        frames = frames.tb_next
    return frames


def _message(error: BaseException) -> str:
    try:
        return str(error)[:LONGEST_MESSAGE]
    except BaseException:
        return f"(the message of this {type(error).__qualname__} cannot be shown)"

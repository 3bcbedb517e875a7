"""Models, sessions and kernels of an engine, as the suite sees them. Answers are checked before they are returned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..adapter import OPERATORS, Completion, Needs, Operator, Request
from . import checks
from .checks import Malformed
from .errors import EngineDied

if TYPE_CHECKING:
    from .client import Connection

Ids = Sequence[int] | np.ndarray


class RemoteModel:
    """A loaded checkpoint. After the engine died it loads itself again when it is used next."""

    vocab_size: int
    """V, the number of columns of an array of scores."""
    max_length: int | None
    slots: int | None
    offers: tuple[str, ...]
    """Methods that the adapter's model overrides."""

    def __init__(self, connection: Connection, checkpoint: Path, needs: Needs) -> None:
        self.connection = connection
        self.checkpoint = checkpoint
        self.needs = needs
        self.closed = False
        self._load()

    def __enter__(self) -> RemoteModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def score(self, tokens: Ids, rows: Ids | None = None, columns: Ids | None = None) -> np.ndarray:
        """Scores of one sequence, [T, V], or [len(rows), len(columns)] of them. Negative rows count from the end."""
        arguments, rows, columns = self.question(tokens, rows, columns)
        return self.scores("score", {"model": self._loaded(), **arguments}, rows, columns)

    def score_batch(
        self, sequences: Sequence[Ids], rows: Sequence[Ids] | None = None, columns: Ids | None = None
    ) -> list[np.ndarray]:
        """Scores of several sequences in one call; ``rows`` is a list for each of them."""
        batch = [_ints(tokens) for tokens in sequences]
        arguments: dict[str, Any] = {"sequences": batch}
        if rows is not None:
            if len(rows) != len(batch):
                raise ValueError(f"{len(rows)} lists of rows for {len(batch)} sequences")
            arguments["rows"] = [_indices(some, len(tokens)) for some, tokens in zip(rows, batch, strict=True)]
        if columns is not None:
            arguments["columns"] = _indices(columns, self.vocab_size)
        arrays = self.connection.call("score_batch", {"model": self._loaded(), **arguments})["scores"]
        wanted = arguments.get("rows", [None] * len(batch))
        try:
            if len(arrays) != len(batch):
                raise Malformed(f"the result has {len(arrays)} arrays; {len(batch)} were expected.")
            for i, (array, tokens, some) in enumerate(zip(arrays, batch, wanted, strict=True)):
                self.check(array, range(len(tokens)) if some is None else some, arguments.get("columns"), f"array {i}")
        except Malformed as error:
            raise self.connection.bad("score_batch", error) from None
        return list(arrays)

    def open(self) -> RemoteSession:
        """Return a session with an empty KV cache."""
        return RemoteSession(self, self.connection.call("open", {"model": self._loaded()}))

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        """Continue all requests in one batch: ``n`` completions for each, in order."""
        asked = list(requests)
        given: list[Completion] = self.connection.call("generate", {"model": self._loaded(), "requests": asked})[
            "completions"
        ]
        try:
            checks.completions(given, asked, self.vocab_size)
        except Malformed as error:
            raise self.connection.bad("generate", error) from None
        return given

    def close(self) -> None:
        """Release the weights and the sessions of this model, if the engine that holds them still runs."""
        if not self.closed and self._link.alive and self.connection.alive:
            self.connection.call("close", {"model": self._handle})
        self.closed = True

    def question(
        self, tokens: Ids, rows: Ids | None, columns: Ids | None
    ) -> tuple[dict[str, Any], Sequence[int], Sequence[int] | None]:
        """Return the arguments of ``score`` and ``extend``, and the rows and columns that they ask for."""
        arguments: dict[str, Any] = {"tokens": _ints(tokens)}
        if rows is not None:
            arguments["rows"] = _indices(rows, len(tokens))
        if columns is not None:
            arguments["columns"] = _indices(columns, self.vocab_size)
        return arguments, arguments.get("rows", range(len(tokens))), arguments.get("columns")

    def scores(
        self, call: str, arguments: dict[str, Any], rows: Sequence[int], columns: Sequence[int] | None
    ) -> np.ndarray:
        """Make a call whose result is one array of scores, and check it."""
        array: np.ndarray = self.connection.call(call, arguments)["scores"]
        try:
            return self.check(array, rows, columns)
        except Malformed as error:
            raise self.connection.bad(call, error) from None

    def check(
        self, array: np.ndarray, rows: Sequence[int], columns: Sequence[int] | None, what: str = "the result"
    ) -> np.ndarray:
        """Return ``array`` if it has the shape that was asked for and neither NaN nor +inf; raises Malformed."""
        width = self.vocab_size if columns is None else len(columns)
        return checks.score_values(checks.score_shape(array, len(rows), width, what), rows, columns, what)

    def _load(self) -> None:
        self._link = self.connection.ensure()
        given = self.connection.call(
            "load", {"checkpoint": str(self.checkpoint), "needs": self.needs}, self.connection.load_limit
        )
        self._handle: int = given["model"]
        self.vocab_size = given["vocab_size"]
        self.max_length = given.get("max_length")
        self.slots = given.get("slots")
        self.offers = tuple(given["offers"])

    def _loaded(self) -> int:
        """Return the handle of the model in the running engine, loading it again after a death."""
        if self.closed:
            raise RuntimeError(f"the model of {self.checkpoint.name} is closed")
        if not (self._link.alive and self.connection.alive):
            self._load()
        return self._handle


class RemoteSession:
    """One KV cache in the engine. It is lost when the engine dies."""

    def __init__(self, model: RemoteModel, given: dict[str, Any]) -> None:
        self.model = model
        self.offers: tuple[str, ...] = tuple(given["offers"])
        """Methods that the adapter's session overrides."""
        self.closed = False
        self._link = model._link
        self._number: int = given["session"]

    def __enter__(self) -> RemoteSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def extend(self, tokens: Ids, rows: Ids | None = None, columns: Ids | None = None) -> np.ndarray:
        """Append tokens and return their scores, [n, V], or the rows and columns of them that are asked for."""
        arguments, rows, columns = self.model.question(tokens, rows, columns)
        return self.model.scores("extend", {**self._handle("extend"), **arguments}, rows, columns)

    def fork(self) -> RemoteSession:
        """Return an independent copy."""
        return RemoteSession(self.model, self.model.connection.call("fork", self._handle("fork")))

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` tokens."""
        self.model.connection.call("truncate", {**self._handle("truncate"), "length": int(length)})

    def cache_bytes(self) -> int:
        """Bytes allocated now for this session's keys and values."""
        return int(self.model.connection.call("cache_bytes", self._handle("cache_bytes"))["cache_bytes"])

    def close(self) -> None:
        """Release the cache, if the engine and the model that hold it are still there."""
        if not (self.closed or self.model.closed) and self._link.alive and self.model.connection.alive:
            self.model.connection.call("close", {"session": self._number})
        self.closed = True

    def _handle(self, call: str) -> dict[str, int]:
        if self.closed or self.model.closed:
            raise RuntimeError(f"{call}: the session is closed")
        if not self._link.alive:
            raise EngineDied(
                f"{self.model.connection.name}, {call}: the session was lost when the engine's process ended. A model"
                " is loaded again by itself; a session must be opened again and filled."
            )
        return {"session": self._number}


def remote_operator(connection: Connection, name: str, given: dict[str, Any]) -> Operator:
    """The kernel ``name`` of the engine; ``given`` is its kind and its limits, as they came over the wire."""
    kind = given.pop("kind")
    inputs = {
        "attention": ("q", "k", "v", "causal", "visible"),
        "rope": ("x", "positions", "base"),
        "rms_norm": ("x", "weight", "eps"),
    }[kind]

    def run(*values: Any) -> np.ndarray:
        arguments = {one: value for one, value in zip(inputs, values, strict=True) if value is not None}
        if kind == "rope":
            arguments["positions"] = _ints(arguments["positions"])
        connection.ensure()
        output: np.ndarray = connection.call(kind, {"operator": name, **arguments})["output"]
        try:
            return checks.operator_output(output, values[0].shape)
        except Malformed as error:
            raise connection.bad(kind, error) from None

    limits = {one: tuple(value) if isinstance(value, list) else value for one, value in given.items()}
    return OPERATORS[kind](run, **limits)


def _ints(tokens: Ids) -> list[int]:
    return [int(token) for token in tokens]


def _indices(wanted: Ids, size: int) -> list[int]:
    """Indices from 0 to size - 1; negative ones count from the end."""
    given = _ints(wanted)
    for index in given:
        if not -size <= index < size:
            raise IndexError(f"index {index} of {size}")
    return [index % size for index in given]

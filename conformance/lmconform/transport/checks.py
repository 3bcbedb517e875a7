"""What an answer must look like before anybody judges its numbers. Standard library and NumPy alone.

The host applies these to what the adapter returns, and the client to what arrives, so that engines which speak the
protocol themselves are held to the same.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..adapter import OPERATORS, Completion, Operator, Request
from .arrays import FLOATING


class Malformed(Exception):
    """A result that is not what the contract says; the message says what came, what was expected and the way out."""


class NotFinite(Malformed):
    """A number that is NaN or +inf. It has a class of its own since requirements may forbid it."""

    def __init__(self, message: str, value: str, where: str) -> None:
        super().__init__(message)
        self.value = value
        self.where = where


class OutsideVocabulary(Malformed):
    """An id that the vocabulary does not have. It has a class of its own since a requirement forbids to draw one."""

    def __init__(self, message: str, token: int) -> None:
        super().__init__(message)
        self.token = token


def whole_number(value: Any, what: str, least: int | None = None) -> int:
    """Return an int (NumPy's included) as int; ``least`` is the least that is allowed."""
    try:
        number = int(operator.index(value))
    except TypeError:
        raise Malformed(f"{what} is {_kind(value)}; an int was expected.") from None
    if least is not None and number < least:
        raise Malformed(f"{what} is {number}; at least {least} was expected.")
    return number


def score_shape(array: Any, rows: int, columns: int, what: str = "the result") -> np.ndarray:
    """Return ``array`` if it is a floating-point array of shape [rows, columns]."""
    way_out = "Return a NumPy array with a row for each token and a column for each id of the vocabulary"
    return floating(array, (rows, columns), what, "Scores", way_out)


def floating(array: Any, shape: tuple[int, ...], what: str, noun: str, way_out: str) -> np.ndarray:
    """Return ``array`` if it is a floating-point array of this shape; ``noun`` says what it holds."""
    if not isinstance(array, np.ndarray):
        raise Malformed(f"{what} is {_kind(array)}; a numpy.ndarray was expected. {way_out}.")
    if array.dtype.name not in FLOATING:
        raise Malformed(
            f"{what} has dtype {array.dtype.name}; one of {', '.join(FLOATING)} was expected. {noun} are"
            " floating-point numbers; convert them in the adapter."
        )
    if array.shape != shape:
        raise Malformed(f"{what} has shape {list(array.shape)}; {list(shape)} was expected. {way_out}.")
    return array


def operator_output(array: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return what a kernel gave, if it is a floating-point array of the shape of its first input."""
    return floating(array, shape, "the result", "Outputs", "The output of an operator has the shape of its first input")


def operators(given: Any) -> dict[str, Operator]:
    """Return what ``Engine.operators`` gave, if it is a mapping of names to operators."""
    if not isinstance(given, Mapping):
        raise Malformed(f"operators returned {_kind(given)}; a mapping of names to operators was expected.")
    for name, one in given.items():
        if not isinstance(one, tuple(OPERATORS.values())):
            kinds = ", ".join(cls.__name__ for cls in OPERATORS.values())
            raise Malformed(f"operators[{name!r}] is {_kind(one)}; one of {kinds} was expected.")
    return dict(given)


def score_values(
    array: np.ndarray, rows: Sequence[int] | None, columns: Sequence[int] | None, what: str = "the result"
) -> np.ndarray:
    """Return ``array`` [R, C] if it has no NaN and no +inf. ``rows`` and ``columns`` say what was asked for.

    -inf is allowed: it is how an engine says that an id cannot occur.
    """
    bad = np.isnan(array) | (array == np.inf)
    if not bad.any():
        return array
    r, c = (int(i) for i in np.argwhere(bad)[0])
    row, column = r if rows is None else rows[r], c if columns is None else columns[c]
    name = "NaN" if np.isnan(array[r, c]) else "+inf"
    raise NotFinite(
        f"{what} holds {name}, first at row {row}, column {column} ({int(bad.sum())} of {array.size} values are NaN or"
        " +inf); finite numbers or -inf were expected. Look for a fully masked row, an overflow of the format, or"
        " memory that is read before it is written.",
        name,
        f"{what}, row {row}, column {column}",
    )


def portable_completion(one: Any, what: str) -> Completion:
    """Return a completion whose numbers are plain ints and floats, so that it can travel."""
    if not isinstance(one, Completion):
        raise Malformed(f"{what} is {_kind(one)}; a lmconform.adapter.Completion was expected.")
    if not (one.text is None or isinstance(one.text, str)):
        raise Malformed(f"{what}.text is {_kind(one.text)}; a str or None was expected.")
    steps, pieces, cached = one.logprobs, one.pieces, one.cached_tokens
    return replace(
        one,
        tokens=_ids(one.tokens, f"{what}.tokens"),
        logprobs=None if steps is None else tuple(_step(s, f"{what}.logprobs[{i}]") for i, s in enumerate(steps)),
        pieces=None if pieces is None else tuple(_ids(p, f"{what}.pieces[{i}]") for i, p in enumerate(pieces)),
        cached_tokens=None if cached is None else whole_number(cached, f"{what}.cached_tokens", 0),
    )


def completions(given: Sequence[Completion], requests: Sequence[Request], vocab_size: int) -> None:
    """Raise Malformed unless there are ``n`` sound completions for each request."""
    expected = sum(request.n for request in requests)
    if len(given) != expected:
        raise Malformed(
            f"the result has {len(given)} completions; {expected} were expected, n for each of the {len(requests)}"
            " requests in their order."
        )
    owners = [(i, request) for i, request in enumerate(requests) for _ in range(request.n)]
    for k, (one, (i, request)) in enumerate(zip(given, owners, strict=True)):
        _completion(one, request, vocab_size, f"completion {k} (of request {i})")


def _completion(one: Completion, request: Request, vocab_size: int, what: str) -> None:
    _in_range(one.tokens, vocab_size, f"{what}: tokens")
    for piece in one.pieces or ():
        _in_range(piece, vocab_size, f"{what}: pieces")
    if request.stream and one.pieces is None:
        raise Malformed(f"{what} has no pieces; the request streams. Raise NotOffered where streaming is not offered.")
    if request.logprobs is None:
        return
    if one.logprobs is None:
        raise Malformed(
            f"{what} has no log-probabilities; the request asks for {request.logprobs} a step. Raise NotOffered"
            " where they are not offered."
        )
    if len(one.logprobs) < len(one.tokens):
        raise Malformed(
            f"{what} has log-probabilities of {len(one.logprobs)} steps and {len(one.tokens)} tokens; a step for each"
            " token was expected."
        )
    for t, step in enumerate(one.logprobs):
        _in_range(step, vocab_size, f"{what}: logprobs[{t}]")
        for token, value in step.items():
            if math.isnan(value) or value == math.inf:
                name = "NaN" if math.isnan(value) else "+inf"
                raise NotFinite(
                    f"{what}: logprobs[{t}] gives {name} for id {token}; a natural logarithm of a probability, finite"
                    " or -inf, was expected.",
                    name,
                    f"{what}, step {t}, id {token}",
                )


def _in_range(tokens: Sequence[int] | Mapping[int, float], vocab_size: int, what: str) -> None:
    for i, token in enumerate(tokens):
        if not 0 <= token < vocab_size:
            raise OutsideVocabulary(
                f"{what} holds id {token} at place {i}; ids from 0 to {vocab_size - 1} were expected. Look for columns"
                " that pad the vocabulary, or for ids that the engine adds to it.",
                token,
            )


def _ids(tokens: Any, what: str) -> tuple[int, ...]:
    if isinstance(tokens, (tuple, list)) and set(map(type, tokens)) <= {int}:
        return tuple(tokens)  # nearly all: no need to name each place
    return tuple(whole_number(token, f"{what}[{i}]") for i, token in enumerate(tokens))


def _step(step: Any, what: str) -> dict[int, float]:
    if not isinstance(step, Mapping):
        raise Malformed(f"{what} is {_kind(step)}; a mapping of id to log-probability was expected.")
    if set(map(type, step)) <= {int} and set(map(type, step.values())) <= {float}:
        return dict(step)
    try:
        return {whole_number(token, f"an id of {what}"): float(value) for token, value in step.items()}
    except (TypeError, ValueError) as error:
        raise Malformed(f"{what} holds a value that is not a number ({error}); a float was expected.") from None


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    cls = type(value)
    return f"a {cls.__qualname__}" if cls.__module__ == "builtins" else f"a {cls.__module__}.{cls.__qualname__}"

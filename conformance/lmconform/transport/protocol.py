"""The wire: one line of JSON a message, and the bytes of large arrays after it. Standard library and NumPy alone.

A request is ``{"id", "call", "arguments"}``, its reply ``{"id", "result"}`` or ``{"id", "error"}``; a message that is
followed by bytes says how many in ``"bytes"``. One request is under way at a time. ``schema.json`` describes every
message; the tables below are the same in Python, and the tests hold the two together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from ..adapter import Choices, Completion, Needs, Operator, Precision, Request
from . import arrays
from .arrays import ArrayTag
from .fields import (
    Parser,
    Violation,
    anything,
    at_least,
    boolean,
    built,
    integer,
    integers,
    mapping,
    one_of,
    optional,
    pair,
    real,
    record,
    sequence,
    text,
)

VERSION = 1
"""Of the protocol. Both ends say theirs in ``hello``."""
MAX_LINE = 1 << 28
"""Longest line that is read, and most bytes that may follow a request, in bytes."""

handle = at_least(1)
ids = integers()  # an id out of range is a legal question: the engine may refuse it
indices = integers(least=0)


def _completion(**given: Any) -> Completion:
    steps, pieces = given.get("logprobs"), given.get("pieces")
    given["logprobs"] = None if steps is None else tuple(dict(step) for step in steps)
    given["pieces"] = None if pieces is None else tuple(map(tuple, pieces))
    return Completion(**given)


def _choices(**given: Any) -> Choices:
    lists = {name: given.get(name) for name in ("sampler_order", "eos_files")}
    return Choices(**{**given, **{name: None if one is None else tuple(one) for name, one in lists.items()}})


needs = built(
    Needs,
    record(
        {},
        {
            **dict.fromkeys(("max_tokens", "max_rows", "max_sessions", "top_n"), at_least(0)),
            "regime": optional(text),
        },
    ),
)
request = built(
    Request,
    record(
        {"prompt": ids},
        {
            "max_new_tokens": integer,
            "min_new_tokens": integer,
            **dict.fromkeys(("temperature", "top_p", "min_p"), optional(real)),
            **dict.fromkeys(("top_k", "seed", "logprobs"), optional(integer)),
            "stop_ids": ids,
            "eos": boolean,
            "stop_strings": sequence(text),
            "stop_sequences": sequence(ids),
            "n": integer,
            "stream": boolean,
        },
    ),
)
_pairs = sequence(pair(integer, real))


def _step(value: Any, where: str) -> list[Any]:
    """The log-probabilities of a step, as pairs. There are many, and sound ones are not looked at in turn."""
    if isinstance(value, list) and all(type(one) is list and list(map(type, one)) == [int, float] for one in value):
        return value
    return _pairs(value, where)


completion = built(
    _completion,
    record(
        {"tokens": ids},
        {
            "finish_reason": text,
            "text": optional(text),
            "logprobs": optional(sequence(_step)),
            "pieces": optional(sequence(ids)),
            "cached_tokens": optional(at_least(0)),
        },
    ),
)
precision = built(Precision, record({}, dict.fromkeys(("weights", "compute", "kv_cache", "scores", "logprobs"), text)))
choices = built(
    _choices,
    record(
        {},
        {
            **dict.fromkeys(
                ("scores", "logprobs", "ties", "temperature_zero", "stop_token", "stop_text", "min_tokens"), text
            ),
            "zero_tokens": text,
            "long_prompt": text,
            "long_continuation": text,
            "empty_prompt": text,
            **dict.fromkeys(("sampler_order", "eos_files"), optional(sequence(text))),
            "batch_invariant": boolean,
        },
    ),
)


_widths = optional(sequence(at_least(1)))
_LIMITS: dict[str, dict[str, Parser]] = {
    "attention": {
        "masks": sequence(one_of("none", "causal", "given")),
        "grouped": boolean,
        "head_dims": _widths,
        "max_queries": optional(at_least(1)),
    },
    "rope": {"layout": one_of("half-split", "interleaved"), "head_dims": _widths},
    "rms_norm": {"hidden_sizes": _widths},
}


def operator(value: Any, where: str) -> dict[str, Any]:
    """A kernel's kind and its limits."""
    kind = one_of(*_LIMITS)(mapping(anything)(value, where).get("kind"), f"{where}.kind")
    given: dict[str, Any] = record({"kind": text}, _LIMITS[kind])(value, where)
    return given


def closed(value: Any, where: str) -> dict[str, int]:
    """What ``close`` closes: one model or one session."""
    given: dict[str, int] = record({}, {"model": handle, "session": handle})(value, where)
    if len(given) != 1:
        raise Violation(f"{where} must name either a model or a session")
    return given


_slices = {"rows": indices, "columns": indices}
_nothing = record({})
_session = record({"session": handle, "offers": sequence(text)})
_output = record({"output": arrays.tag})

ARGUMENTS: dict[str, Parser] = {
    "hello": record({"protocol": integer}),
    "accepts": record({"config": mapping(anything)}),
    "load": record({"checkpoint": text, "needs": needs}),
    "score": record({"model": handle, "tokens": ids}, _slices),
    "score_batch": record({"model": handle, "sequences": sequence(ids)}, {**_slices, "rows": sequence(indices)}),
    "open": record({"model": handle}),
    "extend": record({"session": handle, "tokens": ids}, _slices),
    "fork": record({"session": handle}),
    "truncate": record({"session": handle, "length": integer}),
    "cache_bytes": record({"session": handle}),
    "generate": record({"model": handle, "requests": sequence(request)}),
    "close": closed,
    "operators": _nothing,
    "attention": record(
        {"operator": text, "q": arrays.tag, "k": arrays.tag, "v": arrays.tag, "causal": boolean},
        {"visible": optional(arrays.mask)},
    ),
    "rope": record({"operator": text, "x": arrays.tag, "positions": indices, "base": real}),
    "rms_norm": record({"operator": text, "x": arrays.tag, "weight": arrays.tag, "eps": real}),
    "bye": _nothing,
}
RESULTS: dict[str, Parser] = {
    "hello": record(
        {"protocol": integer, "name": text},
        {
            "version": text,
            "format": one_of("hf", "gguf"),
            "precision": precision,
            "choices": choices,
            "regimes": mapping(mapping(anything)),
            "offers": sequence(text),
        },
    ),
    "accepts": record({"reason": optional(text)}),
    "load": record(
        {"model": handle, "vocab_size": at_least(1), "offers": sequence(text)},
        {"max_length": optional(at_least(0)), "slots": optional(at_least(0))},
    ),
    "score": record({"scores": arrays.tag}),
    "score_batch": record({"scores": sequence(arrays.tag)}),
    "open": _session,
    "extend": record({"scores": arrays.tag}),
    "fork": _session,
    "truncate": _nothing,
    "cache_bytes": record({"cache_bytes": at_least(0)}),
    "generate": record({"completions": sequence(completion)}),
    "close": _nothing,
    "operators": record({"operators": mapping(operator)}),
    "attention": _output,
    "rope": _output,
    "rms_norm": _output,
    "bye": _nothing,
}
ERROR_KINDS = ("not-offered", "refused", "raised", "bad-result", "protocol")


@dataclass(frozen=True)
class ErrorReport:
    """Why a call has no result."""

    kind: str
    """One of ``ERROR_KINDS``."""
    message: str
    type: str = ""
    """Name of the exception, where there is one."""
    traceback: str = ""

    def __post_init__(self) -> None:
        if self.kind not in ERROR_KINDS:
            raise ValueError(f"error.kind is {self.kind!r}; it may be one of: {', '.join(ERROR_KINDS)}")


@dataclass(frozen=True)
class Reply:
    """The first line of a reply, parsed. Its arrays are still tags; ``size`` bytes follow."""

    result: dict[str, Any] = field(default_factory=dict)
    error: ErrorReport | None = None
    size: int = 0

    @property
    def tags(self) -> list[ArrayTag]:
        return list(_tags(self.result))

    def decoded(self, payload: bytes | bytearray) -> dict[str, Any]:
        """The result with its arrays; ``payload`` is all that followed the line."""
        return _decoded(self.result, payload)


def _tags(values: Mapping[str, Any]) -> Iterator[ArrayTag]:
    """The arrays of a message, which are values of its fields or of a list in a field."""
    for value in values.values():
        yield from (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, ArrayTag))


def _decoded(values: Mapping[str, Any], payload: bytes | bytearray) -> dict[str, Any]:
    def one(value: Any) -> Any:
        if isinstance(value, list):
            return [one(item) for item in value]
        return value.decode(payload) if isinstance(value, ArrayTag) else value

    return {name: one(value) for name, value in values.items()}


_reply = record(
    {"id": optional(integer)},
    {
        "result": anything,
        "error": built(
            ErrorReport, record({"kind": text, "message": text}, dict.fromkeys(("type", "traceback"), text))
        ),
        "bytes": at_least(0),
    },
)
_request = record({"id": integer, "call": text, "arguments": anything}, {"bytes": at_least(0)})


def parse_json(line: bytes) -> Any:
    """Parse one line, which must be legal JSON: the bare words NaN and Infinity are not."""

    def refuse(word: str) -> None:
        raise Violation(f'the bare word {word} is not JSON; write "inf", "-inf" or "nan"')

    try:
        # Decoded here: given bytes, json guesses the encoding, and takes surrogates, which are no UTF-8.
        return json.loads(str(line, "utf-8"), parse_constant=refuse)
    except Violation:
        raise
    except (ValueError, RecursionError) as error:
        shown = repr(line[:80])[1:] + ("..." if len(line) > 80 else "")
        raise Violation(f"the line is not JSON ({error}): {shown}") from None


def read_payload(message: Any, read: Callable[[int], bytes]) -> bytes:
    """Read the bytes that a request announces, so that the next line is found whatever is wrong with this one."""
    size = message.get("bytes", 0) if isinstance(message, dict) else 0
    if type(size) is not int or not 0 < size <= MAX_LINE:
        return b""
    payload = read(size)
    if len(payload) < size:
        raise Violation(f"the line announces {size} bytes after it; {len(payload)} came")
    return payload


def parse_request(message: Any, payload: bytes = b"") -> tuple[int, str, dict[str, Any]]:
    """Return id, call and arguments of a request, with Needs and Requests built and arrays decoded."""
    given = _request(message, "request")
    if given["call"] not in ARGUMENTS:
        raise Violation(f"there is no call {given['call']!r}; the calls are: {', '.join(ARGUMENTS)}")
    arguments = ARGUMENTS[given["call"]](given["arguments"], "arguments")
    arrays.check_payload(list(_tags(arguments)), given.get("bytes", 0))
    return given["id"], given["call"], _decoded(arguments, payload)


def parse_reply(line: bytes, number: int, call: str) -> Reply:
    """Parse the first line of the reply to request ``number``."""
    given = _reply(parse_json(line), "reply")
    if ("result" in given) == ("error" in given):
        raise Violation("a reply must have either result or error")
    if given["id"] != number and not (given["id"] is None and "error" in given):
        raise Violation(f"the reply has id {given['id']}; the request under way is {number}")
    if "error" in given:
        reply = Reply(error=given["error"], size=given.get("bytes", 0))
    else:
        reply = Reply(RESULTS[call](given["result"], "result"), size=given.get("bytes", 0))
    arrays.check_payload(reply.tags, reply.size)
    return reply


def plain(value: Any, payload: list[memoryview]) -> Any:
    """Return ``value`` as JSON types. Arrays become tags, and non-finite numbers the strings of ``NON_FINITE``."""
    if type(value) in (int, str, bool, type(None)):  # most values by far
        return value
    if isinstance(value, np.ndarray):
        return arrays.encode(value, payload)
    if isinstance(value, Completion):
        return _plain_completion(value, payload)
    if isinstance(value, (Needs, Request, Precision, Choices, ErrorReport)):
        return plain(_fields(value), payload)
    if isinstance(value, Operator):
        limits = {one.name: getattr(value, one.name) for one in fields(value) if one.name != "run"}
        return plain({"kind": value.kind, **limits}, payload)
    if isinstance(value, Mapping):
        return {str(key): plain(item, payload) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return list(value) if set(map(type, value)) <= {int} else [plain(item, payload) for item in value]
    return _number(value) if isinstance(value, float) else value


def _plain_completion(one: Completion, payload: list[memoryview]) -> dict[str, Any]:
    # JSON keys are strings, so a step of log-probabilities is a list of pairs [id, value].
    steps = None if one.logprobs is None else [[[i, _number(p)] for i, p in step.items()] for step in one.logprobs]
    given = {name: plain(value, payload) for name, value in _fields(one).items() if name != "logprobs"}
    return {**given, "logprobs": steps}


def _fields(one: Any) -> dict[str, Any]:
    """A dataclass as a dict; ``dataclasses.asdict`` would copy every value first."""
    return {name: getattr(one, name) for name in one.__dataclass_fields__}


def _number(value: float) -> float | str:
    """A number as JSON can say it, which has no word for one that is not finite."""
    return value if math.isfinite(value) else "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


def arrived(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result as it would come over the wire: arrays, alone or in a list, are copies in the formats that it has."""

    def one(value: Any) -> Any:
        if isinstance(value, list):
            return [one(item) for item in value]
        return arrays.arrived(value) if isinstance(value, np.ndarray) else value

    return {name: one(value) for name, value in result.items()}


def request_bytes(number: int, call: str, arguments: Mapping[str, Any]) -> bytes:
    """A request as it goes over the wire."""
    return b"".join(dump({"id": number, "call": call, "arguments": arguments}))


def dump(message: Mapping[str, Any]) -> list[bytes | memoryview]:
    """Return a message as buffers to write one after the other: the line, then the bytes of its arrays."""
    payload: list[memoryview] = []
    body = plain(message, payload)
    if payload:
        body["bytes"] = sum(part.nbytes for part in payload)
    line = json.dumps(body, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"
    return [line, *payload]

"""Messages for fuzzing: legal ones of every call, and what random changes make of them. Seeded."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from lmconform.adapter import Completion, Needs, Request
from lmconform.transport import protocol
from lmconform.transport.fields import Violation

Message = tuple[bytes, bytes]
"""A line with its end, and the bytes that follow it."""

EVIL = (
    *(None, True, False, 0, 1, 2, -1, 3.0, 1.5, -0.0, 255, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**30, 1e308, 5e-324),
    *("", "nan", "-inf", "inf", "float32", "bool", "default", "\0", "\ud800", "\U0001f600", "ä", 'a\nb\\"', "x" * 3000),
    *([], {}, [[]], [None], [0] * 50, [-1, 2**70], {"": 0}, {"dtype": "float32", "shape": [0, 10**30], "base64": ""}),
    {"dtype": "float64", "shape": [2**40, 2**40], "offset": 0},
    {"dtype": "float32", "shape": [1] * 70, "base64": "AAAAAA=="},
    {"dtype": "float16", "shape": [0, 3], "base64": ""},
    {"dtype": "bfloat16", "shape": [1], "base64": "AIA"},
)
LITERALS = (
    "NaN",
    "-Infinity",
    "1e999",
    "-1e999",
    "01",
    "1.",
    "+1",
    "--1",
    "1e",
    "9" * 400,
    "9" * 5000,
    "0." + "1" * 5000,
)
"""Words in the place of a value; not all of them are JSON."""
MARK = "\u0001"
"""What stands in a tree where such a word will."""


def requests(checkpoint: str) -> list[Message]:
    """A legal request of every call, some with small arrays and some with large ones."""
    model, session = {"model": 1}, {"session": 2}
    large = np.linspace(-1, 1, 2 * 40 * 16, dtype=np.float32).reshape(2, 40, 16)
    arrays = {"q": large, "k": large[:, :40], "v": large, "causal": True}
    small = {name: value[:, :2, :4] for name, value in arrays.items() if name != "causal"}
    prompts = [
        Request((1, 2, 3), max_new_tokens=3, logprobs=2),
        Request((4,), n=2, stop_ids=(1,), eos=True, stream=True),
    ]
    drawn = Request((1, 2), 2, 1, 0.5, 3, 0.9, 0.1, 7, stop_sequences=((1, 2), (3,)), stop_strings=("ab", "ä"))
    calls: list[tuple[str, dict[str, Any]]] = [
        ("hello", {"protocol": 1}),
        ("accepts", {"config": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}}}),
        ("load", {"checkpoint": checkpoint, "needs": Needs(max_tokens=64)}),
        ("score", {**model, "tokens": [1, 2, 3]}),
        ("score", {**model, "tokens": [5, 6, 7, 8], "rows": [3, 0], "columns": [1, 1, 2]}),
        ("score_batch", {**model, "sequences": [[1, 2], [3]], "rows": [[0], []], "columns": [4]}),
        ("open", model),
        ("extend", {**session, "tokens": [1, 2]}),
        ("fork", session),
        ("truncate", {**session, "length": 0}),
        ("cache_bytes", session),
        ("generate", {**model, "requests": prompts}),
        ("generate", {**model, "requests": [drawn]}),
        ("close", {"session": 3}),
        ("operators", {}),
        ("attention", {"operator": "flash", **small, "causal": False, "visible": np.ones((2, 2), bool)}),
        ("attention", {"operator": "flash", **arrays, "visible": np.ones((40, 40), bool)}),
        ("rope", {"operator": "turn", "x": small["q"], "positions": [0, 131072], "base": 1e4}),
        ("rms_norm", {"operator": "norm", "x": large[0], "weight": large[0, 0], "eps": 1e-5}),
        ("bye", {}),
    ]
    return [_split(protocol.request_bytes(10 + i, call, arguments)) for i, (call, arguments) in enumerate(calls)]


def replies() -> list[tuple[str, Message]]:
    """Legal replies to request 1, each with its call."""
    large, small = np.ones((3, 400), np.float32), np.zeros((1, 2), np.float64)
    done = Completion((1, 2), "stop", "ab", ({1: -0.5, 2: float("-inf")}, {}), ((1,), (2,)), 0)
    results: list[tuple[str, dict[str, Any]]] = [
        ("hello", {"protocol": 1, "name": "x", "precision": {"weights": "q8_0"}, "choices": {"eos_files": ["a"]}}),
        ("accepts", {"reason": None}),
        ("load", {"model": 1, "vocab_size": 2, "max_length": None, "offers": ["score"]}),
        ("score", {"scores": small}),
        ("score", {"scores": large}),
        ("score_batch", {"scores": [small, large, large]}),
        ("open", {"session": 1, "offers": []}),
        ("cache_bytes", {"cache_bytes": 7}),
        ("generate", {"completions": [done, Completion(())]}),
        ("operators", {"operators": {"turn": {"kind": "rope", "layout": "interleaved", "head_dims": [16]}}}),
        ("attention", {"output": large}),
        ("close", {}),
    ]
    found = [(call, _split(b"".join(protocol.dump({"id": 1, "result": result})))) for call, result in results]
    error = {"kind": "raised", "message": "no", "type": "ValueError", "traceback": "..."}
    return [*found, ("score", _split(b"".join(protocol.dump({"id": None, "error": error}))))]


def fuzzed(legal: list[Message], count: int, seed: int) -> Iterator[Message]:
    """``count`` messages; about one in twelve is legal."""
    rng = random.Random(seed)
    for _ in range(count):
        line, rest = rng.choice(legal)
        yield rng.choice(CHANGES)(rng, line, rest)


def _split(message: bytes) -> Message:
    line, end, rest = message.partition(b"\n")
    return line + end, rest


def _same(rng: random.Random, line: bytes, rest: bytes) -> Message:
    return line, rest


def _noise(rng: random.Random, line: bytes, rest: bytes) -> Message:
    return _line(rng.randbytes(rng.randrange(60))), rest[: rng.randrange(4)]


def _cut(rng: random.Random, line: bytes, rest: bytes) -> Message:
    return _line(line[: rng.randrange(len(line))]), rest


def _damaged(rng: random.Random, line: bytes, rest: bytes) -> Message:
    """Some bytes are others, gone, doubled, or of no UTF-8."""
    damaged = bytearray(line)
    for _ in range(rng.choice([1, 1, 2, 8])):
        place, few = rng.randrange(len(damaged)), rng.randrange(1, 5)
        new = rng.choice(
            [b"", b'"', b"{", b"]", b",", b"\\", b"\\u12", b"\xff", b"\xc3", b"\x00", b"0", rng.randbytes(2)]
        )
        damaged[place : place + rng.choice([0, 1, few])] = rng.choice([new, damaged[place : place + few] * 2])
    return _line(bytes(damaged)), rest


def _changed(rng: random.Random, line: bytes, rest: bytes) -> Message:
    """Still JSON: nodes are replaced, deleted, or have new neighbours."""
    message = json.loads(line)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        message = _mutated(rng, message, copy.deepcopy(rng.choice(EVIL)))
    return _written(message), rest


def _literal(rng: random.Random, line: bytes, rest: bytes) -> Message:
    """A number that is too large, or a word that is no JSON."""
    message = _mutated(rng, json.loads(line), MARK)
    return _written(message).replace(json.dumps(MARK).encode(), rng.choice(LITERALS).encode()), rest


def _deep(rng: random.Random, line: bytes, rest: bytes) -> Message:
    """Lists in lists, or objects in objects."""
    depth = rng.choice([50, 98, 101, 400, 900, 3000, 30_000])
    opening, closing = rng.choice([(b"[", b"]"), (b'{"a":', b"}")])
    nest = opening * depth + b"0" + closing * rng.choice([depth, depth, depth - 1, 0])
    return _written(_mutated(rng, json.loads(line), MARK)).replace(json.dumps(MARK).encode(), nest), rest


def _resized(rng: random.Random, line: bytes, rest: bytes) -> Message:
    """Another number of bytes is announced, or comes."""
    message = json.loads(line)
    message["bytes"] = rng.choice([0, 1, 7, len(rest), len(rest) + 1, len(rest) + 4096, 2**28, 2**28 + 1, 2**62, -1])
    return _written(message), rng.choice([rest, rest[:-1], rest[: len(rest) // 2], b"", rest + b"x", b"\n" * 7])


CHANGES = (_same, _noise, _cut, _damaged, _damaged, *[_changed] * 4, _literal, _deep, _resized)


def _written(message: Any) -> bytes:
    return json.dumps(message).encode("ascii") + b"\n"


def _line(content: bytes) -> bytes:
    return content.replace(b"\n", b" ") + b"\n"


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _places(item, (*path, key))


def _mutated(rng: random.Random, value: Any, new: Any) -> Any:
    """``value`` with ``new`` at a random place, or without what stood there."""
    path = rng.choice(list(_places(value)))
    if not path:
        return new
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    change = rng.choice(["replace", "replace", "delete", "add"])
    if change == "replace":
        parent[path[-1]] = new
    elif change == "delete":
        del parent[path[-1]]
    elif isinstance(parent, dict):
        parent[rng.choice(["neighbour", "", "bytes", "model", "\0"])] = new
    else:
        parent.insert(path[-1], new)
    return value


def framed(messages: Iterator[Message]) -> Iterator[Message]:
    """Those that can follow one another on a wire: what a line announces comes, and none ends the run.

    A line that announces bytes in a way that not every reader understands is left out.
    """
    for line, rest in messages:
        try:
            message = protocol.parse_json(line)
        except Violation:
            message = None
        if not isinstance(message, dict):
            if b"bytes" not in line:
                yield line, b""
            continue
        size = message.get("bytes", 0)
        if line.count(b'"bytes"') > 1 or message.get("call") in ("bye", "close") or type(size) is not int:
            continue
        deep = any(opening * 40 in line for opening in (b"[", b'{"a":'))
        if size <= 0 or size > 2**28:
            yield line, b""
        elif size < 10**5 and not deep:  # how deep a reader follows is its own
            yield line, rest[:size].ljust(size, b"\0")

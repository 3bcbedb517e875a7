"""Rules of messages: how the conversation begins and ends, ids, and requests that are none."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from lmconform.protocol_check.rules import Broken, NotExercised
from lmconform.protocol_check.talk import Talk
from lmconform.transport import protocol
from lmconform.transport.fields import Violation

QUIET_SECONDS = 0.2
OTHERS: tuple[Any, ...] = (
    None,
    True,
    -1.5,
    "x",
    [],
    {},
    [None],
    ["x"],
    [[1.5]],
    [{"prompt": "x"}],
    {"max_tokens": "x"},
    [{}],
)
"""Values for a field; those that are legal there are left out."""


def hello(talk: Talk) -> None:
    """hello is answered with the engine's name and version 1 of the protocol."""
    given = talk.greeting
    if given["protocol"] != protocol.VERSION:
        raise Broken(f"version {protocol.VERSION}", f"version {given['protocol']}")
    if not given["name"]:
        raise Broken("a name", "an empty one")


def hello_again(talk: Talk) -> None:
    """hello may be asked again, and says the same."""
    first, second = talk.greeting, talk.ask("hello", protocol=protocol.VERSION).result()
    if first != second:
        raise Broken("the same as the first time", str(second))


def before_hello(talk: Talk) -> None:
    """A call before hello is a protocol error, and hello is still answered after it."""
    talk.end()
    talk.ask("accepts", config={}).error("protocol")
    talk.ask("hello", protocol=protocol.VERSION).result()


def ids(talk: Talk) -> None:
    """A reply has the id of its request, which may be any whole number."""
    talk.greet()
    for number in (1, 0, -5, 2**31, 2**53 - 1, 7, 7):
        for call, arguments in (("hello", {"protocol": protocol.VERSION}), ("no-such-call", {})):
            answer = talk.raw(protocol.request_bytes(number, call, arguments), call, number)
            if type(answer.message.get("id")) is not int or answer.message["id"] != number:
                raise Broken(f"id {number}", f"id {answer.message.get('id')!r}")


def one_reply(talk: Talk) -> None:
    """Each request has one reply, and nothing else is written to standard output."""
    for call, arguments in talk.legal().items():
        answer = talk.ask(call, **arguments)
        if extra := talk.process.overheard(QUIET_SECONDS / 4):
            talk.end()
            raise Broken(f"nothing after the reply to {call}", repr(extra[:80]))
        answer.result()
    if extra := talk.process.overheard(QUIET_SECONDS):
        talk.end()
        raise Broken("nothing while nothing is asked", repr(extra[:80]))


def not_json(talk: Talk) -> None:
    """A line that is not JSON, or no object, is a protocol error with the id null."""
    talk.greet()
    for line in (b"hello?", b'{"id": 1, "call"', b"[]", b"3", b"null", b'"hello"', b"{} {}", b"[" * 2000):
        answer = talk.raw(line + b"\n")
        answer.error("protocol")
        if answer.message.get("id") is not None:
            raise Broken("id null", answer.told)
    talk.ask("hello", protocol=protocol.VERSION).result()


def not_utf8(talk: Talk) -> None:
    """A line that is not UTF-8 is a protocol error."""
    talk.greet()
    for bad in (b"\xff", b"\xc3", b"\xed\xa0\x80"):
        talk.raw(b'{"id": 1, "call": "accepts", "arguments": {"config": {"a": "' + bad + b'"}}}\n').error("protocol")


def bare_words(talk: Talk) -> None:
    """The bare words NaN and Infinity are no JSON: a protocol error."""
    talk.greet()
    for word in (b"NaN", b"Infinity", b"-Infinity"):
        talk.raw(b'{"id": 1, "call": "accepts", "arguments": {"config": {"a": ' + word + b"}}}\n").error("protocol")


def spelling(talk: Talk) -> None:
    """Order of fields, spaces and escapes do not matter."""
    talk.greet()
    line = b' {"arguments" :\t{ "pr\\u006ftocol":1 }, "\\u0063all":"hel\\u006co" ,"id" : 41}\r\n'
    answer = talk.raw(line, "hello", 41)
    answer.result()
    if answer.message.get("id") != 41:
        raise Broken("id 41", answer.told)


def long_line(talk: Talk) -> None:
    """A line may be long: a million bytes are one message."""
    talk.greet()
    line = b'{"id": 42, ' + b" " * 1_000_000 + b'"call": "hello", "arguments": {"protocol": 1}}\n'
    talk.raw(line, "hello", 42).result()


def pieces(talk: Talk) -> None:
    """A message that comes in pieces is one message."""
    talk.greet()
    line = protocol.request_bytes(43, "hello", {"protocol": protocol.VERSION})
    for part in (line[:9], line[9:10]):
        talk.process.send(part, time.monotonic() + talk.limit)
        time.sleep(QUIET_SECONDS / 4)
    talk.raw(line[10:], "hello", 43).result()


def together(talk: Talk) -> None:
    """Two requests that come at once are answered one after the other."""
    talk.greet()
    lines = [protocol.request_bytes(number, "hello", {"protocol": protocol.VERSION}) for number in (44, 45)]
    talk.raw(b"".join(lines), "hello", 44).result()
    talk.raw(b"", "hello", 45).result()


def announced_bytes(talk: Talk) -> None:
    """The bytes that a line announces are read, whatever they hold and whatever is wrong with the line."""
    talk.greet()
    inside = b'\n{"id": 1, "call": "bye", "arguments": {}}\n\xff\x00'
    for call in ("hello", "no-such-call"):
        request = {"id": 46, "call": call, "arguments": {"protocol": protocol.VERSION}, "bytes": len(inside)}
        talk.raw(json.dumps(request).encode() + b"\n" + inside, call, 46)
        answer = talk.raw(protocol.request_bytes(47, "hello", {"protocol": protocol.VERSION}), "hello", 47)
        answer.result()
        if answer.message.get("id") != 47:
            talk.end()
            raise Broken("the reply to the next line", answer.told)


def unknown_call(talk: Talk) -> None:
    """A call that the protocol does not have is a protocol error."""
    talk.greet()
    for call in ("no-such-call", "", "Hello", "__init__", "hello "):
        talk.ask(call).error("protocol")


def envelope(talk: Talk) -> None:
    """A request that lacks id, call or arguments, has them of a wrong type, or has more, is a protocol error."""
    talk.greet()
    sound: dict[str, Any] = {"id": 48, "call": "hello", "arguments": {"protocol": protocol.VERSION}}
    for name in sound:
        talk.raw(_line({key: value for key, value in sound.items() if key != name})).error("protocol")
    for name, value in (("id", "48"), ("id", None), ("id", 1.5), ("call", 3), ("arguments", []), ("more", 1)):
        talk.raw(_line({**sound, name: value})).error("protocol")
    talk.raw(_line({**sound, "bytes": -1})).error("protocol")


def fields_missing(talk: Talk) -> None:
    """A call without one of its fields is a protocol error."""
    _refuse(talk, lambda call, arguments: ({k: v for k, v in arguments.items() if k != name} for name in arguments))


def fields_unknown(talk: Talk) -> None:
    """A field that a call does not have is a protocol error."""
    _refuse(talk, lambda call, arguments: ({**arguments, name: 1} for name in ("neighbour", "")))


def fields_typed(talk: Talk) -> None:
    """A field of another type than schema.json says is a protocol error."""
    _refuse(talk, lambda call, arguments: ({**arguments, name: other} for name in arguments for other in OTHERS))


def not_offered(talk: Talk) -> None:
    """A call that the engine does not offer is an error of the kind not-offered."""
    found = 0
    greeting = talk.greeting
    absent: list[tuple[str, dict[str, Any]]] = [] if "operators" in greeting.get("offers", ()) else [("operators", {})]
    if "load" in greeting.get("offers", ()):
        model = talk.loaded()
        calls: dict[str, dict[str, Any]] = {"score": {"tokens": [1]}, "score_batch": {"sequences": [[1]]}, "open": {}}
        calls["generate"] = {"requests": [{"prompt": [1], "max_new_tokens": 1}]}
        absent += [
            (name, {"model": model["model"], **rest}) for name, rest in calls.items() if name not in model["offers"]
        ]
    for call, arguments in absent:
        talk.ask(call, **arguments).error("not-offered")
        found += 1
    if not found:
        raise NotExercised("the program offers everything")


def _refuse(talk: Talk, variants: Any) -> None:
    """Each variant of each legal request that the tables turn down must be a protocol error."""
    for call, arguments in talk.legal().items():
        for other in variants(call, arguments):
            if _illegal(call, other):
                answer = talk.ask(call, **other)
                if answer.kind != "protocol":
                    shown = json.dumps(other)
                    raise Broken(f"an error of the kind protocol from {call} with {shown[:120]}", answer.told)


def _illegal(call: str, arguments: Mapping[str, Any]) -> bool:
    try:
        protocol.ARGUMENTS[call](json.loads(json.dumps(protocol.plain(arguments, []))), "arguments")
    except Violation:
        return True
    return False


def _line(message: Any) -> bytes:
    return json.dumps(message).encode() + b"\n"

"""Fuzzed messages break neither end: each line is answered, and what is no reply is said to be none."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import fuzz_engine
import pytest
from fuzz_messages import framed, fuzzed, replies, requests
from language_common import parsed_replies

from lmconform.transport import protocol
from lmconform.transport.dispatch import Dispatcher
from lmconform.transport.fields import Violation
from lmconform.transport.host import serve

COUNT = 10_000
FRESH = 100
"""A new engine after so many messages: some close what others need."""


def opened(checkpoint: str) -> Dispatcher:
    """An engine with model 1 and session 2."""
    dispatcher = Dispatcher(fuzz_engine.Small)
    for call, arguments in (
        ("hello", {"protocol": 1}),
        ("load", {"checkpoint": checkpoint, "needs": {}}),
        ("open", {"model": 1}),
    ):
        assert b"result" in dispatcher.answer(protocol.request_bytes(1, call, arguments))[0]
    return dispatcher


def check_reply(reply: list[bytes | memoryview], line: bytes) -> dict:
    """One line by the protocol, and the bytes that it announces."""
    first, *payload = reply
    assert bytes(first).count(b"\n") == 1
    (message,) = parsed_replies(b"".join(map(bytes, reply)))
    if message["id"] is None:
        assert message["error"]["kind"] == "protocol", line
    assert sum(map(len, payload)) == message.get("bytes", 0)
    return message


def test_each_fuzzed_message_is_answered(tmp_path):
    answered = dict.fromkeys(("result", *protocol.ERROR_KINDS), 0)
    for number, (line, rest) in enumerate(fuzzed(requests(str(tmp_path)), COUNT, seed=0)):
        if number % FRESH == 0:
            dispatcher = opened(str(tmp_path))
        message = check_reply(dispatcher.answer(line, io.BytesIO(rest).read), line)
        answered[message["error"]["kind"] if "error" in message else "result"] += 1
        if dispatcher.finished:
            dispatcher = opened(str(tmp_path))
    assert sum(answered.values()) == COUNT
    assert answered["result"] > COUNT / 20, "legal ones reach the engine"
    assert answered["refused"] > COUNT / 500
    assert answered["protocol"] > COUNT / 2
    assert answered["bad-result"] == 0


def test_nothing_that_was_not_understood_is_taken_for_a_fault_of_the_engine(tmp_path):
    """The adapter refuses what it cannot do, so what it raised came from a message that should not have reached it."""
    dispatcher = opened(str(tmp_path))
    raised = []
    for line, rest in fuzzed(requests(str(tmp_path)), COUNT // 2, seed=1):
        message = check_reply(dispatcher.answer(line, io.BytesIO(rest).read), line)
        if message.get("error", {}).get("kind") == "raised":
            raised.append((line[:200], message["error"]["type"], message["error"]["message"]))
        dispatcher = opened(str(tmp_path)) if dispatcher.finished else dispatcher
    assert raised == []


def test_a_stream_of_them_is_served(tmp_path):
    messages = [line + rest for line, rest in framed(fuzzed(requests(str(tmp_path)), COUNT // 5, seed=2))]
    written = io.BytesIO()
    serve(opened(str(tmp_path)), io.BytesIO(b"".join(messages)), written)
    assert len(parsed_replies(written.getvalue())) == len(messages) > COUNT / 10


@pytest.mark.parametrize("seed", range(3))
def test_a_process_outlives_them(tmp_path, seed):
    messages = [line + rest for line, rest in framed(fuzzed(requests(str(tmp_path)), 400, seed=3 + seed))]
    hello = protocol.request_bytes(77, "hello", {"protocol": 1})
    host = [sys.executable, "-m", "lmconform.transport.host", f"{Path(fuzz_engine.__file__)}:Small"]
    run = subprocess.run(host, input=b"".join([hello, *messages, hello]), capture_output=True, timeout=60)
    assert run.returncode == 0, run.stderr
    first, *between, last = parsed_replies(run.stdout)
    assert first == last
    assert first["result"]["name"] == "small"
    assert len(between) == len(messages)


def test_each_fuzzed_reply_is_read_or_is_a_violation():
    known, read = replies(), 0
    for call in sorted({call for call, _ in known}):
        legal = [message for one, message in known if one == call]
        for line, rest in fuzzed(legal, COUNT // 5, seed=len(call)):
            try:
                reply = protocol.parse_reply(line[:-1], 1, call)
                if reply.size <= len(rest):
                    reply.decoded(rest[: reply.size])
                read += 1
            except Violation:
                pass
    assert read > COUNT / 20


ENDLESS = [
    {"dtype": "float32", "shape": [0, 10**30], "base64": ""},
    {"dtype": "float32", "shape": [2**40, 2**40, 0], "base64": ""},
    {"dtype": "float32", "shape": [1] * 70, "base64": "AAAAAA=="},
]
"""Shapes whose numbers of bytes are right, and which NumPy does not make."""
ONE = {"dtype": "float32", "shape": [1, 1, 1], "base64": "AAAAAA=="}


@pytest.mark.parametrize("array", ENDLESS)
def test_a_shape_that_no_memory_holds_is_a_violation(array, tmp_path):
    reply = json.dumps({"id": 1, "result": {"scores": array}}).encode()
    with pytest.raises(Violation, match="more than 8 axes, or more numbers than a memory holds"):
        protocol.parse_reply(reply, 1, "score")
    turn = {"operator": "turn", "x": array, "positions": [1], "base": 1.0}
    line = json.dumps({"id": 1, "call": "rope", "arguments": turn}).encode()
    assert check_reply(opened(str(tmp_path)).answer(line), line)["error"]["kind"] == "protocol"


def test_a_position_beyond_64_bits_is_a_violation(tmp_path):
    turn = {"operator": "turn", "x": ONE, "positions": [2**63], "base": 1.0}
    line = json.dumps({"id": 1, "call": "rope", "arguments": turn}).encode()
    error = check_reply(opened(str(tmp_path)).answer(line), line)["error"]
    assert (error["kind"], error["message"]) == (
        "protocol",
        "arguments.positions holds 9223372036854775808, which 64 bits do not",
    )


def test_the_fuzzer_changes_what_it_should():
    """Of the framed ones most are still JSON, and no two runs differ."""
    first, second = (list(fuzzed(requests("/x"), 500, seed=9)) for _ in range(2))
    assert first == second
    sound = 0
    for line, _ in first:
        with contextlib.suppress(ValueError, RecursionError):
            sound += isinstance(json.loads(line), dict)
    assert 250 < sound < 450

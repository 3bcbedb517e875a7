"""Whatever a server does wrong has an outcome of its own, and the door goes on. Servers here say what they are told."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lmconform.adapter import Completion, NotOffered, Refused, Request
from lmconform.engines._openai_http_ask import Door, opened
from lmconform.engines._openai_http_client import (
    Client,
    ReplyCutOff,
    ReplyMalformed,
    ServerFailed,
    ServerTimedOut,
    ServerUnreachable,
)
from lmconform.engines._openai_http_offer import Offer
from lmconform.engines._openai_http_process import ServerProcess
from lmconform.engines._openai_http_spelling import Spelling
from lmconform.engines.openai_http import OpenAIHTTP

Script = Callable[[BaseHTTPRequestHandler], None]
OFFER = Offer(ids="token_ids", logprobs=5).having("stream", "n", "sampling")
CHOICE = {"index": 0, "text": "ab", "token_ids": [0, 1], "finish_reason": "length"}
REQUEST = Request((5, 6), 2)


@pytest.fixture
def serve() -> Iterator[Callable[[Script], Client]]:
    """Return a function that starts a server with a script for every POST, and returns a client of it."""
    servers: list[ThreadingHTTPServer] = []

    def start(script: Script, timeout: float = 20.0) -> Client:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                script(self)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return Client(f"http://127.0.0.1:{server.server_address[1]}", timeout)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def says(status: int, body: Any, length: int | None = None, **headers: str) -> Script:
    """Answer with a status and a body, JSON or bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    def script(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(data) if length is None else length))
        handler.end_headers()
        handler.wfile.write(data)

    return script


def event(**changes: Any) -> bytes:
    return f"data: {json.dumps({'choices': [{**CHOICE, **changes}]})}\n\n".encode()


def ask(client: Client, offer: Offer = OFFER, request: Request = REQUEST, **keywords: Any) -> list[Completion]:
    return Door(client, "m", None).complete(offer, request, **keywords)


def test_a_sound_answer(serve: Callable[..., Client]) -> None:
    (done,) = ask(serve(says(200, {"choices": [CHOICE]})))
    assert (done.tokens, done.text, done.finish_reason, done.cached_tokens) == ((0, 1), "ab", "length", None)


@pytest.mark.parametrize("status", [400, 404, 413, 422])
@pytest.mark.parametrize(
    "body", [{"error": {"message": "too long"}}, {"error": "too long"}, {"detail": [{"msg": "too long"}]}, b"too long"]
)
def test_what_the_server_declines_is_refused_in_its_own_words(
    serve: Callable[..., Client], status: int, body: Any
) -> None:
    with pytest.raises(Refused, match=f"status {status}: .*too long"):
        ask(serve(says(status, body)))


@pytest.mark.parametrize("status", [301, 401, 403, 500, 502, 503, 429])
def test_a_server_that_fails_is_named_with_request_and_reply(serve: Callable[..., Client], status: int) -> None:
    client = serve(says(status, {"error": "out of order"}))
    with pytest.raises(ServerFailed) as caught:
        ask(client)
    message = str(caught.value)
    assert all(part in message for part in (client.url, "POST /v1/completions", str(status), "out of order", "[5, 6]"))


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_when_it_says(serve: Callable[..., Client], status: int) -> None:
    calls: list[float] = []

    def script(handler: BaseHTTPRequestHandler) -> None:
        calls.append(time.monotonic())
        one = says(status, {"error": "busy"}, Retry_After="0") if len(calls) < 3 else says(200, {"choices": [CHOICE]})
        one(handler)

    (done,) = ask(serve(script))
    assert done.tokens == (0, 1)
    assert len(calls) == 3


def test_a_busy_server_is_not_waited_for_beyond_the_time(serve: Callable[..., Client]) -> None:
    with pytest.raises(ServerFailed, match="status 503: later"):
        ask(serve(says(503, {"error": "later"}, Retry_After="3600")))


def test_an_internal_error_is_not_asked_again(serve: Callable[..., Client]) -> None:
    calls: list[int] = []

    def script(handler: BaseHTTPRequestHandler) -> None:
        calls.append(1)
        says(500, {})(handler)

    with pytest.raises(ServerFailed):
        ask(serve(script))
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"<html>", "is not JSON"),
        (b"", "is not JSON"),
        (b"[]", "the reply has choices = '\\[\\]'"),
        ({"choices": "none"}, "the type list was expected"),
        ({"choices": []}, "0 choices with indices \\[\\]; 1 were asked for"),
        ({"choices": [CHOICE, {**CHOICE, "index": 1}]}, "2 choices"),
        ({"choices": [{**CHOICE, "index": 1}]}, "indices \\[1\\]"),
        ({"choices": [{**CHOICE, "index": None}]}, "index = 'None'"),
        ({"choices": [{**CHOICE, "text": None}]}, "text = 'None'"),
        ({"choices": [{**CHOICE, "token_ids": None}]}, "token_ids is None"),
        ({"choices": [{**CHOICE, "token_ids": ["a"]}]}, "token_ids is \\['a'\\]"),
    ],
)
def test_an_answer_that_is_not_the_interfaces_is_malformed(
    serve: Callable[..., Client], reply: Any, words: str
) -> None:
    with pytest.raises(ReplyMalformed, match=words):
        ask(serve(says(200, reply)))


@pytest.mark.parametrize(
    ("logprobs", "words"),
    [
        (None, "has no logprobs"),
        ("none", "logprobs is str"),
        ({"tokens": ["token_id:0"], "token_logprobs": []}, "1 tokens, 0 token_logprobs"),
        ({"tokens": ["token_id:0"], "token_logprobs": ["low"]}, "a log-probability is 'low'"),
        ({"tokens": ["what"], "token_logprobs": [-1.0]}, "no tokenizer.json to find its id in"),
        ({"content": ["what"]}, "a record of logprobs is 'what'"),
    ],
)
def test_log_probabilities_that_cannot_be_read_are_malformed(
    serve: Callable[..., Client], logprobs: Any, words: str
) -> None:
    client = serve(says(200, {"choices": [{**CHOICE, "logprobs": logprobs}]}))
    with pytest.raises(ReplyMalformed, match=words):
        ask(client, request=Request((5,), 2, logprobs=3))


def test_an_answer_that_ends_early_is_cut_off(serve: Callable[..., Client]) -> None:
    whole = json.dumps({"choices": [CHOICE]}).encode()
    with pytest.raises(ReplyCutOff, match="ended 10 bytes early"):
        ask(serve(says(200, whole[:-10], length=len(whole))))


def test_a_connection_that_is_closed_without_a_word_is_cut_off(serve: Callable[..., Client]) -> None:
    def script(handler: BaseHTTPRequestHandler) -> None:
        handler.connection.shutdown(socket.SHUT_RDWR)

    with pytest.raises(ReplyCutOff):
        ask(serve(script))


def test_what_is_not_http_is_malformed(serve: Callable[..., Client]) -> None:
    with pytest.raises(ReplyMalformed, match="not HTTP"):
        ask(serve(lambda handler: handler.wfile.write(b"hello\r\n\r\n") and None))


@pytest.mark.parametrize(
    ("stream", "fault", "words"),
    [
        (event(finish_reason=None), ReplyCutOff, "after 1 parts without a finish_reason"),
        (event()[:-9], ReplyCutOff, "inside a line"),
        (event(finish_reason=None) + b"data: [DONE]\n\n", ReplyCutOff, "without a finish_reason"),
        (b"data: [DONE]\n\n", ReplyCutOff, "after 0 parts"),
        (event() + b"data: {\n\n", ReplyMalformed, "not JSON"),
        (event(index=1), ReplyMalformed, "index 1, and 1 were asked for"),
        (event() + b'data: {"error": {"message": "broken"}}\n\n', ServerFailed, "error 'broken'"),
    ],
)
def test_a_stream_that_breaks_off(
    serve: Callable[..., Client], stream: bytes, fault: type[Exception], words: str
) -> None:
    with pytest.raises(fault, match=words):
        ask(serve(says(200, stream)), streamed=True)


def test_a_sound_stream_has_comments_pieces_and_an_end(serve: Callable[..., Client]) -> None:
    assert ask(serve(says(200, event())), streamed=True)[0].tokens == (0, 1), "not all servers say [DONE]"
    first = event(text="a", token_ids=[0], finish_reason=None)
    last = event(text="b", token_ids=[1]).replace(b"\n", b"\r\n")
    closing = b'data: {"choices": [], "usage": {"prompt_tokens_details": {"cached_tokens": 3}}}\n\ndata: [DONE]\n\n'
    client = serve(says(200, b": still here\n\nevent: x\n" + first + last + closing))
    (done,) = ask(client, request=Request((5,), 2, stream=True))
    assert (done.tokens, done.text, done.pieces) == ((0, 1), "ab", ((0,), (1,)))
    assert (done.finish_reason, done.cached_tokens) == ("length", 3)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_slow_answer_is_given_up_after_the_time(serve: Callable[..., Client], streamed: bool) -> None:
    """Each byte comes soon after the one before: no single wait is long."""

    def script(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(200):
            handler.wfile.write(b": \n")
            handler.wfile.flush()
            time.sleep(0.02)

    started = time.monotonic()
    with pytest.raises(ServerTimedOut, match=r"not complete after 0\.5 s"):
        ask(serve(script, timeout=0.5), streamed=streamed)
    assert time.monotonic() - started < 3


def test_a_silent_server_is_given_up_after_the_time(serve: Callable[..., Client]) -> None:
    with pytest.raises(ServerTimedOut):
        ask(serve(lambda handler: time.sleep(1.5), timeout=0.3))


def test_nobody_there() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    with pytest.raises(ServerUnreachable, match=f"127.0.0.1:{port}"):
        ask(Client(f"http://127.0.0.1:{port}", 1.0))


def test_the_door_goes_on_after_each_of_them(serve: Callable[..., Client]) -> None:
    turns = iter([says(500, {}), says(200, b"{"), says(200, b"{}", length=9), says(200, {"choices": [CHOICE]})])
    door = Door(serve(lambda handler: next(turns)(handler)), "m", None)
    for fault in (ServerFailed, ReplyMalformed, ReplyCutOff):
        with pytest.raises(fault):
            door.complete(OFFER, REQUEST)
    assert door.complete(OFFER, REQUEST)[0].tokens == (0, 1)


# --- what is asked for, and not offered -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request((1,), top_k=3, temperature=1.0), "top_k: it was not asked"),
        (Request((1,), seed=3), "seed"),
        (Request((1,), stop_ids=(3,)), "stop ids"),
        (Request((1,), stop_strings=("a",)), "stop strings"),
        (Request((1,), stop_sequences=((3,),)), "the interface has none"),
        (Request((1,), logprobs=6), "6 log-probabilities a step: the server gives 5"),
    ],
)
def test_what_the_server_does_not_have_is_not_asked_of_it(request_: Request, words: str) -> None:
    with pytest.raises(NotOffered, match=words):
        Door(Client("http://127.0.0.1:1", 1.0), None, None).complete(OFFER, request_)


def test_tokens_are_found_by_id_by_bytes_and_by_string(serve: Callable[..., Client]) -> None:
    spelling = Spelling({"model": {"vocab": {"a": 0, "bc": 1, "bcd": 2}}, "decoder": {"type": "Fuse"}})
    content = [
        {"id": 2, "token": "?", "logprob": -0.1, "top_logprobs": [{"id": 0, "token": "?", "logprob": -1e30}]},
        {"token": "?", "bytes": [98, 99], "logprob": -0.2},
        {"token": "bcd", "bytes": None, "logprob": -0.3},
        {"token": "token_id:1", "bytes": [1], "logprob": -0.4},
    ]
    client = serve(says(200, {"choices": [{**CHOICE, "logprobs": {"content": content}}]}))
    offer = Offer(ids="logprobs", logprobs=5)
    (done,) = Door(client, "m", spelling).complete(offer, Request((5,), 4, logprobs=2))
    assert done.tokens == (2, 1, 2, 1)
    assert done.logprobs == ({0: float("-inf"), 2: -0.1}, {1: -0.2}, {2: -0.3}, {1: -0.4})


@pytest.mark.parametrize(
    ("count", "reason", "strings", "fault"),
    [
        (2, "length", (), None),
        (3, "stop", (), None),  # a stop id, which may have no record
        (3, "length", (), NotOffered),
        (3, "stop", ("b",), NotOffered),
        (4, "stop", (), NotOffered),
        (1, "stop", (), ReplyMalformed),
    ],
)
def test_the_tokens_of_a_stream_are_counted(
    serve: Callable[..., Client], count: int, reason: str, strings: tuple[str, ...], fault: type[Exception] | None
) -> None:
    """llama.cpp's server sends nothing for a token that holds a part of a character."""
    content = [{"id": token, "token": "?", "logprob": -0.1} for token in (0, 1)]
    body = {"choices": [{**CHOICE, "logprobs": {"content": content}, "finish_reason": reason}]}
    usage = f"data: {json.dumps({**body, 'usage': {'completion_tokens': count}})}\n\n"
    client = serve(says(200, usage.encode()))
    offer = Offer(ids="logprobs", logprobs=5, streams_stops=True).having("stop_strings", "stream")
    request = Request((5,), 9, stop_strings=strings, stream=not strings)
    if fault is None:
        assert ask(client, offer, request)[0].tokens == (0, 1)
    else:
        with pytest.raises(fault):
            ask(client, offer, request)


# --- the server's process ---------------------------------------------------------------------------------------------

LISTENER = (
    "import sys, time, subprocess, http.server\n"
    "worker = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    "print('worker', worker.pid, flush=True)\n"
    "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()\n"
)


def command(code: str, tmp_path: Path) -> str:
    path = tmp_path / "server.py"
    path.write_text(code)
    return f"{sys.executable} {path} {{port}} {{checkpoint}}"


def gone(pid: int) -> bool:
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def worker_of(server: ServerProcess) -> int:
    for _ in range(100):
        if server._tail and server._tail[0].startswith("worker"):
            return int(server._tail[0].split()[1])
        time.sleep(0.05)
    raise AssertionError("the server started no worker")


def test_a_server_is_stopped_with_its_workers(tmp_path: Path) -> None:
    server = ServerProcess(command(LISTENER, tmp_path), tmp_path, None, 1.0)
    server.wait(["/"], 20)
    worker = worker_of(server)
    assert server.alive
    server.stop()
    assert not server.alive
    assert gone(worker)
    server.stop()


def test_a_server_ends_with_whoever_started_it(tmp_path: Path) -> None:
    """Killed, a process cannot clean up; the server's keeper does it."""
    code = (
        "import sys, time; from pathlib import Path; from lmconform.engines._openai_http_process import ServerProcess\n"
        f"server = ServerProcess({command(LISTENER, tmp_path)!r}, Path('x'), None, 1.0)\n"
        "server.wait(['/'], 20)\n"
        "print(server._popen.pid, server._tail[0].split()[1], flush=True); time.sleep(60)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    keeper, worker = map(int, owner.stdout.readline().split())
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    assert gone(keeper)
    assert gone(worker)


@pytest.mark.parametrize(
    ("code", "seconds", "fault", "words"),
    [
        ("import sys; print('Error: head_dim 5'); sys.exit(3)", 30, Refused, "exit code 3.*head_dim 5"),
        ("import os; os.kill(os.getpid(), 9)", 30, ServerFailed, "ended by SIGKILL"),
        ("import time; time.sleep(30)", 1, ServerTimedOut, "not ready after 1 s .*start_timeout="),
    ],
)
def test_a_server_that_does_not_come_up(
    tmp_path: Path, code: str, seconds: float, fault: type[Exception], words: str
) -> None:
    server = ServerProcess(command(code, tmp_path), tmp_path, None, 1.0)
    try:
        with pytest.raises(fault, match=words):
            server.wait(["/health"], seconds)
    finally:
        server.stop()


def test_a_program_that_does_not_exist(tmp_path: Path) -> None:
    server = ServerProcess("/no/such/server {port}", tmp_path, None, 1.0)
    try:
        with pytest.raises(Refused, match="No such file"):
            server.wait(["/health"], 5)
    finally:
        server.stop()


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "Either command= or url="),
        ({"command": "a", "url": "http://127.0.0.1"}, "Either command= or url="),
        ({"url": "http://192.0.2.1:80"}, "on another machine, 192.0.2.1.*remote=allowed"),
        ({"url": "http://example.invalid"}, "another machine"),
        ({"url": "127.0.0.1:80"}, "is no URL"),
        ({"url": "ftp://127.0.0.1"}, "is no URL"),
        ({"command": "a", "format": "onnx"}, "format=onnx"),
        ({"command": "a", "servers": "0"}, "servers=0"),
        ({"command": "a", "speed": "high"}, "There is no option 'speed'"),
        ({"command": "/no/such/server"}, "cannot be asked what it offers.*No such file"),
    ],
)
def test_options_that_cannot_be(options: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OpenAIHTTP(**options)


def test_a_url_nobody_answers_at_is_an_error_of_the_start() -> None:
    with pytest.raises(ValueError, match="no connection"):
        OpenAIHTTP(url="http://127.0.0.1:9", timeout="1")


def test_a_server_that_does_not_say_what_it_has(serve: Callable[..., Client]) -> None:
    client = serve(says(200, {}))
    door = opened(client, None, None)
    assert (door.model, door.max_length, door.owner) == (None, None, "")

"""The two ways to an engine: a process of its own, or a dispatcher in this one. Both exchange one line for a reply."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from . import protocol
from .dispatch import Dispatcher
from .fields import Violation

STDERR_LINES = 40
LONGEST_STDERR_LINE = 2000
CHUNK = 1 << 20
GRACE_SECONDS = 2.0
"""How long a process may take to end after it closed the wire."""
LOOK_SECONDS = 0.5
"""While waiting, how often to look whether the process is still there."""

FREQUENT = ("score", "score_batch", "extend", "generate")
"""Calls that an engine in this process answers without the words of the wire, which would cost it a tenth more."""


class Gone(Exception):
    """The process closed its end of the wire; the message says how it ended."""


class Late(Exception):
    """The deadline passed before the reply was complete."""


class Process:
    """An engine's host in a session and process group of its own, reached over its stdin and stdout."""

    cause: BaseException | None = None

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: str) -> None:
        """Start ``command`` in ``folder``. Raises OSError if that is not possible."""
        self.alive = True
        self.bytes_sent = 0
        self.bytes_received = 0
        self._how = ""
        self._popen = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=dict(environment),
            cwd=folder,
            start_new_session=True,
        )
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._stdin, self._stdout = self._popen.stdin.fileno(), self._popen.stdout.fileno()
        os.set_blocking(self._stdin, False)
        os.set_blocking(self._stdout, False)
        self._received = bytearray()
        self._tail: collections.deque[str] = collections.deque(maxlen=STDERR_LINES)
        self._drain = threading.Thread(target=self._drain_stderr, name="engine-stderr", daemon=True)
        self._drain.start()

    def written(self, number: int, call: str, arguments: Mapping[str, Any]) -> bytes:
        """A request as ``exchange`` takes it."""
        return protocol.request_bytes(number, call, arguments)

    def exchange(self, message: Any, number: int, call: str, limit: float) -> tuple[protocol.Reply, bytearray]:
        """Send a request and return its reply and the bytes that follow it. Raises Gone, Late or Violation."""
        deadline = time.monotonic() + limit
        self.send(message, deadline)
        reply = protocol.parse_reply(self.read_line(deadline), number, call)
        return reply, self.read(reply.size, deadline)

    def stderr_tail(self) -> str:
        """The last lines that the engine wrote to stderr or stdout."""
        return "\n".join(self._tail)

    def end(self, grace: float = 0.0) -> str:
        """End the process and its group, after ``grace`` seconds to leave by itself. Return how it ended."""
        if not self.alive:
            return self._how
        self.alive = False
        killed = False
        try:
            self._popen.wait(grace)
        except subprocess.TimeoutExpired:
            killed = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)  # also workers that outlive their parent
        code = self._popen.wait()
        self._drain.join(1.0)
        for stream in (self._popen.stdin, self._popen.stdout):
            if stream is not None:
                stream.close()
        if killed:
            self._how = "it closed the wire without ending, and was killed"
        else:
            self._how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return self._how

    def send(self, data: bytes, deadline: float) -> None:
        """Write all of ``data``. Raises Gone or Late."""
        left = memoryview(data)
        while left:
            self._wait(self._stdin, select.POLLOUT, deadline)
            try:
                sent = os.write(self._stdin, left)
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise Gone(self.end(GRACE_SECONDS)) from None
            self.bytes_sent += sent
            left = left[sent:]

    def read_line(self, deadline: float) -> bytes:
        """The next line, without its end. Raises Gone, Late or Violation."""
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            if searched > protocol.MAX_LINE:
                raise Violation(f"{searched} bytes came without the end of a line: {bytes(self._received[:80])!r}...")
            self._receive(deadline)
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line

    def read(self, size: int, deadline: float) -> bytearray:
        """The next ``size`` bytes. Raises Gone or Late."""
        while len(self._received) < size:
            self._receive(deadline)
        data = self._received[:size]
        del self._received[:size]
        return data

    def overheard(self, seconds: float) -> bytes:
        """What the process says without being asked, in so many seconds."""
        with contextlib.suppress(Late, Gone):
            self.read(1 << 62, time.monotonic() + seconds)
        return bytes(self._received)

    def close_input(self) -> None:
        """Let the process find the end of its input."""
        assert self._popen.stdin is not None
        self._popen.stdin.close()

    def _receive(self, deadline: float) -> None:
        self._wait(self._stdout, select.POLLIN, deadline)
        try:
            chunk = os.read(self._stdout, CHUNK)
        except BlockingIOError:
            return
        if not chunk:
            raise Gone(self.end(GRACE_SECONDS))
        self.bytes_received += len(chunk)
        self._received += chunk

    def _wait(self, descriptor: int, event: int, deadline: float) -> None:
        poller = select.poll()
        poller.register(descriptor, event)
        while not poller.poll(max(0.0, min(deadline - time.monotonic(), LOOK_SECONDS)) * 1000):
            if time.monotonic() >= deadline:
                raise Late
            if self._popen.poll() is not None:
                raise Gone(self.end())  # a worker that it left behind holds the wire open

    def _drain_stderr(self) -> None:
        stream = self._popen.stderr
        assert stream is not None
        rest = ""
        with stream:
            while chunk := os.read(stream.fileno(), 1 << 16):
                # Progress bars return the carriage instead of ending the line.
                *lines, rest = (rest + chunk.decode("utf-8", "replace")).replace("\r", "\n").split("\n")
                self._tail.extend(line[:LONGEST_STDERR_LINE] for line in lines if line.strip())
                rest = rest[:LONGEST_STDERR_LINE]
        if rest.strip():
            self._tail.append(rest)


class InProcess:
    """A dispatcher in this process, for a debugger: no pipe, no time limit, and the adapter's own exception."""

    bytes_sent = 0
    bytes_received = 0

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.alive = True
        self._dispatcher = dispatcher

    @property
    def cause(self) -> BaseException | None:
        """What the adapter raised in the last call."""
        return self._dispatcher.error

    def written(self, number: int, call: str, arguments: Mapping[str, Any]) -> Any:
        """A request as ``exchange`` takes it: the arguments themselves, or bytes."""
        return arguments if call in FREQUENT else protocol.request_bytes(number, call, arguments)

    def exchange(self, message: Any, number: int, call: str, limit: float) -> tuple[protocol.Reply, bytearray]:
        """Answer a request at once; ``limit`` does not apply."""
        if call in FREQUENT:
            reply, rest = self._dispatcher.reply(call, message), bytearray()
        else:
            wire = io.BytesIO(message)
            first, *payload = self._dispatcher.answer(wire.readline(), wire.read)
            reply, rest = protocol.parse_reply(bytes(first), number, call), bytearray(b"".join(payload))
        if isinstance(self.cause, KeyboardInterrupt):
            raise self.cause
        return reply, rest

    def stderr_tail(self) -> str:
        """Nothing: the engine writes to this process's stderr."""
        return ""

    def end(self, grace: float = 0.0) -> str:
        """Forget the engine."""
        self.alive = False
        return "closed"

"""The server that ``openai-http`` starts: a process group of its own that ends with us, whatever ends us.

Between us and the server stands a keeper, a few lines of Python. It leads the group and holds the end of a pipe of
ours. When the pipe closes, because we are done or because we were killed, it kills the group.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import http.client
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from lmconform.adapter import Refused
from lmconform.engines._openai_http_client import Client, ServerFailed, ServerTimedOut

HOST = "127.0.0.1"
TERMINATE_SECONDS = 5.0
"""How long a server may take to end by itself."""
LOOK_SECONDS = 0.1
TAIL_LINES = 40
TELLING = ("error", "assert")
"""Words of the lines that say why a program ended, before what it prints on its way out."""

KEEPER = """
import os, signal, subprocess, sys, threading
signal.signal(signal.SIGTERM, lambda *_: None)
def watch():
    while os.read(0, 1): pass
    os.killpg(0, signal.SIGKILL)
try:
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
except OSError as error:
    print(error); sys.exit(127)
threading.Thread(target=watch, daemon=True).start()
code = child.wait()
sys.stdout.flush()
os._exit(code if code >= 0 else 128 - code)
"""
"""Ends as its child ended; a signal as a shell would say it, 128 and its number."""


class ServerProcess:
    """One server, started for one checkpoint."""

    def __init__(self, command: str, checkpoint: Path, key: str | None, timeout: float) -> None:
        """Start ``command`` with ``{checkpoint}`` and ``{port}`` filled in. Its port may not be ready yet."""
        self.port = _free_port()
        self.command = filled(command, checkpoint, self.port)
        self.client = Client(f"http://{HOST}:{self.port}", timeout, key)
        self._tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        self._popen = subprocess.Popen(
            [sys.executable, "-c", KEEPER, *self.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._drain, name="server-output", daemon=True)
        self._reader.start()
        atexit.register(self.stop)

    @property
    def alive(self) -> bool:
        """Whether the server is running."""
        return self._popen.poll() is None

    def running_on(self) -> bool:
        """Whether the server still runs after what went wrong; a process takes a moment to end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(LOOK_SECONDS)
        return self.alive

    def wait(self, paths: Sequence[str], seconds: float) -> None:
        """Return when GET of each of ``paths`` has the status 200, or 404 where there are several.

        Raises:
            Refused: the server ended by itself.
            ServerFailed: a signal ended it.
            ServerTimedOut: it is not ready after so many seconds.
        """
        deadline = time.monotonic() + seconds
        good = (200, 404) if len(paths) > 1 else (200,)
        while not all(self._status(path) in good for path in paths):
            if not self.alive:
                raise self.ended()
            if time.monotonic() > deadline:
                raise ServerTimedOut(
                    f"{self.client.url} was not ready after {seconds:g} s (GET {' and '.join(paths)}); allow more with"
                    f" start_timeout=, or name what to ask with ready=. The command was {shlex.join(self.command)}."
                    f"{self.last_words()}"
                )
            time.sleep(LOOK_SECONDS)

    def ended(self) -> Exception:
        """What to raise of a server that ended. By itself, before it is ready, it declines its checkpoint."""
        self._reader.join(1.0)
        code = self._popen.wait()
        code = 128 - code if code < 0 else code  # the keeper itself was killed
        told = f"The server {shlex.join(self.command)} ended"
        if code > 128 and code - 128 in set(signal.Signals):
            return ServerFailed(f"{told} by {signal.Signals(code - 128).name}.{self.last_words()}")
        return Refused(f"{told} with exit code {code}.{self.last_words()}")

    def last_words(self) -> str:
        """A sentence with the last line that the server wrote, the last that names an error if there is one."""
        lines = [line for line in self._tail if line.strip()]
        telling = [line for line in lines if any(word in line.lower() for word in TELLING)] or lines
        return f" Its last words: {telling[-1].strip()[:1000]}" if telling else ""

    def stop(self) -> None:
        """End the server and its whole group. Stopping twice is no error."""
        atexit.unregister(self.stop)
        if self._popen.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(TERMINATE_SECONDS)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)  # also workers that outlive the server
        self._popen.wait()
        self._reader.join(1.0)
        for stream in (self._popen.stdin, self._popen.stdout):
            if stream is not None:
                stream.close()

    def _status(self, path: str) -> int:
        try:
            return self.client.status(path, 5.0)
        except (OSError, http.client.HTTPException):
            return 0

    def _drain(self) -> None:
        stream = self._popen.stdout
        assert stream is not None
        with contextlib.suppress(ValueError):  # closed while it is read, at the very end
            for line in stream:
                self._tail.append(line.decode("utf-8", "replace").rstrip()[:2000])


def filled(command: str, checkpoint: Path, port: int) -> list[str]:
    """The command's words, with the checkpoint and the port in their places."""
    words = shlex.split(command)
    return [word.replace("{checkpoint}", str(checkpoint)).replace("{port}", str(port)) for word in words]


def _free_port() -> int:
    with socket.socket() as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])

"""HTTP as ``openai-http`` needs it: one request a connection, a deadline for all of it, a name for all that goes wrong.

The standard library alone: a request is a POST of JSON and an answer a line or some lines of it, and what matters here
is to tell one failure from another, which needs the socket itself.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from lmconform.adapter import Refused

REFUSALS = (400, 404, 405, 413, 414, 415, 422)
"""Answers that decline the input. Those that ask to come back later, or for a key, are none."""
BUSY = (429, 503)
TRIES = 4
"""How often a busy server is asked that names a time to come back."""
SHOWN = 400
"""Characters of a request or a reply in a message."""
CHUNK = 1 << 16


class ServerFault(Exception):
    """The server gave no usable answer. The message names the server, the request and the reply."""


class ServerUnreachable(ServerFault):
    """Nothing accepts connections there, or the connection broke before the request was sent."""


class ServerTimedOut(ServerFault):
    """The answer was not complete in time."""


class ServerFailed(ServerFault):
    """A status that says that the server is at fault, or is busy, or wants a key."""


class ReplyCutOff(ServerFault):
    """The connection ended before the answer did."""


class ReplyMalformed(ServerFault):
    """The answer is complete, and not what the interface says."""


class Client:
    """A server at ``url``. Safe for several threads: each request has a connection of its own."""

    def __init__(self, url: str, timeout: float, key: str | None = None) -> None:
        """``timeout``: seconds for a whole answer. ``key`` is sent as a bearer token."""
        parts = urlsplit(url)
        self.url, self.timeout = url.rstrip("/"), timeout
        self._host, self._port = parts.hostname or "", parts.port
        self._prefix = parts.path.rstrip("/")
        self._secure = parts.scheme == "https"
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    def get(self, path: str) -> Any:
        """The JSON at ``path``. Raises Refused or a ServerFault."""
        return _Call(self, "GET", path, None).whole()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON that answers ``body``. Raises Refused or a ServerFault."""
        return _Call(self, "POST", path, body).whole()

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[Any]:
        """The JSON of each server-sent event that answers ``body``, without the closing ``[DONE]``."""
        return _Call(self, "POST", path, body).events()

    def status(self, path: str, timeout: float) -> int:
        """The status that GET ``path`` has, whatever it says. Raises OSError or http.client.HTTPException."""
        connection = self.connection(timeout)
        try:
            connection.request("GET", self._prefix + path, headers=self._headers)
            return connection.getresponse().status
        finally:
            connection.close()

    def connection(self, timeout: float) -> http.client.HTTPConnection:
        """A connection that is not yet open."""
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=timeout)

    def send(self, connection: http.client.HTTPConnection, method: str, path: str, payload: bytes | None) -> None:
        """Send one request over an open connection."""
        connection.request(method, self._prefix + path, payload, self._headers)


class _Call:
    """One request and its answer."""

    def __init__(self, client: Client, method: str, path: str, body: dict[str, Any] | None) -> None:
        self.client, self.method, self.path = client, method, path
        self.payload = None if body is None else json.dumps(body).encode()
        self.deadline = time.monotonic() + client.timeout

    def whole(self) -> Any:
        """The answer as one JSON value."""
        data = b"".join(self._answer())
        return self._parsed(data)

    def events(self) -> Iterator[Any]:
        """The events of the answer as they come, up to ``[DONE]`` or, since some servers do not say it, to the end."""
        rest = b""
        for chunk in self._answer():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                name, _, value = line.strip().partition(b":")
                if name != b"data":
                    continue  # a comment, the name of an event, or the empty line after one
                if value.strip() == b"[DONE]":
                    return
                event = self._parsed(value)
                if isinstance(event, dict) and event.get("error") is not None:
                    raise ServerFailed(self._says(f"the stream broke off with the error {_message(event)!r}"))
                yield event
        if rest.strip():
            raise ReplyCutOff(self._says(f"the stream ended inside a line: {_shown(rest)}"))

    def _answer(self) -> Iterator[bytes]:
        """The body of the answer in the portions in which it comes."""
        connection = self.client.connection(self._left())
        try:
            response, socket = self._response(connection)
            while True:
                socket.settimeout(self._left())
                chunk = response.read1(CHUNK)
                if not chunk:
                    break
                yield chunk
            if response.length:
                raise ReplyCutOff(self._says(f"the answer ended {response.length} bytes early"))
        except TimeoutError:
            raise ServerTimedOut(self._late()) from None
        except http.client.IncompleteRead:
            raise ReplyCutOff(self._says("the answer ended in the middle of a chunk")) from None
        except http.client.RemoteDisconnected:
            raise ReplyCutOff(self._says("the connection was closed without an answer")) from None
        except http.client.HTTPException as error:
            raise ReplyMalformed(self._says(f"the answer is not HTTP: {error!r}")) from None
        except OSError as error:
            raise ReplyCutOff(self._says(f"the connection broke: {error}")) from None
        finally:
            connection.close()

    def _response(self, connection: http.client.HTTPConnection) -> tuple[http.client.HTTPResponse, Any]:
        """The answer with status 200, and its socket, asking again as long as a busy server says when."""
        for left in reversed(range(TRIES)):
            try:
                connection.connect()
            except TimeoutError:
                raise
            except OSError as error:
                raise ServerUnreachable(self._says(f"no connection: {error}")) from None
            socket = connection.sock  # the connection lets go of it where the answer is to close it
            socket.settimeout(self._left())
            self.client.send(connection, self.method, self.path, self.payload)
            response = connection.getresponse()
            if response.status == 200:
                return response, socket
            again = _seconds(response.getheader("Retry-After")) if response.status in BUSY else None
            data = response.read()
            connection.close()
            if again is None or left == 0 or time.monotonic() + again > self.deadline:
                break
            time.sleep(again)
        raise self._declined(response.status, data)

    def _declined(self, status: int, data: bytes) -> Exception:
        try:
            message = _message(json.loads(data))
        except ValueError:
            message = _shown(data)
        if status in REFUSALS:
            return Refused(f"{self.client.url} answered {self.method} {self.path} with status {status}: {message}")
        return ServerFailed(self._says(f"status {status}: {message}"))

    def _parsed(self, data: bytes) -> Any:
        try:
            return json.loads(data)
        except ValueError as error:
            raise ReplyMalformed(self._says(f"the answer is not JSON ({error}): {_shown(data)}")) from None

    def _left(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise ServerTimedOut(self._late())
        return left

    def _late(self) -> str:
        return self._says(f"the answer was not complete after {self.client.timeout:g} s; allow more with timeout=")

    def _says(self, what: str) -> str:
        asked = "" if self.payload is None else f" The request was {_shown(self.payload)}."
        return f"{self.client.url}, {self.method} {self.path}: {what}.{asked}"


def _seconds(header: str | None) -> float | None:
    """What a Retry-After says, in seconds; None for none, or for a date."""
    return float(header) if header is not None and header.strip().isdigit() else None


def _message(body: Any) -> str:
    """What an error's body says: servers put it in ``error``, in ``error.message``, in ``detail`` or in ``message``."""
    if isinstance(body, dict):
        for name in ("error", "detail", "message"):
            if body.get(name):
                return _message(body[name])
    return body if isinstance(body, str) else _shown(json.dumps(body, ensure_ascii=False).encode())


def _shown(data: bytes) -> str:
    """The beginning of a request or reply, as text."""
    text = data[: 4 * SHOWN].decode("utf-8", "replace")
    return text[:SHOWN] + ("..." if len(text) > SHOWN else "") if text.strip() else "empty"

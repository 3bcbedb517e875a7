"""The engine's side of the wire: hosts an adapter in the engine's own environment and answers requests.

Standard library and NumPy alone, Python 3.10 or newer. By hand:

    echo '{"id": 1, "call": "hello", "arguments": {"protocol": 1}}' | python -m lmconform.transport.host my.py:MyEngine
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import BinaryIO

from .dispatch import Dispatcher
from .locate import construct

CLOSING_SECONDS = 5.0
"""How long an adapter may take to end after whoever asked is gone."""


def take_wire() -> tuple[BinaryIO, BinaryIO]:
    """Return stdin and stdout for the wire, and leave the engine an empty stdin and stderr as its stdout.

    Done on file descriptors, so that an engine that prints, from C too, cannot write into a message.
    """
    reader, writer = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)
    return reader, writer


def end_with(reader: BinaryIO) -> None:
    """End this process and its workers when the other end of the wire is gone, even while an adapter's call hangs.

    A process that leads no session was started by hand and shares its group with others; it is left alone.
    """
    if os.getsid(0) != os.getpid():
        return
    poller = select.poll()
    poller.register(reader, 0)  # no event but the hang-up

    def watch() -> None:
        poller.poll()
        time.sleep(CLOSING_SECONDS)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="wire-watch", daemon=True).start()


def serve(dispatcher: Dispatcher, reader: BinaryIO, writer: BinaryIO) -> None:
    """Answer one request after the other until ``bye`` or the end of the input."""
    for line in reader:
        for buffer in dispatcher.answer(line, reader.read):
            writer.write(buffer)
        writer.flush()
        if dispatcher.finished:
            return
    dispatcher.close()  # whoever asked is gone; an adapter may have a server of its own to end


def main(arguments: Sequence[str] | None = None) -> int:
    """Host the adapter that the command line names. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="lmconform.transport.host", description="Host an adapter on stdin and stdout."
    )
    parser.add_argument("target", help="module:Class or path/to/file.py:Class")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="for the constructor")
    given = parser.parse_args(arguments)
    options = {}
    for option in given.option:
        key, equals, value = option.partition("=")
        if not equals or not key:
            parser.error(f"--option {option!r} is not of the form KEY=VALUE")
        options[key] = value
    reader, writer = take_wire()
    end_with(reader)
    faulthandler.enable(all_threads=False)  # the one that died
    try:
        serve(Dispatcher(lambda: construct(given.target, options)), reader, writer)
    except BrokenPipeError:
        # Whoever asked is gone. Without this, closing the writer at exit would fail a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

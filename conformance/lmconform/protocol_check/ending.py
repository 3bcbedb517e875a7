"""Rules of the end of a conversation, and of all replies together."""

from __future__ import annotations

import time

from lmconform.protocol_check.rules import Broken
from lmconform.protocol_check.talk import Talk


def replies(talk: Talk) -> None:
    """Every reply so far is by schema.json: its fields, the kind of an error, its arrays and their bytes."""
    if talk.violations:
        raise Broken("replies by schema.json", f"{len(talk.violations)} others, first: {talk.violations[0]}")


def bye(talk: Talk) -> None:
    """bye is answered, and ends the program."""
    talk.greet()
    talk.ask("bye").result()
    _ends(talk, "after bye")


def end_of_input(talk: Talk) -> None:
    """The end of its input ends the program."""
    talk.greet()
    talk.process.close_input()
    _ends(talk, "at the end of its input")


def end_within_a_message(talk: Talk) -> None:
    """The end of its input within a message ends the program too."""
    for half in (b'{"id": 1, "ca', b'{"id": 1, "call": "bye", "arguments": {}, "bytes": 100}\n123'):
        talk.greet()
        talk.process.send(half, time.monotonic() + talk.limit)
        talk.process.close_input()
        _ends(talk, "within a message")


def _ends(talk: Talk, when: str) -> None:
    how = talk.process.end(grace=talk.limit)
    talk.end()
    if "killed" in how:
        raise Broken(f"the end of the program {when}", f"it was still there {talk.limit:g} s later")

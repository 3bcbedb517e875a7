"""``lmconform measure``: from what the user asked for to a printed sheet."""

from __future__ import annotations

import signal
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rich.console import Console

from lmconform.adapter import NotOffered, Refused
from lmconform.measure import text
from lmconform.measure.data_sheet import SECTIONS, Part, Way, parts
from lmconform.measure.desk import Desk
from lmconform.report.results import json_text
from lmconform.suite.preflight import AdapterOff
from lmconform.transport.client import Connection, EngineFault, EngineSpec, StartError


class CannotMeasure(Exception):
    """Nothing could be measured; the message says why, and what to do."""


@dataclass(frozen=True)
class Wish:
    """What the user asked for."""

    engine: str
    command: str
    through: str
    only: str
    regimes: bool
    whole: bool
    json: Path | None
    options: list[str]
    python: Path | None
    in_process: bool
    time_limit: float


def run(wish: Wish) -> int:
    """Measure and print; 0 if nothing differs, 1 if something does. Raises CannotMeasure."""
    ways = [Way(name) for name in _names(wish.through, list(Way), "--through")]
    sections = _names(wish.only, SECTIONS, "--only")
    if not wish.time_limit > 0:
        raise CannotMeasure(f"--time-limit is {wish.time_limit:g}; a number above 0 was expected.")
    _check_writable(wish.json)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: end the engine too
    console = Console(highlight=False)
    with _desk(wish) as desk:
        text.heading(console, desk.connection.description)
        found = _measured(console, desk, ways, sections, wish)
    if not found:
        raise CannotMeasure("The engine offers none of the ways and sections that were asked for.")
    if wish.json is not None:
        wish.json.write_text(json_text(_content(desk, found)), encoding="utf-8")
    text.ending(console, found)
    return int(any(part.unsound for part in found))


def _measured(console: Console, desk: Desk, ways: Sequence[Way], sections: Collection[str], wish: Wish) -> list[Part]:
    """All parts, each printed as soon as it is there; what was read before an interruption is kept."""
    found: list[Part] = []
    todo = parts(desk, ways, sections, wish.regimes)
    try:
        while (one := _next(console, todo)) is not None:
            first = one.regime is None and all((one.way is None) != (part.way is None) for part in found)
            first = first or (bool(one.operator) and not found)
            text.part(console, one, wish.whole or first)
            found.append(one)
    except KeyboardInterrupt:
        console.print("Interrupted: what follows is what had been read.")
    except EngineFault as fault:
        console.print(f"The engine broke down, and nothing more was read: {fault}", markup=False)
        if not found:
            raise CannotMeasure("\n".join(filter(None, (str(fault), fault.detail)))) from None
    except AdapterOff as error:
        raise CannotMeasure(f"The adapter is off, so no mechanism can be read: {error}") from None
    except (NotOffered, Refused) as error:
        raise CannotMeasure(f"No instrument could be loaded: {error}") from None
    return found


def _next(console: Console, todo: Iterator[Part]) -> Part | None:
    with console.status("measuring"):
        return next(todo, None)


@contextmanager
def _desk(wish: Wish) -> Iterator[Desk]:
    try:
        spec = EngineSpec.named(
            wish.engine, wish.command, python=wish.python, options=wish.options, in_process=wish.in_process
        )
        connection = Connection.start(spec, time_limit=wish.time_limit)
    except (StartError, EngineFault) as error:
        raise CannotMeasure("\n".join(filter(None, (str(error), error.detail)))) from None
    except ValueError as error:
        raise CannotMeasure(str(error)) from None
    with Desk(connection) as desk:
        yield desk


def _names(asked: str, known: Sequence[str], option: str) -> list[str]:
    """The names in a list with commas, in the order of ``known``; all of them if it is empty."""
    names = [name.strip() for name in asked.split(",") if name.strip()]
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, 1)
            meant = f" Did you mean {near[0]}?" if near else ""
            raise CannotMeasure(f"{option} does not know {name!r}.{meant} It takes: {', '.join(known)}.")
    return [name for name in known if name in names or not names]


def _check_writable(path: Path | None) -> None:
    try:
        if path is not None:
            path.open("a", encoding="utf-8").close()  # what an earlier run wrote stays until there is something new
    except OSError as error:
        raise CannotMeasure(f"{path} cannot be written: {error.strerror}. Give another file to --json.") from None


def _content(desk: Desk, found: Sequence[Part]) -> dict[str, Any]:
    engine = desk.connection.description
    return {
        "engine": {"name": engine.name, "version": engine.version, "precision": asdict(engine.precision)},
        "parts": [
            {
                "way": part.way,
                "regime": part.regime,
                "operator": part.operator,
                "lines": [asdict(entry) for entry in part.entries],
            }
            for part in found
        ],
    }

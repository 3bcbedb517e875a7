"""The list of engines that a matrix judges: a TOML file, one table an engine."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

OURS = Path(__file__).parents[1] / "engines" / "matrix.toml"
"""The engines that come with an adapter, in the ways in which they are worth judging."""
PYTHON, HERE = "{python}", "{here}"
"""In an option: the interpreter of the engine's environment, and the folder of the list."""


class Unusable(ValueError):
    """The list cannot be used. The message names the culprit and the way out."""


@dataclass(frozen=True)
class Entry:
    """One engine, in one way of running it."""

    name: str
    """What its row is called, and its folder in the report."""
    engine: str
    """What ``lmconform check`` is given."""
    options: Mapping[str, str] = field(default_factory=dict)
    requirements: Sequence[Path] = ()
    """Files for pip, which make its environment; without any it runs in the suite's own."""
    without_dependencies: Sequence[Path] = ()
    """Files for ``pip install --no-deps``, after the others: packages that ask for more than they need here."""
    known: Path | None = None
    """Its known failures, each with a reason."""
    time_limit: float = 60.0
    """Seconds for one call."""
    minutes: float | None = None
    """For the whole run; None for the profile's."""
    folder: Path = OURS.parent
    """That of the list."""

    @property
    def serves(self) -> bool:
        """Whether the environment is a server's, which an option starts, and the adapter runs in the suite's own."""
        return any(PYTHON in value for value in self.options.values())

    def arguments(self, python: Path | None) -> list[str]:
        """What ``lmconform check`` is given for it; ``python`` is the interpreter of its environment."""
        found = [self.engine, "--time-limit", str(self.time_limit)]
        for key, value in self.options.items():
            found += ["--option", f"{key}={value.replace(PYTHON, str(python)).replace(HERE, str(self.folder))}"]
        if self.minutes:
            found += ["--minutes", str(self.minutes)]
        if python and not self.serves:
            found += ["--python", str(python)]
        return [*found, "--known", str(self.known)] if self.known else found


def read(path: Path = OURS) -> dict[str, Entry]:
    """The entries of a list by name, in its order. Raises Unusable."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Unusable(f"The list of engines {path} cannot be read: {error.strerror}. Give another file.") from error
    except ValueError as error:  # of TOML, or of UTF-8
        raise Unusable(f"{path} is no TOML: {error}. {OURS} is an example.") from error
    if not content:
        raise Unusable(f"{path} names no engine. {OURS} is an example.")
    return {name: _entry(path, name, value) for name, value in content.items()}


def chosen(entries: Mapping[str, Entry], names: Sequence[str]) -> list[Entry]:
    """The named entries, or all. Raises Unusable with the nearest name."""
    for name in names:
        if name not in entries:
            near = get_close_matches(name, entries, n=2, cutoff=0.4)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise Unusable(f"There is no entry {name!r}.{hint} `lmconform matrix --list` shows all of them.")
    return [entry for name, entry in entries.items() if not names or name in names]


KEYS = ("engine", "options", "requirements", "without_dependencies", "known", "time_limit", "minutes")


def _entry(path: Path, name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or not isinstance(value.get("engine"), str):
        raise Unusable(f'{path}: {name} does not say its engine. Write [{name}] and below it engine = "...".')
    if Path(name).name != name or name in ("", ".", ".."):
        raise Unusable(f"{path}: the entry {name!r} cannot be the name of a folder, which its report needs.")
    if unknown := [key for key in value if key not in KEYS]:
        raise Unusable(f"{path}: {name} has a key {unknown[0]!r} that means nothing. Known are: {', '.join(KEYS)}.")
    options = value.get("options", {})
    if not isinstance(options, dict):
        raise Unusable(f"{path}: the options of {name} are no table. Write options = {{ dtype = 'bfloat16' }}.")
    for key, unit in (("time_limit", "seconds"), ("minutes", "minutes")):
        given = value.get(key, 1)
        if not isinstance(given, int | float) or not given > 0:
            raise Unusable(f"{path}: the {key} of {name} is {given!r}; a number of {unit} above 0 was expected.")
    known = value.get("known")
    return Entry(
        name,
        value["engine"],
        {key: str(text) for key, text in options.items()},
        [_file(path, name, file) for file in value.get("requirements", [])],
        [_file(path, name, file) for file in value.get("without_dependencies", [])],
        None if known is None else _file(path, name, known),
        float(value.get("time_limit", Entry.time_limit)),
        value.get("minutes"),
        path.parent.resolve(),
    )


def _file(path: Path, name: str, file: Any) -> Path:
    """A file that an entry names, seen from the list's folder."""
    found = path.parent.resolve() / str(file)
    if not found.is_file():
        raise Unusable(f"{path}: {name} names the file {file}, and there is no {found}.")
    return found

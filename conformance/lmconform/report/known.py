"""The list of an engine's known failures: a TOML file that a person keeps, and that ``--known`` holds a run to."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lmconform.spec import requirements

TODO = "TODO"
"""A reason that begins with it was not given by a person yet."""
HEAD = """\
# Known failures of one engine: `lmconform check ENGINE --known FILE`. Each needs a reason; a link is optional.
# `lmconform known REPORT FILE` brings the list up to date. It keeps reasons and links, and no other comments.
"""
FORM = 'reason = "..." link = "..."'


class Unusable(ValueError):
    """The file is no list of known failures that a run can use. The message names the culprit and the way out."""


@dataclass(frozen=True)
class Entry:
    """Why a requirement fails, in a person's words, and where it is tracked."""

    reason: str
    link: str = ""

    def __str__(self) -> str:
        """One line: the reason and, in brackets, the link."""
        text = f"{self.reason} ({self.link})" if self.link else self.reason
        return " ".join("".join(char if char.isprintable() else " " for char in text).split())


@dataclass(frozen=True)
class Known:
    """The known failures of one engine, by requirement."""

    path: Path
    engine: str
    """The name that the engine gives itself."""
    entries: Mapping[str, Entry]

    @classmethod
    def read(cls, path: Path) -> Known:
        """Raises Unusable if it cannot be read, or says what it should not."""
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise Unusable(
                f"The known failures in {path} cannot be read: {error.strerror}. `lmconform known REPORT {path}` "
                "writes the file from the report of a run."
            ) from error
        except ValueError as error:  # of TOML, or of UTF-8
            raise Unusable(f"{path} is no TOML: {error}. Mend it, or write another with `lmconform known`.") from error
        engine = content.pop("engine", None)
        if not isinstance(engine, str) or not engine.strip():
            raise Unusable(f'{path} does not say whose failures it lists. Its first line should be engine = "NAME".')
        return cls(path, engine, {name: _entry(path, name, value) for name, value in content.items()})

    def foreign(self, engine: str) -> Unusable:
        """What to raise if another engine is judged, called ``engine``."""
        return Unusable(
            f"{self.path} lists the known failures of {self.engine!r}, and this engine is called {engine!r}. Give the "
            'file of this engine, or change the line engine = "..." if the engine has a new name.'
        )

    def with_reasons(self) -> Known:
        """These, if a person gave each a reason. Raises Unusable if not."""
        if bare := [name for name, entry in self.entries.items() if entry.reason.lstrip().startswith(TODO)]:
            raise Unusable(
                f"{self.path} has no reason yet for {', '.join(bare)}: what begins with {TODO} is none. Write there "
                "why it fails, or take the entry out."
            )
        return self

    def text(self) -> str:
        """The content of the file, in the order of the pages."""
        parts = [f"{HEAD}engine = {_quoted(self.engine)}\n"]
        for name, requirement in requirements().items():
            if entry := self.entries.get(name):
                sentence = " ".join(requirement.text.split())
                values = f"reason = {_quoted(entry.reason)}\nlink = {_quoted(entry.link)}\n"
                parts.append(f"[{name}]\n# {sentence}\n{values}")
        return "\n".join(parts)


def _entry(path: Path, name: str, value: Any) -> Entry:
    """One table of the file. Raises Unusable."""
    if name not in requirements():
        near = get_close_matches(name.upper(), requirements(), n=2, cutoff=0.4)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise Unusable(
            f"{path}: there is no requirement {name!r}.{hint} `lmconform explain PAGE` prints those of one page."
        )
    if not isinstance(value, dict):
        raise Unusable(f"{path}: {name} is no table. Write [{name}] on a line of its own, and below it {FORM}.")
    for key, text in value.items():
        if key not in ("reason", "link"):
            raise Unusable(f"{path}: {name} has a key {key!r} that means nothing. An entry holds {FORM}.")
        if not isinstance(text, str):
            raise Unusable(f"{path}: the {key} of {name} is {text!r}, which is no text. Put it in quotes.")
    if not value.get("reason", "").strip():
        raise Unusable(f"{path}: {name} has no reason. Write below [{name}] why it fails: {FORM}.")
    return Entry(value["reason"], value.get("link", "").strip())


def _quoted(text: str) -> str:
    """A basic string of TOML, which is one of JSON with DEL escaped as well."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")

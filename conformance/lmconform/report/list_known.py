"""Brings a list of known failures up to date with the report of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmconform.judging.verdict import Verdict
from lmconform.report.known import TODO, Entry, Known, Unusable
from lmconform.report.results import REPORT
from lmconform.spec import requirements

PASSED = (Verdict.PASS, Verdict.UNEXPECTED)
"""Verdicts with which an entry has no place in the list."""


def update(directory: Path, path: Path) -> list[str]:
    """List in ``path`` what failed in the report of ``directory``; returns what to tell. Raises Unusable.

    Entries keep their reasons and links, also those of requirements that the run did not judge. Those of requirements
    that passed go. A failed SHOULD, which stands in no engine's way, gets no entry.
    """
    engine, verdicts = _read(directory / REPORT)
    old = Known.read(path) if path.exists() else Known(path, engine, {})
    if old.engine != engine:
        raise old.foreign(engine)
    failed = [name for name, verdict in verdicts.items() if verdict is Verdict.FAIL and _binding(name)]
    passed = [name for name, verdict in verdicts.items() if verdict in PASSED]
    added = {name: Entry(f"{TODO}: why it fails") for name in failed if name not in old.entries}
    kept = {name: entry for name, entry in old.entries.items() if name not in passed}
    new = Known(path, engine, kept | added)
    try:
        path.write_text(new.text(), encoding="utf-8")
    except OSError as error:
        raise Unusable(f"{path} cannot be written: {error.strerror}. Give another path.") from error
    return list(_told(old, new, list(added)))


def _told(old: Known, new: Known, added: list[str]) -> Iterator[str]:
    yield from (f"{name} passed: its entry was dropped." for name in old.entries if name not in new.entries)
    yield from (f"{name} failed: write its reason in {new.path}." for name in added)
    yield f"Wrote {new.path}: {len(new.entries)} known failure{'' if len(new.entries) == 1 else 's'} of {new.engine}."


def _binding(name: str) -> bool:
    return requirements()[name].keyword.startswith("MUST")


def _read(path: Path) -> tuple[str, dict[str, Verdict]]:
    """The engine's name and the verdicts of a report.json. Raises Unusable."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        verdicts = {requirements()[one["id"]].id: Verdict(one["verdict"]) for one in content["requirements"]}
        return str(content["engine"]["name"]), verdicts
    except OSError as error:
        raise Unusable(
            f"{path} cannot be read: {error.strerror}. Give the folder that `lmconform check` wrote its report to, by "
            "default lmconform-report."
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise Unusable(
            f"{path} is no report of this version of lmconform ({type(error).__name__}: {error}). Run "
            "`lmconform check` again, and give the folder of its report."
        ) from error

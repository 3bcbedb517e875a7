"""The matrix as a file for programs and as a page: engine, version, number formats, and a column a mechanism."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmconform import __version__
from lmconform.engine_matrix.row import JUDGED, Row
from lmconform.judging.verdict import MEANING, Verdict
from lmconform.report.results import json_text
from lmconform.report.tables import in_ranges
from lmconform.spec import requirements

JSON, PAGE = "matrix.json", "matrix.md"


def write(report: Path, rows: Sequence[Row]) -> None:
    """Write both files. Raises OSError."""
    content = {"lmconform": __version__, "machine": machine(), "rows": [asdict(row) for row in rows]}
    (report / JSON).write_text(json_text(content), encoding="utf-8")
    (report / PAGE).write_text("\n".join(page(rows)) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """What the times depend on."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def page(rows: Sequence[Row]) -> Iterator[str]:
    """The lines of the Markdown page."""
    pages = list(dict.fromkeys(one.page for one in requirements().values()))
    judged = [row for row in rows if row.status == JUDGED]
    told = machine()
    yield "# Engines before the suite"
    yield ""
    yield (
        f"lmconform {__version__}; {told['system']} on {told['architecture']}, {told['cores']} cores, Python "
        f"{told['python']}. Each engine ran in an environment of its own. A number is that of requirements that pass; "
        "in bold is what does not; – is what the engine does not offer, or what its number format cannot decide."
    )
    yield ""
    yield from _table(
        ["engine", "version", "formats", *(name.replace("-", " ") for name in pages), "conforms", "time"],
        [
            [
                *(row.name, row.version, _formats(row)),
                *(_cell(row.mechanisms.get(name, {})) for name in pages),
                *(_conforms(row), f"{row.seconds:.0f} s"),
            ]
            for row in judged
        ],
    )
    if left := [row for row in rows if row.status != JUDGED]:
        yield "## Not judged"
        yield ""
        yield from _table(["engine", "", "why"], [[row.name, row.status, row.reason] for row in left])
    yield "## What does not pass"
    yield ""
    for row in judged:
        yield from _explained(row)


def _explained(row: Row) -> Iterator[str]:
    """A section of one engine: each reason once, with all that it is the reason of."""
    options = " ".join(f"{key}={value}" for key, value in row.options.items())
    regimes = f"; regimes: {', '.join(row.regimes)}" if row.regimes else ""
    yield f"### {_safe(row.name)}"
    yield ""
    yield f"{_safe(row.title)} {_safe(row.version)}, profile {row.profile}, seed {row.seed}{_safe(regimes)}"
    if options:
        yield f"options: {_safe(options)}"
    yield ""
    told: dict[tuple[str, str], list[str]] = {}
    for name, (verdict, why) in row.requirements.items():
        if verdict != Verdict.PASS:
            told.setdefault((verdict, why), []).append(name)
    order = [str(verdict) for verdict in Verdict]
    for (verdict, why), names in sorted(told.items(), key=lambda item: order.index(item[0][0])):
        yield f"- {in_ranges(names)} **{verdict}**: {_safe(why or MEANING[Verdict(verdict)])}"
    yield "" if told else "Everything passes.\n"


def _cell(counts: dict[str, int]) -> str:
    """``11, **2 known**, 3 –``: what passes, what does not, what is not judged."""
    quiet = (Verdict.PASS, Verdict.UNSUPPORTED, Verdict.UNRESOLVED)
    parts = [str(counts[Verdict.PASS])] if counts.get(Verdict.PASS) else []
    parts += [f"**{counts[verdict]} {verdict}**" for verdict in Verdict if counts.get(verdict) and verdict not in quiet]
    left = counts.get(Verdict.UNSUPPORTED, 0) + counts.get(Verdict.UNRESOLVED, 0)
    return ", ".join([*parts, f"{left} –"] if left else parts) or "–"


def _formats(row: Row) -> str:
    """``float32``, or what differs from the format of the computation."""
    compute = row.precision.get("compute", "")
    others = [f"{name} {value}" for name, value in row.precision.items() if value != compute]
    return ", ".join([compute, *others])


def _conforms(row: Row) -> str:
    known = row.counts()[Verdict.KNOWN]
    return (f"yes, except {known} known" if known else "yes") if row.conforms else "**no**"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(_safe(cell) for cell in row) + " |"
    yield ""


def _safe(text: str) -> str:
    """What an engine says must not break a table or become a tag."""
    for char, instead in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("\n", " ")):
        text = text.replace(char, instead)
    return text

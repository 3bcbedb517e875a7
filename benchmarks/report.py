"""The report of a run: one HTML page that holds its tables and plots, and nothing from elsewhere.

Each run writes it; of a stored one, such as a GPU's, it is made by

    python -m benchmarks.report FILE.json
"""

from __future__ import annotations

import argparse
import html
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks import tables
from benchmarks.compare import Comparison
from benchmarks.results import Results, Unreadable, read

PAGE = "report.html"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; margin-bottom: 2rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .7rem; border-bottom: 1px solid #8884; }
td:not(:first-child) { font-variant-numeric: tabular-nums; white-space: nowrap; }
.regressed { color: #c0272d; font-weight: 600; }
svg { max-width: 100%; height: auto; background: #fff; }
"""


def write(results: Results, folder: Path, comparison: Comparison | None = None) -> str:
    """Write the page and, where matplotlib is installed, its plots; return what to tell."""
    folder.mkdir(parents=True, exist_ok=True)
    plots: Sequence[Path] = ()
    told = ""
    if find_spec("matplotlib") is None:
        told = '. It has no plots: they need matplotlib, python -m pip install -e ".[bench]"'
    else:
        from benchmarks.plots import draw

        plots = draw(results, folder)
    page = folder / PAGE
    page.write_text("\n".join(_page(results, plots, comparison)) + "\n", encoding="utf-8")
    return f"Wrote {page}{told}"


def _page(results: Results, plots: Sequence[Path], comparison: Comparison | None) -> Iterator[str]:
    title = f"Benchmarks of {results.engine['name']}, {results.created}"
    yield f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    yield f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>"
    yield from _list(tables.heading(results))
    if comparison is not None:
        yield "<h2>Compared with the stored run</h2>"
        yield from _list(comparison.lines(), marked="regressed:")
    for path in plots:
        yield _inline(path)
    for name, (columns, rows) in tables.tables(results):
        yield f"<h2>{html.escape(name)}</h2>"
        yield from _table(columns, rows)
    yield from _list(tables.balances(results))
    if notes := [f"{record.name}: {note}" for record in results.records for note in record.notes]:
        yield "<h2>Notes</h2>"
        yield from _list(notes)
    if results.left_out:
        yield "<h2>Left out</h2>"
        yield from _list(f"{name}: {reason}" for name, reason in results.left_out.items())
    yield "</html>"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "<table><tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in columns) + "</tr>"
    for row in rows:
        yield "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
    yield "</table>"


def _list(lines: Iterator[str] | Sequence[str], marked: str = "") -> Iterator[str]:
    yield "<ul>"
    for line in lines:
        kind = ' class="regressed"' if marked and line.startswith(marked) else ""
        yield f"<li{kind}>{html.escape(line)}</li>"
    yield "</ul>"


def _inline(path: Path) -> str:
    """The plot's own markup, from its first tag on: matplotlib writes it and escapes the words in it."""
    text = path.read_text(encoding="utf-8")
    return f"<figure>{text[text.index('<svg') :]}</figure>"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report of a stored run beside its file; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description="Write the report of a stored run."
    )
    parser.add_argument("file", type=Path, help="results")
    path = parser.parse_args(arguments).file
    try:
        print(write(read(path), path.with_suffix("")))
    except Unreadable as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

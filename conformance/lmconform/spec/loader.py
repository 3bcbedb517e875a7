"""Pages of the standard as Python modules.

``causal-mask.md`` is imported as ``lmconform.spec.causal_mask``: its fenced ``python`` blocks are the module's code.
``worked_examples`` gives its ``pycon`` blocks as a doctest. Every block keeps the line numbers that it has on the
page, so a traceback points into the Markdown and ``inspect.getsource`` shows the definition.
"""

from __future__ import annotations

import doctest
import importlib
import linecache
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType

from markdown_it import MarkdownIt

PACKAGE = __package__ or "lmconform.spec"


class SpecError(ValueError):
    """A page of the standard is missing or malformed; the message names the page and the line."""


def directory() -> Path:
    """Return the folder of the pages: beside this package if it was installed, else ``spec/`` of the checkout."""
    beside = Path(__file__).parent
    return beside if (beside / "README.md").is_file() else Path(__file__).parents[3] / "spec"


def pages() -> list[str]:
    """Names of all pages without suffix, such as ``causal-mask``, in alphabetical order. README is none of them."""
    names = sorted(path.stem for path in directory().glob("*.md") if path.stem != "README")
    if not names:
        raise SpecError(
            f"No page of the standard was found in {directory()}. An installed lmconform carries its pages beside "
            f"{PACKAGE}; a checkout keeps them in spec/. Install lmconform again, or import it from a whole checkout."
        )
    return names


def module_name(page: str) -> str:
    """Name under which a page is imported: ``causal-mask`` gives ``lmconform.spec.causal_mask``."""
    return f"{PACKAGE}.{page.replace('-', '_')}"


def blocks(markdown: str, language: str) -> str:
    """Return the fenced blocks of one language; every other line is left empty, so that line numbers stay."""
    lines = markdown.splitlines(keepends=True)
    kept = ["\n"] * len(lines)
    for token in MarkdownIt().parse(markdown):
        if token.type == "fence" and token.info.split()[:1] == [language] and token.map is not None:
            inside = slice(token.map[0] + 1, token.map[1] - 1)  # without the two fences
            kept[inside] = lines[inside]
    return "".join(kept)


class PageLoader(SourceFileLoader):
    """Loads the ``python`` blocks of a page. Nothing is cached on disk: a page has no place for bytecode."""

    def get_source(self, fullname: str) -> str:
        return blocks(Path(self.path).read_text(encoding="utf-8"), "python")

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = compile(self.get_source(fullname), self.path, "exec", dont_inherit=True)
        return code

    def exec_module(self, module: ModuleType) -> None:
        # What reads sources (tracebacks, inspect, pytest) parses whole files: give it the blocks, not the prose.
        source = self.get_source(module.__name__)
        linecache.cache[self.path] = (len(source), None, source.splitlines(keepends=True), self.path)
        super().exec_module(module)


class PageFinder:
    """Finds ``lmconform.spec.causal_mask`` in ``causal-mask.md``."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        page = directory() / f"{name.replace('_', '-')}.md"
        if package != PACKAGE or not page.is_file():
            return None
        return spec_from_file_location(fullname, page, loader=PageLoader(fullname, str(page)))


def install() -> None:
    """Make pages importable."""
    if PageFinder not in sys.meta_path:
        sys.meta_path.append(PageFinder)


def worked_examples(page: str) -> doctest.DocTest:
    """Return the page's ``pycon`` blocks as one doctest, with the page's definitions in scope."""
    module = importlib.import_module(module_name(page))
    path = directory() / f"{page}.md"
    text = blocks(path.read_text(encoding="utf-8"), "pycon")
    return doctest.DocTestParser().get_doctest(text, dict(vars(module)), page, str(path), 0)


def extract(build: Path) -> list[Path]:
    """Write each page's ``python`` blocks to ``build/spec/<page>.py``, line for line, for linters and type checkers.

    Returns the files written. Files of pages that are no longer there are removed.
    """
    target = build / "spec"
    target.mkdir(parents=True, exist_ok=True)
    for stale in target.glob("*.py"):
        stale.unlink()
    written = []
    for page in pages():
        source = blocks((directory() / f"{page}.md").read_text(encoding="utf-8"), "python").rstrip()
        file = target / f"{page.replace('-', '_')}.py"
        file.write_text(source + "\n" if source else "", encoding="utf-8")
        written.append(file)
    return written

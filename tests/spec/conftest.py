"""Fixtures for tests of the standard's own code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lmconform.spec import loader


@pytest.fixture
def write_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Path]]:
    """A function that writes a page, by name and text, into a folder that stands in for the standard's own."""
    before = set(sys.modules)
    monkeypatch.setattr(loader, "directory", lambda: tmp_path)

    def write(name: str, text: str) -> Path:
        path = tmp_path / f"{name}.md"
        path.write_text(text, encoding="utf-8")
        return path

    yield write
    for name in set(sys.modules) - before:
        if name.startswith(f"{loader.PACKAGE}."):
            del sys.modules[name]

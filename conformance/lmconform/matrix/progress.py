"""One line of progress beside children that are forked, so without the thread that other such lines have."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text


class Line:
    """A line that moves on a terminal; elsewhere one that is printed every so many seconds, or each time if 0."""

    def __init__(self, console: Console, every: float = 20.0) -> None:
        self._console, self._every, self._printed = console, every, float("-inf")
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def tell(self, words: str) -> None:
        """Say where things stand."""
        if self._live:
            self._live.update(Text(words), refresh=True)
        elif time.monotonic() - self._printed >= self._every:
            self._printed = time.monotonic()
            self._console.print(Text(words), soft_wrap=True)

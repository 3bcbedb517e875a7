"""What ``lmconform mutants`` prints: progress, the tables, and the survivors with their diffs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmconform.matrix.progress import Line
from lmconform.mutants.judge import Fate, Outcome
from lmconform.mutants.mutate import Mutant

Found = tuple[Mutant, Outcome]
ENOUGH = 0.9
"""Share of the live mutants that the suite is to kill."""


class Progress(Line):
    """How many mutants are judged, and what became of them."""

    def __init__(self, console: Console, total: int) -> None:
        super().__init__(console, every=0)
        self._total = total
        self._fates: Counter[Fate] = Counter()
        self._started = time.monotonic()

    def step(self, mutant: Mutant, outcome: Outcome) -> None:
        """One more mutant is judged."""
        self._fates[outcome.fate] += 1
        told = ", ".join(f"{self._fates[fate]} {fate}" for fate in Fate if self._fates[fate])
        done = f"{self._fates.total()} of {self._total} mutants, {time.monotonic() - self._started:.0f} s, {told}"
        self.tell(f"{done}: {mutant.id} {outcome.fate} {outcome.requirement}".rstrip())


def killed_of_live(found: Sequence[Found]) -> tuple[int, int]:
    """Mutants that are killed, and those that are killed or survive: nothing that broke down, hung or was refused."""
    fates = Counter(outcome.fate for _, outcome in found)
    return fates[Fate.KILLED], fates[Fate.KILLED] + fates[Fate.SURVIVED]


def summary(console: Console, found: Sequence[Found]) -> None:
    """A table by file and by operator, the survivors, and the last line."""
    console.print(_table("file", found, lambda mutant: mutant.path.name))
    console.print(_table("operator", found, lambda mutant: mutant.operator))
    for mutant, outcome in found:
        if outcome.fate in (Fate.SURVIVED, Fate.SUITE):
            console.print()
            diff(console, mutant, outcome.fate)
            console.print(Text(outcome.reason, style="dim"), end="")
    killed, live = killed_of_live(found)
    share = f", {killed / live:.1%}" if live else ""
    style = "bold green" if killed >= ENOUGH * live else "bold red"
    console.print(Text(f"\nThe suite kills {killed} of {live} live mutants{share}.", style=style))


def diff(console: Console, mutant: Mutant, what: str = "") -> None:
    """The id of a mutant, and its line before and after."""
    before, after = mutant.diff()
    console.print(Text(f"{mutant.id} {what}".rstrip(), style="bold"))
    console.print(Text(f"- {before}", style="red"), Text(f"+ {after}", style="green"), sep="\n", soft_wrap=True)


def _table(title: str, found: Sequence[Found], group: Callable[[Mutant], str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(title)
    for name in ("mutants", *Fate, "score"):
        table.add_column(str(name), justify="right")
    names = list(dict.fromkeys(group(mutant) for mutant, _ in found))
    for name in [*sorted(names), "all"]:
        some = [one for one in found if name in (group(one[0]), "all")]
        fates = Counter(outcome.fate for _, outcome in some)
        killed, live = killed_of_live(some)
        share = f"{killed / live:.0%}" if live else ""
        style = "bold" if name == "all" else ""
        table.add_row(name, str(len(some)), *(str(fates[fate] or "") for fate in Fate), share, style=style)
    return table

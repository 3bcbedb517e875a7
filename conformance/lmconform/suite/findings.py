"""What judging leaves behind: findings, the tally of a test, and the faults and relations that tests speak of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from lmconform.adapter import Array, NotOffered, Refused
from lmconform.checkpoints.edits import Edit
from lmconform.checkpoints.layout import Checkpoint

Relation = Callable[[int, int], bool]
Mask = Callable[[int, int], Array]


def itself(position: int, seen: int) -> bool:
    """The token at the row's own position."""
    return seen == position


def earlier(position: int, seen: int) -> bool:
    """Tokens before the row's position."""
    return seen < position


def later(position: int, seen: int) -> bool:
    """Tokens after the row's position."""
    return seen > position


@dataclass(frozen=True)
class Finding:
    """What was wrong, in words and numbers, for one failure card."""

    what: str
    measured: str
    wanted: str
    where: str
    error: float
    budget: float
    named: bool = False
    """Whether ``measured`` is a quantity of the standard's, such as the attention scale: what a card shows first."""
    odds: str = ""
    """How improbable it is, where draws are judged and no budget is."""

    @property
    def excess(self) -> float:
        """Error in units of the budget."""
        return self.error / self.budget if self.budget else float("inf")


class Exceeded(AssertionError):
    """The engine is beyond what a right engine can be."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(f"{finding.what}: measured {finding.measured}, wanted {finding.wanted}, at {finding.where}")
        self.finding = finding


class Unfit(Exception):
    """The example decides nothing: legal errors drown these scores, or the engine gave too little to judge."""


@dataclass
class Tally:
    """What the examples of one test amounted to."""

    examples: int = 0
    bites: int = 0
    """Examples that could have shown a fault."""
    worst: float = 0.0
    """Largest error seen, in units of its budget."""
    unresolved: list[str] = field(default_factory=list)
    declined: list[NotOffered | Refused] = field(default_factory=list)
    """What the engine said of the examples that it did not answer."""
    suspicions: int = 0
    """Exceedances of noise's size that fresh draws did not confirm."""
    questions: int = 0
    """Asked of draws; each may fail a right engine with probability FALSE_ALARM."""
    draws: int = 0


def unchanged(checkpoint: Checkpoint) -> Checkpoint:
    """The edit of a side that is right."""
    return checkpoint


@dataclass(frozen=True)
class Edits:
    """The checkpoints on which the oracle computes what a wrong engine makes of each side of a law."""

    got: Edit
    wanted: Edit = unchanged


Fault = tuple[Mask, Mask] | Edit | Edits
"""What is wrong with an imagined engine: its masks, or edits; one for both sides of a law, or one for each."""

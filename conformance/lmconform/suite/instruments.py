"""The instruments by name: checkpoints whose scores are a measurement, and the lengths to use on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lmconform.adapter import Precision
from lmconform.checkpoints.attention_scope import attention_scope
from lmconform.checkpoints.layout import Checkpoint
from lmconform.checkpoints.tape import tape

SCOPE, LOUD_SCOPE, TAPE = "scope", "loud-scope", "tape"
LENGTHS = ((1, 2, 17, 33, 64, 129), (1, 3, 15, 32, 65, 127), (2, 16, 31, 63, 128, 5))
"""At most six lengths a checkpoint, since a new length may compile for seconds; together they hold every edge."""


@dataclass(frozen=True)
class Material:
    """A checkpoint, what it is read with, and the lengths to use on it."""

    checkpoint: Checkpoint
    lengths: tuple[int, ...]
    instrument: object = None
    """What knows how to write prompts for the checkpoint and how to read its scores; None for a random one."""
    path: Path | None = None
    """Where it lies already, for a given checkpoint."""

    @property
    def redrawable(self) -> bool:
        """Whether other weights of the same structure can be drawn."""
        return self.checkpoint.recipe.get("kind") == "random"


def _scope(precision: Precision) -> Material:
    scope = attention_scope("quiet")
    return Material(scope.checkpoint, LENGTHS[0], scope)


def _loud_scope(precision: Precision) -> Material:
    scope = attention_scope("loud", narrow=precision.compute == "float16")
    return Material(scope.checkpoint, LENGTHS[0], scope)


def _tape(precision: Precision) -> Material:
    return Material(tape(), LENGTHS[0])


INSTRUMENTS: dict[str, Callable[[Precision], Material]] = {
    SCOPE: _scope,
    LOUD_SCOPE: _loud_scope,
    TAPE: _tape,
}
"""Each makes its checkpoint for an engine of this precision."""

"""The instruments by name: checkpoints whose scores are a measurement, and the lengths to use on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lmconform.adapter import Precision
from lmconform.checkpoints.attention_scope import attention_scope
from lmconform.checkpoints.balance import HUGE, PLAIN, balance
from lmconform.checkpoints.dial_scope import dial_scope
from lmconform.checkpoints.dice import dice
from lmconform.checkpoints.ladder import ladder
from lmconform.checkpoints.layout import Checkpoint
from lmconform.checkpoints.poison import poisoned
from lmconform.checkpoints.tape import stop_tape, tape
from lmconform.checkpoints.turn_scope import LLAMA3, turn_scope

SCOPE, LOUD_SCOPE, TURNING_SCOPE = "scope", "loud-scope", "turning-scope"
TAPE, STOP_TAPE, DICE = "tape", "stop-tape", "dice"
DIAL, POISON = "dial", "poison"
TURN_SCOPE, STRETCHED_TURN_SCOPE = "turn-scope", "stretched-turn-scope"
BALANCE, HUGE_BALANCE, LADDER = "balance", "huge-balance", "ladder"
LENGTHS = ((1, 2, 17, 33, 64, 129), (1, 3, 15, 32, 65, 127), (2, 16, 31, 63, 128, 5))
"""At most six lengths a checkpoint, since a new length may compile for seconds; together they hold every edge."""

SHORT = (1, 2, 17)
"""For prompts that repeat one token, whose rows are all the same."""


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


def _turning_scope(precision: Precision) -> Material:
    scope = attention_scope("turning")
    return Material(scope.checkpoint, LENGTHS[0], scope)


def _poison(precision: Precision) -> Material:
    poison = poisoned(narrow="float16" in (precision.weights, precision.compute))
    return Material(poison.checkpoint, LENGTHS[0], poison)


def _tape(precision: Precision) -> Material:
    return Material(tape(), LENGTHS[0])


def _dial(precision: Precision) -> Material:
    dial = dial_scope(narrow=precision.compute == "float16")
    return Material(dial.checkpoint, (1, 2, 16, 33, 65), dial)


def _turn_scope(precision: Precision) -> Material:
    scope = turn_scope("turn-scope")
    return Material(scope.checkpoint, LENGTHS[0], scope)


def _stretched_turn_scope(precision: Precision) -> Material:
    scope = turn_scope("stretched-turn-scope", LLAMA3)
    return Material(scope.checkpoint, LENGTHS[0], scope)


def _balance(precision: Precision) -> Material:
    made = balance()
    return Material(made.checkpoint, SHORT, made)


def _huge_balance(precision: Precision) -> Material:
    made = balance(PLAIN, HUGE)
    return Material(made.checkpoint, SHORT, made)


def _ladder(precision: Precision) -> Material:
    made = ladder()
    return Material(made.checkpoint, SHORT, made)


def _stop_tape(precision: Precision) -> Material:
    made = stop_tape()
    return Material(made.checkpoint, LENGTHS[0], made)


def _dice(precision: Precision) -> Material:
    made = dice()
    return Material(made.checkpoint, LENGTHS[0], made)


INSTRUMENTS: dict[str, Callable[[Precision], Material]] = {
    SCOPE: _scope,
    LOUD_SCOPE: _loud_scope,
    TURNING_SCOPE: _turning_scope,
    POISON: _poison,
    TAPE: _tape,
    DIAL: _dial,
    TURN_SCOPE: _turn_scope,
    STRETCHED_TURN_SCOPE: _stretched_turn_scope,
    BALANCE: _balance,
    HUGE_BALANCE: _huge_balance,
    LADDER: _ladder,
    STOP_TAPE: _stop_tape,
    DICE: _dice,
}
"""Each makes its checkpoint for an engine of this precision."""

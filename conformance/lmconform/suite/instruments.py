"""The instruments by name: checkpoints whose scores are a measurement, and the lengths to use on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

from lmconform.adapter import Precision
from lmconform.checkpoints.attention_scope import SHAPE as SCOPE_SHAPE
from lmconform.checkpoints.attention_scope import attention_scope
from lmconform.checkpoints.balance import HUGE, PLAIN, balance
from lmconform.checkpoints.balance_gpt2 import gpt2_balance
from lmconform.checkpoints.dial_scope import dial_scope
from lmconform.checkpoints.dice import dice
from lmconform.checkpoints.dice_gpt2 import gpt2_dice
from lmconform.checkpoints.ladder import ladder
from lmconform.checkpoints.layout import Checkpoint, Shape
from lmconform.checkpoints.phi3 import as_phi3
from lmconform.checkpoints.poison import SHAPE as POISON_SHAPE
from lmconform.checkpoints.poison import poisoned
from lmconform.checkpoints.probe import SHAPE as PROBE_SHAPE
from lmconform.checkpoints.probe import Probe, probe
from lmconform.checkpoints.probe_gpt2 import gpt2_probe
from lmconform.checkpoints.scales import scales
from lmconform.checkpoints.split_tape import split_tape
from lmconform.checkpoints.tape import stop_tape
from lmconform.checkpoints.turn_scope import LLAMA3, turn_scope

SCOPE, LOUD_SCOPE = "scope", "loud-scope"
STOP_TAPE, SPLIT_TAPE, DICE = "stop-tape", "split-tape", "dice"
DIAL, POISON = "dial", "poison"
TURN_SCOPE, STRETCHED_TURN_SCOPE = "turn-scope", "stretched-turn-scope"
PROBE, TOKEN_PROBE = "probe", "token-probe"
SCALES, TOKEN_SCALES = "scales", "token-scales"
GPT2_DICE = "gpt2-dice"
GPT2_BALANCE, EXACT_GPT2_BALANCE = "gpt2-balance", "exact-gpt2-balance"
GPT2_PROBE, PHI3_PROBE, WINDOW_PROBE = "gpt2-probe", "phi3-probe", "window-probe"
BALANCE, HUGE_BALANCE, LADDER = "balance", "huge-balance", "ladder"
WINDOW_SCOPE = "window-scope"
LENGTHS = ((1, 2, 17, 33, 64, 129), (1, 3, 15, 32, 65, 127), (2, 16, 31, 63, 128, 5))
"""At most six lengths a checkpoint, since a new length may compile for seconds; together they hold every edge."""

WINDOW = 6
"""Of the window scope: shorter than a block, so that a window lies inside one and across two."""
PROBE_WINDOW = 16
"""Of the window probe: all that stands near an asker is seen, and of a long prompt the nearest."""
SHORT = (1, 2, 17)
"""For prompts that repeat one token, whose rows are all the same."""

WIDE = 32
"""Head dimension of the instruments for engines whose kernels take no less."""
WIDE_SCOPE = replace(SCOPE_SHAPE, head_dim=WIDE)
CONTENT = SCOPE_SHAPE.head_dim - 1
"""Content tokens of a scope, wide or not."""
WIDE_POISON = replace(POISON_SHAPE, head_dim=WIDE)
WIDE_PROBE = replace(PROBE_SHAPE, head_dim=WIDE, hidden_size=2 * PROBE_SHAPE.hidden_size)

LEVELS = 128
"""Thresholds of the instruments that are read from tokens alone: neighbours are 6 % apart."""


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


def around(window: int, *longer: int) -> tuple[int, ...]:
    """Lengths on both sides of a window, one beyond two of them, and longer ones."""
    return (window - 1, window, window + 1, 2 * window + 1, *longer)


def _scope(precision: Precision, shape: Shape = SCOPE_SHAPE) -> Material:
    scope = attention_scope("quiet", shape=shape, content=CONTENT)
    return Material(scope.checkpoint, LENGTHS[0], scope)


def _window_scope(precision: Precision, shape: Shape = SCOPE_SHAPE) -> Material:
    scope = attention_scope("quiet", shape=shape, content=CONTENT, window=WINDOW)
    return Material(scope.checkpoint, around(WINDOW, 33, 65), scope)


def _loud_scope(precision: Precision, shape: Shape = SCOPE_SHAPE) -> Material:
    narrow = "float16" in (precision.compute, precision.kv_cache)  # loud keys must be finite in the cache as well
    scope = attention_scope("loud", narrow=narrow, shape=shape, content=CONTENT)
    return Material(scope.checkpoint, LENGTHS[0], scope)


def _poison(precision: Precision, shape: Shape = POISON_SHAPE) -> Material:
    poison = poisoned(narrow="float16" in (precision.weights, precision.compute), shape=shape)
    return Material(poison.checkpoint, LENGTHS[0], poison)


def _dial(precision: Precision) -> Material:
    dial = dial_scope(narrow=precision.compute == "float16")
    return Material(dial.checkpoint, (1, 2, 16, 33, 65, 129), dial)


def _turn_scope(precision: Precision, shape: Shape = SCOPE_SHAPE) -> Material:
    scope = turn_scope("turn-scope", shape=shape)
    return Material(scope.checkpoint, LENGTHS[0], scope)


def _stretched_turn_scope(precision: Precision, shape: Shape = SCOPE_SHAPE) -> Material:
    scope = turn_scope("stretched-turn-scope", LLAMA3, shape)
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


def _probe(precision: Precision, shape: Shape = PROBE_SHAPE) -> Material:
    made = probe(shape, narrow=precision.compute == "float16")
    return Material(made.checkpoint, LENGTHS[0], made)


def _token_probe(precision: Precision, shape: Shape = PROBE_SHAPE) -> Material:
    made = probe(shape, narrow=precision.compute == "float16", levels=LEVELS)
    return Material(made.checkpoint, LENGTHS[0], made)


def _scales(precision: Precision) -> Material:
    made = scales()
    return Material(made.checkpoint, SHORT, made)


def _token_scales(precision: Precision) -> Material:
    made = scales(LEVELS)
    return Material(made.checkpoint, SHORT, made)


def _gpt2_probe(precision: Precision) -> Material:
    made = gpt2_probe(narrow=precision.compute == "float16")
    return Material(made.checkpoint, LENGTHS[0], made)


def _gpt2_balance(precision: Precision) -> Material:
    made = gpt2_balance()
    return Material(made.checkpoint, SHORT, made)


def _gpt2_dice(precision: Precision) -> Material:
    made = gpt2_dice()
    return Material(made.checkpoint, LENGTHS[0], made)


def _exact_gpt2_balance(precision: Precision) -> Material:
    made = gpt2_balance("gelu")
    return Material(made.checkpoint, SHORT, made)


def _phi3_probe(precision: Precision, shape: Shape = PROBE_SHAPE) -> Material:
    return _as_phi3(_probe(precision, shape), None)


def _window_probe(precision: Precision, shape: Shape = PROBE_SHAPE) -> Material:
    return _as_phi3(_probe(precision, shape), PROBE_WINDOW)


def _as_phi3(material: Material, window: int | None) -> Material:
    """A probe in phi3's wrapping."""
    made = replace(cast(Probe, material.instrument), checkpoint=as_phi3(material.checkpoint, window))
    return replace(material, checkpoint=made.checkpoint, instrument=made)


def _stop_tape(precision: Precision) -> Material:
    made = stop_tape()
    return Material(made.checkpoint, LENGTHS[0], made)


def _split_tape(precision: Precision) -> Material:
    made = split_tape()
    return Material(made.checkpoint, LENGTHS[0], made)


def _dice(precision: Precision) -> Material:
    made = dice()
    return Material(made.checkpoint, LENGTHS[0], made)


INSTRUMENTS: dict[str, Callable[[Precision], Material]] = {
    SCOPE: _scope,
    WINDOW_SCOPE: _window_scope,
    LOUD_SCOPE: _loud_scope,
    POISON: _poison,
    DIAL: _dial,
    TURN_SCOPE: _turn_scope,
    STRETCHED_TURN_SCOPE: _stretched_turn_scope,
    PROBE: _probe,
    TOKEN_PROBE: _token_probe,
    SCALES: _scales,
    TOKEN_SCALES: _token_scales,
    GPT2_PROBE: _gpt2_probe,
    GPT2_DICE: _gpt2_dice,
    GPT2_BALANCE: _gpt2_balance,
    EXACT_GPT2_BALANCE: _exact_gpt2_balance,
    PHI3_PROBE: _phi3_probe,
    WINDOW_PROBE: _window_probe,
    BALANCE: _balance,
    HUGE_BALANCE: _huge_balance,
    LADDER: _ladder,
    STOP_TAPE: _stop_tape,
    SPLIT_TAPE: _split_tape,
    DICE: _dice,
}
"""Each makes its checkpoint for an engine of this precision."""

WIDE_INSTRUMENTS: dict[str, Callable[[Precision], Material]] = {
    SCOPE: partial(_scope, shape=WIDE_SCOPE),
    WINDOW_SCOPE: partial(_window_scope, shape=WIDE_SCOPE),
    LOUD_SCOPE: partial(_loud_scope, shape=WIDE_SCOPE),
    POISON: partial(_poison, shape=WIDE_POISON),
    TURN_SCOPE: partial(_turn_scope, shape=WIDE_SCOPE),
    STRETCHED_TURN_SCOPE: partial(_stretched_turn_scope, shape=WIDE_SCOPE),
    PROBE: partial(_probe, shape=WIDE_PROBE),
    TOKEN_PROBE: partial(_token_probe, shape=WIDE_PROBE),
    PHI3_PROBE: partial(_phi3_probe, shape=WIDE_PROBE),
    WINDOW_PROBE: partial(_window_probe, shape=WIDE_PROBE),
}
"""Those of a smaller head dimension at that of ``WIDE``: for engines that refuse the others."""

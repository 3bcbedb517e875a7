"""The scales: the balance in as many forms as the probe has, for engines that show little.

The read-outs and the equations are those of ``balance.py``. Every token carries its load on half of the channels: on
UNIT and SKEW, on a form of three squares, and on the ballast. The form of the last token says what its row shows:

- open: all read-outs.
- a group: those of one MLP, or those of attention and of the last norm, at most 20 ids; all other rows are pushed far
  below. So its top 20 log-probabilities hold what the open form would have shown.
- a read-out and a level: that read-out, and LEVEL, the threshold that the token writes. The next token is the greater.
- a cue: greedy decoding plays the token of one load and group, so that a decode step is read.

All forms have the same squares and are multiples of the load, so that no norm can tell them apart. Read-outs that would
be negative are written with the other sign, since a threshold must be positive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.balance import (
    BALLAST,
    HEAVY,
    HUGE,
    NORMS,
    PLAIN,
    QUIET,
    READ,
    SHAPE,
    SKEWS,
    SUBLAYERS,
    Weighing,
    add_neurons,
    copy,
    read_outs,
    row,
)
from lmconform.checkpoints.circuit import Circuit, as_llama
from lmconform.checkpoints.layout import Checkpoint, on_grid
from lmconform.checkpoints.probe import Ask, Cell, Group, Tokens, beside

LOADS = {"light": QUIET[0], "heavy": HEAVY[0], "plain": PLAIN[0], "huge": HUGE[0]}
"""By the name of an asker: powers of two, so that all forms stay on the grid."""
WEIGHED = ("light", "heavy")
"""Those that are read from tokens alone too."""
LOADED = SHAPE.hidden_size
"""Of twice as many channels."""
FORM = 3
"""Of these, channels that say what a row shows."""
BALLASTS = LOADED - 2 - FORM
LAST = SUBLAYERS
"""Number of the last norm, among the sublayers."""
ENDS = [(LAST, "empty"), (LAST, "skew"), (LAST, "tied")]
"""What the head shows besides the read-outs of sublayers; TIED is a row of zeros with the embedding of UNIT."""
GROUPS: list[Group] = [(0, 2, LAST), (1,), (3,)]
"""Sublayers whose read-outs are shown together."""
PUSH = 256.0
"""How far down: below what wrong norms could lift a row that is pushed above one that is not."""
TOP, OCTAVES = 64.0, 11
"""Largest threshold, beside UNIT, and how far down the others go."""


@dataclass(frozen=True, eq=False)
class Scales:
    """The scales: their checkpoint, how to write prompts, and how to read scores."""

    checkpoint: Checkpoint
    circuit: Circuit
    levels: tuple[float, ...] = ()
    """Thresholds in rising order; none unless made for tokens alone."""
    ceiling = 2 * TOP
    """What a read-out above all thresholds is taken for, or more."""

    @property
    def groups(self) -> list[Group]:
        """The sublayers of each group."""
        return GROUPS

    @cached_property
    def named(self) -> list[tuple[int, str]]:
        """(sublayer, name) of each read-out, in the order of ``columns``."""
        return [*read_outs(), *ENDS]

    @property
    def cells(self) -> list[Cell]:
        """(sublayer, place) of each read-out, in the order of ``columns``."""
        return [(sublayer, place) for place, (sublayer, _) in enumerate(self.named)]

    @cached_property
    def columns(self) -> list[int]:
        """Ids of ZERO, UNIT and the read-outs."""
        return self.circuit.columns(["zero", "unit", *(row(*one) for one in self.named)])

    def shown(self, group: Group) -> list[int]:
        """Places in ``columns`` that a group shows."""
        return [0, 1, *(2 + place for sublayer, place in self.cells if sublayer in group)]

    def prompt(self, ask: Ask, group: Group | None = None) -> Tokens:
        """``ask`` in tokens: its load, repeated; the last token in the form of the group."""
        return self._ended(ask, ask.length, _open(ask.asker) if group is None else _of_group(ask.asker, group))

    def cued(self, ask: Ask, group: Group) -> Tokens:
        """A prompt after which greedy decoding plays the token of this load and group."""
        return self._ended(ask, ask.length - 1, _cue(ask.asker, group))

    def asked(self, ask: Ask, cell: Cell, level: int) -> Tokens:
        """A prompt whose next token says whether the read-out of ``cell`` is above the threshold."""
        return self._ended(ask, ask.length, _levelled(ask.asker, self.named[cell[1]], level))

    def answers(self, cell: Cell) -> tuple[int, int]:
        """The ids that say that it is above, and that it is not."""
        return self.circuit.tokens[row(*self.named[cell[1]])], self.circuit.tokens["level"]

    def _ended(self, ask: Ask, length: int, last: str) -> Tokens:
        tokens = self.circuit.tokens
        return (*(tokens[_open(ask.asker)],) * (length - 1), tokens[last])

    def shares(self, scores: Array) -> dict[tuple[int, str], Array]:
        """Each read-out beside UNIT, [n] each, from scores [n, len(columns)]; with the sign of ``balance.py``."""
        above = scores - scores[:, :1]
        with np.errstate(all="ignore"):  # a wrong engine may make nothing of UNIT
            found = above[:, 2:] / above[:, 1:2]
        return {one: _sign(*one) / _gain(*one) * found[:, place] for place, one in enumerate(self.named)}

    def weighing(self, scores: Array, asks: Sequence[Ask]) -> Weighing:
        """What follows from scores [2, len(columns)] of a lighter and a heavier ask."""
        loads = np.array([LOADS[ask.asker] for ask in asks])
        shares = self.shares(scores)
        unit = (scores[:, 1] - scores[:, 0])[:, None]
        ends = unit * np.stack([np.ones(2), shares[LAST, "empty"], shares[LAST, "skew"]], axis=1)  # [2, 3]
        with np.errstate(all="ignore"):
            return Weighing(loads, ends, shares, (LOADED, self.circuit.shape.hidden_size))


def scales(levels: int = 0) -> Scales:
    """The scales; with so many thresholds they are read from tokens alone."""
    shape = replace(SHAPE, hidden_size=2 * LOADED, intermediate_size=32, vocab_size=0)
    builder = _Builder(Circuit("scales", shape, {"kind": "scales", "levels": levels}))
    thresholds = _thresholds(levels)
    builder.build(thresholds)
    return Scales(as_llama(builder.circuit), builder.circuit, tuple(TOP * level for level in thresholds))


def _thresholds(levels: int) -> list[float]:
    """Parts of TOP on the grid, [levels], evenly spaced in ratio."""
    found: list[float] = on_grid(np.geomspace(2.0**-OCTAVES, 1 - 2.0**-7, levels)).tolist()
    return found


def _open(load: str) -> str:
    return f"{load} open"


def _of_group(load: str, group: Group) -> str:
    return f"{load} {_group(group)}"


def _cue(load: str, group: Group) -> str:
    return f"cue {load} {_group(group)}"


def _group(group: Group) -> str:
    return f"group {' '.join(map(str, group))}"


def _levelled(load: str, read: tuple[int, str], level: int) -> str:
    return f"{load} {row(*read)} level {level}"


def _push(*channels: str, by: float = PUSH) -> dict[str, float]:
    """Reads that push a row down where one of these channels is on; BLANK takes away what a mean makes of them."""
    return {**dict.fromkeys(channels, -by), "blank": by * len(channels)}


def _sign(sublayer: int, name: str) -> float:
    """-1 for what would be negative in a right engine, or in a wrong one, were it not turned round."""
    return -1.0 if name in ("empty", "open", "closed") or name.startswith("at -") else 1.0


def _gain(sublayer: int, name: str) -> float:
    """Of the head's row."""
    return 1.0 if sublayer == LAST else READ


class _Builder:
    """Writes the circuit."""

    def __init__(self, circuit: Circuit) -> None:
        self.circuit = circuit
        self.named = [*read_outs(), *ENDS]
        self.ballast = [f"ballast {k}" for k in range(BALLASTS)]

    def build(self, thresholds: Sequence[float]) -> None:
        self._rows()
        for load in LOADS:
            self._forms(load)
        for load in WEIGHED:
            self._levels(load, thresholds)
        for number, layer in enumerate(self.circuit.layers):
            copy(layer, number, _sign)
            add_neurons(layer, number, _sign)
        for norm, skew in zip(NORMS, SKEWS, strict=True):
            self.circuit.norms[norm] = {"skew": skew, **dict.fromkeys(self.ballast, BALLAST)}

    def _rows(self) -> None:
        """ZERO, UNIT, LEVEL, and a row for each read-out: all of them beside EMPTY, which a mean would move."""
        token, levelled = self.circuit.token, _push("levelled")
        token("zero", reads=levelled)
        token("unit", {"unit": 1}, {"unit": 1, "empty": -1, **levelled})
        token("level", reads={"level": TOP, "empty": -TOP, **_push("shut")})
        for sublayer, name in self.named:
            others = [_group(group) for group in GROUPS if sublayer not in group]
            unasked = [f"only {row(*one)}" for one in self.named if one != (sublayer, name)]
            reads = {"skew": {"skew": 1.0, "empty": -1.0}, "empty": {"empty": -1.0}, "tied": {}}
            own = reads[name] if sublayer == LAST else {row(sublayer, name): READ, "empty": -READ}
            token(row(sublayer, name), {"unit": 1} if name == "tied" else None, own)
            token(row(sublayer, name), reads=_push(*others, *unasked))

    def _forms(self, load: str) -> None:
        self._token(_open(load), load, {"pad": 1, "more pad": 1, "open": 1})
        for group in GROUPS:
            chosen, cue = _group(group), _cue(load, group)
            self._token(_of_group(load, group), load, {chosen: 1, "shut": 1, "pad": 1})
            self.circuit.token(_of_group(load, group), reads=_push(cue, by=-2 * PUSH))
            self._token(cue, load, {cue: 1, "shut": 1, "pad": 1})

    def _levels(self, load: str, thresholds: Sequence[float]) -> None:
        for read in self.named:
            for number, level in enumerate(thresholds):
                form = {f"only {row(*read)}": 1, "levelled": 1, "level": level, **beside(level)}
                self._token(_levelled(load, read, number), load, form)

    def _token(self, name: str, load: str, form: dict[str, float]) -> None:
        """A token of this load; its row is pushed down wherever not all rows are shown."""
        channels = {"unit": 1.0, "skew": 1.0, **dict.fromkeys(self.ballast, 1.0), **form}
        writes = {channel: LOADS[load] * value for channel, value in channels.items()}
        self.circuit.token(name, writes, _push("shut", "levelled"))

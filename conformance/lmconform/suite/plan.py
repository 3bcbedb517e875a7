"""What a run will do: profiles, the few checkpoints that it makes, and the cases of each test."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from lmconform.adapter import OPERATORS, NotOffered, Operator, Precision, Refused
from lmconform.checkpoints.edits import edited
from lmconform.checkpoints.layout import Checkpoint, Shape
from lmconform.checkpoints.random import BRIEF as BRIEF_SHAPE
from lmconform.checkpoints.random import FAMILIES as FAMILY_SHAPES
from lmconform.checkpoints.random import SHAPES, Volume, label, random_checkpoint
from lmconform.checkpoints.random import TERSE as TERSE_SHAPE
from lmconform.checkpoints.random import WINDOWED as WINDOWED_SHAPE
from lmconform.spec.decoder import decoder, read_checkpoint
from lmconform.suite.instruments import (
    INSTRUMENTS,
    LENGTHS,
    SPLIT_TAPE,
    STOP_TAPE,
    WIDE_INSTRUMENTS,
    Material,
    around,
)
from lmconform.transport.client import Connection

RANDOM, FEW_RANDOM, FIRST_RANDOM, FAMILIES = "random", "few-random", "first-random", "families"
WINDOWED, TERSE, BRIEF, GIVEN = "windowed", "terse", "brief", "given"
"""Kinds of checkpoints. A test that edits them takes few: each edit of each is one more load."""
OTHERS = {f"quiet-{shape.family}": shape for shape in FAMILY_SHAPES} | {
    WINDOWED: WINDOWED_SHAPE,
    TERSE: TERSE_SHAPE,
    BRIEF: BRIEF_SHAPE,
}
"""The random checkpoints of the other families, and of llamas whose config.json says little. A quiet one shows all
that a loud one does, and eps too."""
MAX_TOKENS = 136
MAX_ROWS = 32
"""Rows of a batch: most tests have a few; those that draw have all, since a wide batch costs an engine little more."""
EDGES = (1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)
"""Lengths that a run may use: the smallest, and both sides of block edges."""
BLOCKS = (128, 64, 32, 16)
"""Sizes of blocks that kernels and caches work in."""
GIVEN_LENGTHS = (2, 9, 17, 33)
GIVEN_EXAMPLES = 3
"""Lengths and examples on a checkpoint of the user's."""
OPERATOR_EXAMPLES = 6
"""Least examples on an operator: a library may have one of its kind, and fewer than five bites are vacuous."""


def block_edges(length: int) -> list[int]:
    """The places on both sides of a block's edge inside a sequence, those of the largest block first."""
    return [place for edge in BLOCKS for place in (edge, edge - 1) if 0 < place < length - 1]


TAPE_EXAMPLES = 3
"""Least examples on a tape: its model is the smallest, and stops have many forms."""


@dataclass(frozen=True)
class Profile:
    """How much a run does."""

    name: str
    examples: int
    """Examples of each test on a checkpoint."""
    regime_examples: int
    """Examples of each test on a checkpoint in a regime that is not the default."""
    checkpoints: int
    """Random checkpoints."""
    all_regimes: bool
    """Enter every regime with every checkpoint, not only with the first."""
    seconds: float
    """After this time what remains is not-run."""
    summary: str
    draws: int = 1_400
    """Most draws of a stage in a test of the sampler; what so many cannot show, the profile does not look for."""
    few: int = 1
    """Random checkpoints of the tests that edit them."""
    telling_alone: bool = False
    """A test of a model that names telling examples tries the first of them, and draws none."""


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("quick", 5, 2, 3, False, 300, "at every save: three random checkpoints, the same examples each time"),
        Profile(
            "matrix",
            2,
            2,
            1,
            False,
            600,
            "for planted faults: one random checkpoint, as few examples as will do",
            telling_alone=True,
        ),
        Profile(
            "standard",
            12,
            4,
            5,
            False,
            900,
            "before a merge: five random checkpoints, new examples each time",
            20_000,
            2,
        ),
        Profile(
            "exhaustive", 60, 20, 14, True, 7200, "before a release: every regime with every checkpoint", 60_000, 4
        ),
    )
}


def on_one_checkpoint(examples: int, name: str = "quick") -> Profile:
    """The quick profile on one random checkpoint, with this many examples, for engines that are judged in numbers."""
    regime_examples = min(examples, PROFILES["quick"].regime_examples)
    summary = f"{examples} examples a test, on one random checkpoint"
    return Profile(name, examples, regime_examples, 1, False, 600, summary)


@dataclass(frozen=True)
class Case:
    """One test function meets one checkpoint in one regime, or one operator under the checkpoint's name."""

    checkpoint: str
    regime: str | None = None
    max_tokens: int = MAX_TOKENS
    """What the engine is told to make room for."""

    def __str__(self) -> str:
        return self.checkpoint if self.regime is None else f"{self.checkpoint}-{self.regime}"


class Plan:
    """The cases of one run, from the profile and from what the engine says of itself."""

    def __init__(self, connection: Connection, profile: Profile, seed: int, given: Material | None = None) -> None:
        self.profile = profile
        self.seed = seed
        self.given = given
        self._connection = connection

    @cached_property
    def precision(self) -> Precision:
        return self._connection.description.precision

    @cached_property
    def regimes(self) -> Mapping[str, object]:
        return self._connection.description.regimes

    @cached_property
    def shapes(self) -> list[Shape]:
        """The shapes that the engine accepts, and for the others its reason in ``refused``."""
        reasons = {shape: self._connection.accepts(shape.config()) for shape in SHAPES}
        self.refused = {shape: reason for shape, reason in reasons.items() if reason is not None}
        return [shape for shape, reason in reasons.items() if reason is None]

    def examples(self, case: Case) -> int:
        """Examples of a test on this case. On a checkpoint of the user's the oracle takes seconds for each."""
        count = self.profile.examples if case.regime is None else self.profile.regime_examples
        if case.checkpoint in self.operators:
            return max(count, OPERATOR_EXAMPLES)
        if case.checkpoint in (STOP_TAPE, SPLIT_TAPE) and case.regime is None:
            return max(count, TAPE_EXAMPLES)
        return count if self.given is None else min(count, GIVEN_EXAMPLES)

    def telling_alone(self, case: Case) -> bool:
        """Whether telling examples are tried alone on this case. Operators cost little, and differ in their sizes."""
        return self.profile.telling_alone and case.checkpoint not in self.operators

    @cached_property
    def spread(self) -> str | None:
        """Name of a checkpoint whose scores are spread out; None if the engine accepts no shape."""
        return self._names(RANDOM)[0] if self.shapes else None

    @cached_property
    def operators(self) -> Mapping[str, Operator]:
        """The kernels that the engine offers by themselves, by name."""
        offers = self._connection.description.offers
        return self._connection.operators() if "operators" in offers and self.given is None else {}

    def cases(self, on: Sequence[str], every_regime: bool) -> list[Case]:
        """Checkpoints of the kinds ``on``; with ``every_regime`` also in each regime that the engine declares.

        For a kind of operators: the engine's operators of that kind, each in the place of a checkpoint.
        """
        if kinds := set(on) & set(OPERATORS):
            return [Case(name) for name, operator in self.operators.items() if operator.kind in kinds]
        names = [name for kind in on for name in self._names(kind)]
        found = [Case(name) for name in names]
        if every_regime and (self.given is None or self.profile.all_regimes):
            for name in names if self.profile.all_regimes else names[:1]:
                found += [Case(name, regime) for regime in self.regimes]
        return found

    def turns(self, cases: Iterable[Case]) -> dict[Case, int]:
        """The place of each case in the run: one after the other, so that an engine loads each once.

        A regime begins with what its preflight has loaded. The default regime comes first, since time may run out.
        """
        regimes, loaded = [None, *self.regimes], (STOP_TAPE, self.spread)

        def turn(case: Case) -> tuple[int, int]:
            place = loaded.index(case.checkpoint) if case.checkpoint in loaded else len(loaded)
            return regimes.index(case.regime), place

        order = sorted(dict.fromkeys(cases), key=turn)
        return {case: number for number, case in enumerate(order)}

    def _names(self, kind: str) -> list[str]:
        if self.given is not None:
            return [GIVEN] if kind in (RANDOM, FEW_RANDOM, FIRST_RANDOM) else []
        if kind == FEW_RANDOM:
            return self._names(RANDOM)[: self.profile.few]
        if kind == FIRST_RANDOM:
            return self._names(RANDOM)[:1]
        if kind == FAMILIES:
            return [name for name in OTHERS if name not in (WINDOWED, TERSE, BRIEF)]
        if kind != RANDOM:
            return [kind]
        return [f"{self._volume(index)}-{index}" for index in range(self.profile.checkpoints)]

    @staticmethod
    def _volume(index: int) -> Volume:
        return "quiet" if index % 3 == 1 else "loud"

    def material(self, name: str) -> Material:
        """Make the checkpoint ``name``. A suffix ``#k`` asks for the k-th redraw of its weights, ``~edit`` for an edit.

        Raises Refused for a random checkpoint if the engine accepts none of the shapes, and for one of a family that it
        does not accept; NotOffered for an edit of the user's weights.
        """
        base, _, edit = name.partition("~")
        if edit:
            if base == GIVEN:
                raise NotOffered("other checkpoints than the given one")
            material = self.material(base)
            return replace(material, checkpoint=edited(material.checkpoint, edit))
        if name == GIVEN and self.given is not None:
            return self.given
        if name in INSTRUMENTS:
            return self._taken(self._instrument(name))
        base, _, redraw = name.partition("#")
        if base in OTHERS:
            return self._other(OTHERS[base], int(redraw or 0))
        if not self.shapes:
            shape, reason = next(iter(self.refused.items()))
            raise Refused(f"it accepts no shape of the suite; for {label(shape)} its reason is: {reason}")
        volume, _, number = base.rpartition("-")
        index = int(number)
        seed = self.seed * 1000 + index * 10 + int(redraw or 0)
        shape = self.shapes[index % len(self.shapes)]
        checkpoint = random_checkpoint(shape, "quiet" if volume == "quiet" else "loud", seed)
        return Material(checkpoint, LENGTHS[index % len(LENGTHS)])

    def _instrument(self, name: str) -> Material:
        """The instrument; where the engine refuses it and takes it with wider heads, that one."""
        made = INSTRUMENTS[name](self.precision)
        if name in WIDE_INSTRUMENTS and self._connection.accepts(made.checkpoint.config) is not None:
            wide = WIDE_INSTRUMENTS[name](self.precision)
            if self._connection.accepts(wide.checkpoint.config) is None:
                return wide
        return made

    def _other(self, shape: Shape, redraw: int) -> Material:
        """A random checkpoint of another family, or a terse one."""
        window = shape.config().get("sliding_window")
        checkpoint = random_checkpoint(shape, "quiet", self.seed * 1000 + redraw)
        return self._taken(Material(checkpoint, LENGTHS[0] if window is None else around(window, 65, 129)))

    def _taken(self, material: Material) -> Material:
        """The material; raises Refused with the engine's reason if its family is not llama and the engine takes it not.

        A llama of any shape is loaded: what it refuses, the engine says then.
        """
        config = material.checkpoint.config
        if config["model_type"] == "llama":
            return material
        reason = self._connection.accepts(config)
        if reason is not None:
            window = config.get("sliding_window")
            through = "" if window is None else f" with a sliding_window of {window}"
            raise Refused(f"a checkpoint of the family {config['model_type']}{through}; its reason is: {reason}")
        return material


def given_material(directory: Path) -> Material:
    """A checkpoint of the user's, for the laws. Raises ValueError if it is none that the oracle can compute."""
    try:
        config = _read_config(directory / "config.json")
        sizes, weights = read_checkpoint(directory)
        if broken := [name for name, value in weights.items() if not np.isfinite(value).all()]:
            raise ValueError(f"tensor {broken[0]} holds NaN or infinite numbers.")
        decoder(sizes, weights, [0])
    except OSError as error:
        raise _unusable(directory, f"{error.filename}: {error.strerror}." if error.filename else f"{error}.") from error
    except SafetensorError as error:
        raise _unusable(directory, f"model.safetensors cannot be read as safetensors: {error}.") from error
    except ValueError as error:
        raise _unusable(directory, str(error)) from error
    narrow = {name: value.astype(np.float32) for name, value in weights.items()}
    checkpoint = Checkpoint(directory.name, config, narrow, {"kind": GIVEN, "path": str(directory.resolve())})
    return Material(checkpoint, GIVEN_LENGTHS, path=directory.resolve())


def _read_config(path: Path) -> dict[str, Any]:
    """The fields of config.json. Raises ValueError where the page would meet a value of another type."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON: {error}.") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path.name} holds a {type(config).__name__}; an object was expected.")
    sizes = {one.name: type(one.default) for one in fields(Shape)}
    sizes |= dict.fromkeys(("n_embd", "n_layer", "n_head", "n_positions", "n_inner"), int)  # gpt2's names
    sizes |= {"layer_norm_epsilon": float, "activation_function": str, "hidden_act": str, "model_type": str}
    for name, kind in {**sizes, "rope_parameters": dict, "rope_scaling": dict}.items():
        value = config.get(name)
        if not (value is None or type(value) is kind or (kind is float and type(value) is int)):
            raise ValueError(f"{path.name} has {name} = {value!r}; the type {kind.__name__} was expected.")
    return config


def _unusable(directory: Path, reason: str) -> ValueError:
    return ValueError(
        f"The checkpoint {directory} cannot be judged: {reason} A directory with config.json and model.safetensors was "
        "expected, as the page decoder describes them."
    )

"""What LayerNorm and the MLP of a gpt2 do, read off its balance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.balance_gpt2 import EPS, LOADS, NORMS, POINTS, GPT2Balance
from lmconform.judging.budgets import Rounded, judge
from lmconform.measure.experiment import worst
from lmconform.measure.observation import Value
from lmconform.measure.sheet import Entry, Outcome, choice
from lmconform.spec.families import GPT2_ACTIVATIONS
from lmconform.suite.subject import Subject

SECTION = "gpt2 norms and MLP"
KNOWN = {"gelu_new": "GELU tanh", "gelu": "GELU exact", "silu": "SiLU", "relu": "ReLU"}
UNKNOWN, APART = "none that is known", " or "
EXACT = 1e-5
"""A number so near to a curve lies on it; the two forms of GELU are ten times as far apart."""


def layer_norm(model: Subject) -> list[Entry]:
    """The lines of the section, by ``score``."""
    made = model.instrument(GPT2Balance)
    prompts = [made.prompt(load) for load in LOADS]
    rows = np.array([model.score(prompt, made.columns).values[-1] for prompt in prompts], np.float64)
    rounded: Rounded = None if model.choices.scores == "logits" else "scores"
    places = [(prompt, len(prompt) - 1) for prompt in prompts]
    ways = model.yardstick.ways(places, made.columns, logprobs=rounded)

    def value(quantity: Callable[[Array], Array]) -> Value:
        def reading(some: Array) -> Array:
            with np.errstate(all="ignore"):  # a wrong engine, or a coarse format, may make nothing of a load
                return quantity(some).reshape(-1, 1)

        wanted, budget = judge(ways, model.yardstick.precision, reading=reading)
        return Value(reading(rows)[:, 0], wanted[:, 0], budget.reading)

    own = GPT2_ACTIVATIONS[made.checkpoint.config["activation_function"]]

    def curve_of(some: Array) -> Array:
        where, there = made.activation(some)
        moved: Array = there - own(where) + own(np.array(POINTS))
        return moved  # from where the norm of the engine brought it to the point itself

    eps, shifted, curve = value(made.eps), value(made.shifted), value(curve_of)
    lines = _each(eps, [f"eps of {norm}" for norm in NORMS], [EPS / 2] * len(NORMS), EPS / 100)
    lines += _each(shifted, [f"shifted load after {norm}" for norm in NORMS], [0.2] * len(NORMS), 1e-3)
    lines.append(_form(_named(curve.got, curve), _named(curve.wanted, curve)))
    return lines + _each(curve, [f"activation at {point:g}" for point in POINTS], _telling(), EXACT)


def _form(got: str, wanted: str) -> Entry:
    """The line for the choice, which some formats cannot read."""
    line = choice(SECTION, "activation", got, wanted)
    if line.outcome is Outcome.EQUAL and APART in wanted:
        return replace(line, outcome=Outcome.NOT_RESOLVABLE, note="this number format cannot tell them apart")
    return line


def _each(value: Value, quantities: Sequence[str], telling: Sequence[float], slack: float) -> list[Entry]:
    """A line for each number."""
    return [
        worst(
            Value(value.got[[k]], value.wanted[[k]], value.bound[[k]]),
            SECTION,
            quantity,
            ["the last row"],
            telling=apart,
            slack=slack,
        )
        for k, (quantity, apart) in enumerate(zip(quantities, telling, strict=True))
    ]


def _curve(name: str) -> Array:
    """An activation at ``POINTS``."""
    return np.asarray(GPT2_ACTIVATIONS[name](np.array(POINTS)), np.float64)


def _telling() -> list[float]:
    """How far the two forms of GELU are apart at each point."""
    return [float(apart) for apart in np.abs(_curve("gelu_new") - _curve("gelu"))]


def _named(numbers: Array, value: Value) -> str:
    """The activations whose curves these numbers lie on, as exactly as this format can tell."""
    room = value.bound + EXACT
    near = [said for name, said in KNOWN.items() if (np.abs(numbers - _curve(name)) <= room).all()]
    return APART.join(near) or UNKNOWN

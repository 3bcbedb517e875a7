"""What attention does, read off the probe: its scale, its maps, what it sees, and what it makes of large scores."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from math import sqrt

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.probe import CONTENTS, FILLER, LEAK, NULL, OWN, RELAY, SCORE, STEPS, Ask, Cell, Probe
from lmconform.measure.experiment import Experiment, chosen, worst
from lmconform.measure.observation import Observation, Value
from lmconform.measure.rope import candidates, turns
from lmconform.measure.sheet import Entry, Outcome

SECTION = "attention"
SHORT, LONG = 9, 129
"""Lengths at which visible positions are counted: both sides of what small windows and tiles hold."""

CURVED = 1e-3
"""How far other faults may bend the line of large scores."""


def experiments(probe: Probe) -> list[Experiment]:
    """All that is asked about attention."""
    everywhere = [*product(range(probe.shape.num_hidden_layers), range(probe.shape.num_attention_heads))]
    own = range(probe.shape.num_key_value_heads)
    steps = [
        _ask("slow", [(1, "null"), (2, f"step {k}")], [(*one, k) for one in everywhere]) for k in range(len(STEPS))
    ]
    keys = [_ask("slow", [(1, "null"), (2, f"kv {g}")], [(*one, g) for one in everywhere]) for g in own]
    values = _ask("slow", [(1, "null"), (2, "value")], [(*one, g) for one in everywhere for g in own])
    seen = [_ask("slow", [(1, "leak")], [(*one, LEAK) for one in everywhere], length) for length in (SHORT, LONG)]
    future = [_ask("slow", [(2, "null"), (-1, "leak")])]
    relayed = [_ask("slow", [(2, "mark"), (1, "leak")], [one for one in probe.cells if one[2] == RELAY])]
    return [
        Experiment(SECTION, "scale", _crossings(probe), partial(_scale, probe)),
        Experiment(SECTION, "soft cap", tuple(steps), partial(_soft_cap, probe)),
        Experiment(SECTION, "KV head of keys", tuple(keys), partial(_key_map, probe)),
        Experiment(SECTION, "KV head of values", (values,), partial(_value_map, probe)),
        Experiment(SECTION, "positions seen", tuple(seen), partial(_seen, probe)),
        Experiment(SECTION, "weight on a future token", tuple(future), partial(_future, probe)),
        Experiment(SECTION, "future weight below", tuple(relayed), partial(_relayed, probe)),
    ]


def _ask(asker: str, places: Sequence[tuple[int, str]], cells: Sequence[Cell] = (), length: int = 4) -> Ask:
    return Ask(asker, length, tuple(places), tuple(cells))


def _crossings(probe: Probe) -> tuple[Ask, ...]:
    """Every content token, next to every turn asker: a whole row of the rotation matrix for each head."""
    asks = []
    for asker in (name for name in probe.askers if name != "slow"):
        for b in range(probe.shape.head_dim):
            heads = [h for h in range(probe.shape.num_attention_heads) if b in candidates(probe, asker, h)]
            cells = [(layer, h, b % CONTENTS) for layer in range(probe.shape.num_hidden_layers) for h in heads]
            asks.append(_ask(asker, [(1, f"content {b}"), (2, "null")], cells))
    return tuple(asks)


def _scale(probe: Probe, seen: Observation) -> list[Entry]:
    """A rotation keeps lengths: a head's scores of all directions have the length of its query, times the scale."""
    D = probe.D

    def lengths(rows: Array, asks: Sequence[Ask]) -> Array:
        found = turns(probe, rows, asks)  # [L, H_q, askers, D, 1]
        return (np.sqrt(np.nansum(found**2, axis=(3, 4))) / SCORE / sqrt(D)).reshape(-1)  # [L · H_q · askers]

    names = [f"layer {layer}, head {h}" for layer, h in probe.groups for _ in probe.askers[:-1]]
    return [worst(seen.value(lengths), SECTION, "scale", names, telling=0.2 / sqrt(D), slack=1e-3 / sqrt(D))]


def _soft_cap(probe: Probe, seen: Observation) -> list[Entry]:
    """Larger scores beside the smallest: a cap c makes c tanh(s/c) of s."""

    def ratio(step: int, rows: Array, asks: Sequence[Ask]) -> Array:
        scores = probe.scored(rows, asks)  # [steps, L, H_q, ENTRIES]
        with np.errstate(all="ignore"):
            found: Array = (scores[step, :, :, step] / STEPS[step] / (scores[0, :, :, 0] / STEPS[0])).reshape(-1)
        return found

    each = [seen.value(partial(ratio, step)) for step in range(1, len(STEPS))]
    value = Value(*(np.concatenate([getattr(one, name) for one in each]) for name in ("got", "wanted", "bound")))
    names = [f"a score of {step:g}, layer {layer}, head {h}" for step in STEPS[1:] for layer, h in probe.groups]
    line = worst(value, SECTION, "large scores beside small ones", names, telling=0.1, slack=CURVED)
    if line.outcome is not Outcome.EQUAL:
        return [line]
    sizes = np.repeat(STEPS[1:], len(probe.groups))
    reach = np.nanmax(sizes / np.sqrt(3 * np.maximum(value.bound, CURVED)))  # tanh x = x (1 - x^2 / 3)
    return [Entry(SECTION, "soft cap", "none", "none", Outcome.EQUAL, note=f"one above {reach:.2g} cannot be seen")]


def _key_map(probe: Probe, seen: Observation) -> list[Entry]:
    def heads(rows: Array, asks: Sequence[Ask]) -> str:
        weights = probe.weights(rows)  # [KV heads, L, H_q, ENTRIES]
        return kv_heads(np.array([weights[g, :, :, g % CONTENTS] for g in range(len(asks))]))

    return [chosen(seen, SECTION, "KV head of keys", heads)]


def _value_map(probe: Probe, seen: Observation) -> list[Entry]:
    def heads(rows: Array, asks: Sequence[Ask]) -> str:
        weights = probe.weights(rows)[0, :, :, : probe.shape.num_key_value_heads]  # [L, H_q, H_kv]
        return kv_heads(np.moveaxis(weights, -1, 0))

    return [chosen(seen, SECTION, "KV head of values", heads)]


def kv_heads(weights: Array) -> str:
    """For weights [H_kv, L, H_q], by layer the KV head of each query head: that which alone stands out."""
    layers = []
    for one in np.moveaxis(np.nan_to_num(weights, nan=0.0), 0, -1):  # [H_q, H_kv]
        largest = one.max(axis=-1, keepdims=True)
        alone = (one > largest / 2).sum(axis=-1) == 1
        layers.append(" ".join(str(k) if only else "?" for k, only in zip(one.argmax(axis=-1), alone, strict=True)))
    return layers[0] if len(set(layers)) == 1 else "; ".join(f"layer {k}: {one}" for k, one in enumerate(layers))


def _seen(probe: Probe, seen: Observation) -> list[Entry]:
    """All scores are 0, so that one weight is a part of as many as are seen."""
    names = [f"layer {layer}, head {h}" for layer, h in probe.groups]
    lines = []
    for number, ask in enumerate(seen.asks):

        def positions(rows: Array, asks: Sequence[Ask], number: int = number) -> Array:
            with np.errstate(all="ignore"):
                found: Array = 1 / probe.weights(rows)[number, :, :, LEAK].reshape(-1)
            return found

        lines.append(
            worst(seen.value(positions), SECTION, f"positions seen of {ask.length}", names, telling=1.0, slack=0.01)
        )
    if np.isfinite(seen.rows).all():

        def sums(rows: Array, asks: Sequence[Ask]) -> Array:
            return np.nansum(probe.weights(rows)[0][..., [LEAK, NULL, FILLER, OWN]], axis=-1).reshape(-1)

        lines.append(worst(seen.value(sums), SECTION, "sum of a row's weights", names, telling=0.05, slack=1e-3))

        def own(rows: Array, asks: Sequence[Ask]) -> Array:
            weights = probe.weights(rows)[0]
            with np.errstate(all="ignore"):
                found: Array = (weights[..., OWN] / weights[..., LEAK]).reshape(-1)
            return found

        lines.append(worst(seen.value(own), SECTION, "own weight beside another", names, telling=0.5, slack=1e-3))
    return lines


def _future(probe: Probe, seen: Observation) -> list[Entry]:
    def leaked(rows: Array, asks: Sequence[Ask]) -> Array:
        return probe.weights(rows)[0, :, :, LEAK].reshape(-1)

    names = [f"layer {layer}, head {h}" for layer, h in probe.groups]
    return [worst(seen.value(leaked), SECTION, "weight on a future token", names, telling=0.05, slack=1e-4)]


def _relayed(probe: Probe, seen: Observation) -> list[Entry]:
    """What the layers below the last let in, through what the next one reads of it."""

    def leaked(rows: Array, asks: Sequence[Ask]) -> Array:
        return probe.weights(rows)[0, 1:, 0, RELAY] / probe.shape.num_attention_heads

    names = [f"layer {layer}, mean of all heads" for layer in range(probe.shape.num_hidden_layers - 1)]
    return [
        worst(seen.value(leaked), SECTION, "weight on a future token, one layer on", names, telling=0.05, slack=5e-3)
    ]

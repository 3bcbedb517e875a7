"""Whole scores on random checkpoints, against the oracle and against the engine's own single pass."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lmconform.calibrate.engines import WAYS, Engine
from lmconform.calibrate.table import Table
from lmconform.checkpoints.random import FAMILIES, SHAPES, random_checkpoint
from lmconform.judging.budgets import centred
from lmconform.suite.instruments import Material
from lmconform.suite.subject import Scores, Subject, Tokens

LENGTH = 65
STEPS = 4
KINDS = (*SHAPES[:1], *FAMILIES, *SHAPES[1:])


def materials(count: int) -> Iterator[Material]:
    """Random checkpoints over all shapes and families, two loud ones for a quiet one."""
    for seed in range(count):
        again, which = divmod(seed, len(KINDS))
        checkpoint = random_checkpoint(KINDS[which], "quiet" if (seed + again) % 3 == 1 else "loud", 10_000 + seed)
        yield Material(checkpoint, ())


def measure(engine: Engine, count: int, table: Table) -> None:
    """Every way of working of one engine on ``count`` checkpoints."""
    for number, material in enumerate(materials(count)):
        drawn = np.random.default_rng(number).integers(material.checkpoint.vocab_size, size=LENGTH)
        for name, subject in engine.subjects(material):
            _one(name, subject, tuple(drawn.tolist()), table)


def _one(name: str, subject: Subject, tokens: Tokens, table: Table) -> None:
    family = subject.material.checkpoint.config["model_type"]
    base: Scores | None = None
    for label, way in WAYS.items():
        got = way(subject, tokens, None, STEPS)
        wanted, budget = subject.yardstick.budget(got.places, got.columns, logprobs=got.logprobs)
        what = f"{family}: {'log-probabilities' if label == 'generate' else 'scores'} against the oracle"
        table.at(what, f"{name}, {label}").add(centred(got.values) - wanted, budget, table.dtype)
        base = base or got
        if got is not base and got.places == base.places:
            _, both = subject.yardstick.budget(got.places, got.columns, logprobs=got.logprobs, sides=2)
            moved = centred(got.values) - centred(base.values)
            table.at(f"{family}: scores against its own single pass", f"{name}, {label}").add(moved, both, table.dtype)

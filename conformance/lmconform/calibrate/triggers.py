"""How often a planted fault changes anything: the share of random examples on which it leaves the budget.

An example is what a random test would ask: one of ten random checkpoints, one door, random tokens, chunks, settings.
The answer of the faulty engine is compared with the reference's; scores by the budget of two results, everything else
exactly. A fault with a small share is one that random testing misses, which is why the suite builds its examples.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lmconform.adapter import Array, Completion, Engine, Model, Needs, NotOffered, Refused, Request
from lmconform.checkpoints.layout import Checkpoint
from lmconform.checkpoints.random import FAMILIES, SHAPES, WINDOWED, random_checkpoint
from lmconform.engines.reference import Reference
from lmconform.faults import FAULTS
from lmconform.judging.budgets import Yardstick, centred
from lmconform.matrix.forked import Ended, each
from lmconform.matrix.judged import one_thread
from lmconform.transport.locate import construct

EXAMPLES = 20
"""Of each checkpoint."""
LONGEST, NEW = 70, 6
SECONDS = 300.0
Answer = tuple[list[Array], Any]
"""Arrays of scores, and everything else."""


@dataclass
class Asked:
    """One example: how it is asked, the reference's answer, and the sequences that its scores belong to."""

    call: Callable[[Model], Answer]
    sequences: Sequence[tuple[int, ...]]
    wanted: Answer


@dataclass
class Set:
    """One checkpoint on the disk, and its examples."""

    path: Path
    yardstick: Yardstick
    asked: list[Asked]


def examples(folder: Path) -> list[Set]:
    """The random examples, answered by the reference."""
    found = []
    engine = Reference()
    for number, shape in enumerate((*SHAPES, *FAMILIES, WINDOWED)):
        checkpoint = random_checkpoint(shape, "quiet" if number % 3 == 1 else "loud", number)
        path = checkpoint.write(folder / str(number))
        model = engine.load(path, Needs(max_tokens=LONGEST + NEW))
        draw = np.random.default_rng(number)
        asked = [_asked(model, draw, checkpoint) for _ in range(EXAMPLES)]
        found.append(Set(path, Yardstick(checkpoint, engine.precision), asked))
    return found


def _asked(model: Model, draw: np.random.Generator, checkpoint: Checkpoint) -> Asked:
    def tokens() -> tuple[int, ...]:
        return tuple(draw.integers(checkpoint.vocab_size, size=draw.integers(1, LONGEST)).tolist())

    door = draw.choice(["score", "score_batch", "session", "greedy", "drawn"])
    if door == "score":
        one = tokens()
        return _answered(lambda asked: ([asked.score(one)], None), [one], model)
    if door == "score_batch":
        rows = [tokens() for _ in range(draw.integers(2, 5))]
        return _answered(lambda asked: (asked.score_batch(rows), None), rows, model)
    if door == "session":
        one = tokens()
        cuts = sorted(set(draw.integers(1, len(one) + 1, size=3).tolist()) | {len(one)})
        return _answered(lambda asked: ([_fed(asked, one, cuts)], None), [one], model)
    requests = [_request(tokens(), draw, door == "drawn", checkpoint.vocab_size) for _ in range(draw.integers(1, 4))]
    return _answered(lambda asked: ([], _plain(asked.generate(requests))), [], model)


def _answered(call: Callable[[Model], Answer], sequences: Sequence[tuple[int, ...]], model: Model) -> Asked:
    return Asked(call, sequences, call(model))


def _fed(model: Model, tokens: tuple[int, ...], cuts: Sequence[int]) -> Array:
    """Scores of a session that is fed in chunks, and once forked and cut back on the way."""
    session = model.open()
    parts = [session.extend(tokens[: cuts[0]])]
    fork = session.fork()
    fork.extend(tokens[:1])
    fork.truncate(cuts[0])
    for first, last in pairwise(cuts):
        parts.append(fork.extend(tokens[first:last]))
    session.close()
    fork.close()
    return np.concatenate(parts)


def _request(prompt: tuple[int, ...], draw: np.random.Generator, drawn: bool, vocab_size: int) -> Request:
    request = Request(prompt, int(draw.integers(1, NEW + 1)), logprobs=3, stream=bool(draw.random() < 0.3))
    if draw.random() < 0.5:
        stops = tuple(draw.integers(vocab_size, size=vocab_size // 4).tolist())
        request = replace(request, stop_ids=stops, min_new_tokens=int(draw.integers(0, 3)))
    if not drawn:
        return request
    top_k, top_p, min_p = int(draw.integers(1, 20)), float(draw.uniform(0.2, 1)), float(draw.uniform(0, 0.3))
    return replace(
        request,
        temperature=float(draw.uniform(0.3, 2)),
        seed=int(draw.integers(2**31)),
        top_k=top_k if draw.random() < 0.4 else None,
        top_p=top_p if draw.random() < 0.4 else None,
        min_p=min_p if draw.random() < 0.4 else None,
    )


def _plain(done: Sequence[Completion]) -> Any:
    """All but the last digits of log-probabilities, whose budget is wider than float32's rounding."""
    steps = [[{k: round(v, 3) for k, v in step.items()} for step in one.logprobs or ()] for one in done]
    return [(one.tokens, one.finish_reason, one.text, one.pieces) for one in done], steps


def rate(engine: Engine, sets: Sequence[Set]) -> float:
    """The share of all examples that ``engine`` answers in another way."""
    changed = [_changed(model, one, asked) for one, model in _loaded(engine, sets) for asked in one.asked]
    return sum(changed) / len(changed)


def _loaded(engine: Engine, sets: Sequence[Set]) -> Iterator[tuple[Set, Model]]:
    for one in sets:
        yield one, engine.load(one.path, Needs(max_tokens=LONGEST + NEW))


def _changed(model: Model, one: Set, asked: Asked) -> bool:
    try:
        scores, rest = asked.call(model)
    except (NotOffered, Refused):
        return True
    wanted, others = asked.wanted
    if rest != others or [part.shape for part in scores] != [part.shape for part in wanted]:
        return True
    return any(
        _beyond(one.yardstick, tokens, got, right)
        for tokens, got, right in zip(asked.sequences, scores, wanted, strict=True)
    )


def _beyond(yardstick: Yardstick, tokens: tuple[int, ...], got: Array, wanted: Array) -> bool:
    if np.array_equal(got, wanted):
        return False
    _, budget = yardstick.budget([(tokens, position) for position in range(len(tokens))], sides=2)
    return budget.excess(centred(got) - centred(wanted)) > 1


def measure(wanted: Container[str], jobs: int) -> Iterator[tuple[str, float | None]]:
    """The rate of each of these faults, kernels left out; None for one that broke down."""
    one_thread()
    with tempfile.TemporaryDirectory() as folder:
        sets = examples(Path(folder))
        faults = [fault for fault in FAULTS if fault.name in wanted and issubclass(fault.engine, Reference)]
        for fault, found in each(faults, lambda fault: rate(construct(fault.target, {}), sets), jobs, SECONDS):
            yield fault.name, None if isinstance(found, Ended) else round(found, 3)

"""Measures how much of the budgets right engines use: ``python -m lmconform.calibrate``.

Two engines of different code, each in several legal ways of working, are held against the oracle and against
themselves on random checkpoints. The factors of ``judging/budgets.py`` follow from the largest shares seen; the table
stands in ``spec/numerics.md``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lmconform.adapter import Array, Needs, Request
from lmconform.checkpoints.attention_scope import attention_scope
from lmconform.checkpoints.layout import Checkpoint
from lmconform.checkpoints.random import SHAPES, random_checkpoint
from lmconform.judging.budgets import FACTORS, Yardstick, centred
from lmconform.suite.plan import MAX_TOKENS
from lmconform.suite.subject import MOST_LOGPROBS
from lmconform.transport.client import Connection, EngineSpec, RemoteModel

LENGTH = 65
NEIGHBOURS = (3, 17, 129, 64, 1, 33, 100)
Tokens = tuple[int, ...]
Way = Callable[[RemoteModel, Tokens, np.random.Generator], Array]


def one_pass(model: RemoteModel, tokens: Tokens, draw: np.random.Generator) -> Array:
    return model.score(tokens)


def one_by_one(model: RemoteModel, tokens: Tokens, draw: np.random.Generator) -> Array:
    with model.open() as session:
        return np.concatenate([session.extend([token]) for token in tokens])


def in_chunks(model: RemoteModel, tokens: Tokens, draw: np.random.Generator) -> Array:
    cuts = np.sort(draw.choice(np.arange(1, len(tokens)), 4, replace=False))
    with model.open() as session:
        return np.concatenate([session.extend(part) for part in np.split(np.array(tokens), cuts)])


def in_a_batch(model: RemoteModel, tokens: Tokens, draw: np.random.Generator) -> Array:
    others = [tuple(draw.integers(model.vocab_size, size=n).tolist()) for n in NEIGHBOURS]
    return model.score_batch([*others[:3], tokens, *others[3:]])[3]


WAYS: dict[str, Way] = {way.__name__.replace("_", " "): way for way in (one_pass, one_by_one, in_chunks, in_a_batch)}


@dataclass
class Use:
    """Largest shares of the bounds that one legal way used, in units of S, S_t and M; a list of every comparison."""

    shares: list[tuple[float, float, float]] = field(default_factory=list)
    unfit: int = 0

    def row(self, dtype: str) -> list[float]:
        """Maxima of rms(e)/S, rms_t/S_t and max|e|/M."""
        factors = FACTORS[dtype]
        return [factor * max(share[i] for share in self.shares) for i, factor in enumerate(factors)]


def engines(dtype: str) -> Iterator[tuple[str, Connection]]:
    """Both engines, with both forms of attention, in this process; float64 is the reference's alone."""
    for name in ("reference", "transformers") if dtype != "float64" else ("reference",):
        for attention in ("eager", "sdpa"):
            options = {"dtype": dtype, "attention": attention}
            with Connection.start(EngineSpec(name, options=options, in_process=True)) as connection:
                yield f"{name} {attention}", connection


def checkpoints(count: int) -> Iterator[Checkpoint]:
    """Loud and quiet in turn, over all shapes."""
    for seed in range(count):
        yield random_checkpoint(SHAPES[seed % len(SHAPES)], "quiet" if seed % 3 == 1 else "loud", 10_000 + seed)


def measure(dtype: str, count: int, report: Callable[[str], None]) -> dict[str, Use]:
    """Uses by engine, regime, way of asking, and what it is compared with."""
    uses: dict[str, Use] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, connection in engines(dtype):
            precision = connection.description.precision
            for checkpoint in checkpoints(count):
                if connection.accepts(checkpoint.config) is None:
                    path = checkpoint.write(Path(folder) / checkpoint.name)
                    _one(name, connection, checkpoint, path, Yardstick(checkpoint, precision), uses)
            _readings(name, connection, Path(folder) / "scope", uses)
            report(f"{dtype}: {name} measured on {count} checkpoints, fewer where it refuses a shape")
    return uses


def _one(
    name: str, connection: Connection, checkpoint: Checkpoint, path: Path, yardstick: Yardstick, uses: dict[str, Use]
) -> None:
    draw = np.random.default_rng(len(checkpoint.name))
    tokens = tuple(draw.integers(checkpoint.vocab_size, size=LENGTH).tolist())
    places = [(tokens, position) for position in range(LENGTH)]
    top = min(checkpoint.vocab_size, MOST_LOGPROBS)
    for regime in (None, *connection.description.regimes):
        model = connection.load(path, Needs(max_tokens=MAX_TOKENS, top_n=top, regime=regime))
        base = None
        for label, way in WAYS.items():
            got = centred(np.asarray(way(model, tokens, draw), np.float64))
            base = got if base is None else base
            for sides, other in ((1, None), (2, base)):
                wanted, budget = yardstick.budget(places, sides=sides)
                if sides == 2 and other is got:
                    continue
                use = uses.setdefault(f"{name}, {regime or 'default'}, {label}, {_against(sides)}", Use())
                use.unfit += budget.unfit
                use.shares.append(budget.shares(got - (wanted if other is None else other)))
        _generated(model, tokens[:17], yardstick, uses.setdefault(f"{name}, {regime or 'default'}, generate", Use()))
        model.close()


def _against(sides: int) -> str:
    return "against the oracle" if sides == 1 else "against its own single pass"


def _generated(model: RemoteModel, prompt: Tokens, yardstick: Yardstick, use: Use) -> None:
    """Log-probabilities of four greedy steps against the oracle's."""
    (done,) = model.generate([Request(prompt, max_new_tokens=4, logprobs=model.vocab_size)])
    assert done.logprobs is not None
    places = [(prompt + done.tokens[:k], len(prompt) + k - 1) for k in range(len(done.logprobs))]
    columns = sorted(set.intersection(*(set(step) for step in done.logprobs)))
    wanted, budget = yardstick.budget(places, columns, logprobs="logprobs")
    got = centred(np.array([[step[column] for column in columns] for step in done.logprobs]))
    use.shares.append(budget.shares(got - wanted))


def _readings(name: str, connection: Connection, path: Path, uses: dict[str, Use]) -> None:
    """Readings of the attention scope; every weight on a later position must be exactly 0."""
    scope = attention_scope("quiet")
    yardstick = Yardstick(scope.checkpoint, connection.description.precision)
    tokens = scope.content_at(LENGTH, [0, 1, 15, 16, 31, 48, LENGTH - 1])
    places = [(tokens, position) for position in range(LENGTH)]
    use = uses.setdefault(f"{name}, readings of the scope", Use())
    model = connection.load(scope.checkpoint.write(path), Needs(max_tokens=MAX_TOKENS))
    wanted, budget = yardstick.budget(places, scope.columns, reading=scope.read)
    got = scope.read(np.asarray(model.score(tokens, columns=scope.columns), np.float64)).reshape(wanted.shape)
    assert (got[wanted == 0] == 0).all(), f"{name}: a hidden weight does not read exactly 0"
    share = float((np.abs(got - wanted).max(axis=1) / budget.reading).max())
    use.shares.append((0.0, 0.0, share))


def main() -> None:
    """Print the table, one row a way; write every figure to --json."""
    parser = argparse.ArgumentParser(prog="python -m lmconform.calibrate", description=__doc__.partition("\n")[0])
    parser.add_argument("--dtype", nargs="+", default=["float64", "float32", "bfloat16", "float16"], choices=FACTORS)
    parser.add_argument("--checkpoints", type=int, default=12, help="random checkpoints for each engine")
    parser.add_argument("--json", type=Path, help="write all shares there")
    chosen = parser.parse_args()
    content = {}
    for dtype in chosen.dtype:
        uses = measure(dtype, chosen.checkpoints, print)
        for label, use in uses.items():
            print(f"{dtype:9} {label:60} " + " ".join(f"{value:6.2f}" for value in use.row(dtype)), len(use.shares))
        content[dtype] = {
            label: {"max": use.row(dtype), "n": len(use.shares), "unfit": use.unfit} for label, use in uses.items()
        }
        worst = np.max([use.row(dtype) for use in uses.values()], axis=0)
        print(f"{dtype}: largest {worst.round(2).tolist()}, factors {FACTORS[dtype]}, {len(uses)} legal ways")
    if chosen.json:
        chosen.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

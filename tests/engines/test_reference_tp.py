"""The adapter to refdecoder in two ranks: as one rank, within the suite's budget, through every door."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lmconform.adapter import Array, Needs, Refused, Request, offered
from lmconform.checkpoints.edits import edited
from lmconform.checkpoints.layout import Checkpoint, GPT2Shape, Shape
from lmconform.checkpoints.random import BRIEF, SHAPES, WINDOWED, random_checkpoint
from lmconform.engines import known, resolve
from lmconform.engines.reference import Reference
from lmconform.engines.reference_tp import ReferenceTP
from lmconform.judging.budgets import Yardstick, centred

GPT2 = GPT2Shape(
    hidden_size=48, num_attention_heads=4, num_key_value_heads=4, head_dim=12, vocab_size=83, tie_word_embeddings=True
)
CASES: dict[str, tuple[Shape, tuple[str, ...]]] = {
    "grouped, biases": (SHAPES[0], ("attention_bias", "mlp_bias")),
    "multi-query": (SHAPES[1], ()),
    "tied": (BRIEF, ("tie_word_embeddings",)),
    "windowed phi3": (WINDOWED, ()),
    "gpt2": (GPT2, ()),
}
TOKENS = tuple(range(3, 36))
"""Longer than the window."""
ENDING = (5, 8, 13, 21, 34)


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> Iterator[ReferenceTP]:
    made = ReferenceTP(dtype=request.param)
    yield made
    made.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Checkpoint, Path]]:
    """Return a function that gives a case's checkpoint, and where it is written."""

    def write(case: str) -> tuple[Checkpoint, Path]:
        shape, edits = CASES[case]
        checkpoint = random_checkpoint(shape, "loud", 1)
        for edit in edits:
            checkpoint = edited(checkpoint, edit)
        return checkpoint, checkpoint.write(tmp_path_factory.mktemp("checkpoint"))

    return write


def within(yardstick: Yardstick, tokens: tuple[int, ...], got: Array, wanted: Array) -> bool:
    """Whether two results for the last rows of ``tokens`` are within half the budget for two of one engine."""
    places = [(tokens, place) for place in range(len(tokens))][-len(got) :]
    _, budget = yardstick.budget(places, sides=2)
    assert not budget.unfit
    return got.shape == wanted.shape and budget.excess(centred(got) - centred(wanted)) <= 0.5


def test_it_is_known_by_its_name_and_offers_what_one_rank_does() -> None:
    assert known()["reference-tp"].target == resolve("reference-tp")
    assert offered(ReferenceTP()) == (*offered(Reference()), "close")
    assert set(ReferenceTP().regimes()) == set(Reference().regimes())


@pytest.mark.parametrize(
    ("engine", "case"),
    [*(("float32", case) for case in CASES), ("bfloat16", "grouped, biases"), ("bfloat16", "gpt2")],
    indirect=["engine"],
)
def test_scores_are_those_of_one_rank(engine: ReferenceTP, written: Any, case: str) -> None:
    checkpoint, directory = written(case)
    needs, alone = Needs(max_tokens=48), Reference(dtype=str(engine.dtype).removeprefix("torch."))
    model, one = engine.load(directory, needs), alone.load(directory, needs)
    yardstick, wanted = Yardstick(checkpoint, engine.precision), one.score(TOKENS)
    assert within(yardstick, TOKENS, model.score(TOKENS), wanted)
    first, second = model.score_batch([TOKENS, TOKENS[:5]])
    assert within(yardstick, TOKENS, first, wanted)
    assert within(yardstick, TOKENS[:5], second, wanted[:5])

    session = model.open()
    assert session.cache_bytes() == one.open().cache_bytes() * (2 if case == "multi-query" else 1)
    assert within(yardstick, TOKENS[:7], session.extend(TOKENS[:7]), wanted[:7])
    fork = session.fork()
    session.truncate(4)
    assert within(yardstick, TOKENS[:8], fork.extend(TOKENS[7:8]), wanted[7:8])
    assert within(yardstick, TOKENS, fork.extend(TOKENS[8:]), wanted[8:])
    other = TOKENS[:4] + ENDING
    assert within(yardstick, other, session.extend(ENDING), one.score(other)[4:])


@pytest.mark.parametrize("engine", ["float32"], indirect=True)
def test_tokens_are_those_of_one_rank(engine: ReferenceTP, written: Any) -> None:
    _, directory = written("grouped, biases")
    model, one = (each.load(directory, Needs(max_tokens=48)) for each in (engine, Reference()))
    free = one.generate([Request(ENDING, 8)])[0]
    requests = [
        Request(TOKENS, 12),
        Request(ENDING, 12, temperature=1.2, top_k=40, top_p=0.98, min_p=0.001, seed=3, n=2),
        Request(ENDING, 8, stop_ids=free.tokens[2:3], min_new_tokens=1),
        Request(ENDING, 8, stop_strings=(free.text[3:5],), stream=True),
    ]
    wanted = one.generate(requests)
    assert [done.finish_reason for done in wanted] == ["length", "length", "length", "stop", "stop"]
    assert model.generate(requests) == wanted
    first, second = model.generate([Request(ENDING, 16, temperature=1.5)] * 2)
    assert first.tokens != second.tokens


@pytest.mark.parametrize("engine", ["float32"], indirect=True)
def test_a_death_is_told_and_the_next_load_starts_anew(engine: ReferenceTP, written: Any) -> None:
    _, directory = written("grouped, biases")
    model = engine.load(directory, Needs())
    wanted, first = model.score(TOKENS), processes(engine)
    os.kill(first[0].pid, signal.SIGKILL)
    for message in ("^Rank 1 ended with SIGKILL", "The ranks have ended. Rank 1 ended with SIGKILL. Load the"):
        with pytest.raises(RuntimeError, match=message):
            model.score(TOKENS)
    assert (engine.load(directory, Needs()).score(TOKENS) == wanted).all()
    second = processes(engine)
    engine.close()
    engine.close()
    assert [process.is_alive() for process in first + second] == [False, False]


def processes(engine: ReferenceTP) -> list[Any]:
    """The processes of the other ranks."""
    assert engine._ranks is not None
    return engine._ranks._workers.processes


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("ranks", "0", "ranks=0 is not legal"),
        ("ranks", "two", "ranks=two is not legal"),
        ("device", "mps", "device=mps is not known"),
        ("dtype", "int8", "dtype=int8"),
        ("threads", "0", "threads=0"),
    ],
)
def test_bad_options_are_value_errors(option: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReferenceTP(**{option: value})


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="device=cuda cannot be used here"):
        ReferenceTP(device="cuda")


@pytest.mark.parametrize("engine", ["float32"], indirect=True)
def test_ranks_that_do_not_divide_a_model_are_refused(engine: ReferenceTP, tmp_path: Path) -> None:
    odd = random_checkpoint(SHAPES[2], "loud", 1)
    reason = engine.accepts(odd.config)
    assert reason is not None
    assert reason.startswith("The 5 query heads cannot be divided among 2 ranks")
    with pytest.raises(Refused, match=reason):
        engine.load(odd.write(tmp_path), Needs())
    assert "mish" in str(engine.accepts({**odd.config, "hidden_act": "mish"}))
    assert ReferenceTP(ranks="5").accepts({**odd.config, "intermediate_size": 95}) is None

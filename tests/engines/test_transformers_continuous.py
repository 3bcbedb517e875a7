"""Continuous batching of transformers, against its padded ``generate`` and against the scores of one pass."""

from dataclasses import replace
from pathlib import Path

import pytest

from lmconform.adapter import Model, Needs, NotOffered, Refused, Request
from lmconform.engines.transformers import Transformers

PROMPTS = (tuple(range(3, 20)), (5, 6), tuple(range(3, 30)))


def load(checkpoint: Path, batching: str = "continuous", regime: str | None = None) -> Model:
    return Transformers(batching=batching, threads="1").load(checkpoint, Needs(max_tokens=64, regime=regime))


@pytest.mark.parametrize("regime", [None, "small-passes", "no-sharing"])
def test_a_mixed_batch_gets_the_tokens_of_padded_batches(llama: Path, regime: str | None) -> None:
    requests = [Request(prompt, max_new_tokens=n) for prompt, n in zip(PROMPTS, (6, 1, 9), strict=True)]
    got, wanted = (one.generate(requests) for one in (load(llama, regime=regime), load(llama, "padded")))
    assert [one.tokens for one in got] == [one.tokens for one in wanted]
    assert {one.finish_reason for one in got} == {"length"}


def test_each_row_has_its_own_stops(llama: Path) -> None:
    model = load(llama)
    (free,) = model.generate([Request(PROMPTS[0], max_new_tokens=6)])
    stop = free.tokens[2]
    stopped, other = model.generate(
        [Request(PROMPTS[0], max_new_tokens=6, stop_ids=(stop,)), Request(PROMPTS[0], max_new_tokens=6)]
    )
    assert stopped.tokens == free.tokens[: free.tokens.index(stop) + 1]
    assert (stopped.finish_reason, other.tokens) == ("stop", free.tokens)


def test_a_seed_gives_the_same_draws_again(llama: Path) -> None:
    model, request = load(llama), Request(PROMPTS[1], max_new_tokens=8, temperature=1.0, seed=5, n=2)
    once, again = (model.generate([request, replace(request, seed=6)]) for _ in range(2))
    assert [one.tokens for one in once] == [one.tokens for one in again]
    assert len({one.tokens for one in once}) > 1


@pytest.mark.parametrize(
    "lacking",
    [
        {"logprobs": 3},
        {"stop_strings": ("a",)},
        {"stop_sequences": ((1, 2),)},
        {"min_new_tokens": 2},
        {"stream": True},
    ],
)
def test_what_it_does_not_have_is_said(llama: Path, lacking: dict[str, object]) -> None:
    with pytest.raises(NotOffered, match=next(iter(lacking))):
        load(llama).generate([Request(PROMPTS[1], **lacking)])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [{"max_new_tokens": 0}, {"n": 0}, {"stop_ids": (10**6,)}, {"temperature": 0.0}],
    ids=lambda one: next(iter(one)),
)
def test_what_cannot_be_done_is_refused(llama: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(Refused):
        load(llama).generate([replace(Request(PROMPTS[1]), **wrong)])  # type: ignore[arg-type]

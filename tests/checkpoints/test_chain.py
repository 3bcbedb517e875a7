"""The chain: what the oracle scores, what the reference draws, and which sequence is best."""

from functools import partial
from itertools import count, pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmconform.adapter import Needs, Precision, Request
from lmconform.checkpoints.chain import Chain, chain, scripted
from lmconform.checkpoints.odds import OUTSIDE, WITHIN, die_of
from lmconform.engines.reference import Reference
from lmconform.judging.budgets import Yardstick
from lmconform.judging.statistics import Question, ask

WEATHER = np.array([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.7, 0.05, 0.25]])
TRAP = np.array(
    [
        [0.0, 0.6, 0.4, 0.0, 0.0],  # the better first step ...
        [0.25, 0.25, 0.25, 0.25, 0.0],  # ... leads to where nothing is likely,
        [0.0, 0.0, 0.0, 0.0, 1.0],  # and the other to what is certain
        [0.2, 0.2, 0.2, 0.2, 0.2],
        [0.0, 0.0, 0.0, 0.0, 1.0],
    ]
)


def of(rows: np.ndarray) -> Chain:
    return chain(np.array([die_of(row) for row in rows]))


@pytest.mark.parametrize("states", [2, 5, 70, 300])
def test_row_t_is_what_the_chain_says_after_token_t(states) -> None:
    rows = np.random.default_rng(states).uniform(0.2, 1, (states, states))
    rows /= rows.sum(axis=1, keepdims=True)
    made = of(rows)
    tokens = tuple(np.random.default_rng(1).integers(0, states, 12).tolist())
    found = Yardstick(made.checkpoint, Precision()).oracle(tokens)
    assert np.allclose(found, made.scores[list(tokens)], rtol=1e-6, atol=0)
    assert np.allclose(np.exp(made.log_probabilities), rows, rtol=WITHIN, atol=0)
    for value in made.checkpoint.tensors("bfloat16").values():
        assert np.array_equal(value.astype(np.float16).astype(np.float32), value.astype(np.float32))


def brute(made: Chain, start: int, steps: int) -> float:
    return max(made.log_probability(start, tokens) for tokens in product(range(len(made.scores)), repeat=steps))


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 4), st.integers(1, 5), st.data())
def test_the_best_sequence_is_that_of_all_sequences(states, steps, data) -> None:
    rows = data.draw(st.lists(st.lists(st.floats(-20, -0.01), min_size=states, max_size=states), min_size=states))
    made = chain(np.array(rows[:states]))
    start = data.draw(st.integers(0, states - 1))
    tokens, value = made.best_sequence(start, steps)
    assert len(tokens) == steps
    assert value == pytest.approx(made.log_probability(start, tokens), abs=1e-12)
    assert value == pytest.approx(brute(made, start, steps), abs=1e-12)
    assert value >= made.log_probability(start, made.greedy_sequence(start, steps)) - 1e-12


def test_greedy_decoding_does_not_find_the_best_sequence(tmp_path) -> None:
    made = of(TRAP)
    tokens, value = made.best_sequence(0, 3)
    assert tokens == (2, 4, 4)
    assert value == pytest.approx(np.log(0.4), abs=0.02)
    model = Reference().load(made.checkpoint.write(tmp_path), Needs(max_tokens=8))
    (done,) = model.generate([Request((0,), max_new_tokens=3)])
    assert done.tokens == made.greedy_sequence(0, 3) != tokens
    assert made.log_probability(0, done.tokens) < value - 1


def test_the_best_sequence_of_no_steps_is_empty() -> None:
    assert of(TRAP).best_sequence(1, 0) == ((), 0.0)


@pytest.mark.parametrize(("temperature", "right"), [(1.0, True), (1.5, False)])
def test_what_the_reference_draws_follows_the_chain(temperature, right, tmp_path) -> None:
    """For each state an exact question, which fails a right engine with a probability of 5e-9 at most."""
    made = of(WEATHER)
    model = Reference().load(made.checkpoint.write(tmp_path), Needs(max_tokens=128))
    seeds = count(1)

    def after(state: int, number: int) -> list[int]:
        found: list[int] = []
        while len(found) < number:
            requests = [Request((state,), 120, temperature=temperature, seed=next(seeds)) for _ in range(16)]
            rows = [(state, *done.tokens) for done in model.generate(requests)]
            found += [token for row in rows for last, token in pairwise(row) if last == state]
        return found

    answers = []
    for state, logs in enumerate(made.log_probabilities):
        flatter, uniform = np.exp(logs / 1.5), np.full(3, 1 / 3)
        question = Question(np.exp(logs), (flatter / flatter.sum(), uniform))
        answers.append(ask(question, partial(after, state), 10_000))
    assert all(answer is not None for answer in answers)
    assert all((answer.evidence is None) == right for answer in answers)


def test_a_script_is_played(tmp_path) -> None:
    made = chain(scripted((4, 0, 2, 6), 7))
    model = Reference().load(made.checkpoint.write(tmp_path), Needs(max_tokens=16))
    done, other = model.generate([Request((0,), 6), Request((5,), 3)])
    assert done.tokens == (2, 6, 4, 0, 2, 6) == made.best_sequence(0, 6)[0]
    assert other.tokens == (4, 0, 2)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: scripted((1, 2, 1, 0), 4), "names each token once; 1 comes 2 times"),
        (lambda: chain(np.full((2, 3), -1.0)), r"a square of scores.*\(2, 3\)"),
        (lambda: chain(np.full((1, 1), -1.0)), "for 2 to 4096 states"),
        (lambda: chain(np.array([[-1.0, -2.0], [OUTSIDE, OUTSIDE]])), "the state after 1 .* the greatest at least -20"),
        (lambda: chain(np.array([[-1.0, 2.0], [-1.0, -1.0]])), "the state after 0 .* below 0"),
    ],
)
def test_what_a_chain_cannot_hold_is_refused_with_the_reason(make, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        make()

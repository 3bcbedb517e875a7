"""How examples are run: a failure is shrunk, remembered, and looked at twice where it could be noise."""

import pytest
from hypothesis import strategies as st

from lmconform.adapter import NotOffered, Refused
from lmconform.judging.budgets import CERTAIN
from lmconform.suite.dsl import STREAMS, Decides
from lmconform.suite.examples import REDRAWS, SHRINKS, Runner
from lmconform.suite.findings import Exceeded, Finding, Unfit
from lmconform.suite.structures import Telling, lengths, rows


class FakeSubject:
    vocab_size = 50


class Expected:
    bit = False


def exceeded(excess: float) -> Exceeded:
    return Exceeded(Finding("a score", "1", "0", "row 0", error=excess, budget=1.0))


def runner(body, redrawn=None, tries=None, **structure) -> Runner:
    makers = {name: (lambda _, strategy=strategy: strategy) for name, strategy in structure.items()}
    fake = FakeSubject()
    spec = Decides("CM-1", "", "score", (), False, body, makers, tries)
    return Runner(spec, lambda number: redrawn(number) if number and redrawn else fake)


def test_a_test_that_holds_finds_nothing_and_counts_its_examples() -> None:
    def body(model, expect, draw, n):
        expect.bites(n > 3)

    under = runner(body, n=st.integers(0, 9))
    assert under.search(20, 1) is None
    assert under.tally.examples == 20
    assert 0 < under.tally.bites < 20


def test_a_failure_is_made_small() -> None:
    def body(model, expect, draw, n):
        if n >= 17:
            raise exceeded(1e6)

    example, _ = runner(body, n=st.integers(0, 1000)).search(50, 1)
    assert example.structure == {"n": 17}


def test_shrinking_asks_the_engine_a_bounded_number_of_times() -> None:
    calls = []

    def body(model, expect, draw, n):
        calls.append(n)
        if n > 10:
            raise exceeded(1e6)

    runner(body, n=st.integers(0, 10**9)).search(10, 1)
    first = next(index for index, n in enumerate(calls) if n > 10)
    assert len(calls) - first <= SHRINKS + 1


def telling(body, *values, drawn) -> Runner:
    """A test of one structure that names telling values."""
    structure = {"n": Telling(lambda _: drawn, lambda _: values)}
    return Runner(Decides("CM-1", "", "score", (), False, body, structure), lambda number: FakeSubject())


@pytest.mark.parametrize(("count", "first"), [(1, []), (2, [900]), (3, [900, 901]), (6, [900, 901])])
def test_telling_values_are_tried_first_and_leave_room_for_a_draw(count, first) -> None:
    seen = []
    under = telling(lambda model, expect, draw, n: seen.append(n), 900, 901, drawn=st.integers(0, 9))
    assert under.search(count, 1) is None
    assert seen[: len(first)] == first
    assert len(seen) == count
    assert all(n < 10 for n in seen[len(first) :])


@pytest.mark.parametrize(("values", "tried"), [((900, 901), [900]), ((), None)])
def test_telling_values_may_be_tried_alone_and_draws_where_there_are_none(values, tried) -> None:
    seen = []
    under = telling(lambda model, expect, draw, n: seen.append(n), *values, drawn=st.integers(0, 9))
    assert under.search(2, 1, telling_alone=True) is None
    assert seen == tried if tried else len(seen) == 2


@pytest.mark.parametrize(("shrink", "found"), [(True, 7), (False, 900)])
def test_a_telling_value_that_fails_is_shown_by_a_smaller_one_if_there_is_one(shrink, found) -> None:
    def body(model, expect, draw, n):
        if n >= 7:
            raise exceeded(1e6)

    example, _ = telling(body, 900, drawn=st.integers(0, 99)).search(20, 1, shrink=shrink)
    assert example.structure == {"n": found}


def test_a_failure_that_only_the_telling_value_shows_is_kept() -> None:
    def body(model, expect, draw, n):
        if n == 900:
            raise exceeded(1e6)

    example, _ = telling(body, 900, drawn=st.integers(0, 9)).search(5, 1)
    assert example.structure == {"n": 900}


def test_a_failure_need_not_be_made_small() -> None:
    calls = []

    def body(model, expect, draw, n):
        calls.append(n)
        if n > 10:
            raise exceeded(1e6)

    example, _ = runner(body, n=st.integers(0, 10**9)).search(10, 1, shrink=False)
    unshrunk = list(calls)
    assert example.structure == {"n": unshrunk[-1]}, "the first failing example is the last"
    assert all(n <= 10 for n in unshrunk[:-1])
    calls.clear()
    smaller, _ = runner(body, n=st.integers(0, 10**9)).search(10, 1)
    assert smaller.structure == {"n": 11}
    assert calls[: len(unshrunk)] == unshrunk
    assert len(calls) > len(unshrunk)


def test_an_engine_that_changes_its_mind_is_judged_by_its_first_answer() -> None:
    seen = set()

    def body(model, expect, draw, n):
        if n > 5 and n not in seen:
            seen.add(n)
            raise exceeded(1e6)

    assert runner(body, n=st.integers(0, 100)).search(30, 1) is not None


@pytest.mark.parametrize("kind", [NotOffered, Refused])
def test_what_is_declined_hides_no_failure(kind) -> None:
    """Neither before one is found nor while it is made smaller."""

    def body(model, expect, draw, n):
        expect.bites(True)
        if n > 90:
            raise exceeded(1e6)
        if n % 2:
            raise kind("an odd number")

    under = runner(body, n=st.integers(0, 100))
    example, _ = under.search(50, 1)
    assert example.structure == {"n": 91}
    assert under.tally.declined
    assert under.tally.bites + len(under.tally.declined) == under.tally.examples


def test_an_example_that_is_declined_decides_nothing_and_the_others_are_judged() -> None:
    calls = []

    def body(model, expect, draw, n):
        calls.append(n)
        expect.bites(True)
        if len(calls) == 1:
            raise Refused("not now")

    under = runner(body, n=st.integers(0, 30))
    assert under.search(5, 1) is None
    assert len(calls) == under.tally.examples == 5
    assert under.tally.bites == 4
    assert [str(one) for one in under.tally.declined] == ["not now"]


@pytest.mark.parametrize("when", ["asked", "loaded"])
def test_a_suspicion_whose_fresh_draws_are_declined_is_no_failure_and_hides_none(when) -> None:
    fresh = FakeSubject()

    def redrawn(number):
        if when == "loaded":
            raise Refused("not these weights")
        return fresh

    def body(model, expect, draw, n):
        if model is fresh:
            raise Refused("not these weights")
        raise exceeded(2.0 if n < 90 else 1e6)

    under = runner(body, redrawn, n=st.integers(0, 89))
    assert under.search(4, 1) is None
    assert under.tally.suspicions == 4
    example, _ = runner(body, redrawn, n=st.integers(0, 100)).search(50, 1)
    assert example.structure["n"] >= 90


@pytest.mark.parametrize("confirmed", range(REDRAWS + 1))
def test_a_suspicion_fails_only_if_every_redraw_exceeds(confirmed) -> None:
    redraws = []

    def body(model, expect, draw, n):
        if model in redraws and len(redraws) > confirmed:
            return
        raise exceeded(2.0)

    def redrawn(number):
        redraws.append(number)
        fake = FakeSubject()
        redraws[-1] = fake
        return fake

    under = runner(body, redrawn, n=st.integers(0, 3))
    found = under.search(5, 1)
    assert (found is not None) == (confirmed >= REDRAWS)
    assert under.tally.suspicions == (5 if found is None else 0), "each is looked at by itself"


@pytest.mark.parametrize("shrink", [True, False])
def test_a_suspicion_that_is_not_confirmed_hides_no_failure(shrink) -> None:
    """Every example is suspicious, and only long ones are with fresh draws."""
    fresh = FakeSubject()

    def body(model, expect, draw, n):
        if model is not fresh or n > 50:
            raise exceeded(2.0)

    under = runner(body, lambda number: fresh, n=st.integers(0, 100))
    example, _ = under.search(50, 1, shrink=shrink)
    assert example.structure["n"] > 50, "a smaller one that fresh draws do not confirm is no failure"
    assert under.tally.suspicions > 0


def test_a_suspicion_in_fixed_tries_hides_no_failure() -> None:
    fresh, asked = FakeSubject(), []

    def body(model, expect, draw):
        if model is fresh:
            return
        asked.append(draw)
        raise exceeded(1e6 if len(asked) == 3 else 2.0)

    under = runner(body, lambda number: fresh, tries=3)
    assert under.search(1, 1) is not None
    assert under.tally.suspicions == 2


def test_a_model_that_made_room_for_fresh_draws_is_loaded_again() -> None:
    """The fresh draws of a test that loads several models close the one that it began with."""
    loaded = [0]

    def subject(number):
        loaded.append(number)
        return number, len(loaded)

    def body(model, expect, draw, n):
        assert model == (loaded[-1], len(loaded)), "this model was closed"
        if n >= 3:
            raise exceeded(2.0)

    spec = Decides("CM-1", "", "score", (), False, body, {"n": lambda _: st.integers(0, 99)})
    example, _ = Runner(spec, subject, words=lambda model, tally, seed: (Expected(), None)).search(9, 1)
    assert example.structure == {"n": 3}, "it was made smaller after its fresh draws"


def test_an_error_far_beyond_noise_needs_no_redraw() -> None:
    def body(model, expect, draw, n):
        raise exceeded(CERTAIN)

    def redrawn(number):
        raise AssertionError("no redraw was needed")

    assert runner(body, redrawn, n=st.integers(0, 3)).search(5, 1) is not None


def test_an_example_whose_scores_drown_in_noise_decides_nothing() -> None:
    def body(model, expect, draw, n):
        expect.bites(True)
        if n % 2:
            raise Unfit("legal errors are as large as the scores")

    under = runner(body, n=st.integers(0, 99))
    assert under.search(20, 1) is None
    assert 0 < under.tally.bites < under.tally.examples == 20
    assert len(under.tally.unresolved) == 20 - under.tally.bites


def test_the_same_seed_tries_the_same_examples() -> None:
    def trace(seed):
        drawn = []
        runner(lambda model, expect, draw, n: drawn.append((n, draw.tokens(3))), n=st.integers(0, 10**6)).search(
            9, seed
        )
        return drawn

    assert trace(3) == trace(3)
    assert trace(3) != trace(4)


def test_an_example_bites_once_however_much_it_shows() -> None:
    def body(model, expect, draw, n):
        expect.bites(n > 3)
        expect.bites(n > 5)
        expect.bites(False)

    under = runner(body, n=st.integers(0, 9))
    under.search(10, 1)
    assert 0 < under.tally.bites < under.tally.examples == 10


def test_a_test_without_structure_draws_tokens_alone() -> None:
    drawn = set()
    under = runner(lambda model, expect, draw: drawn.add(draw.tokens(3)))
    assert under.search(10, 1) is None
    assert 2 < len(drawn) <= STREAMS


def test_a_test_with_a_fixed_number_of_tries_runs_outside_hypothesis() -> None:
    seen = []
    under = runner(lambda model, expect, draw: seen.append(draw.tokens(3)), tries=3)
    assert under.search(10, 1) is None
    assert len(seen) == 3
    assert under.tally.examples == 3


class Lengths:
    """A checkpoint's lengths, all that a structure asks of a subject."""

    def __init__(self, *values: int) -> None:
        self.lengths = values


def test_the_longest_length_and_the_whole_blocks_come_first() -> None:
    assert lengths().values(Lengths(1, 2, 17, 33, 64, 129)) == [129, 64]
    assert lengths().values(Lengths(2, 16, 31, 63, 128, 5)) == [128]
    assert lengths().values(Lengths(2, 9, 17)) == [17]


def test_the_first_batch_is_as_long_as_its_blocks() -> None:
    assert rows().values(Lengths(1, 2, 17, 33, 64, 129)) == [(33, 17, 2, 64)]
    assert rows(at_most=2).values(Lengths(1, 2, 17, 33, 64, 129)) == [(33, 64)]
    assert rows().values(Lengths(1, 2, 17)) == [(2, 1, 17)]

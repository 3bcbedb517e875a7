"""What the tests of RoPE share: prompts for the turn scope, and ways to ask for its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import strategies as st

from lmconform.checkpoints.rope_edits import LINEAR_FACTOR
from lmconform.checkpoints.turn_scope import TurnScope
from lmconform.suite.dsl import Draw, Scores, Structure, Subject, Tokens, lengths
from lmconform.suite.structures import Telling

FULL = 17  # lengths from here on hold all content tokens of a turn scope
SHORT, LONG = 33, 129  # every place of the long prompt is 4 times that of the short one: 4 * 32 = 128


def full_lengths() -> Structure:
    """A length that has room for all content tokens."""
    return lengths(at_least=FULL)


def two_lengths() -> Telling:
    """(shorter, longer): two different ones of these; the two that are farthest apart first."""

    def telling(model: Subject) -> list[tuple[int, int]]:
        fitting = [n for n in model.lengths if n >= FULL]
        return [(min(fitting), max(fitting))]

    def strategy(model: Subject) -> st.SearchStrategy[tuple[int, ...]]:
        fitting = st.sampled_from([n for n in model.lengths if n >= FULL])
        return st.sets(fitting, min_size=2, max_size=2).map(lambda found: tuple(sorted(found)))

    return Telling(strategy, telling)


def short_and_longest() -> Structure:
    """(shorter, longest): what an engine keeps of a long sequence, it keeps of the longest."""

    def strategy(model: Subject) -> st.SearchStrategy[tuple[int, ...]]:
        longest = max(model.lengths)
        return st.sampled_from([n for n in model.lengths if FULL <= n < longest]).map(lambda n: (n, longest))

    return strategy


def turns(model: Subject) -> TurnScope:
    """The instrument of a turn scope."""
    return model.instrument(TurnScope)


def last_step(model: Subject, prompt: Tokens, steps: int = 1) -> Scores:
    """The last of ``steps`` greedy steps after ``prompt``, in the scope's columns; one row."""
    (found,) = model.continue_greedily([prompt], steps)
    return found.only(turns(model).columns)[-1:]


def in_chunks(model: Subject, tokens: Tokens, sizes: Sequence[int]) -> Scores:
    """Scores of the scope's columns, as a session gives them."""
    return model.prefill_in_chunks(tokens, sizes, turns(model).columns)


def stretched(model: Subject, draw: Draw) -> tuple[Tokens, Tokens]:
    """A prompt of length SHORT, and one whose content stands LINEAR_FACTOR times as far apart."""
    scope = turns(model)
    places = draw.places(SHORT, scope.content)
    return scope.content_at(SHORT, places), scope.content_at(LONG, [LINEAR_FACTOR * one for one in places])


def short_long_short(model: Subject, sizes: tuple[int, int], ask: Callable[[Subject, Tokens], Scores]) -> list[Scores]:
    """Scores of a prompt, of a longer one, and of the first again, by a model of this requirement alone."""
    fresh, scope = model.edited("newer-rope-spelling"), turns(model)
    shorter, longer = (scope.spread(length) for length in sizes)
    return [ask(fresh, tokens)[-1:] for tokens in (shorter, longer, shorter)]

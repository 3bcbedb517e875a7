"""How prompts for the balance are drawn, and how each door is asked to weigh them."""

from __future__ import annotations

from hypothesis import strategies as st

from lmconform.checkpoints.balance import Balance
from lmconform.suite.dsl import Scores, Structure, Subject, Tokens, joined

Loads = tuple[Tokens, Tokens]


def loads() -> Structure:
    """A light and a heavy prompt for the balance, each a token that is repeated."""

    def strategy(model: Subject) -> st.SearchStrategy[Loads]:
        pairs, lengths = model.instrument(Balance).pairs, model.lengths
        both = st.tuples(st.sampled_from(pairs), st.sampled_from(lengths))
        return both.map(lambda drawn: ((drawn[0][0],) * drawn[1], (drawn[0][1],) * drawn[1]))

    return strategy


def one_pass(model: Subject, loads: Loads) -> Scores:
    """The last rows of both prompts, each from one pass."""
    columns = model.instrument(Balance).columns
    return joined([model.score(prompt, columns)[len(prompt) - 1 :] for prompt in loads])


def decode_step(model: Subject, loads: Loads) -> Scores:
    """The last rows of both prompts, from a chunk of one over the cache of the others."""
    columns = model.instrument(Balance).columns
    sizes = [[size for size in (len(prompt) - 1, 1) if size] for prompt in loads]
    rows = [model.prefill_in_chunks(prompt, each, columns) for prompt, each in zip(loads, sizes, strict=True)]
    return joined([each[len(each) - 1 :] for each in rows])


def first_step(model: Subject, loads: Loads) -> Scores:
    """The scores of the first new token of both prompts, continued in one batch."""
    columns = model.instrument(Balance).columns
    return joined([steps.only(columns) for steps in model.continue_greedily(loads, 1)])

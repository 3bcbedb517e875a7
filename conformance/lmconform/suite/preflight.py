"""Before any requirement: does the adapter ask what it says it asks?

The scores of the stop tape depend on the last token alone, so row t must name what it plays after tokens[t]. An
adapter that is off by one row, adds a BOS token, filters scores or reports another vocabulary is told so here, and no
mechanism is accused.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from lmconform.adapter import Array, NotOffered, Request
from lmconform.checkpoints.tape import StopTape
from lmconform.judging.budgets import centred
from lmconform.suite.findings import Unfit
from lmconform.suite.subject import MOST_LOGPROBS, Scores, Subject
from lmconform.transport.client import NotFinite

PROMPT = (5, 40, 12, 12, 77, 3, 60)
FAR = 1 / 8
"""Beside the spread of the scores: errors beyond any rounding."""
NEARER = 1 / 8
"""Of the error without a token in front, what it is at most with the one that was added. A wrong decoder may come a
little nearer to the scores of another prompt, by chance; only that prompt itself explains them."""
WAY_OUT = "Return the scores before any filter (top-k, top-p, banned ids)."


class AdapterOff(Exception):
    """The adapter does not return what the contract says; nothing can be judged through it."""


def preflight(model: Subject, doors: tuple[str, ...]) -> list[str]:
    """Check every door that the model, a stop tape, offers; return those that were checked. Raise AdapterOff.

    On a tape a token reaches the scores through the residual stream alone. Rows that name no token at all are those of
    an engine without one, which a requirement will say; an adapter that returns nothing else fails ``in_context``.
    """
    tape = model.instrument(StopTape)
    if "score" in doors:
        alone = model.score(PROMPT).values
        if not np.ptp(alone, axis=1).any():
            return []
        _rows(alone, PROMPT, tape, "score")
    if "score_batch" in doors:
        short = PROMPT[:3]
        with suppress(NotFinite):  # padding that spreads NaN breaks a requirement, and is no fault of the adapter
            for tokens, scores in zip((PROMPT, short), model.score_batch([PROMPT, short]), strict=True):
                _rows(scores.values, tokens, tape, "score_batch")
    if "open" in doors:
        session = model.open()
        _rows(session.extend(PROMPT[:4]).values, PROMPT[:4], tape, "session.extend")
        _rows(session.extend(PROMPT[4:]).values, PROMPT[4:], tape, "session.extend")
        session.close()
    if "generate" in doors:
        _generate(model)
    return [door for door in ("score", "score_batch", "open", "generate") if door in doors]


def in_context(model: Subject, doors: tuple[str, ...]) -> None:
    """Check on a random checkpoint that no filter was applied and no token added in front. Raise AdapterOff.

    On the tape neither shows: most of its scores are equal, and its rows know no context.
    """
    prompt = tuple(token % model.vocab_size for token in PROMPT)
    if "score" in doors:
        _plain(model, model.score(prompt), "score")
    if "open" in doors:
        session = model.open()
        _plain(model, session.extend(prompt), "session.extend")
        session.close()
    if "generate" in doors:
        steps = _steps(model, prompt, 1)
        if steps is not None:
            _plain(model, steps, "generate")
    if "score_batch" in doors:  # last, since padding may spread NaN, which ends this check
        for scores in model.score_batch([prompt, prompt[:3]]):
            _plain(model, scores, "score_batch")


def _plain(model: Subject, scores: Scores, door: str) -> None:
    values = scores.values
    lowest = int((values == values.min(axis=1, keepdims=True)).sum(axis=1).max())
    if lowest > 1 + values.shape[1] // 8 or np.isneginf(values).any():  # formats of few bits may make some equal
        raise AdapterOff(
            f"{door} gave {lowest} of {values.shape[1]} ids the lowest score of their row, {values.min():.4g}, on a "
            f"checkpoint whose scores all differ. {WAY_OUT}"
        )
    alone = _error(model, scores, ())
    if alone > FAR:
        for token in range(model.vocab_size):
            if _error(model, scores, (token,)) <= min(FAR, alone * NEARER):
                raise AdapterOff(
                    f"{door} returned the scores of another prompt: of the tokens with id {token} in front. Switch off "
                    "what adds a BOS token."
                )


def _error(model: Subject, scores: Scores, front: tuple[int, ...]) -> float:
    """How far the scores are from the oracle's for the same tokens after ``front``, beside the spread of those."""
    rows = [model.yardstick.oracle(front + tokens)[len(front) + position] for tokens, position in scores.places]
    wanted = centred(np.array(rows)[:, list(scores.columns or range(model.vocab_size))])
    return float((centred(scores.values) - wanted).std() / wanted.std())


def _rows(values: Array, tokens: tuple[int, ...], tape: StopTape, door: str) -> None:
    if np.isneginf(values).any():
        raise AdapterOff(
            f"{door} returned -inf for {int(np.isneginf(values).sum())} scores of a checkpoint that masks none. "
            + WAY_OUT
        )
    named = [int(token) for token in values.argmax(axis=1)]
    wanted = [tape.ranking[token][0] for token in tokens]
    if named == wanted:
        return
    for shift, words in ((1, "one row late: row t holds the scores of row t-1"), (-1, "one row early")):
        same = named[1:] == wanted[:-1] if shift == 1 else named[:-1] == wanted[1:]
        if same:
            raise AdapterOff(
                f"{door} is {words}. Row t must hold the scores for the token that follows tokens[t]; a BOS token that "
                "is added to the front, or scores shifted as for a training loss, look like this."
            )
    raise AdapterOff(
        f"{door}: on a checkpoint whose scores depend on the last token alone, the rows' top ids are {named}; expected "
        f"{wanted} for tokens {list(tokens)}. Check that the token ids reach the engine unchanged, that nothing is "
        "added to them, and that columns are in the order of the ids."
    )


def _generate(model: Subject) -> None:
    wanted = list(model.instrument(StopTape).play(PROMPT[-1], 4))
    (completion,) = model.generate([Request(prompt=PROMPT, max_new_tokens=4)])
    got = list(completion.tokens)
    if not got or got[: len(wanted)] != wanted[: len(got)]:  # how many there are, requirements judge
        raise AdapterOff(
            f"generate: greedy decoding of a scripted checkpoint gave {got}; expected {wanted}. Check that None means "
            "off (repetition penalties, filters and default stop ids of the engine are sent neutral values), and that "
            "the prompt is not returned with the new tokens."
        )
    steps = _steps(model, PROMPT, 4)
    if steps is None:
        return
    top = [steps.places[k + 1][0][-1] for k in range(len(steps) - 1)]
    best = [_best(steps.values[k], steps.columns) for k in range(len(steps) - 1)]
    if best != top:
        raise AdapterOff(
            f"generate: the most probable ids by its own log-probabilities are {best}, yet greedy decoding chose "
            f"{top}. Check that step k of the log-probabilities belongs to new token k."
        )


def _steps(model: Subject, prompt: tuple[int, ...], count: int) -> Scores | None:
    """Log-probabilities of ``count`` greedy steps; None where the engine offers none, or gives fewer tokens."""
    try:
        (steps,) = model.continue_greedily([prompt], count)
    except (NotOffered, Unfit):
        return None
    got, asked = len(steps.columns or ()), min(model.vocab_size, MOST_LOGPROBS)
    if got < asked:
        raise AdapterOff(
            f"generate returned the log-probabilities of too few ids: {got} are in every step, and {asked} of "
            f"{model.vocab_size} were asked for. Look for a default filter (top-k, top-p) or for a limit of the engine "
            "on log-probabilities; where it cannot return as many, raise NotOffered."
        )
    return steps


def _best(values: Array, columns: tuple[int, ...] | None) -> int:
    index = int(values.argmax())
    return index if columns is None else columns[index]

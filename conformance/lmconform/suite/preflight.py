"""Before any requirement: does the adapter ask what it says it asks?

A tape's scores depend on the last token alone, so row t must name tokens[t]. An adapter that is off by one row, adds a
BOS token, filters scores or reports another vocabulary is told so here, and no mechanism is accused.
"""

from __future__ import annotations

import numpy as np

from lmconform.adapter import Array, NotOffered, Request
from lmconform.checkpoints.tape import successor
from lmconform.suite.subject import Subject

PROMPT = (5, 40, 12, 12, 77, 3, 60)


class AdapterOff(Exception):
    """The adapter does not return what the contract says; nothing can be judged through it."""


def preflight(model: Subject, doors: tuple[str, ...]) -> list[str]:
    """Check every door that the model offers; return those that were checked. Raise AdapterOff."""
    if "score" in doors:
        _rows(model.score(PROMPT).values, PROMPT, model.vocab_size, "score")
    if "score_batch" in doors:
        short = PROMPT[:3]
        for tokens, scores in zip((PROMPT, short), model.score_batch([PROMPT, short]), strict=True):
            _rows(scores.values, tokens, model.vocab_size, "score_batch")
    if "open" in doors:
        session = model.open()
        _rows(session.extend(PROMPT[:4]).values, PROMPT[:4], model.vocab_size, "session.extend")
        _rows(session.extend(PROMPT[4:]).values, PROMPT[4:], model.vocab_size, "session.extend")
        session.close()
    if "generate" in doors:
        _generate(model)
    return [door for door in ("score", "score_batch", "open", "generate") if door in doors]


def _rows(values: Array, tokens: tuple[int, ...], vocab_size: int, door: str) -> None:
    if np.isneginf(values).any():
        raise AdapterOff(
            f"{door} returned -inf for {int(np.isneginf(values).sum())} scores of a checkpoint that masks none. "
            "Return the scores before any filter (top-k, top-p, banned ids)."
        )
    named = [int(token) for token in values.argmax(axis=1)]
    wanted = [successor(token, vocab_size) for token in tokens]
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
    wanted = [successor(PROMPT[-1], model.vocab_size)]
    for _ in range(3):
        wanted.append(successor(wanted[-1], model.vocab_size))
    (completion,) = model.generate([Request(prompt=PROMPT, max_new_tokens=4)])
    got = list(completion.tokens)
    if got != wanted:
        raise AdapterOff(
            f"generate: greedy decoding of a scripted checkpoint gave {got}; expected {wanted}. Check that None means "
            "off (repetition penalties, filters and default stop ids of the engine are sent neutral values), and that "
            "the prompt is not returned with the new tokens."
        )
    try:
        (steps,) = model.continue_greedily([PROMPT], 4)
    except NotOffered:
        return
    top = [steps.places[k + 1][0][-1] for k in range(len(steps) - 1)]
    best = [_best(steps.values[k], steps.columns) for k in range(len(steps) - 1)]
    if best != top:
        raise AdapterOff(
            f"generate: the most probable ids by its own log-probabilities are {best}, yet greedy decoding chose "
            f"{top}. Check that step k of the log-probabilities belongs to new token k."
        )


def _best(values: Array, columns: tuple[int, ...] | None) -> int:
    index = int(values.argmax())
    return index if columns is None else columns[index]

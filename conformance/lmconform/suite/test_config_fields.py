"""config.json: tests of DEC-6 and DEC-7 of ``spec/decoder.md``, what it leaves out and what it adds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hypothesis import strategies as st

from lmconform.adapter import Refused
from lmconform.checkpoints.config_edits import DESCRIBED, UNDESCRIBED
from lmconform.checkpoints.layout import Checkpoint
from lmconform.suite.dsl import Draw, Expect, Scores, Subject, agreeing, decides, lengths
from lmconform.suite.findings import Edits
from lmconform.suite.plan import BRIEF, TERSE
from lmconform.suite.structures import Telling
from lmconform.transport.client import EngineRaised

STEPS = 4
LENGTH = 33
FIELDS = (*DESCRIBED, *UNDESCRIBED)

# DEC-6: what config.json leaves out.


def of_a_larger_eps(checkpoint: Checkpoint) -> Checkpoint:
    """The same decoder with another family's eps: of what may be left out, it moves the scores least."""
    return replace(checkpoint, config={**checkpoint.config, "rms_norm_eps": 1e-5})


@decides("DEC-6", "868cf8ff", door="score", on=(TERSE,), length=lengths(at_least=15))
def test_fields_that_are_left_out_have_their_values(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    tokens = draw.tokens(length)
    got, wanted = (one.score(tokens) for one in (model, model.edited("spelled-out")))
    expect.close(got=got, wanted=wanted, fault=Edits(of_a_larger_eps), what="scores under a short config.json")


@decides("DEC-6", "868cf8ff", door="generate", on=(TERSE,), length=lengths(at_least=15))
def test_fields_that_are_left_out_have_their_values_while_generating(
    model: Subject, expect: Expect, draw: Draw, length: int
) -> None:
    prompt = draw.tokens(length)
    (got,), (wanted,) = (one.continue_greedily([prompt], STEPS) for one in (model, model.edited("spelled-out")))
    same = agreeing(got, wanted)
    what = "log-probabilities of the new tokens under a short config.json"
    expect.close(got=got[same], wanted=wanted[same], fault=Edits(of_a_larger_eps), what=what)


# DEC-7: what config.json adds.


def fields() -> Telling:
    """A field, by the name of the edit that adds it; each of them in turn."""
    return Telling(lambda model: st.sampled_from(FIELDS), lambda model: FIELDS)


def expect_followed_or_refused(
    model: Subject, expect: Expect, field: str, ask: Callable[[Subject], Scores], what: str
) -> None:
    """The scores that ``ask`` gets with the field are the standard's; where that has none, not those without it."""
    try:
        scores = ask(model.edited(field))
    except (Refused, EngineRaised):  # an exception is seen by the caller too
        expect.bites(True)
        return
    if field in UNDESCRIBED:
        expect.differs(scores, what)
        return
    judged = expect.on(model.edited(field))
    judged.agrees(scores, what, fault=lambda with_field: model.material.checkpoint)
    expect.bites(judged.bit)


@decides("DEC-7", "a88e91ad", door="score", on=(BRIEF,), tries=len(FIELDS) + 1, field=fields())
def test_a_field_is_followed_or_refused(model: Subject, expect: Expect, draw: Draw, field: str) -> None:
    tokens = draw.tokens(LENGTH)
    expect_followed_or_refused(model, expect, field, lambda told: told.score(tokens), f"scores with {field}")


@decides("DEC-7", "a88e91ad", door="generate", on=(BRIEF,), field=fields())
def test_a_field_is_followed_or_refused_while_generating(
    model: Subject, expect: Expect, draw: Draw, field: str
) -> None:
    """As many fields as the profile has examples: each is one more load."""

    def ask(told: Subject) -> Scores:
        (steps,) = told.continue_greedily([draw.tokens(LENGTH)], 1)
        return steps

    expect_followed_or_refused(model, expect, field, ask, f"log-probabilities with {field}")

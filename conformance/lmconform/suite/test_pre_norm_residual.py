"""Pre-norm residual: tests of the requirements of ``spec/pre-norm-residual.md``."""

from __future__ import annotations

from hypothesis import strategies as st

from lmconform.suite.dsl import BALANCE, FEW_RANDOM, HUGE_BALANCE, Draw, Expect, Structure, Subject, decides, lengths
from lmconform.suite.weighing import Loads, decode_step, first_step, loads, one_pass


def other_activations() -> Structure:
    """A value of ``hidden_act`` that is not llama's own."""
    return lambda model: st.sampled_from(("relu", "gelu"))


# PNR-1: the output of a sublayer is added to the stream itself.


@decides("PNR-1", "a6b4ea28", door="score", on=(BALANCE,), loads=loads())
def test_a_sublayer_adds_to_the_stream(model: Subject, expect: Expect, draw: Draw, loads: Loads) -> None:
    expect.weighs(one_pass(model, loads), "residual", "scale of the stream after a sublayer")


@decides("PNR-1", "a6b4ea28", door="session", on=(BALANCE,), loads=loads())
def test_a_sublayer_adds_to_the_stream_in_a_decode_step(
    model: Subject, expect: Expect, draw: Draw, loads: Loads
) -> None:
    expect.weighs(decode_step(model, loads), "residual", "scale of the stream after a sublayer")


@decides("PNR-1", "a6b4ea28", door="generate", on=(BALANCE,), loads=loads())
def test_a_sublayer_adds_to_the_stream_while_generating(
    model: Subject, expect: Expect, draw: Draw, loads: Loads
) -> None:
    expect.weighs(first_step(model, loads), "residual", "scale of the stream after a sublayer")


# PNR-2: attention first, then the MLP.


@decides("PNR-2", "749d7b7c", door="score", on=(BALANCE,), loads=loads())
def test_attention_comes_before_the_mlp(model: Subject, expect: Expect, draw: Draw, loads: Loads) -> None:
    expect.weighs(one_pass(model, loads), "order", "what a sublayer sees of what another wrote")


@decides("PNR-2", "749d7b7c", door="generate", on=(BALANCE,), loads=loads())
def test_attention_comes_before_the_mlp_while_generating(
    model: Subject, expect: Expect, draw: Draw, loads: Loads
) -> None:
    expect.weighs(first_step(model, loads), "order", "what a sublayer sees of what another wrote")


# PNR-3, PNR-4: what changes nothing, changes nothing.


@decides("PNR-3", "0e0d257a", door="score", on=(FEW_RANDOM,), length=lengths())
def test_an_empty_layer_changes_no_score(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    tokens = draw.tokens(length)
    expect.bites(True)
    expect.close(
        got=model.edited("empty-layer").score(tokens),
        wanted=model.score(tokens),
        what="scores with one more layer, which writes nothing",
    )


@decides("PNR-3", "0e0d257a", door="generate", on=(FEW_RANDOM,), length=lengths())
def test_an_empty_layer_changes_no_continuation(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    prompt = draw.tokens(length)
    (got,), (wanted,) = (one.continue_greedily([prompt], 1) for one in (model.edited("empty-layer"), model))
    expect.bites(True)
    expect.close(got=got, wanted=wanted, what="log-probabilities with one more layer, which writes nothing")


@decides("PNR-4", "e2260399", door="score", on=(FEW_RANDOM,), length=lengths())
def test_a_larger_stream_changes_no_score(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    tokens = draw.tokens(length)
    expect.bites(True)
    expect.close(
        got=model.edited("larger-stream").score(tokens),
        wanted=model.score(tokens),
        what="scores of a stream 4 times as large, with 16 times the eps",
    )


@decides("PNR-4", "e2260399", door="generate", on=(FEW_RANDOM,), length=lengths())
def test_a_larger_stream_changes_no_continuation(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    prompt = draw.tokens(length)
    (got,), (wanted,) = (one.continue_greedily([prompt], 1) for one in (model.edited("larger-stream"), model))
    expect.bites(True)
    expect.close(
        got=got,
        wanted=wanted,
        what="log-probabilities of a stream 4 times as large, with 16 times the eps",
    )


# PNR-5: eps of the checkpoint, under the root.


@decides("PNR-5", "580dcd79", door="score", on=(BALANCE,), loads=loads())
def test_eps_of_each_norm(model: Subject, expect: Expect, draw: Draw, loads: Loads) -> None:
    expect.weighs(one_pass(model, loads), "eps", "what the norm adds to the mean square")


@decides("PNR-5", "580dcd79", door="session", on=(BALANCE,), loads=loads())
def test_eps_of_each_norm_in_a_decode_step(model: Subject, expect: Expect, draw: Draw, loads: Loads) -> None:
    expect.weighs(decode_step(model, loads), "eps", "what the norm adds to the mean square")


@decides("PNR-5", "580dcd79", door="generate", on=(BALANCE,), loads=loads())
def test_eps_of_each_norm_while_generating(model: Subject, expect: Expect, draw: Draw, loads: Loads) -> None:
    expect.weighs(first_step(model, loads), "eps", "what the norm adds to the mean square")


# PNR-6: no mean is taken away.


@decides("PNR-6", "179b3c25", door="score", on=(BALANCE,), loads=loads())
def test_no_norm_takes_a_mean_away(model: Subject, expect: Expect, draw: Draw, loads: Loads) -> None:
    expect.weighs(one_pass(model, loads), "mean", "what the norm makes of a channel that is 0, beside another")


@decides("PNR-6", "179b3c25", door="generate", on=(BALANCE,), loads=loads())
def test_no_norm_takes_a_mean_away_while_generating(model: Subject, expect: Expect, draw: Draw, loads: Loads) -> None:
    expect.weighs(first_step(model, loads), "mean", "what the norm makes of a channel that is 0, beside another")


# PNR-7: each norm has its own weight.


@decides("PNR-7", "b4f091f9", door="score", on=(BALANCE,), loads=loads())
def test_each_norm_has_its_own_weight(model: Subject, expect: Expect, draw: Draw, loads: Loads) -> None:
    expect.weighs(one_pass(model, loads), "weight", "weight of a channel beside that of another")


@decides("PNR-7", "b4f091f9", door="session", on=(BALANCE,), loads=loads())
def test_each_norm_has_its_own_weight_in_a_decode_step(
    model: Subject, expect: Expect, draw: Draw, loads: Loads
) -> None:
    expect.weighs(decode_step(model, loads), "weight", "weight of a channel beside that of another")


@decides("PNR-7", "b4f091f9", door="generate", on=(BALANCE,), loads=loads())
def test_each_norm_has_its_own_weight_while_generating(
    model: Subject, expect: Expect, draw: Draw, loads: Loads
) -> None:
    expect.weighs(first_step(model, loads), "weight", "weight of a channel beside that of another")


# PNR-8: the last norm.


@decides("PNR-8", "af53a950", door="score", on=(HUGE_BALANCE,), loads=loads())
def test_the_head_reads_a_norm(model: Subject, expect: Expect, draw: Draw, loads: Loads) -> None:
    expect.weighs(
        one_pass(model, loads),
        "final",
        "what the norm makes of a light stream beside a heavy one, divided by their loads",
    )


@decides("PNR-8", "af53a950", door="generate", on=(HUGE_BALANCE,), loads=loads())
def test_the_head_reads_a_norm_while_generating(model: Subject, expect: Expect, draw: Draw, loads: Loads) -> None:
    expect.weighs(
        first_step(model, loads),
        "final",
        "what the norm makes of a light stream beside a heavy one, divided by their loads",
    )


# PNR-9: the gate is what the activation acts on.


@decides("PNR-9", "c33e37fb", door="score", on=(BALANCE,), loads=loads())
def test_the_activation_acts_on_the_gate(model: Subject, expect: Expect, draw: Draw, loads: Loads) -> None:
    expect.weighs(one_pass(model, loads), "gate", "what a gate lets through")


@decides("PNR-9", "c33e37fb", door="generate", on=(BALANCE,), loads=loads())
def test_the_activation_acts_on_the_gate_while_generating(
    model: Subject, expect: Expect, draw: Draw, loads: Loads
) -> None:
    expect.weighs(first_step(model, loads), "gate", "what a gate lets through")


# PNR-10: the activation is the checkpoint's.


@decides("PNR-10", "a9b9cbef", door="score", on=(HUGE_BALANCE,), loads=loads())
def test_the_activation_is_the_one_that_is_named(model: Subject, expect: Expect, draw: Draw, loads: Loads) -> None:
    expect.weighs(one_pass(model, loads), "activation", "activation, divided by what the norm gave")


@decides("PNR-10", "a9b9cbef", door="generate", on=(HUGE_BALANCE,), loads=loads())
def test_the_activation_is_the_one_that_is_named_while_generating(
    model: Subject, expect: Expect, draw: Draw, loads: Loads
) -> None:
    expect.weighs(first_step(model, loads), "activation", "activation, divided by what the norm gave")


@decides("PNR-10", "a9b9cbef", door="score", on=(HUGE_BALANCE,), activation=other_activations(), loads=loads())
def test_another_activation_is_honoured(
    model: Subject, expect: Expect, draw: Draw, activation: str, loads: Loads
) -> None:
    other = model.edited(f"{activation}-gate")
    judged = expect.on(other)
    judged.weighs(one_pass(other, loads), "activation", f"{activation}, divided by what the norm gave")
    expect.bites(judged.bit)


# PNR-11: a stream whose squares overflow float16.


@decides("PNR-11", "299345be", door="score", on=(HUGE_BALANCE,), finite=True, loads=loads())
def test_a_norm_holds_a_huge_stream(model: Subject, expect: Expect, draw: Draw, loads: Loads) -> None:
    expect.weighs(one_pass(model, loads), "huge", "what the norm makes of a huge stream beside a quiet one")


@decides("PNR-11", "299345be", door="generate", on=(HUGE_BALANCE,), finite=True, loads=loads())
def test_a_norm_holds_a_huge_stream_while_generating(model: Subject, expect: Expect, draw: Draw, loads: Loads) -> None:
    expect.weighs(first_step(model, loads), "huge", "what the norm makes of a huge stream beside a quiet one")


# PNR-12: a tied head is the embedding.


@decides("PNR-12", "8686be18", door="score", on=(FEW_RANDOM,), length=lengths())
def test_a_tied_head_scores_as_a_copy_does(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    tied, copied = model.edited("tied"), model.edited("copied-head")
    tokens = draw.tokens(length)
    expect.bites(True)
    expect.on(copied).close(
        got=tied.score(tokens),
        wanted=copied.score(tokens),
        what="scores with a tied head, beside a head that is a copy of the embedding",
    )


@decides("PNR-12", "8686be18", door="generate", on=(FEW_RANDOM,), length=lengths())
def test_a_tied_head_continues_as_a_copy_does(model: Subject, expect: Expect, draw: Draw, length: int) -> None:
    tied, copied = model.edited("tied"), model.edited("copied-head")
    prompt = draw.tokens(length)
    (got,), (wanted,) = (one.continue_greedily([prompt], 1) for one in (tied, copied))
    expect.bites(True)
    expect.on(copied).close(
        got=got,
        wanted=wanted,
        what="log-probabilities with a tied head, beside a head that is a copy of the embedding",
    )

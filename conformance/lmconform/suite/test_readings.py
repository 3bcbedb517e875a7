"""Mechanisms as numbers: tests that read the probe, so that a failure names the quantity that an engine has."""

from __future__ import annotations

from lmconform.checkpoints.probe import Probe
from lmconform.measure import attention, rope
from lmconform.measure.access import Chunks, Score, TopLogprobs
from lmconform.measure.experiment import Access
from lmconform.measure.sheet import Entry
from lmconform.suite.dsl import PROBE, Draw, Expect, Subject, decides


def attends(model: Subject, quantity: str, access: Access) -> list[Entry]:
    """The lines on one quantity of attention."""
    asked = attention.experiments(model.instrument(Probe))
    return [line for one in asked if one.quantity == quantity for line in one.run(access)]


def turned(model: Subject, quantity: str, access: Access) -> list[Entry]:
    """The line on one quantity of RoPE, at one distance for each pair."""
    lines = rope.glance(model.instrument(Probe)).run(access)
    return [line for line in lines if line.quantity == quantity]


@decides("SDP-1", "99185296", door="score", on=(PROBE,), tries=1)
def test_the_attention_scale_reads_in_one_pass(model: Subject, expect: Expect, draw: Draw) -> None:
    expect.measures(attends(model, "scale", Score(model)))


@decides("SDP-1", "99185296", door="session", on=(PROBE,), tries=1)
def test_the_attention_scale_reads_in_a_session(model: Subject, expect: Expect, draw: Draw) -> None:
    expect.measures(attends(model, "scale", Chunks(model)))


@decides("SDP-1", "99185296", door="generate", on=(PROBE,), tries=1)
def test_the_attention_scale_reads_in_a_decode_step(model: Subject, expect: Expect, draw: Draw) -> None:
    expect.measures(attends(model, "scale", TopLogprobs(model, decode=True)))


@decides("GQA-1", "5313a0d9", door="score", on=(PROBE,), tries=1)
def test_the_kv_head_of_keys_reads_in_one_pass(model: Subject, expect: Expect, draw: Draw) -> None:
    expect.measures(attends(model, "KV head of keys", Score(model)))


@decides("GQA-1", "5313a0d9", door="session", on=(PROBE,), tries=1)
def test_the_kv_head_of_keys_reads_in_a_session(model: Subject, expect: Expect, draw: Draw) -> None:
    expect.measures(attends(model, "KV head of keys", Chunks(model)))


@decides("GQA-1", "5313a0d9", door="generate", on=(PROBE,), tries=1)
def test_the_kv_head_of_keys_reads_in_a_decode_step(model: Subject, expect: Expect, draw: Draw) -> None:
    expect.measures(attends(model, "KV head of keys", TopLogprobs(model, decode=True)))


@decides("GQA-2", "7229e175", door="score", on=(PROBE,), tries=1)
def test_the_kv_head_of_values_reads_in_one_pass(model: Subject, expect: Expect, draw: Draw) -> None:
    expect.measures(attends(model, "KV head of values", Score(model)))


@decides("GQA-2", "7229e175", door="session", on=(PROBE,), tries=1)
def test_the_kv_head_of_values_reads_in_a_session(model: Subject, expect: Expect, draw: Draw) -> None:
    expect.measures(attends(model, "KV head of values", Chunks(model)))


@decides("GQA-2", "7229e175", door="generate", on=(PROBE,), tries=1)
def test_the_kv_head_of_values_reads_in_a_decode_step(model: Subject, expect: Expect, draw: Draw) -> None:
    expect.measures(attends(model, "KV head of values", TopLogprobs(model, decode=True)))


@decides("ROPE-2", "c483d0e0", door="score", on=(PROBE,), tries=1)
def test_the_base_reads_in_one_pass(model: Subject, expect: Expect, draw: Draw) -> None:
    expect.measures(turned(model, "base", Score(model)))


@decides("ROPE-2", "c483d0e0", door="generate", on=(PROBE,), tries=1)
def test_the_base_reads_in_a_decode_step(model: Subject, expect: Expect, draw: Draw) -> None:
    expect.measures(turned(model, "base", TopLogprobs(model, decode=True)))


@decides("ROPE-3", "0188ae92", door="score", on=(PROBE,), tries=1)
def test_the_pairs_read_in_one_pass(model: Subject, expect: Expect, draw: Draw) -> None:
    expect.measures(turned(model, "pairs", Score(model)))


@decides("ROPE-3", "0188ae92", door="session", on=(PROBE,), tries=1)
def test_the_pairs_read_in_a_session(model: Subject, expect: Expect, draw: Draw) -> None:
    expect.measures(turned(model, "pairs", Chunks(model)))


@decides("ROPE-3", "0188ae92", door="generate", on=(PROBE,), tries=1)
def test_the_pairs_read_in_a_decode_step(model: Subject, expect: Expect, draw: Draw) -> None:
    expect.measures(turned(model, "pairs", TopLogprobs(model, decode=True)))


@decides("ROPE-4", "6f105e36", door="score", on=(PROBE,), tries=1)
def test_the_direction_reads_in_one_pass(model: Subject, expect: Expect, draw: Draw) -> None:
    expect.measures(turned(model, "direction", Score(model)))


@decides("ROPE-4", "6f105e36", door="generate", on=(PROBE,), tries=1)
def test_the_direction_reads_in_a_decode_step(model: Subject, expect: Expect, draw: Draw) -> None:
    expect.measures(turned(model, "direction", TopLogprobs(model, decode=True)))

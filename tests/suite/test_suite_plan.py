"""What a run will cost, counted; and the lengths that it uses."""

from pathlib import Path

import pytest

from lmconform.adapter import NotOffered, Precision, Refused
from lmconform.checkpoints.random import SHAPES
from lmconform.suite.dsl import LOUD_SCOPE, RANDOM, SCOPE, WINDOW_SCOPE, WINDOWED
from lmconform.suite.instruments import INSTRUMENTS, LENGTHS, STOP_TAPE, WIDE, WIDE_INSTRUMENTS
from lmconform.suite.plan import EDGES, FAMILIES, FEW_RANDOM, GIVEN, MAX_TOKENS, PROFILES, Case, Plan, given_material

ALL = (RANDOM, FAMILIES, SCOPE, LOUD_SCOPE)


def plan(bench, profile="quick", given=None) -> Plan:
    return Plan(bench.connection, PROFILES[profile], seed=0, given=given)


@pytest.mark.parametrize(("profile", "most"), [("quick", 8), ("standard", 25)])
def test_a_profile_makes_few_checkpoints(bench, profile, most) -> None:
    cases = plan(bench, profile).cases(ALL, every_regime=True)
    assert len({case.checkpoint for case in cases} | {STOP_TAPE}) <= most


def test_lengths_are_few_a_checkpoint_and_cover_the_block_edges() -> None:
    assert all(len(lengths) <= 6 for lengths in LENGTHS)
    assert {length for lengths in LENGTHS for length in lengths} >= set(EDGES)
    assert max(EDGES) + 4 <= MAX_TOKENS


def test_each_regime_is_entered(bench) -> None:
    regimes = {case.regime for case in plan(bench).cases([SCOPE], every_regime=True)}
    assert regimes == {None, *bench.connection.description.regimes}
    assert {case.regime for case in plan(bench).cases([SCOPE], every_regime=False)} == {None}


def test_each_case_has_one_turn_and_a_regime_begins_with_what_its_preflight_loads(bench) -> None:
    found = plan(bench)
    cases = [case for kind in (SCOPE, RANDOM, STOP_TAPE, SCOPE) for case in found.cases([kind], every_regime=True)]
    turns = found.turns(cases)
    assert sorted(turns.values()) == list(range(len(set(cases))))
    order = sorted(turns, key=lambda case: turns[case])
    regimes = [None, *found.regimes]
    assert list(dict.fromkeys(case.regime for case in order)) == regimes
    assert [case.regime for case in order if case.checkpoint == STOP_TAPE] == regimes
    for regime in regimes:
        own = [case.checkpoint for case in order if case.regime == regime]
        assert own == [STOP_TAPE, "loud-0", SCOPE, *(["quiet-1", "loud-2"] if regime is None else [])]


@pytest.mark.parametrize(("profile", "few"), [("quick", 1), ("standard", 2), ("exhaustive", 4)])
def test_what_tests_edit_is_a_few_random_checkpoints(bench, profile, few) -> None:
    edited, whole = (plan(bench, profile).cases([kind], every_regime=False) for kind in (FEW_RANDOM, RANDOM))
    assert edited == whole[:few]


def test_shapes_that_the_engine_refuses_are_passed_over(bench, monkeypatch) -> None:
    monkeypatch.setattr(bench.connection, "accepts", lambda config: "odd" if config["head_dim"] != 64 else None)
    found = plan(bench)
    assert found.shapes == [shape for shape in SHAPES if shape.head_dim == 64]
    assert {case.checkpoint for case in found.cases([RANDOM], False)} == {"loud-0", "quiet-1", "loud-2"}
    assert found.material("loud-2").checkpoint.config["head_dim"] == 64


@pytest.mark.parametrize(("least", "size"), [(8, 8), (16, 32), (32, 32), (64, 8)])
def test_an_instrument_has_wider_heads_for_an_engine_that_takes_it_so_alone(bench, monkeypatch, least, size) -> None:
    monkeypatch.setattr(bench.connection, "accepts", lambda config: "narrow" if config["head_dim"] < least else None)
    for name in (SCOPE, LOUD_SCOPE):
        assert plan(bench).material(name).checkpoint.config["head_dim"] == size


def test_every_instrument_of_narrow_heads_has_a_wide_form() -> None:
    """And no other has one: they say the same of an engine."""
    made = {name: make(Precision()).checkpoint.config.get("head_dim", WIDE) for name, make in INSTRUMENTS.items()}
    assert {name for name, size in made.items() if size < WIDE} == set(WIDE_INSTRUMENTS)
    for name, make in WIDE_INSTRUMENTS.items():
        assert make(Precision()).checkpoint.config["head_dim"] == WIDE, name


def test_an_engine_that_refuses_every_shape_is_told_why_nothing_is_judged(bench, monkeypatch) -> None:
    monkeypatch.setattr(bench.connection, "accepts", lambda config: "none of these")
    with pytest.raises(Refused, match=r"accepts no shape of the suite.*none of these"):
        plan(bench).material("loud-0")


def test_the_other_families_are_those_of_the_page(bench) -> None:
    found = plan(bench)
    names = [case.checkpoint for case in found.cases([FAMILIES], every_regime=False)]
    assert [found.material(name).checkpoint.config["model_type"] for name in names] == ["gpt2", "phi3"]
    one, other = (found.material(name).checkpoint for name in ("quiet-gpt2", "quiet-gpt2#1"))
    assert (one.config, one.name) == (other.config, other.name)
    assert (one.weights["transformer.wpe.weight"] != other.weights["transformer.wpe.weight"]).mean() > 0.9


def test_a_family_that_the_engine_refuses_is_refused_with_its_reason(bench, monkeypatch) -> None:
    monkeypatch.setattr(bench.connection, "accepts", lambda config: "no Conv1D" if "n_embd" in config else None)
    with pytest.raises(Refused, match="a checkpoint of the family gpt2; its reason is: no Conv1D"):
        plan(bench).material("quiet-gpt2")
    assert plan(bench).material("quiet-phi3").checkpoint.config["model_type"] == "phi3"


@pytest.mark.parametrize("name", [WINDOWED, WINDOW_SCOPE])
def test_an_engine_without_windows_is_asked_nothing_about_them(bench, monkeypatch, name) -> None:
    monkeypatch.setattr(bench.connection, "accepts", lambda config: "full" if config.get("sliding_window") else None)
    with pytest.raises(Refused, match=r"family phi3 with a sliding_window of \d+; its reason is: full"):
        plan(bench).material(name)
    assert plan(bench).material("quiet-phi3").checkpoint.config["sliding_window"] is None


@pytest.mark.parametrize("name", [WINDOWED, WINDOW_SCOPE])
def test_lengths_lie_on_both_sides_of_the_window(bench, name) -> None:
    material = plan(bench).material(name)
    W = material.checkpoint.config["sliding_window"]
    assert {W - 1, W, W + 1, 2 * W + 1} < set(material.lengths)
    assert max(material.lengths) + 4 <= MAX_TOKENS


def test_a_seed_and_a_redraw_change_the_weights_and_nothing_else(bench) -> None:
    one, other = plan(bench).material("loud-0"), plan(bench).material("loud-0#1")
    seeded = Plan(bench.connection, PROFILES["quick"], seed=7).material("loud-0")
    for changed in (other, seeded):
        assert changed.checkpoint.config == one.checkpoint.config
        name = "model.layers.0.self_attn.q_proj.weight"
        assert (changed.checkpoint.weights[name] != one.checkpoint.weights[name]).mean() > 0.9


def test_a_given_checkpoint_is_judged_by_the_laws_alone(bench, tmp_path: Path) -> None:
    made = plan(bench).material("quiet-1")
    material = given_material(made.checkpoint.write(tmp_path / "mine"))
    found = plan(bench, given=material)
    assert [str(case) for case in found.cases(ALL, every_regime=True)] == [GIVEN]
    assert found.material(GIVEN) is material
    assert found.examples(Case(GIVEN)) < PROFILES["quick"].examples
    with pytest.raises(NotOffered):
        found.material(f"{GIVEN}~anything")


@pytest.mark.parametrize("instruments", [INSTRUMENTS, WIDE_INSTRUMENTS])
@pytest.mark.parametrize(
    ("formats", "narrow"),
    [({}, False), ({"kv_cache": "float16", "compute": "tf32"}, True), ({"compute": "float16"}, True)],
)
def test_loud_keys_are_finite_in_the_cache_too(instruments, formats, narrow) -> None:
    """A right engine with a float16 cache would answer with NaN otherwise."""
    made = instruments[LOUD_SCOPE](Precision(**formats))
    assert made.checkpoint.recipe["narrow"] is narrow

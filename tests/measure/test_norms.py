"""The section on norms: right engines are equal at every access, and planted faults are named with their numbers."""

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import pytest
from sheets import differing, outcomes

import refdecoder
from lmconform.checkpoints.probe import Ask
from lmconform.checkpoints.scales import WEIGHED, Scales, scales
from lmconform.engines.reference import Reference
from lmconform.measure.access import Chunks, Score, TopLogprobs
from lmconform.measure.desk import Desk
from lmconform.measure.experiment import Access
from lmconform.measure.norms import experiments
from lmconform.measure.observation import NotShown
from lmconform.measure.sheet import Entry, Outcome
from lmconform.measure.structure import NEEDED
from lmconform.measure.tokens_alone import TokensAlone
from lmconform.spec.decoder import decoder, read_config
from lmconform.suite.instruments import SCALES, TOKEN_SCALES
from lmconform.transport.client import Connection, EngineSpec
from refdecoder.model import Decoder

NORMS, STREAM = "lmconform.faults.norms", "lmconform.faults.pre_norm_residual"
LAST_ALONE = {"eps of the last norm", "final norm", "logits scale", "norm of a stream of 512"}
"""What greedy tokens cannot show."""


def lines(engine: str, way: str, dtype: str = "float32") -> tuple[Mapping[str, Entry], set[str]]:
    """The lines by quantity, and what is not offered."""
    return _each_way(engine, dtype, ("score", "top", "tokens") if "faults" in engine else (way,))[way]


@lru_cache(maxsize=1)
def _each_way(engine: str, dtype: str, ways: tuple[str, ...]) -> dict[str, tuple[dict[str, Entry], set[str]]]:
    """By way, the lines and what is not offered, of one engine in this process."""
    with Desk(Connection.start(EngineSpec(engine, options={"dtype": dtype}, in_process=True))) as desk:
        model = desk.subject(SCALES)
        made = model.instrument(Scales)
        accesses: dict[str, Callable[[], Access]] = {
            "score": lambda: Score(model),
            "session": lambda: Chunks(model),
            "top": lambda: TopLogprobs(model, decode=False),
            "decode": lambda: TopLogprobs(model, decode=True),
            "tokens": lambda: TokensAlone(desk.subject(TOKEN_SCALES), model.yardstick, made),
        }
        return {way: _lines(accesses[way](), made) for way in ways}


def _lines(access: Access, made: Scales) -> tuple[dict[str, Entry], set[str]]:
    found, without = {}, set()
    for experiment in experiments(made):
        try:
            found |= {line.quantity: line for line in experiment.run(access)}
        except NotShown:
            without.add(experiment.quantity)
    return found, without


@pytest.mark.parametrize(
    ("engine", "way", "dtype"),
    [
        ("reference", "score", "float32"),
        ("reference", "session", "float32"),
        ("reference", "top", "float32"),
        ("reference", "decode", "float32"),
        ("reference", "score", "float16"),
        ("reference", "score", "bfloat16"),
        ("transformers", "score", "float32"),
    ],
)
def test_a_right_engine_is_equal(engine: str, way: str, dtype: str) -> None:
    found, without = lines(engine, way, dtype)
    assert outcomes(found) == {Outcome.EQUAL}, differing(found)
    assert not without
    assert len(found) == 16
    for name, measured in {
        "norm": "RMSNorm",
        "norm position": "before the sublayer",
        "order of sublayers": "attention, then MLP",
        "residual": "kept",
        "weight order": "after the mean square",
        "final norm": "present",
        "gate and up": "as named",
        "activation": "SiLU",
        "head": "a matrix of its own",
    }.items():
        assert found[name].measured == measured
    assert float(found["eps"].measured) == pytest.approx(0.0625, rel=0.02)
    if dtype == "float32":
        assert float(found["eps"].uncertainty) < 1e-5


def test_greedy_tokens_show_all_but_what_scales_every_score() -> None:
    found, without = lines("reference", "tokens")
    assert outcomes(found) == {Outcome.EQUAL}, differing(found)
    assert without == LAST_ALONE
    assert float(found["eps"].measured) == pytest.approx(0.0625, abs=float(found["eps"].uncertainty))
    assert 1e-4 < float(found["eps"].uncertainty) < 0.0625 / 4


FAULTS: dict[str, dict[str, str]] = {
    f"{NORMS}:LayerNormForRMSNorm": {"norm": "LayerNorm"},
    f"{NORMS}:WeightInTheMeanSquare": {"weight order": "in the mean square"},
    f"{STREAM}:ParallelSublayers": {"order of sublayers": "side by side"},
    f"{STREAM}:MLPFirst": {"order of sublayers": "MLP, then attention"},
    f"{STREAM}:GateAndUpSwapped": {"gate and up": "swapped"},
    f"{STREAM}:DropsTheResidualOfAttention": {"residual": "dropped"},
    f"{STREAM}:DropsTheResidualOfTheMLP": {"residual": "dropped"},
    f"{STREAM}:ResidualAfterTheNorm": {"residual": "of the norm, not of the stream"},
    f"{STREAM}:PostNorm": {"residual": "of the norm, not of the stream", "norm position": "after it"},
}
"""What differs, of choices that every access can show, and nothing else does."""
LARGE_STREAM = "norm of a stream of 512, beside one of 8"
"""Follows from faults that are named elsewhere."""


@pytest.mark.parametrize("way", ["score", "top", "tokens"])
@pytest.mark.parametrize("engine", FAULTS)
def test_a_wrong_mechanism_is_named(engine: str, way: str) -> None:
    found, without = lines(engine, way)
    assert {name: got for name, got in differing(found).items() if name != LARGE_STREAM} == FAULTS[engine]
    assert without == (LAST_ALONE if way == "tokens" else set())


NUMBERS: dict[str, dict[str, float]] = {
    f"{NORMS}:EpsOfTheDefault": {"eps": 1e-6, "eps of the last norm": 1e-6},
    f"{NORMS}:EpsOfTheEngine": {"eps": 1e-3, "eps of the last norm": 1e-3},
    f"{NORMS}:NoEps": {"eps": 0, "eps of the last norm": 0},
    f"{NORMS}:EpsInTheLastNormAlone": {"eps of the last norm": 1e-6},
    f"{STREAM}:DoublesTheResidual": {"scale of the stream, a layer on": 2},
    f"{STREAM}:ScalesTheStream": {"scale of the stream, a layer on": 0.5},
    f"{NORMS}:OnePlusWeight": {"weight": lambda right: (1 + right) / 2},  # beside the 1 + 1 of other channels
    f"{NORMS}:WeightsOfTheOtherNorm": {"weight": lambda right: 1.25 - right},  # one norm has 0.5, the other 0.75
}
MOVED = 2e-4
"""Share by which a fault may move a reading of itself, for the balance is made for right layers."""


@pytest.mark.parametrize("way", ["score", "top", "tokens"])
@pytest.mark.parametrize("engine", NUMBERS)
def test_a_wrong_number_is_read(engine: str, way: str) -> None:
    found, _ = lines(engine, way)
    wanted = {name: number for name, number in NUMBERS[engine].items() if name in found}
    named = {name: got for name, got in differing(found).items() if name != "residual"}
    assert set(named) == set(wanted)
    for name, got in named.items():
        if name != "weight" or way != "tokens":  # there another norm may be the worst
            right, line = wanted[name], found[name]
            number = right(float(line.expected)) if callable(right) else right
            assert float(got) == pytest.approx(number, rel=MOVED, abs=2 * float(line.uncertainty))


@pytest.mark.parametrize(
    ("way", "name"), [("score", "GELU exact"), ("top", "GELU exact"), ("tokens", "GELU exact or GELU tanh")]
)
def test_the_activation_is_named(way: str, name: str) -> None:
    assert differing(lines(f"{STREAM}:GeluForSilu", way)[0]) == {"activation": name}


class LoudEmbedding(Reference):
    """Multiplies the embedding by the root of hidden_size, as some families do."""

    def build(self, config: refdecoder.DecoderConfig, attention: str) -> Decoder:
        decoder = super().build(config, attention)
        decoder.embed_tokens.register_forward_hook(lambda module, given, out: out * config.hidden_size**0.5)
        return decoder


class LoudScores(Reference):
    """Multiplies the scores by 3."""

    def build(self, config: refdecoder.DecoderConfig, attention: str) -> Decoder:
        decoder = super().build(config, attention)
        decoder.register_forward_hook(lambda module, given, out: out * 3)
        return decoder


@pytest.mark.parametrize("way", ["score", "top"])
def test_scales_at_both_ends_are_told_apart(way: str) -> None:
    for engine, quantity, scale in (("LoudEmbedding", "embedding scale", 16), ("LoudScores", "logits scale", 3)):
        ((name, measured),) = differing(lines(f"{__name__}:{engine}", way)[0]).items()
        assert name == quantity
        assert float(measured) == pytest.approx(scale, rel=1e-4)


def test_a_head_that_is_the_embedding_is_named() -> None:
    """By the standard's decoder: an engine that always does so is turned away before any reading."""
    made = scales()
    weights = {name: np.asarray(value, np.float64) for name, value in made.checkpoint.weights.items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    asks = [Ask(load, 1, ()) for load in WEIGHED]
    config = read_config(made.checkpoint.config)
    rows = np.array([decoder(config, weights, made.prompt(ask))[-1, made.columns] for ask in asks])
    assert NEEDED["head"](made.weighing(rows, asks)) == "the embedding"


def test_tokens_do_not_show_the_last_norm() -> None:
    assert differing(lines(f"{NORMS}:NoLastNorm", "top")[0])["final norm"] == "absent"
    assert differing(lines(f"{NORMS}:NoLastNorm", "tokens")[0]) == {}

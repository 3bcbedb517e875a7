"""The probe in the wrapping of gpt2 and phi3: read right on both engines, and each fault named by its line."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
from sheets import differing, outcomes, sheet
from torch import Tensor, nn

import refdecoder
from lmconform.adapter import Refused
from lmconform.checkpoints.probe import Probe
from lmconform.engines.reference import Reference
from lmconform.engines.transformers import Transformers
from lmconform.faults.decoder_families import (  # noqa: F401  the engines below are named by this module
    CountsPositionsFromTheChunk,
    CutsQkvByGroup,
    PositionsOneLater,
)
from lmconform.faults.sliding_window import IgnoresTheWindow, OwnPositionNotCounted  # noqa: F401
from lmconform.measure.access import Chunks, Score, TopLogprobs
from lmconform.measure.attempt import attempt
from lmconform.measure.families import experiments
from lmconform.measure.sampler import sampler
from lmconform.measure.sheet import Entry, Outcome
from lmconform.suite.subject import Subject

FAMILIES = ("gpt2-probe", "phi3-probe", "window-probe")
WAYS: dict[str, Callable[[Subject], Any]] = {
    "score": Score,
    "session": Chunks,
    "logprobs": lambda model: TopLogprobs(model, decode=False),
    "decode": lambda model: TopLogprobs(model, decode=True),
}
COARSE = ("positions seen of 129", "large scores", "sum of", "frequency", "base", "angle error")
"""How lines begin that formats of 16 bits cannot tell."""
LOGPROBS_COARSE = {"soft cap", "large scores beside small ones"}
"""Lines that log-probabilities need not tell: they are read from weights far below the numbers around them."""
AHEAD = {"weight on a future token"}
"""Lines that generate cannot show."""


def read(checkpoint: str, way: str, engine: str, *only: str, regime: str | None = None, **options: str):
    """Lines by quantity, of all experiments or of those named."""

    def section(model: Subject) -> list[Entry]:
        access, found = WAYS[way](model), []
        for one in experiments(model.instrument(Probe)):
            if not only or one.quantity in only:
                found += attempt(one.section, one.quantity, "", partial(one.run, access))
        return found

    return sheet(section, checkpoint, engine, regime, **options)


def measured(lines: Mapping[str, Entry]) -> dict[str, str]:
    return {name: line.measured for name, line in lines.items()}


@pytest.mark.parametrize("engine", ["reference", "transformers"])
@pytest.mark.parametrize("checkpoint", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_line_is_equal(checkpoint: str, engine: str, dtype: str) -> None:
    lines = read(checkpoint, "score", engine, dtype=dtype)
    blurred = {name for name, line in lines.items() if line.outcome is Outcome.NOT_RESOLVABLE}
    assert outcomes(lines) <= {Outcome.EQUAL, Outcome.NOT_RESOLVABLE}
    assert all(name.startswith(COARSE) for name in blurred)
    assert not blurred or dtype != "float32"


@pytest.mark.parametrize("engine", ["reference", "transformers"])
@pytest.mark.parametrize("checkpoint", ["gpt2-probe", "window-probe"])
@pytest.mark.parametrize("way", ["session", "logprobs", "decode"])
def test_other_ways_show_the_same(checkpoint: str, engine: str, way: str) -> None:
    lines = read(checkpoint, way, engine)
    assert outcomes(lines) <= {Outcome.EQUAL, Outcome.NOT_RESOLVABLE}
    blurred = {name for name, line in lines.items() if line.outcome is Outcome.NOT_RESOLVABLE}
    assert blurred <= (set() if way == "session" else AHEAD | LOGPROBS_COARSE)


def test_what_the_families_have() -> None:
    gpt2, window = (
        measured(read("gpt2-probe", "score", "transformers")),
        measured(read("window-probe", "score", "transformers")),
    )
    scales = [float(lines["scale"]) for lines in (gpt2, window)]
    assert scales == pytest.approx([64**-0.5, 16**-0.5], rel=1e-3)
    assert (gpt2["KV head of keys"], window["KV head of keys"]) == ("0 1 2 3 4 5 6 7", "0 0 0 0 1 1 1 1")
    seen = [float(lines["positions seen of 129"]) for lines in (gpt2, window)]
    assert seen == pytest.approx([129, 16], abs=0.1)
    assert gpt2["rotation"] == "none"
    assert [float(gpt2[f"position of token {t}"]) for t in PLACES] == pytest.approx(PLACES, abs=1e-3)


@pytest.mark.parametrize("way", ["logprobs", "decode"])
def test_positions_of_padded_rows(way: str) -> None:
    """Rows of six lengths in one batch, padded on the left."""
    lines = read("gpt2-probe", way, "reference", "position of a token", regime="left-padding")
    assert outcomes(lines) == {Outcome.EQUAL}


class _GPT2(Reference):
    """A gpt2 with changed modules."""

    def build_gpt2(self, config, attention):
        decoder = super().build_gpt2(config, attention)
        self.change(decoder)
        return decoder

    def change(self, decoder: Any) -> None:
        raise NotImplementedError


class ScaleOfOneOverD(_GPT2):
    """Scores are divided by D."""

    def change(self, decoder: Any) -> None:
        for block in decoder.h:
            block.attn.scale = block.attn.scale**2


class ByInverseLayer(_GPT2):
    """Scores of layer n are divided by n + 1 as well."""

    def change(self, decoder: Any) -> None:
        for number, block in enumerate(decoder.h):
            block.attn.scale /= number + 1


class _LaterInSteps(nn.Embedding):
    def forward(self, positions: Tensor) -> Tensor:
        return super().forward(positions + int(positions.shape[1] == 1))


class OneLaterInDecodeSteps(_GPT2):
    """A decode step reads the row after its own."""

    def change(self, decoder: Any) -> None:
        decoder.wpe.__class__ = _LaterInSteps


class _Ahead(nn.Embedding):
    def forward(self, positions: Tensor) -> Tensor:
        return super().forward((positions + self.ahead).clamp(max=self.num_embeddings - 1))


class _CountsPadding(refdecoder.GPT2):
    def forward(self, tokens: Tensor, positions: Tensor, cache: Any, last: bool = False) -> Tensor:
        self.wpe.ahead = (positions < 0).sum(dim=1, keepdim=True)
        return super().forward(tokens, positions, cache, last)


class PositionsFromTheLeftEdge(_GPT2):
    """Positions of padded rows are counted from the left edge of the batch."""

    def change(self, decoder: Any) -> None:
        decoder.__class__, decoder.wpe.__class__ = _CountsPadding, _Ahead


class ScaleInTransformers(Transformers):
    """transformers' own gpt2 and phi3, with a scale of 1 / D."""

    def load(self, checkpoint, needs):
        loaded = super().load(checkpoint, needs)
        for module in loaded.model.modules():
            if type(module).__name__ in ("GPT2Attention", "Phi3Attention"):
                module.scaling = module.scaling**2
        return loaded


PLACES = (1, 8, 16, 32, 64, 128)
POSITIONS, SEEN = "position of a token", ("positions seen", "scale")
FAULTS: dict[str, tuple[str, str, tuple[str, ...], dict[str, float]]] = {
    "ScaleOfOneOverD": ("gpt2-probe", "score", SEEN, {"scale": 1 / 64}),
    "ByInverseLayer": ("gpt2-probe", "score", SEEN, {"scale": 1 / 16}),
    "ScaleInTransformers": ("gpt2-probe", "score", SEEN, {"scale": 1 / 64}),
    "PositionsOneLater": ("gpt2-probe", "score", (POSITIONS,), {f"position of token {t}": t + 1 for t in PLACES}),
    "CountsPositionsFromTheChunk": (
        "gpt2-probe",
        "session",
        (POSITIONS,),
        {f"position of token {t}": 0 for t in PLACES},
    ),
    "OneLaterInDecodeSteps": (
        "gpt2-probe",
        "decode",
        (POSITIONS,),
        {f"position of token {t + 1}": t + 2 for t in PLACES},
    ),
    "OwnPositionNotCounted": ("window-probe", "score", SEEN, {"positions seen of 129": 17}),
    "IgnoresTheWindow": ("window-probe", "decode", SEEN, {"positions seen of 130": 130}),
}
"""By fault: checkpoint, way, experiments, and the lines that differ: all of them, with the number that is measured."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_by_its_line(fault: str) -> None:
    checkpoint, way, only, wanted = FAULTS[fault]
    found = differing(read(checkpoint, way, f"{__name__}:{fault}", *only))
    assert {name: float(got) for name, got in found.items()} == pytest.approx(wanted, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("engine", ["reference", "transformers"])
def test_dice_of_a_gpt2_are_drawn_right(engine: str) -> None:
    assert outcomes(sheet(sampler, "gpt2-dice", engine)) == {Outcome.EQUAL}


def test_padding_that_is_counted_is_a_position() -> None:
    """Of the two lengths of each batch the shorter is padded: its asker is given the position of the longer."""
    lines = read("gpt2-probe", "logprobs", f"{__name__}:PositionsFromTheLeftEdge", POSITIONS, regime="left-padding")
    found = {name: float(got) for name, got in differing(lines).items()}
    assert found == pytest.approx({f"position of token {t}": n for t, n in ((1, 8), (16, 32), (64, 128))}, abs=1e-3)


def test_parts_of_a_phi3_in_another_order() -> None:
    found = differing(read("phi3-probe", "score", f"{__name__}:CutsQkvByGroup"))
    assert {"KV head of keys", "KV head of values"} <= set(found)


class OnlyLlamas(Reference):
    """Takes llama checkpoints alone."""

    def accepts(self, config: Mapping[str, Any]) -> str | None:
        return None if config["model_type"] == "llama" else "only llamas run here"


@pytest.mark.parametrize("checkpoint", [*FAMILIES, "gpt2-balance", "gpt2-dice"])
def test_an_engine_may_refuse_a_family(checkpoint: str) -> None:
    with pytest.raises(Refused, match="only llamas run here"):
        sheet(lambda model: [], checkpoint, f"{__name__}:OnlyLlamas")

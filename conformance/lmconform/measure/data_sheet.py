"""The whole data sheet of an engine: every section, in every way and regime that it offers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from lmconform.adapter import NotOffered, Refused
from lmconform.checkpoints.probe import Probe
from lmconform.checkpoints.scales import Scales
from lmconform.measure import attention, families, norms, rope
from lmconform.measure.access import Chunks, Score, TopLogprobs
from lmconform.measure.attempt import attempt
from lmconform.measure.cache import cache
from lmconform.measure.desk import Desk
from lmconform.measure.experiment import Access, Experiment
from lmconform.measure.kernels import operators
from lmconform.measure.layer_norm import layer_norm
from lmconform.measure.observation import instrument
from lmconform.measure.sampler import sampler
from lmconform.measure.sheet import Entry, Outcome, missing
from lmconform.measure.stops import stops
from lmconform.measure.tokens_alone import TokensAlone
from lmconform.suite.instruments import (
    DICE,
    GPT2_BALANCE,
    GPT2_PROBE,
    PHI3_PROBE,
    PROBE,
    SCALES,
    STOP_TAPE,
    TOKEN_PROBE,
    TOKEN_SCALES,
    WINDOW_PROBE,
)
from lmconform.suite.subject import Subject


class Way(StrEnum):
    """How an instrument is read. The first that an engine offers is its most direct."""

    SCORE = "score"
    SESSION = "session"
    LOGPROBS = "logprobs"
    DECODE = "decode"
    TOKENS = "tokens"

    @property
    def words(self) -> str:
        """What a reader of the sheet is told."""
        return {
            Way.SCORE: "scores of one pass",
            Way.SESSION: "scores of a session, two chunks and a step",
            Way.LOGPROBS: "top 20 log-probabilities of generate, first token",
            Way.DECODE: "top 20 log-probabilities of generate, a decode step",
            Way.TOKENS: "greedy tokens alone",
        }[self]


ONE_WAY = "tokens that are drawn, stops, cache, norms of gpt2"
"""What is read in one way only, in words."""
DOORS = {Way.SCORE: "score", Way.SESSION: "open"}
"""What a way needs of a model; all others need generate."""
SECTIONS = ("attention", "rope", "norms", "gpt2", "phi3", "window", "sampler", "stops", "cache", "operators")
IN_REGIMES = (Way.SCORE, Way.SESSION, Way.LOGPROBS, Way.DECODE)
"""Ways to read in a regime that is not the default: tokens alone say nothing that log-probabilities do not."""


@dataclass(frozen=True)
class Part:
    """The lines that were read in one way and regime."""

    way: Way | None
    """None for what has one way only: sampler, stops, cache, norms and MLP of a gpt2."""
    regime: str | None
    entries: tuple[Entry, ...]
    operator: str = ""
    """Name of the operator that was read by itself."""

    @property
    def title(self) -> str:
        if self.operator:
            return f"operator {self.operator}"
        words = [f"regime {self.regime}"] if self.regime else []
        return ", ".join([*words, *([self.way.words] if self.way else [])]) or ONE_WAY

    @property
    def unsound(self) -> list[Entry]:
        """Lines that are not as the standard says."""
        return [entry for entry in self.entries if entry.outcome is Outcome.DIFFERS]


def parts(
    desk: Desk, ways: Collection[Way] = tuple(Way), sections: Collection[str] = SECTIONS, regimes: bool = True
) -> Iterator[Part]:
    """The parts of the sheet, the most direct way in the default regime first; those without lines are left out."""
    offers = desk.connection.description.offers
    if "operators" in sections and "operators" in offers:
        for name, lines in operators(desk.connection).items():
            yield Part(None, None, tuple(lines), name)
    if "load" not in offers:
        return
    for regime in (None, *(desk.regimes if regimes else ())):
        for way in ways:
            if regime is None or way in IN_REGIMES:
                yield from _part(way, regime, [e for name in sections for e in _read(desk, name, way, regime)])
        yield from _part(None, regime, [e for name in sections for e in _drawn(desk, name, regime)])


def _part(way: Way | None, regime: str | None, entries: list[Entry]) -> list[Part]:
    return [Part(way, regime, tuple(entries))] if entries else []


def _read(desk: Desk, section: str, way: Way, regime: str | None) -> list[Entry]:
    """The lines of a section that is read off scores; none where the engine does not offer this way."""
    if section not in INSTRUMENTS:
        return []
    name, levelled, experiments = INSTRUMENTS[section]
    if way is Way.TOKENS and levelled is None:
        return []
    try:
        model = desk.subject(name, regime)
        if DOORS.get(way, "generate") not in model.doors:
            return []
        access = _access(desk, model, way, levelled, regime)
    except (NotOffered, Refused) as error:
        return [missing(section, "all of it", "", str(error))]
    asked = experiments(model, way is Way.TOKENS)
    return [entry for one in asked for entry in attempt(one.section, one.quantity, "", partial(one.run, access))]


def _access(desk: Desk, model: Subject, way: Way, levelled: str | None, regime: str | None) -> Access:
    if way is Way.SCORE:
        return Score(model)
    if way is Way.SESSION:
        return Chunks(model)
    if way is Way.TOKENS and levelled is not None:
        return TokensAlone(desk.subject(levelled, regime), model.yardstick, instrument(model))
    return TopLogprobs(model, decode=way is Way.DECODE)


def _drawn(desk: Desk, section: str, regime: str | None) -> list[Entry]:
    if section not in DRAWN:
        return []
    name, read = DRAWN[section]
    try:
        return read(desk.subject(name, regime))
    except (NotOffered, Refused) as error:
        return [missing(section, "all of it", "", str(error))]


def _attention(model: Subject, alone: bool) -> list[Experiment]:
    return attention.experiments(model.instrument(Probe))


def _rope(model: Subject, alone: bool) -> list[Experiment]:
    return rope.experiments(model.instrument(Probe), alone)


def _norms(model: Subject, alone: bool) -> list[Experiment]:
    return norms.experiments(model.instrument(Scales))


def _family(model: Subject, alone: bool) -> list[Experiment]:
    return families.experiments(model.instrument(Probe), places_alone=model.case.regime is not None)


INSTRUMENTS: dict[str, tuple[str, str | None, Callable[[Subject, bool], list[Experiment]]]] = {
    "attention": (PROBE, TOKEN_PROBE, _attention),
    "rope": (PROBE, TOKEN_PROBE, _rope),
    "norms": (SCALES, TOKEN_SCALES, _norms),
    "gpt2": (GPT2_PROBE, None, _family),
    "phi3": (PHI3_PROBE, None, _family),
    "window": (WINDOW_PROBE, None, _family),
}
"""By section: the instrument, its form for tokens alone if there is one, and what is asked of it."""
DRAWN: dict[str, tuple[str, Callable[[Subject], list[Entry]]]] = {
    "sampler": (DICE, sampler),
    "stops": (STOP_TAPE, stops),
    "cache": (STOP_TAPE, cache),
    "gpt2": (GPT2_BALANCE, layer_norm),
}
"""By section: the instrument, and what reads it."""

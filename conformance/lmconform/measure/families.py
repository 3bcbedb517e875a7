"""What the probe shows in the wrapping of another family: attention, and how it tells positions."""

from __future__ import annotations

from dataclasses import replace

from lmconform.checkpoints.probe import Probe
from lmconform.measure import attention, positions, rope
from lmconform.measure.experiment import Experiment
from lmconform.measure.observation import Observation
from lmconform.measure.sheet import Entry

PLACES = ("positions seen", "position of a token")
"""What padding, chunks and other caches move most easily."""


def experiments(probe: Probe, places_alone: bool = False) -> list[Experiment]:
    """All that is asked of a probe of another family, or of ``PLACES`` alone; the sections carry its name.

    Turns are not read through a window: it hides the distances that tell them.
    """
    config = probe.checkpoint.config
    window = config.get("sliding_window")
    own = attention.experiments(probe)
    if config["model_type"] == "gpt2":
        own += positions.experiments(probe)
    elif window is None:
        own += rope.experiments(probe, alone=False)
    label = config["model_type"] if window is None else f"{config['model_type']}, window of {window},"
    return [_labelled(one, label) for one in own if not places_alone or one.quantity in PLACES]


def _labelled(one: Experiment, label: str) -> Experiment:
    """The experiment, whose lines stand in a section of the family."""
    section = f"{label} {one.section}"

    def lines(seen: Observation) -> list[Entry]:
        return [replace(entry, section=section) for entry in one.lines(seen)]

    return replace(one, section=section, lines=lines)

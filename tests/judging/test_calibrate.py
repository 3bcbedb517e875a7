"""The calibration measures what it says, and right engines stay far within the budgets."""

import numpy as np

from lmconform.calibrate import checkpoints, engines, measure
from lmconform.judging.budgets import FACTORS


def test_right_engines_use_less_than_half_of_every_bound() -> None:
    uses = measure("float32", 1, lambda line: None)
    assert len(uses) >= 25
    worst = np.max([use.row("float32") for use in uses.values()], axis=0)
    assert (worst < np.array(FACTORS["float32"]) / 2).all()
    assert (worst > 0.05).all()
    assert all(use.unfit == 0 for use in uses.values())


def test_the_ways_are_of_two_engines_and_two_forms() -> None:
    assert [name for name, _ in engines("float32")] == [
        f"{engine} {form}" for engine in ("reference", "transformers") for form in ("eager", "sdpa")
    ]
    assert {one.name.partition("-")[0] for one in checkpoints(3)} == {"loud", "quiet"}

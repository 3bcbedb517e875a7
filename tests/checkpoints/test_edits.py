"""Edits that keep the function keep it, and change the files."""

import numpy as np
import pytest

from lmconform.checkpoints.edits import EDITS, edited
from lmconform.checkpoints.random import SHAPES, random_checkpoint
from lmconform.spec.decoder import decoder, read_checkpoint

TOKENS = (3, 1, 4, 1, 5)


def scores(checkpoint, folder):
    return decoder(*read_checkpoint(checkpoint.write(folder)), TOKENS)


@pytest.mark.parametrize("volume", ["loud", "quiet"])
@pytest.mark.parametrize("name", ["empty-layer", "larger-stream"])
def test_an_edit_keeps_the_function(name, volume, tmp_path) -> None:
    made = random_checkpoint(SHAPES[2], volume, 3)
    changed = edited(made, name)
    assert np.allclose(scores(changed, tmp_path / "a"), scores(made, tmp_path / "b"), rtol=1e-12, atol=1e-12)
    assert (changed.config, changed.weights.keys()) != (made.config, made.weights.keys())


def test_a_tied_head_and_a_copy_are_the_same_function(tmp_path) -> None:
    made = random_checkpoint(SHAPES[0], "loud", 3)
    tied, copied = edited(made, "tied"), edited(made, "copied-head")
    assert np.array_equal(scores(tied, tmp_path / "a"), scores(copied, tmp_path / "b"))
    assert set(copied.weights) - set(tied.weights) == {"lm_head.weight"}


def test_the_recipe_says_the_edit() -> None:
    made = random_checkpoint(SHAPES[0], "loud", 3)
    for name in ("empty-layer", "larger-stream", "tied", "copied-head"):
        assert name in EDITS
        assert edited(made, name).recipe == {**made.recipe, "edit": name}

"""The dice as a gpt2: each die is drawn as the llama draws it."""

import numpy as np
import pytest

from lmconform.checkpoints.dice import SCORES, dice
from lmconform.checkpoints.dice_gpt2 import APART, gpt2_dice
from lmconform.spec.categorical_output import log_softmax
from lmconform.spec.decoder import decoder, read_checkpoint


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Log-probabilities after an id of each die, of the gpt2 and of the llama."""
    found = []
    for made in (gpt2_dice(), dice()):
        sizes, weights = read_checkpoint(made.checkpoint.write(tmp_path_factory.mktemp("dice") / "it", "bfloat16"))
        found.append({die: log_softmax(decoder(sizes, weights, [0, made.start(die)])[-1]) for die in SCORES})
    return found


@pytest.mark.parametrize("die", SCORES)
def test_a_die_is_the_llamas(die: str, tables) -> None:
    own = list(gpt2_dice().ids[die])
    gpt2, llama = (table[die] for table in tables)
    assert gpt2[own] == pytest.approx(llama[own], abs=1e-5)
    assert np.delete(gpt2, own).max() < gpt2[own].min() - APART / 2


def test_it_is_a_gpt2_with_the_ids_of_the_llama() -> None:
    made = gpt2_dice()
    assert made.checkpoint.config["model_type"] == "gpt2"
    assert made.ids == dice().ids
    assert made.checkpoint.vocab_size == dice().checkpoint.vocab_size

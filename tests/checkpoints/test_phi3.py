"""A llama checkpoint in phi3's wrapping: the same scores, and nothing lost."""

import numpy as np
import pytest

from lmconform.checkpoints.attention_scope import attention_scope
from lmconform.checkpoints.balance import balance
from lmconform.checkpoints.dice import dice
from lmconform.checkpoints.layout import Checkpoint, Phi3Shape
from lmconform.checkpoints.phi3 import as_phi3
from lmconform.checkpoints.random import FAMILIES, SHAPES, random_checkpoint
from lmconform.checkpoints.tape import stop_tape
from lmconform.spec.decoder import decoder, read_checkpoint

LLAMAS = {
    "random": lambda: random_checkpoint(SHAPES[0], "loud", 1),
    "scope": lambda: attention_scope("quiet").checkpoint,
    "balance": lambda: balance().checkpoint,
    "dice": lambda: dice().checkpoint,
    "tape": lambda: stop_tape().checkpoint,
}


def scores(checkpoint: Checkpoint, tmp_path, tokens):
    return decoder(*read_checkpoint(checkpoint.write(tmp_path / checkpoint.name)), tokens)


@pytest.mark.parametrize("make", LLAMAS.values(), ids=LLAMAS)
def test_the_scores_are_the_llamas(make, tmp_path) -> None:
    llama, tokens = make(), [3, 1, 4, 1, 5, 9, 2, 6]
    phi3 = as_phi3(llama)
    assert (phi3.config["model_type"], phi3.config["sliding_window"]) == ("phi3", None)
    assert np.array_equal(scores(phi3, tmp_path, tokens), scores(llama, tmp_path, tokens))


def test_names_and_shapes_are_those_of_phi3() -> None:
    llama = random_checkpoint(SHAPES[0], "loud", 1)
    phi3, wanted = as_phi3(llama), Phi3Shape(**vars(SHAPES[0]))
    assert {name: value.shape for name, value in phi3.weights.items()} == wanted.tensors()
    assert phi3.config == wanted.config()
    assert as_phi3(llama, 5).config == Phi3Shape(**vars(SHAPES[0]), sliding_window=5).config()
    assert phi3.name != as_phi3(llama, 5).name


def test_only_a_llama_becomes_a_phi3() -> None:
    with pytest.raises(ValueError, match="is a gpt2; only a llama"):
        as_phi3(random_checkpoint(FAMILIES[0], "loud", 3))

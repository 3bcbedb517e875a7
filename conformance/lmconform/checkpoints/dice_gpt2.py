"""The dice as a gpt2, whose head is its embedding.

An id writes the channel of its die, and its score on the floor, which the last norm turns into a constant. So an id's
row scores its own number after every token, and ``APART`` more after an id of its die. The scores of a die stand as
they do in the llama, only not below 0.

A tape cannot be had so. With sublayers that add nothing, the score of an id after another is that of the other after
it, but for the size of the stream and what is the same after all ids; and a script is not the same backwards.
"""

from __future__ import annotations

from dataclasses import replace

from lmconform.checkpoints.circuit import Circuit
from lmconform.checkpoints.circuit_gpt2 import as_gpt2
from lmconform.checkpoints.dice import SCORES, Dice, dice
from lmconform.checkpoints.layout import Shape

SHAPE = Shape(
    hidden_size=256,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=64,
    intermediate_size=96,
    vocab_size=0,
    rms_norm_eps=1e-9,
)
DIE, DEPTH = 4.0, 64.0
"""What an id writes on its die, and what 1 on the floor takes from its score."""
APART = 2 * DIE * 16
"""How far the ids of a die stand above others, nearly: the norm makes sqrt(hidden_size) of the one large channel."""


def gpt2_dice() -> Dice:
    """All dice in one checkpoint, with the ids that they have in the llama."""
    made = dice()
    circuit = Circuit("dice", SHAPE, {"kind": "gpt2-dice"}, power=DIE**2)
    outcomes = [(*one, die) for die, own in made.ids.items() for one in zip(own, SCORES[die], strict=True)]
    for token, score, die in sorted(outcomes):
        circuit.token(str(token), {die: DIE, "score": -float(score) / DEPTH})
    return replace(made, checkpoint=as_gpt2(circuit, floor="score", depth=DEPTH))

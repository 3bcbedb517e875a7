"""The chain: a tape with soft rows, whose ids are drawn as the states of a Markov chain.

All sublayers add nothing, and the head reads the embedding of the last token alone, so that row t of the scores is what
the chain says of the state after tokens[t]. Hard rows make a script. Where all rows are soft, the most probable
sequence of n steps is known by dynamic programming; to take the most probable state at each step does not find it in
general, and beam search finds it only with enough beams.

With hidden_size = 4^k, RMSNorm multiplies the one channel of a state by 2^k (up to eps): see ``dice``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.circuit import Circuit, as_llama
from lmconform.checkpoints.layout import Checkpoint, Shape
from lmconform.checkpoints.odds import OUTSIDE, checked, log_softmax

WIDTHS = (64, 256, 1024, 4096)
"""hidden_size is the least of them that has a channel for each state."""
CERTAIN = -1.0
"""Score of the next state in a hard row."""


@dataclass(frozen=True, eq=False)
class Chain:
    """A chain: its checkpoint, and what is known of its sequences."""

    checkpoint: Checkpoint
    scores: Array
    """[S, S]: row a holds the scores after state a."""

    @cached_property
    def log_probabilities(self) -> Array:
        """[S, S]: of each state after each state."""
        return log_softmax(self.scores)

    def log_probability(self, start: int, tokens: Sequence[int]) -> float:
        """Of these states after ``start``."""
        return float(sum(self.log_probabilities[last, token] for last, token in pairwise((start, *tokens))))

    def greedy_sequence(self, start: int, steps: int) -> tuple[int, ...]:
        """The most probable state at each step after ``start``; of equal ones the least id."""
        tokens = [start]
        for _ in range(steps):
            tokens.append(int(self.scores[tokens[-1]].argmax()))
        return tuple(tokens[1:])

    def best_sequence(self, start: int, steps: int) -> tuple[tuple[int, ...], float]:
        """The most probable ``steps`` states after ``start``, and their log-probability, by dynamic programming."""
        best = np.full(len(self.scores), -np.inf)  # of all ways from the start to each state
        best[start] = 0.0
        before = []
        for _ in range(steps):
            ways = best[:, None] + self.log_probabilities  # [last, next]
            before.append(ways.argmax(axis=0))
            best = ways.max(axis=0)
        tokens = [int(best.argmax())]
        for came_from in before[::-1]:
            tokens.append(int(came_from[tokens[-1]]))
        return tuple(tokens[::-1][1:]), float(best.max())


def chain(scores: Array) -> Chain:
    """The chain with these transition scores [S, S], one row for each state, rounded to the grid.

    Scores are below 0, or ``OUTSIDE`` where the state does not come next; ``die_of`` makes rows of probabilities.
    Raises ValueError where the checkpoint cannot hold them.
    """
    states = len(scores)
    if not 2 <= states <= WIDTHS[-1] or np.shape(scores) != (states, states):
        raise ValueError(f"A chain needs a square of scores, for 2 to {WIDTHS[-1]} states; got {np.shape(scores)}.")
    held = np.array([checked(row, f"the state after {last}") for last, row in enumerate(np.asarray(scores))])
    width = next(width for width in WIDTHS if width >= states)
    shape = Shape(hidden_size=width, num_hidden_layers=1, intermediate_size=32, vocab_size=states, rms_norm_eps=1e-9)
    circuit = Circuit("chain", shape, {"kind": "chain", "scores": held.tolist()}, power=1)
    for token in range(states):
        reads = {str(last): float(score) for last, score in enumerate(held[:, token])}
        circuit.token(str(token), {str(token): 1}, circuit.held(reads))
    return Chain(as_llama(circuit), held)


def scripted(tokens: Sequence[int], states: int) -> Array:
    """Scores [states, states] of a chain that plays ``tokens`` again and again; every other state leads to the first.

    Raises ValueError where a state would lead to two others: the chain knows the last token alone.
    """
    follows = dict.fromkeys(range(states), tokens[0])
    for last, token in zip(tokens, [*tokens[1:], tokens[0]], strict=True):
        if tokens.count(last) > 1:
            raise ValueError(f"A script names each token once; {last} comes {tokens.count(last)} times.")
        follows[last] = token
    found = np.full((states, states), OUTSIDE)
    found[[*follows], [*follows.values()]] = CERTAIN
    return found

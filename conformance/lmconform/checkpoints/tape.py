"""The stop tape: a checkpoint whose scores depend on the last token alone, so that greedy decoding follows a script.

All sublayers add nothing. The head row of the token that follows a reads the embedding of a, and row t of the scores
names the token that follows tokens[t].

Its cycles are short and long, so that tokens come again; its pieces of text hold one to three characters of a small
alphabet, so that strings overlap, and begin and end inside tokens; and after each token three ids are ranked, so that
the script goes on where the first of them may not be drawn. The preflight reads it too: a load may be dear.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from lmconform.adapter import Array
from lmconform.checkpoints.circuit import Circuit, as_llama
from lmconform.checkpoints.layout import Checkpoint, Shape, character, tokenizer
from lmconform.spec.stop_conditions import begun, decoded

SHAPE = Shape(hidden_size=128, num_attention_heads=4, num_key_value_heads=2, head_dim=32, vocab_size=101)
RANKS = (4.0, 2.0, 1.0)
"""Head gains of the first, second and third id after a token. The final norm multiplies them by sqrt(hidden_size): they
stand 45, 23 and 11 above the rest."""

SPELLED = tuple("".join(letters) for size in (1, 2, 3) for letters in product("xyz", repeat=size))
FIRST_SPELLED = 6  # before them stand a to f, see ``character``
CYCLES = (1, 2, 3, 5, 28)  # of the ids that are spelled; all others make up one more


@dataclass(frozen=True, eq=False)
class StopTape:
    """A tape for stop conditions: its checkpoint, and what it plays."""

    checkpoint: Checkpoint
    ranking: tuple[tuple[int, ...], ...]
    """For each token the three ids that follow it, the most probable first."""
    pieces: tuple[bytes, ...]
    """The bytes of each id; those of several may make up one character."""

    def play(self, last: int, count: int, masked: Collection[int] = (), least: int = 0) -> tuple[int, ...]:
        """The ``count`` tokens after ``last``; among the first ``least`` of them none is of ``masked``.

        Raises ValueError where all ids that are ranked are masked.
        """
        tokens = [last]
        for n in range(1, count + 1):
            allowed = [token for token in self.ranking[tokens[-1]] if n > least or token not in masked]
            if not allowed:
                raise ValueError(f"After {tokens[-1]} come {self.ranking[tokens[-1]]}, and all of them are masked.")
            tokens.append(allowed[0])
        return tuple(tokens[1:])

    def before(self, token: int, n: int) -> int:
        """The token after which ``token`` is the n-th new one."""
        previous = {ranked[0]: last for last, ranked in enumerate(self.ranking)}
        for _ in range(n):
            token = previous[token]
        return token

    @property
    def columns(self) -> list[int]:
        """Ids whose scores a reading needs: all of them."""
        return list(range(len(self.ranking)))

    def names(self, quantity: str) -> tuple[str, ...]:
        """What each reading is called; the one quantity is "curve"."""
        return ("lead of the first id over the second, by that of the second over the third",)

    def telling(self, quantity: str) -> float:
        """Scores that are capped at 50 give 1.4 instead of 2, those capped at 30 give 0.9."""
        return 0.5

    def slack(self, quantity: str) -> float:
        """How far other faults may move it. A factor of the scores, or of the stream, does not."""
        return 0.1

    def read(self, quantity: str, scores: Array, tokens: tuple[int, ...]) -> Array:
        """The ratio of the leads, [n, 1], from scores [n, V]. A wrong engine may make it infinite or NaN."""
        first, second, third = np.take_along_axis(scores, np.array([self.ranking[one] for one in tokens]), axis=1).T
        with np.errstate(all="ignore"):
            ratios: Array = (first - second) / (second - third)
        return ratios[:, None]

    def text(self, tokens: Sequence[int]) -> list[str]:
        """The text that each of ``tokens`` adds."""
        return decoded([self.pieces[token] for token in tokens])

    def begun(self, tokens: Sequence[int]) -> int:
        """How many bytes of a character that is not whole ``tokens`` end with."""
        return len(begun([self.pieces[token] for token in tokens]))


def stop_tape(shape: Shape = SHAPE) -> StopTape:
    """The stop tape in this shape; the vocabulary may be at most hidden_size wide, and must hold the pieces."""
    if not FIRST_SPELLED + len(SPELLED) < shape.vocab_size <= shape.hidden_size:
        raise ValueError(f"A stop tape needs more than 45 ids and vocab_size <= hidden_size; got {shape.vocab_size}.")
    follows = _follows(shape.vocab_size)
    ranking = tuple(_ranked(token, follow, shape.vocab_size) for token, follow in enumerate(follows))
    circuit = Circuit("stop-tape", shape, {"kind": "stop-tape"})
    for token in range(shape.vocab_size):
        circuit.token(str(token), {str(token): 1})
    for last, ranked in enumerate(ranking):
        for token, score in zip(ranked, RANKS, strict=True):
            circuit.token(str(token), reads={str(last): score})
    plain = [character(token) for token in range(shape.vocab_size)]
    pieces = (*plain[:FIRST_SPELLED], *SPELLED, *plain[FIRST_SPELLED + len(SPELLED) :])
    checkpoint = replace(as_llama(circuit), files={"tokenizer.json": tokenizer(pieces)})
    return StopTape(checkpoint, ranking, tuple(piece.encode() for piece in pieces))


def _follows(vocab_size: int) -> list[int]:
    """The first id after each token: the cycles of the spelled ids, and one of all others."""
    generator = np.random.default_rng(7)
    spelled = np.arange(FIRST_SPELLED, FIRST_SPELLED + len(SPELLED))
    others = np.setdiff1d(np.arange(vocab_size), spelled)
    parts = np.split(generator.permutation(spelled), np.cumsum(CYCLES)[:-1])
    follows = np.zeros(vocab_size, int)
    for cycle in (*parts, generator.permutation(others)):
        follows[cycle] = np.roll(cycle, -1)
    return follows.tolist()


def _ranked(token: int, first: int, vocab_size: int) -> tuple[int, ...]:
    """``first`` and two more ids, all different, that lead to other places of the script."""
    others = ((token + step) % vocab_size for step in (37, 53, 71))
    return (first, *[other for other in others if other != first][:2])

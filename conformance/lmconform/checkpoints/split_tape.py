"""The split tape: the stop tape with other pieces of text, so that characters are split over its tokens.

The scores, and so the script, are those of the stop tape. The pieces along its longest cycle of spelled ids join to a
text in which characters of two, three and four bytes are split: into single bytes, into halves, and beside whole
characters in the same piece. All other pieces are one character each.
"""

from __future__ import annotations

from dataclasses import replace

from lmconform.checkpoints.byte_level import byte_tokenizer
from lmconform.checkpoints.layout import character
from lmconform.checkpoints.tape import CYCLES, FIRST_SPELLED, StopTape, stop_tape

SPLIT = tuple(
    bytes.fromhex(piece)
    for characters in (
        "c3 a9",  # é
        "e282 ac",  # €
        "f0 9f 98 80",  # 😀
        "78",  # x
        "d0 96",  # Ж
        "e4 b8ad",  # 中
        "f09f 8e88",  # 🎈
        "79",  # y
        "7ac3 a979",  # zéy
        "79e2 82ac78",  # y€x
        "78f09f98 80f0 9f8e88",  # x😀🎈
        "7a",  # z
        "c3a9e282ac",  # é€ in one piece
        "7ae4 b8 ad7a",  # z中z
    )
    for piece in characters.split()
)
"""Bytes of each piece along the cycle, which begins and ends between two characters."""


def split_tape() -> StopTape:
    """The split tape, in the shape of the stop tape."""
    made = stop_tape()
    size = max(CYCLES)
    first = next(
        token for token in range(FIRST_SPELLED, len(made.pieces)) if made.play(token, size).index(token) + 1 == size
    )
    pieces = {token: character(token).encode() for token in range(len(made.pieces))}
    pieces |= dict(zip(made.play(first, size), SPLIT, strict=True))
    ordered = tuple(pieces[token] for token in range(len(pieces)))
    checkpoint = replace(
        made.checkpoint,
        name="split-tape",
        recipe={"kind": "split-tape"},
        files={"tokenizer.json": byte_tokenizer(ordered)},
    )
    return replace(made, checkpoint=checkpoint, pieces=ordered)

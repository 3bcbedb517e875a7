"""From strings back to token ids, and from token ids to a text that the server's tokenizer splits into just them.

In the checkpoints of this suite each id has a string of its own and nothing merges. What a server says of a single
token is therefore found again; what it says of several together is not, where the string of one is another's beginning.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmconform.checkpoints.byte_level import pieces_of

SEPARATOR = "\N{SYMBOL FOR UNIT SEPARATOR}"
"""Stands between the tokens of a prompt that is sent as text; no token holds it."""
DECODERS = ("Fuse", "ByteLevel")
"""Kinds of tokenizer.json whose pieces are found again."""


class Unspelled(Exception):
    """No token has this string, or several have it."""


class Spelling:
    """The string of each id, from a tokenizer.json."""

    def __init__(self, document: dict[str, Any]) -> None:
        vocab = document["model"]["vocab"]
        self.names = sorted(vocab, key=vocab.__getitem__)
        self._ids: dict[bytes, int | None] = {}
        for token, piece in zip(sorted(vocab.values()), pieces_of(document), strict=True):
            self._ids[piece] = None if piece in self._ids else token

    @classmethod
    def of(cls, checkpoint: Path) -> Spelling | None:
        """That of a checkpoint directory; None if it has no tokenizer.json of a kind that can be read backwards."""
        path = checkpoint / "tokenizer.json"
        if not path.is_file():
            return None
        document = json.loads(path.read_text(encoding="utf-8"))
        model, decoder = document.get("model") or {}, document.get("decoder") or {}
        readable = isinstance(model.get("vocab"), dict) and decoder.get("type") in DECODERS
        return cls(document) if readable else None

    def id_of(self, piece: bytes) -> int:
        """The id whose bytes these are. Raises Unspelled."""
        token = self._ids.get(piece)
        if token is None:
            raise Unspelled(f"{'several tokens have' if piece in self._ids else 'no token has'} the string {piece!r}")
        return token

    def prompt(self, tokens: Sequence[int]) -> str:
        """A text that a tokenizer of ``splitting`` takes apart into ``tokens``."""
        return SEPARATOR.join(self.names[token] for token in tokens)


def splitting(checkpoint: Path, folder: Path) -> Path:
    """A copy of ``checkpoint`` whose tokenizer splits text at the separator alone; how it decodes is the same.

    Weights are linked, not copied. Raises ValueError if a piece holds the separator.
    """
    document = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    if any(SEPARATOR in piece for piece in document["model"]["vocab"]):
        raise ValueError(f"The tokenizer of {checkpoint} has a token with {SEPARATOR!r}, which separates tokens here.")
    document["normalizer"] = document["post_processor"] = None
    document["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"String": SEPARATOR},
        "behavior": "Removed",
        "invert": False,
    }
    document["model"]["ignore_merges"] = True  # a word that is a token as it stands is that token
    copy = folder / checkpoint.name
    copy.mkdir(parents=True)
    for path in checkpoint.iterdir():
        if path.name != "tokenizer.json":
            (copy / path.name).symlink_to(path.resolve())
    (copy / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    return copy

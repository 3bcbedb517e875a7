"""tokenizer.json of the byte-level kind, in which the piece of an id is any string of bytes.

The files of GPT-2, Llama 3 and Qwen are of this kind. A piece may hold a part of a character alone, which the piece of
the next id completes. The file spells each byte as one printable character.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmconform.checkpoints.layout import tokenizer

PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
"""Bytes that stand for themselves; the others have the characters from U+0100 on, in their order."""
OTHERS = tuple(byte for byte in range(0x100) if byte not in PRINTABLE)
SPELLING = {byte: chr(byte) for byte in PRINTABLE} | {byte: chr(0x100 + n) for n, byte in enumerate(OTHERS)}
"""How the file spells each byte."""
BYTES = {spelled: byte for byte, spelled in SPELLING.items()}
KIND = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def byte_tokenizer(pieces: Sequence[bytes]) -> dict[str, Any]:
    """tokenizer.json in which ``pieces[id]`` are the bytes of an id and nothing merges; no two may be equal."""
    spelled = ["".join(SPELLING[byte] for byte in piece) for piece in pieces]
    return {**tokenizer(spelled), "pre_tokenizer": KIND, "decoder": KIND}


def pieces_of(document: Mapping[str, Any]) -> list[bytes]:
    """The bytes of each id of a tokenizer.json of this suite, of either kind."""
    ids = document["model"]["vocab"]
    spelled = sorted(ids, key=ids.__getitem__)
    if document["decoder"] != KIND:
        return [piece.encode() for piece in spelled]
    return [bytes(BYTES[character] for character in piece) for piece in spelled]

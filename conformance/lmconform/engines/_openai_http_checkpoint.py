"""What the door itself reads of a checkpoint: how wide its vocabulary is, and whether it names EOS ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lmconform.adapter import Refused
from lmconform.checkpoints.eos import CONFIG, GENERATION, TOKENIZER
from lmconform.checkpoints.gguf import EOG_KEYS, gguf_package

TOKENS = "tokenizer.ggml.tokens"


def vocab_size(checkpoint: Path) -> int:
    """The vocabulary's width, from config.json or the GGUF file. Raises Refused where it cannot be read."""
    try:
        if checkpoint.is_file():
            return len(gguf_package().GGUFReader(checkpoint).fields[TOKENS].data)
        return int(_document(checkpoint / CONFIG)["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError) as reason:
        raise Refused(f"The checkpoint {checkpoint} does not say how wide its vocabulary is: {reason!r}.") from reason


def names_eos(checkpoint: Path) -> bool:
    """Whether any file of the checkpoint names an EOS id."""
    if checkpoint.is_file():
        fields = gguf_package().GGUFReader(checkpoint).fields
        return any(f"tokenizer.ggml.{key}" in fields for key in EOG_KEYS)
    ids = [_document(checkpoint / name).get("eos_token_id") for name in (GENERATION, CONFIG)]
    return any(one is not None for one in (*ids, _document(checkpoint / TOKENIZER).get("eos_token")))


def _document(path: Path) -> dict[str, Any]:
    """A JSON file of the checkpoint; empty where there is none that can be read, which the server will say."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

"""Copies of the stop tape that name EOS ids, in all files of the checkpoint or in one of them alone.

Real checkpoints name them in several files, which need not agree, and engines rightly read different ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from lmconform.checkpoints.layout import Checkpoint, character

GENERATION, CONFIG, TOKENIZER = "generation_config.json", "config.json", "tokenizer_config.json"
EOS = (50, 70, 90)
"""Ids of the stop tape that its copies name; each is one character, and far from the others in the script."""

NAMED: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "eos": {GENERATION: EOS, CONFIG: EOS, TOKENIZER: EOS[:1]},  # a tokenizer has one
    "eos-in-generation-config": {GENERATION: EOS},
    "eos-in-config": {CONFIG: EOS},
    "eos-in-tokenizer-config": {TOKENIZER: EOS[:1]},
    "eos-apart": {GENERATION: EOS[:1], CONFIG: EOS[1:2], TOKENIZER: EOS[2:]},
}
"""By edit and file: the EOS ids that are named there. A generation_config.json that names none is left out."""


def _naming(files: Mapping[str, tuple[int, ...]]) -> Callable[[Checkpoint], Checkpoint]:
    def edit(checkpoint: Checkpoint) -> Checkpoint:
        general, generation, token = (files.get(name, ()) for name in (CONFIG, GENERATION, TOKENIZER))
        changes = {
            GENERATION: {"eos_token_id": _one_or_list(generation)} if generation else None,
            TOKENIZER: {"eos_token": character(token[0])} if token else {},
        }
        return replace(
            checkpoint,
            config={**checkpoint.config, "eos_token_id": _one_or_list(general)},
            files={**checkpoint.files, **changes},
        )

    edit.__doc__ = "The same decoder, whose EOS ids are named in " + " and ".join(files) + "."
    return edit


def _one_or_list(ids: tuple[int, ...]) -> int | list[int] | None:
    """EOS ids as the files spell them: null, a number, or a list of several."""
    return list(ids) if len(ids) > 1 else ids[0] if ids else None


EOS_EDITS = {name: _naming(files) for name, files in NAMED.items()}

"""Text in and out of a checkpoint, by its tokenizer.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from .errors import CheckpointError


class Text:
    """The tokenizer of a checkpoint directory."""

    def __init__(self, directory: Path | str) -> None:
        """Read tokenizer.json; raise CheckpointError if it is missing or not a tokenizer."""
        path = Path(directory) / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist; text needs the tokenizer of the checkpoint.")
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception
            raise CheckpointError(f"{path} is not a tokenizer: {error}.") from error

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, with those that the tokenizer puts around it, such as BOS."""
        return list(self.tokenizer.encode(text).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

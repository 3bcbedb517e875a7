"""When a row ends: stop ids, sequences of ids, and strings that may begin and end inside tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from .errors import InputError

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Stops:
    """What ends a row with reason "stop". Only new tokens count, never the prompt."""

    ids: tuple[int, ...] = ()
    """A stop id is the last token of its row."""
    sequences: tuple[tuple[int, ...], ...] = ()
    """The last ids of a row are the sequence that ended it."""
    strings: tuple[str, ...] = ()
    """The text ends before the string that appears first in it."""
    min_new_tokens: int = 0
    """Among the first so many tokens stop ids cannot be drawn, and sequences and strings do not count."""

    def __post_init__(self) -> None:
        """Raise InputError for an empty sequence or string, or a negative minimum."""
        if not all(self.sequences) or not all(self.strings):
            raise InputError("A stop sequence or stop string is empty; it would end every row at once. Leave it out.")
        if self.min_new_tokens < 0:
            raise InputError(f"min_new_tokens is {self.min_new_tokens}; it must be 0 or more.")

    def mask(self, logits: Tensor, count: int) -> Tensor:
        """Return ``logits`` [V], without the stop ids if the token after ``count`` new ones may not stop.

        Raises:
            InputError: every id is a stop id, so that nothing could be drawn.
        """
        ids = sorted({one for one in self.ids if 0 <= one < len(logits)})
        if count >= self.min_new_tokens or not ids:
            return logits
        if len(ids) == len(logits):
            raise InputError(f"All {len(ids)} ids are stop ids, so min_new_tokens={self.min_new_tokens} cannot be met.")
        masked = logits.clone()
        masked[ids] = float("-inf")
        return masked

    def watch(self, detokenizer: Detokenizer | None) -> Watch:
        """Return what follows one row; raise InputError if there are strings and no detokenizer."""
        return Watch(self, detokenizer)


class Detokenizer:
    """Text of a growing list of ids. The pieces join to the whole text; a character split over ids comes at once."""

    def __init__(self, decode: Decode, prompt: Sequence[int] = ()) -> None:
        self.decode = decode
        self.ids = list(prompt[-6:])  # context: tokenizers of the sentencepiece kind drop a space at the very start
        self.start, self.end = 0, len(self.ids)  # ids[start:end] is context, the text of ids[end:] is pending
        self.given = 0  # characters of the pending text that were handed out: an id may end one and begin another

    def push(self, token: int) -> str:
        """Take one id; return the text that is certain now."""
        self.ids.append(token)
        pending = self._pending()
        whole = len(pending.rstrip("\N{REPLACEMENT CHARACTER}"))
        if whole == len(pending):
            return self.flush()
        text, self.given = pending[self.given : whole], max(self.given, whole)
        return text

    def flush(self) -> str:
        """Return the rest of the text, incomplete characters too."""
        pending = self._pending()
        text = pending[self.given :]
        if pending:
            self.start, self.end, self.given = self.end, len(self.ids), 0
        return text

    def _pending(self) -> str:
        return self.decode(self.ids[self.start :])[len(self.decode(self.ids[self.start : self.end])) :]


class Watch:
    """Follows the new tokens of one row, says when a stop ends it, and releases text that no stop can take back."""

    def __init__(self, stops: Stops, detokenizer: Detokenizer | None = None) -> None:
        """Raise InputError if there are stop strings but no detokenizer."""
        if stops.strings and detokenizer is None:
            raise InputError("Stop strings were given but no way to decode ids; pass decode, or use stop sequences.")
        self.stops, self.detokenizer = stops, detokenizer
        self.tokens: list[int] = []
        self.text, self.released = "", 0  # all text so far; how much of it was handed out

    def push(self, token: int, last: bool = False) -> tuple[str, bool]:
        """Take one new token; return the text that can be handed out, and whether a stop ends the row here.

        With ``last`` the row ends here in any case (the length limit), and nothing is held back.
        """
        self.tokens.append(token)
        due = len(self.tokens) > self.stops.min_new_tokens
        by_id = due and token in self.stops.ids
        stopped = by_id or (due and any(tuple(self.tokens[-len(one) :]) == one for one in self.stops.sequences))
        seen = len(self.text)
        if self.detokenizer is not None:
            self.text += "" if by_id else self.detokenizer.push(token)  # the text does not hold the stop id
            self.text += self.detokenizer.flush() if stopped or last else ""
        starts = [self.text.find(one, max(0, seen - len(one) + 1)) for one in self.stops.strings if due]
        if found := [start for start in starts if start >= 0]:
            self.text, stopped = self.text[: min(found)], True
        ready = len(self.text) - (0 if stopped or last else self._held())
        piece, self.released = self.text[self.released : ready], ready
        return piece, stopped

    def _held(self) -> int:
        """Length of the longest end of the text with which a stop string may begin."""
        begins = (one[:n] for one in self.stops.strings for n in range(1, len(one)))
        return max((len(begin) for begin in begins if self.text.endswith(begin)), default=0)

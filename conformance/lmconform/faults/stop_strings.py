"""Planted faults of stop strings and of the text that they end."""

from __future__ import annotations

from dataclasses import replace

from lmconform.engines.reference import Reference
from lmconform.faults.fault import Fault
from refdecoder.stopping import Detokenizer, Stops, Watch


class WholeText(Watch):
    """A watch that hands out what ``found`` leaves of the whole text, when the row ends."""

    def push(self, token: int, last: bool = False) -> tuple[str, bool]:
        seen = len(self.text)
        self.stops, strings = replace(self.stops, strings=()), self.stops.strings
        _, stopped = super().push(token, last)
        self.stops = replace(self.stops, strings=strings)
        due = len(self.tokens) > self.stops.min_new_tokens
        places = [self.place(one, seen) for one in strings] if due else []
        found = [(place, one) for place, one in zip(places, strings, strict=True) if place >= 0] if due else []
        if found:
            self.text, stopped = self.left(found), True
        return self.text if stopped or last else "", stopped

    def place(self, string: str, seen: int) -> int:
        """Where the string begins in the text, of which ``seen`` characters were there before this token, or -1."""
        return self.text.find(string, max(0, seen - len(string) + 1))

    def left(self, found: list[tuple[int, str]]) -> str:
        """The text that is left of a row that is ended by strings at these places."""
        return self.text[: min(found)[0]]


def watched_by(watch: type[Watch]) -> type[Stops]:
    """Stops that are watched by ``watch``."""

    class Watched(Stops):
        def watch(self, detokenizer: Detokenizer | None) -> Watch:
            return watch(self, detokenizer)

    return Watched


class _SinglePieces(WholeText):
    def place(self, string: str, seen: int) -> int:
        return self.text.find(string, seen)


class LooksAtSinglePieces(Reference):
    """A stop string is found only inside the text of one token."""

    name = "fault: strings in single tokens"
    stops_class = watched_by(_SinglePieces)


class _Suffix(WholeText):
    def place(self, string: str, seen: int) -> int:
        return len(self.text) - len(string) if self.text.endswith(string) else -1


class LooksAtTheEndOfTheText(Reference):
    """A stop string is found only if the text ends with it."""

    name = "fault: strings at the end"
    stops_class = watched_by(_Suffix)


class _NothingHeld(Watch):
    def _held(self) -> int:
        return 0


class HandsOutHalfAString(Reference):
    """Text is handed out before it is known whether a stop string begins in it."""

    name = "fault: half a string"
    stops_class = watched_by(_NothingHeld)


class _KeepsTheString(WholeText):
    def left(self, found: list[tuple[int, str]]) -> str:
        return self.text


class LeaksTheStopString(Reference):
    """The text holds the stop string, which is declared to be dropped."""

    name = "fault: string leaks"
    stops_class = watched_by(_KeepsTheString)


class _KeepsTheTail(WholeText):
    def left(self, found: list[tuple[int, str]]) -> str:
        place, string = min(found)
        return self.text[:place] + self.text[place + len(string) :]


class KeepsWhatFollowsTheString(Reference):
    """The stop string is taken out, and what follows it in the same token stays."""

    name = "fault: tail after the string"
    stops_class = watched_by(_KeepsTheTail)


class _FromTheStart(WholeText):
    def left(self, found: list[tuple[int, str]]) -> str:
        return self.text[: min(self.text.find(string) for _, string in found)]


class CutsAtAnIgnoredString(Reference):
    """The text is cut at a string that the minimum made ineffective."""

    name = "fault: cut at an ignored string"
    stops_class = watched_by(_FromTheStart)


class _FirstOfTheList(WholeText):
    def left(self, found: list[tuple[int, str]]) -> str:
        return self.text[: found[0][0]]


class CutsAtTheFirstOfTheList(Reference):
    """Of several stop strings the first of the list is cut, not the earliest in the text."""

    name = "fault: first string of the list"
    stops_class = watched_by(_FirstOfTheList)


class _TwoPieces(WholeText):
    """Looks for strings in what the last two tokens have added."""

    before = 0

    def push(self, token: int, last: bool = False) -> tuple[str, bool]:
        self.since, self.before = self.before, len(self.text)
        return super().push(token, last)

    def place(self, string: str, seen: int) -> int:
        return self.text.find(string, self.since)


class LooksAtTwoPieces(Reference):
    """A stop string is found only inside the text of two tokens."""

    name = "fault: strings over two tokens"
    stops_class = watched_by(_TwoPieces)


class _Restarts(WholeText):
    """Compares character by character, and after a mismatch begins the string again with the character that follows."""

    def place(self, string: str, seen: int) -> int:
        matched = 0
        for end, character in enumerate(self.text):
            matched = matched + 1 if character == string[matched] else 0
            if matched == len(string):
                return end - len(string) + 1
        return -1


class RestartsAfterAMismatch(Reference):
    """A character that ends a partial match is not tried as the beginning of the next one."""

    name = "fault: match starts over"
    stops_class = watched_by(_Restarts)


class _LeaksAtTheLimit(WholeText):
    full = False

    def push(self, token: int, last: bool = False) -> tuple[str, bool]:
        self.full = last
        return super().push(token, last)

    def left(self, found: list[tuple[int, str]]) -> str:
        return self.text if self.full else super().left(found)


class LeaksTheStringAtTheLimit(Reference):
    """A stop string that the last token completes stays in the text."""

    name = "fault: string leaks at the limit"
    stops_class = watched_by(_LeaksAtTheLimit)


FAULTS = (
    Fault(LooksAtSinglePieces, "STOP-9", "mlx-knife#68", "stops.string"),
    Fault(LooksAtTheEndOfTheText, "STOP-9", "vllm#3572", "stops.string"),
    Fault(HandsOutHalfAString, "STOP-10", "vllm#3574", "stops.text"),
    Fault(LeaksTheStopString, "STOP-10", "dynamo#12562", "stops.text"),
    Fault(KeepsWhatFollowsTheString, "STOP-10", "mlx-knife#68", "stops.text"),
    Fault(CutsAtAnIgnoredString, "STOP-10", "vllm#46243", "stops.text"),
    Fault(CutsAtTheFirstOfTheList, "STOP-11", "vllm#49391", "stops.text"),
    Fault(LooksAtTwoPieces, "STOP-9", "vllm#3572", "stops.string"),
    Fault(RestartsAfterAMismatch, "STOP-9", "litgpt#2302", "stops.string"),
    Fault(LeaksTheStringAtTheLimit, "STOP-10", "vllm#3574", "stops.text"),
)

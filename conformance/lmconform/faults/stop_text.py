"""Planted faults of characters that are split over tokens."""

from __future__ import annotations

from lmconform.engines.reference import Reference
from lmconform.faults.fault import Fault
from lmconform.faults.stop_strings import WholeText, watched_by
from refdecoder.stopping import Detokenizer, Stops, Watch


def _detokenizing(kind: type[Detokenizer]) -> type[Stops]:
    """Stops whose rows get their text from a ``kind`` of detokenizer."""

    class Detokenized(Stops):
        def watch(self, detokenizer: Detokenizer | None) -> Watch:
            other = None if detokenizer is None else kind(detokenizer.decode, detokenizer.ids)
            return super().watch(other)

    return Detokenized


class _Alone(Detokenizer):
    def push(self, token: int) -> str:
        return self.decode([token])


class DecodesTokenByToken(Reference):
    """The text is that of each token alone, joined."""

    name = "fault: text of each token alone"
    stops_class = _detokenizing(_Alone)


class _BesideThePrevious(Detokenizer):
    def push(self, token: int) -> str:
        self.ids.append(token)
        return self.decode(self.ids[-2:])[len(self.decode(self.ids[-2:-1])) :]


class DecodesBesideTheTokenBefore(Reference):
    """The text of a token is what it adds to that of the one before, where a character may have begun two before."""

    name = "fault: text of two tokens"
    stops_class = _detokenizing(_BesideThePrevious)


class _NeverFlushed(Detokenizer):
    def push(self, token: int) -> str:
        self.ids.append(token)
        return "" if self._pending().endswith("\N{REPLACEMENT CHARACTER}") else super().flush()

    def flush(self) -> str:
        return ""


class LosesWhatIsHeldBack(Reference):
    """Text that ends inside a character is held back, and dropped where the row ends."""

    name = "fault: text held back is lost"
    stops_class = _detokenizing(_NeverFlushed)


class _InTextsOfTokens(WholeText):
    def place(self, string: str, seen: int) -> int:
        assert self.detokenizer is not None
        texts = "".join(self.detokenizer.decode([token]) for token in self.tokens)
        return super().place(string, seen) if string in texts else -1


class LooksInTheTextsOfTokens(Reference):
    """Stop strings are looked for in the joined texts of single tokens; the text itself is right."""

    name = "fault: strings in the texts of tokens"
    stops_class = watched_by(_InTextsOfTokens)


FAULTS = (
    Fault(DecodesTokenByToken, "STOP-21", "exo#1691", "stops.text"),
    Fault(DecodesBesideTheTokenBefore, "STOP-21", "dynamo#12630", "stops.text"),
    Fault(LosesWhatIsHeldBack, "STOP-21", "lattice#751", "stops.text"),
    Fault(LooksInTheTextsOfTokens, "STOP-22", "transformers#46519", "stops.string"),
)

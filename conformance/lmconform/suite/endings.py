"""How a request may end on the stop tape: the page's definitions, applied to what the tape plays.

Engines choose whether they return a stop and what becomes of stop ids before the minimum, so that a request may have
several legal endings. ``expect_ending`` accepts them all; the requirements on the choices themselves narrow them down.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from lmconform.adapter import Completion, NotOffered, Request
from lmconform.checkpoints.tape import StopTape
from lmconform.spec.stop_conditions import cut, finish, met_by_id, met_by_sequence, met_by_string
from lmconform.suite.expect import Expect
from lmconform.suite.scripts import tape
from lmconform.suite.subject import Subject, Tokens


@dataclass(frozen=True)
class Ending:
    """What the page says of a request, if its stop ids are masked before the minimum, or if they are not."""

    tape: StopTape
    request: Request
    eos: tuple[int, ...] = ()
    """EOS ids that end this row."""
    masked: bool = False

    @cached_property
    def ids(self) -> set[int]:
        return {*self.request.stop_ids, *self.eos}

    @cached_property
    def script(self) -> Tokens:
        """The tokens as they would come if nothing stopped the row."""
        least = self.request.min_new_tokens if self.masked else 0
        return self.tape.play(self.request.prompt[-1], self.request.max_new_tokens, self.ids, least)

    @cached_property
    def met(self) -> dict[str, set[int]]:
        """By kind of condition, the counts at which it is met."""
        return {
            "id": met_by_id(self.script, self.ids),
            "sequence": met_by_sequence(self.script, self.request.stop_sequences),
            "string": met_by_string(self.tape.text(self.script), self.request.stop_strings),
        }

    @cached_property
    def end(self) -> tuple[int, str]:
        """The number of tokens, the stop among them, and the reason."""
        return finish(set().union(*self.met.values()), self.request.max_new_tokens, self.request.min_new_tokens)

    @cached_property
    def kinds(self) -> set[str]:
        """Which conditions end the row; none at the limit."""
        count, reason = self.end
        return {kind for kind, counts in self.met.items() if count in counts} if reason == "stop" else set()

    @property
    def returned(self) -> Tokens:
        """The tokens with the stop."""
        return self.script[: self.end[0]]

    @property
    def dropped(self) -> list[Tokens]:
        """The tokens without the stop id, or without a stop sequence; all of them if a string or the limit ended it."""
        found = [self.returned] if "string" in self.kinds or not self.kinds else []
        found += [self.returned[:-1]] if "id" in self.kinds else []
        return found + [self.returned[: -len(one)] for one in self._sequences]

    def tokens(self, choice: str = "unspecified") -> list[Tokens]:
        """Legal tokens, if the engine declares ``choice`` of its stop tokens."""
        some = {"returned": [self.returned], "dropped": self.dropped}
        return some.get(choice, [self.returned, *self.dropped])

    def texts(self, choice: str, token_choice: str) -> list[str]:
        """Legal texts, if the engine declares ``choice`` of its stop texts, and ``token_choice`` of its stop tokens.

        What the last token has begun of a character is left out, or stands there as up to one U+FFFD for each byte.
        """
        pieces = self.tape.text(self.returned)
        whole = "".join(pieces)
        wholes = [whole + n * "\N{REPLACEMENT CHARACTER}" for n in range(self.tape.begun(self.returned) + 1)]
        held, without = wholes, []
        if "string" in self.kinds:
            begin = len(cut(pieces, self.request.stop_strings))
            without.append(whole[:begin])
            held = held + [
                whole[: begin + len(one)] for one in self.request.stop_strings if whole.startswith(one, begin)
            ]
        if "id" in self.kinds:
            without.append("".join(pieces[:-1]))
        some = {"returned": held, "dropped": without}.get(choice, held + without)
        if "sequence" in self.kinds:
            texts = {"returned": wholes, "dropped": ["".join(pieces[: -len(one)]) for one in self._sequences]}
            own = texts.get(token_choice, wholes + texts["dropped"])
            some = own if self.kinds == {"sequence"} else some + own
        return some if self.kinds else wholes

    @property
    def _sequences(self) -> list[Tokens]:
        """The stop sequences that end the row."""
        many = self.request.stop_sequences if self.kinds else ()
        return [one for one in many if self.returned[len(self.returned) - len(one) :] == one]


def endings(model: Subject, request: Request, eos: tuple[int, ...] = (), declared: bool = False) -> list[Ending]:
    """The legal endings; only those with stop ids masked, or ignored, as the engine declares it, if ``declared``."""
    ways = {"mask": [True], "ignore": [False]}.get(model.choices.min_tokens if declared else "", [False, True])
    return [Ending(tape(model), request, eos, masked) for masked in ways]


def expect_ending(expect: Expect, got: Completion, legal: Sequence[Ending], what: str) -> None:
    """The row has the tokens and the reason of one of ``legal``, with or without its stop."""
    untold = got.finish_reason == "unspecified"
    pairs = [(tokens, got.finish_reason if untold else one.end[1]) for one in legal for tokens in one.tokens()]
    _expect_one_of(expect, (got.tokens, got.finish_reason), pairs, what, legal[0].request)


def expect_tokens(model: Subject, expect: Expect, got: Completion, legal: Sequence[Ending], what: str) -> None:
    """The tokens are those of one of ``legal``, with the stop or without it, as the engine declares."""
    wanted = [tokens for one in legal for tokens in one.tokens(model.choices.stop_token)]
    _expect_one_of(expect, got.tokens, wanted, what, legal[0].request)


def expect_text(model: Subject, expect: Expect, got: Completion, legal: Sequence[Ending], what: str) -> None:
    """The text is that of one of ``legal``, with its stop or without it, as the engine declares."""
    choices = model.choices
    wanted = [text for one in legal for text in one.texts(choices.stop_text, choices.stop_token)]
    _expect_one_of(expect, text_of(got), wanted, what, legal[0].request)


def text_of(got: Completion) -> str:
    """The text of a completion; raises NotOffered where the engine gives none."""
    if got.text is None:
        raise NotOffered("text of a completion")
    return got.text


def ends_by_its_tokens(done: Completion, stop_ids: tuple[int, ...], most: int, choice: str) -> bool:
    """Whether the tokens themselves say where and why the row ends; the stop may be missing unless it is returned."""
    count, stops = len(done.tokens), met_by_id(done.tokens, stop_ids)
    without = not stops and count < most and choice != "returned"
    end, reason = (count, "stop") if without else finish(stops, most)
    return count == end and done.finish_reason in (reason, "unspecified")


def _expect_one_of(expect: Expect, got: object, legal: Collection[object], what: str, request: Request) -> None:
    wanted = list(dict.fromkeys(map(repr, legal)))
    expect.holds(got in legal, what, repr(got), " or ".join(wanted), _described(request))


def _described(request: Request) -> str:
    """The request, without what it leaves at its default."""
    plain = Request(request.prompt)
    names = ("min_new_tokens", "stop_ids", "eos", "stop_sequences", "stop_strings", "n", "stream")
    given = [f"{name}={getattr(request, name)!r}" for name in names if getattr(request, name) != getattr(plain, name)]
    return ", ".join([f"prompt {list(request.prompt)}", f"max_new_tokens={request.max_new_tokens}", *given])

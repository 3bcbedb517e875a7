"""The data sheet of stop conditions, from the tokens that a row gets on the stop tape.

The tape plays known tokens, so that every reading is a count or a choice: nothing here rests on chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from lmconform.adapter import Completion, NotOffered, Refused, Request
from lmconform.checkpoints.eos import CONFIG, GENERATION, NAMED, TOKENIZER
from lmconform.checkpoints.tape import FIRST_SPELLED, SPELLED
from lmconform.measure.attempt import attempt
from lmconform.measure.sheet import UNSPECIFIED, Entry, Outcome, choice, declared, missing
from lmconform.spec.stop_conditions import cut, met_by_string
from lmconform.suite.endings import text_of
from lmconform.suite.findings import Unfit
from lmconform.suite.scripts import MOST, ask, named, others, play, tape
from lmconform.suite.subject import Subject

SECTION = "stops"
LENGTHS = (1, 7, 19)
"""Limits that are asked for; no stop comes."""
ENDS = (2, 8, 3, 5)
"""Tokens after which the rows of a batch end."""
MINIMUM = 4
ALONE = {GENERATION: "eos-in-generation-config", CONFIG: "eos-in-config", TOKENIZER: "eos-in-tokenizer-config"}
"""Copies of the tape that name EOS ids in one file alone."""
GOES_ON = "goes on"


def stops(model: Subject) -> list[Entry]:
    """All lines of the section; ``model`` is the stop tape. About 40 calls of a few rows, and five more loads."""
    if "generate" not in model.doors:
        return [missing(SECTION, "stops", "", "the engine does not offer generate")]
    measured = _Stops(model)
    return [entry for read in measured.readings for entry in read()]


@dataclass(frozen=True)
class _Place:
    """A string of the script, and where it first comes."""

    last: int
    """The last token of the prompt."""
    string: str
    end: int
    """The new token that completes it."""


class _Stops:
    """The readings of one section."""

    def __init__(self, model: Subject) -> None:
        self._model, self._tape = model, tape(model)
        self._last = self._tape.before(NAMED["eos"][GENERATION][0], 4)
        """A prompt whose script is of different tokens."""
        self._script = play(model, self._last, 2 * MOST)
        choices = model.choices
        self.readings: tuple[Callable[[], list[Entry]], ...] = (
            self._line("stop id in the tokens", choices.stop_token, self._id_in_tokens),
            self._line("stop sequence in the tokens", choices.stop_token, self._sequence_in_tokens),
            self._line("stop ids of a list that end a row", "3 of 3", self._ids),
            *[self._line(what, GOES_ON, read) for what, read in self._prompts()],
            self._line("stop sequence", "token 4", self._sequence),
            self._line("last id of a stop sequence alone", GOES_ON, self._last_of_sequence),
            *[self._string_line(size) for size in (1, 2, 3)],
            self._line("stop string in the text", choices.stop_text, self._string_in_text),
            self._line("text is cut at", "the earliest string", self._earliest),
            self._line("rows of a batch end after", _listed(ENDS), self._rows),
            self._line("max_new_tokens " + _listed(LENGTHS), _listed(LENGTHS), self._lengths),
            self._line("max_new_tokens 0", choices.zero_tokens, self._zero),
            self._line(f"first stop id after min_new_tokens {MINIMUM}", f"token {MINIMUM + 1}", self._minimum),
            self._line("stop id before the minimum", choices.min_tokens, self._early),
            self._line("stop with the last token", "stop", self._reason),
            # These load other checkpoints, after which this one may be no longer loaded.
            self._line("EOS ids of a list that end a row", self._all_eos, self._eos),
            self._line("EOS id that was not asked for", GOES_ON, self._eos_unasked),
            self._line("EOS id in the prompt", GOES_ON, self._eos_in_prompt),
            self._line("EOS ids are read from", self._files_wanted, self._files),
        )

    def _line(self, quantity: str, wanted: str, read: Callable[[str, str], Entry]) -> Callable[[], list[Entry]]:
        return partial(attempt, SECTION, quantity, wanted, lambda: [read(quantity, wanted)])

    # How rows end.

    def _one(self, request: Request, model: Subject | None = None) -> Completion:
        (done,) = (model or self._model).generate([request])
        return done

    def _ends(self, done: Completion, request: Request, eos: tuple[int, ...] = ()) -> str:
        """With which token the row ended, also if that is not returned; or that it did not end."""
        count = len(done.tokens)
        if count >= request.max_new_tokens and done.finish_reason != "stop":
            return GOES_ON
        stops = [*((token,) for token in (*request.stop_ids, *eos)), *request.stop_sequences]
        if not any(done.tokens[-len(stop) :] == stop for stop in stops):
            due = play(self._model, request.prompt[-1], 2 * MOST)[count:]
            count += next((len(stop) for stop in stops if due[: len(stop)] == stop), 0)
        return f"token {count}"

    def _end(self, request: Request) -> str:
        return self._ends(self._one(request), request)

    def _plain(self, **settings: Any) -> Request:
        return ask(self._model, self._last, **settings)

    # What is returned.

    def _id_in_tokens(self, quantity: str, wanted: str) -> Entry:
        count = len(self._one(self._plain(stop_ids=self._script[3:4])).tokens)
        got = {3: "dropped", 4: "returned"}.get(count, f"{count} tokens instead of 4")
        return declared(SECTION, quantity, got, wanted)

    def _sequence_in_tokens(self, quantity: str, wanted: str) -> Entry:
        count = len(self._one(self._plain(stop_sequences=(self._script[2:5],))).tokens)
        got = {2: "dropped", 5: "returned"}.get(count, f"{count} tokens instead of 5")
        return declared(SECTION, quantity, got, wanted)

    def _string_in_text(self, quantity: str, wanted: str) -> Entry:
        """The text that holds its stop string may go on to the end of the piece, or end with the string."""
        place = next(self._places(2))
        text = self._ended_text(place, (place.string,))
        whole = self._tape.text(play(self._model, place.last, place.end))
        begin = len(cut(whole, [place.string]))
        held = {"".join(whole), "".join(whole)[: begin + len(place.string)]}
        got = "dropped" if text == "".join(whole)[:begin] else "returned" if text in held else f"text {text!r}"
        return declared(SECTION, quantity, got, wanted, where=f"string {place.string!r} of the text {''.join(whole)!r}")

    def _ended_text(self, place: _Place, strings: tuple[str, ...]) -> str:
        """The text of a row that a string at this place ends. Raises Unfit if it does not end the row there."""
        request = ask(self._model, place.last, stop_strings=strings)
        done = self._one(request)
        if (end := self._ends(done, request)) != f"token {place.end}":
            raise Unfit(f"the string {place.string!r} should end the row with token {place.end}, measured is: {end}")
        return text_of(done)

    # Stop ids and EOS ids.

    def _ids(self, quantity: str, wanted: str) -> Entry:
        """Each id of a list in turn is the one that comes; the others never do."""
        idle = others(self._model, {*self._script, self._last}, 2)
        rows = [self._plain(stop_ids=(*idle[:at], self._script[3], *idle[at:])) for at in range(3)]
        return self._positions(quantity, wanted, [self._end(row) for row in rows], 4)

    def _positions(self, quantity: str, wanted: str, ends: list[str], right: int) -> Entry:
        """How many of a list end the row where they should, and the places in the list of those that do not."""
        wrong = [f"{at} ({end})" for at, end in enumerate(ends, 1) if end != f"token {right}"]
        got = f"{len(ends) - len(wrong)} of {len(ends)}"
        return choice(SECTION, quantity, got, wanted, where="not at place " + ", ".join(wrong))

    @property
    def _all_eos(self) -> str:
        count = len(named(self._model, "eos"))
        return f"{count} of {count}"

    def _eos(self, quantity: str, wanted: str) -> Entry:
        copy = self._model.edited("eos")
        return self._positions(quantity, wanted, [self._eos_end(copy, one) for one in named(self._model, "eos")], 4)

    def _eos_end(self, copy: Subject, token: int, eos: bool = True) -> str:
        """How a row ends in which this EOS id is the fourth new token."""
        request = ask(self._model, self._tape.before(token, 4), eos=eos)
        return self._ends(self._one(request, copy), request, (token,))

    def _eos_unasked(self, quantity: str, wanted: str) -> Entry:
        got = self._eos_end(self._model.edited("eos"), NAMED["eos"][GENERATION][0], eos=False)
        return choice(SECTION, quantity, got, wanted)

    def _eos_in_prompt(self, quantity: str, wanted: str) -> Entry:
        token = named(self._model, "eos")[0]
        (after,) = play(self._model, token, 1)
        request = Request((token, after), MOST, eos=True)
        done = self._one(request, self._model.edited("eos"))
        return choice(SECTION, quantity, self._ends(done, request), wanted)

    @property
    def _files_wanted(self) -> str:
        files = self._model.choices.eos_files
        return UNSPECIFIED if files is None else ", then ".join(files) or "no file"

    def _files(self, quantity: str, wanted: str) -> Entry:
        """Files whose EOS ids count where they alone name any, first those that count where all name others."""
        order = [*(self._model.choices.eos_files or ()), *ALONE]
        files = [file for file in dict.fromkeys(order) if file in ALONE]
        alone = [one for one in files if self._reads(self._model.edited(ALONE[one]), NAMED[ALONE[one]][one][0])]
        apart = self._model.edited("eos-apart")
        first = [one for one in files if self._reads(apart, NAMED["eos-apart"][one][0])]
        rest = [one for one in alone if one not in first]
        got = ", then ".join(filter(None, [" and ".join(first), *rest])) or "no file"
        promised = self._model.choices.eos_files
        if promised is None:
            return declared(SECTION, quantity, got, UNSPECIFIED)
        known = [one for one in promised if one in ALONE]
        right = set(alone) == set(known) and set(first) <= set(known) and known[:1] == first[:1]
        return Entry(SECTION, quantity, got, wanted, Outcome.EQUAL if right else Outcome.DIFFERS)

    def _reads(self, copy: Subject, token: int) -> bool:
        return self._eos_end(copy, token) == "token 4"

    # The prompt.

    def _prompts(self) -> Iterator[tuple[str, Callable[[str, str], Entry]]]:
        """What ends a row if it comes in the prompt, and should not."""
        (fill,) = others(self._model, {*self._script, self._last}, 1)
        prompt = (fill, self._last)
        pieces = self._tape.text((fill, self._last, self._script[0]))
        sequence = (self._last, self._script[0])
        yield "stop id in the prompt", self._goes_on(Request(prompt, MOST, stop_ids=(fill,)))
        yield "stop sequence from the prompt on", self._goes_on(Request(prompt, MOST, stop_sequences=(sequence,)))
        yield (
            "stop string from the prompt on",
            self._goes_on(Request(prompt, MOST, stop_strings=("".join(pieces[1:]),))),
        )

    def _goes_on(self, request: Request) -> Callable[[str, str], Entry]:
        def read(quantity: str, wanted: str) -> Entry:
            return choice(SECTION, quantity, self._end(request), wanted)

        return read

    # Sequences and strings.

    def _sequence(self, quantity: str, wanted: str) -> Entry:
        """A sequence of three tokens; beside it one in the wrong order, and one that is longer than the row."""
        (idle,) = others(self._model, {*self._script, self._last}, 1)
        near = (self._script[1::-1], (idle,) * (MOST + 2))
        return choice(SECTION, quantity, self._end(self._plain(stop_sequences=(*near, self._script[1:4]))), wanted)

    def _last_of_sequence(self, quantity: str, wanted: str) -> Entry:
        (idle,) = others(self._model, {*self._script, self._last}, 1)
        request = self._plain(stop_sequences=((idle, self._script[3]),))
        return choice(SECTION, quantity, self._end(request), wanted)

    def _places(self, size: int) -> Iterator[_Place]:
        """Strings that come first in ``size`` tokens, from the middle of the first to the middle of the last.

        In a script of ``MOST`` tokens they come once, and are complete after three to seven of them.
        """
        for last in range(FIRST_SPELLED, FIRST_SPELLED + len(SPELLED)):
            pieces = self._tape.text(play(self._model, last, MOST))
            for end in range(max(3, size), 8):
                spanned = pieces[end - size : end]
                string = "".join(spanned)[0 if size == 1 else 1 : -1]  # what follows in the last piece is not of it
                inside = all(len(piece) > 1 for piece in (spanned[0], spanned[-1]))
                if inside and len(string) > size - 1 and met_by_string(pieces, [string]) == {end}:
                    yield _Place(last, string, end)

    def _string_line(self, size: int) -> Callable[[], list[Entry]]:
        place = next(self._places(size))
        quantity = "stop string inside a token" if size == 1 else f"stop string across {size} tokens"
        request = ask(self._model, place.last, stop_strings=(place.string,))

        def read(quantity: str, wanted: str) -> Entry:
            done = self._one(request)
            text_of(done)
            where = f"string {place.string!r}, pieces {self._tape.text(play(self._model, place.last, place.end))}"
            return choice(SECTION, quantity, self._ends(done, request), wanted, where=where)

        return self._line(quantity, f"token {place.end}", read)

    def _earliest(self, quantity: str, wanted: str) -> Entry:
        """Of two strings that the same token completes, the one that begins later is the first of the list."""
        place, later = next(self._nested())
        text = self._ended_text(place, (later, place.string))
        pieces = self._tape.text(play(self._model, place.last, place.end))
        if place.string in text:
            raise NotOffered("text without its stop string")
        found = {cut(pieces, [place.string]): wanted, cut(pieces, [later]): "the first string of the list"}
        where = f"strings {later!r} and {place.string!r}, text {''.join(pieces)!r}"
        return choice(SECTION, quantity, found.get(text, f"neither: {text!r}"), wanted, where=where)

    def _nested(self) -> Iterator[tuple[_Place, str]]:
        """Strings, and all of each but its first character; the same token completes both, and no earlier one."""
        for place in self._places(3):
            later, pieces = place.string[1:], self._tape.text(play(self._model, place.last, MOST))
            if met_by_string(pieces, [later]) == {place.end} and not place.string.startswith(later):
                yield place, later

    # Counts.

    def _rows(self, quantity: str, wanted: str) -> Entry:
        """Rows of one batch whose common stop id comes after different numbers of tokens."""
        stop = self._script[9]
        rows = [ask(self._model, self._tape.before(stop, n), stop_ids=(stop,)) for n in ENDS]
        ends = [self._ends(done, row) for done, row in zip(self._model.generate(rows), rows, strict=True)]
        return choice(SECTION, quantity, _listed(end.removeprefix("token ") for end in ends), wanted)

    def _lengths(self, quantity: str, wanted: str) -> Entry:
        """Behind a prompt of 17 tokens, which must not count."""
        rows = [ask(self._model, self._last, 17, max_new_tokens=most) for most in LENGTHS]
        return choice(SECTION, quantity, _listed(len(self._one(row).tokens) for row in rows), wanted)

    def _zero(self, quantity: str, wanted: str) -> Entry:
        try:
            count = len(self._one(self._plain(max_new_tokens=0)).tokens)
        except Refused:
            return declared(SECTION, quantity, "refused", wanted)
        got = f"{count} new" if count else "empty"
        return (
            Entry(SECTION, quantity, got, wanted, Outcome.DIFFERS)
            if count
            else declared(SECTION, quantity, got, wanted)
        )

    def _minimum(self, quantity: str, wanted: str) -> Entry:
        """The least place at which a stop id ends the row with the very token."""
        for place in range(1, MOST):
            request = self._plain(stop_ids=(self._script[place - 1],), min_new_tokens=MINIMUM)
            if self._end(request) == f"token {place}":
                return choice(SECTION, quantity, f"token {place}", wanted)
        return choice(SECTION, quantity, GOES_ON, wanted)

    def _early(self, quantity: str, wanted: str) -> Entry:
        """Where the stop id comes before the minimum, the tape goes on with it, or with the next best id."""
        stop = self._script[1]
        tokens = self._one(self._plain(stop_ids=(stop,), min_new_tokens=MINIMUM)).tokens[:MINIMUM]
        masked = self._tape.play(self._last, MINIMUM, {stop}, MINIMUM)
        got = "mask" if tokens == masked else "ignore" if tokens == self._script[:MINIMUM] else f"tokens {tokens}"
        return declared(SECTION, quantity, got, wanted)

    def _reason(self, quantity: str, wanted: str) -> Entry:
        """The reason of a row whose last token is a stop id."""
        done = self._one(self._plain(stop_ids=self._script[3:4], max_new_tokens=4))
        if done.finish_reason == UNSPECIFIED:
            raise NotOffered("the reason for which a row ends")
        return choice(SECTION, quantity, done.finish_reason, wanted)


def _listed(counts: Iterable[object]) -> str:
    return ", ".join(map(str, counts))

"""Words of the tests on the stop tape: what is drawn, and what is asked."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from itertools import permutations, product
from typing import Any

from hypothesis import strategies as st

from lmconform.adapter import Request
from lmconform.checkpoints.eos import NAMED
from lmconform.checkpoints.tape import FIRST_SPELLED, SPELLED, StopTape
from lmconform.spec.stop_conditions import met_by_string
from lmconform.suite.dsl import Structure, decides
from lmconform.suite.instruments import STOP_TAPE
from lmconform.suite.subject import Subject, Tokens

MOST = 10
"""New tokens of a request that says nothing else: a step costs time."""

on_tape = partial(decides, door="generate", on=(STOP_TAPE,))
"""Marks a test on the stop tape."""


def number(least: int, most: int) -> Structure:
    """One number."""
    return lambda model: st.integers(least, most)


def ends() -> Structure:
    """How many new tokens there are when a stop is complete; seldom one, which hides what went before."""
    return lambda model: st.sampled_from((*range(3, MOST), 1))  # hypothesis likes the first


def numbers(least: int, most: int, *, count: int) -> Structure:
    """As many numbers, all different."""
    some = st.lists(st.integers(least, most), min_size=count, max_size=count, unique=True)
    return lambda model: some.map(tuple)


def flag() -> Structure:
    """True or false."""
    return lambda model: st.booleans()


def sizes() -> Structure:
    """The length of a prompt."""
    return lambda model: st.sampled_from((1, 2, 17))


def lasts() -> Structure:
    """The last token of a prompt; the tape plays what follows it."""
    return lambda model: st.integers(0, model.vocab_size - 1)


def spelled() -> Structure:
    """The last token of a prompt after which the text is of few letters, in pieces of one to three."""
    return lambda model: st.integers(FIRST_SPELLED, FIRST_SPELLED + len(SPELLED) - 1)


def repeating() -> Structure:
    """The last token of a prompt after which the same few pieces of text come again and again."""

    def strategy(model: Subject) -> st.SearchStrategy[int]:
        return st.sampled_from([last for last in range(model.vocab_size) if last in play(model, last, 3)])

    return strategy


def stuttering() -> Structure:
    """(last token of a prompt, two letters): in the text that follows they first come after the first of them, once."""

    def strategy(model: Subject) -> st.SearchStrategy[tuple[int, str]]:
        texts = {last: "".join(tape(model).text(play(model, last))) for last in range(FIRST_SPELLED, model.vocab_size)}
        pairs = [(last, one + other) for last in texts for one, other in permutations("xyz", 2)]
        return st.sampled_from([(last, pair) for last, pair in pairs if _after_one(texts[last], pair)])

    return strategy


def _after_one(text: str, pair: str) -> bool:
    """Whether the pair first comes after exactly one more of its first letter."""
    before = text[: max(text.find(pair), 0)]
    return before.endswith(pair[0]) and not before.endswith(2 * pair[0])


def plain() -> Structure:
    """The last token of a prompt after which each piece of text is one character that comes once."""
    return lambda model: st.integers(FIRST_SPELLED + len(SPELLED), model.vocab_size - 1)


def splitting() -> Structure:
    """The last token of a prompt after which characters come that are split over tokens; the first begins anew."""

    def strategy(model: Subject) -> st.SearchStrategy[int]:
        scripts = {last: play(model, last) for last in range(model.vocab_size)}
        return st.sampled_from([one for one in scripts if anew(model, one) and split_places(model, scripts[one])])

    return strategy


def cut_off() -> Structure:
    """(last token of a prompt, number of new tokens): the last of these ends a character and begins another."""

    def strategy(model: Subject) -> st.SearchStrategy[tuple[int, int]]:
        scripts = {last: play(model, last) for last in range(model.vocab_size) if anew(model, last)}
        pairs = [(last, n) for last in scripts for n in range(1, MOST + 1)]
        played = tape(model)
        return st.sampled_from(
            [(last, n) for last, n in pairs if played.begun(scripts[last][:n]) and played.text(scripts[last][:n])[-1]]
        )

    return strategy


def split_strings() -> Structure:
    """(last token of a prompt, string): one of the string's characters is split over tokens where it comes first."""

    def strategy(model: Subject) -> st.SearchStrategy[tuple[int, str]]:
        lasts = [last for last in range(model.vocab_size) if anew(model, last)]
        return st.sampled_from([(last, string) for last in lasts for string in _split_strings(model, last)])

    return strategy


def _split_strings(model: Subject, last: int) -> list[str]:
    """Strings of one to four characters after ``last``. The token that completes one begins no other character: with
    one begun, many engines hold back what stands before it, and end the row a little later."""
    script, found = play(model, last), []
    pieces, places = tape(model).text(script), split_places(model, script)
    text = "".join(pieces)
    for end, size in product((place + more for place in places for more in (1, 2)), (1, 2, 4)):
        string = text[max(0, end - size) : end]
        first = text.find(string)
        completed = script[: min(met_by_string(pieces, [string]))]
        if {*places} & {*range(first, first + len(string))} and not tape(model).begun(completed):
            found.append(string)
    return found


def anew(model: Subject, last: int) -> bool:
    """Whether the text after ``last`` begins with a whole character, or with the first byte of one."""
    first = tape(model).pieces[play(model, last, 1)[0]][0]
    return not 0x80 <= first < 0xC0


def split_places(model: Subject, script: Tokens) -> list[int]:
    """Places in the text of ``script`` of the characters that are split over its tokens, and whole at its end."""
    played, text = tape(model), "".join(tape(model).text(script))
    open_ends = [script[:n] for n in range(1, len(script)) if played.begun(script[:n])]
    places = {len("".join(played.text(before))) for before in open_ends}
    return sorted(place for place in places if place < len(text))


def tape(model: Subject) -> StopTape:
    """What the checkpoint plays."""
    return model.instrument(StopTape)


def play(model: Subject, last: int, count: int = MOST) -> Tokens:
    """The tokens that come after ``last`` if nothing stops the row."""
    return tape(model).play(last, count)


def ask(model: Subject, last: int, size: int = 2, *, max_new_tokens: int = MOST, **settings: Any) -> Request:
    """A request whose prompt has ``size`` tokens and ends with ``last``; the others occur nowhere else."""
    asked = Request((last,), max_new_tokens, **settings)
    used = {last, *play(model, last, 2 * MOST), *asked.stop_ids, *sum(asked.stop_sequences, ())}
    filler = next(token for token in range(model.vocab_size) if token not in used)
    return Request((*[filler] * (size - 1), last), max_new_tokens, **settings)


def others(model: Subject, tokens: Collection[int], count: int) -> Tokens:
    """Ids that are not among ``tokens``."""
    return tuple(token for token in range(0, model.vocab_size, 7) if token not in tokens)[:count]


def string_at(model: Subject, script: Tokens, n: int, inside: int, size: int) -> str:
    """The ``size`` characters of the text that end in token n, with the one at place ``inside`` of its piece."""
    pieces = tape(model).text(script[:n])
    text = "".join(pieces[:-1]) + pieces[-1][: 1 + inside % len(pieces[-1])]
    return text[-size:]


def named(model: Subject, edit: str) -> tuple[int, ...]:
    """The EOS ids that an edited copy names in the first declared file that names any."""
    found = [NAMED[edit][file] for file in model.choices.eos_files or NAMED[edit] if file in NAMED[edit]]
    return found[0] if found else ()

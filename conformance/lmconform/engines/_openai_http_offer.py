"""What a server offers, beyond plain completions: found out by asking, and overridden by options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from lmconform.adapter import Choices, NotOffered

Prompt = Literal["ids", "text"]
Form = Literal["fields", "generation_config", "plain"]
Ids = Literal["token_ids", "logprobs", "chunks"]
Score = Literal["prompt_logprobs", "echo"]

ABILITIES: Mapping[str, str] = {
    "sampling": "sampling (temperature)",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "seed": "seed",
    "n": "several completions of one request (n)",
    "stream": "streaming",
    "stop_strings": "stop strings (stop)",
    "stop_ids": "stop ids (stop_token_ids)",
    "eos_off": "rows that pass an EOS id (ignore_eos)",
    "eos_beside_ids": "stop ids beside the checkpoint's EOS ids",
    "min_tokens": "a least number of tokens (min_tokens)",
}
"""What a request may ask for, and what a report calls it."""


PLAIN = Choices()
NO_LIMIT = 1 << 20
"""A server that gives the whole vocabulary of the tape is taken to give that of any."""


@dataclass(frozen=True)
class Offer:
    """What one kind of server takes and returns."""

    prompt: Prompt = "ids"
    """Prompts go in as ids, or as text that the tokenizer splits into them."""
    form: Form = "fields"
    """How settings are said: as fields beside OpenAI's own (``fields``), as the JSON of a transformers
    ``GenerationConfig``, or with OpenAI's fields alone (``plain``)."""
    ids: Ids | None = None
    """Where the new ids are found: in ``token_ids``, in the log-probabilities, or one in each chunk of a stream."""
    logprobs: int = 0
    """Most log-probabilities a step."""
    least_logprob: float | None = None
    """Ids with lower log-probabilities are left out, unless they were drawn; None leaves none out."""
    score: Score | None = None
    """How the log-probabilities of a prompt are asked for."""
    streams_stops: bool = False
    """Requests with stop strings are streamed, since a whole answer leaves out tokens that complete one."""
    abilities: frozenset[str] = frozenset()
    """Names of ``ABILITIES``."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Why an ability is not among them."""
    choices: Choices = PLAIN

    def __contains__(self, ability: str) -> bool:
        return ability in self.abilities

    def having(self, *abilities: str) -> Offer:
        """The same with these abilities too."""
        return replace(self, abilities=self.abilities | set(abilities))

    def lacking(self, ability: str, reason: str) -> Offer:
        """The same without this ability."""
        return replace(self, abilities=self.abilities - {ability}, missing={**self.missing, ability: reason})

    def need(self, ability: str) -> None:
        """Raise NotOffered with the reason unless the server has this ability."""
        if ability not in self.abilities:
            reason = self.missing.get(ability, "it was not asked")
            raise NotOffered(f"{ABILITIES[ability]}: {reason}")

    def lines(self) -> list[str]:
        """What a person may want to know of it, a line each."""
        width = "all" if self.logprobs == NO_LIMIT else self.logprobs or "none"
        told = [
            f"prompts as {self.prompt}, settings as {self.form}, new ids from {self.ids or 'nowhere'}",
            f"log-probabilities: {width} a step; of a prompt: {self.score or 'none'}",
            "offered: " + (", ".join(name for name in ABILITIES if name in self) or "nothing more"),
        ]
        told += ["requests with stop strings are streamed"] if self.streams_stops else []
        told += [f"not offered: {ABILITIES.get(name, name)}: {reason}" for name, reason in self.missing.items()]
        found = {one.name: getattr(self.choices, one.name) for one in fields(Choices)}
        return told + [f"choice: {name} = {value}" for name, value in found.items() if value != getattr(PLAIN, name)]


KINDS: dict[str, Any] = {"prompt": Prompt, "form": Form, "ids": Ids, "score": Score}


def overridden(offer: Offer, offers: str | None, choices: str | None) -> Offer:
    """The offer as the options ``offers`` and ``choices`` have it.

    ``offers``: words between commas. ``+seed`` adds an ability, ``-n`` removes one, ``logprobs:20``, ``ids:logprobs``,
    ``score:none`` and the like set a field. ``choices``: ``stop_text:dropped,sampler_order:temperature>top_k``.
    Raises ValueError for words that are not known.
    """
    for word in _words(offers):
        offer = _with_word(offer, word)
    return replace(offer, choices=_chosen(offer.choices, choices))


def _with_word(offer: Offer, word: str) -> Offer:
    sign, ability = word[:1], word[1:]
    if sign in "+-" and ability in ABILITIES:
        return offer.having(ability) if sign == "+" else offer.lacking(ability, "an option says that it is not offered")
    name, _, value = word.partition(":")
    if name == "logprobs" and value.isdigit():
        return replace(offer, logprobs=int(value))
    if name in KINDS and value in (*get_args(KINDS[name]), *(["none"] if name in ("ids", "score") else [])):
        chosen: Any = {name: None if value == "none" else value}
        return replace(offer, **chosen)
    settings = [f"{kind}:{one}" for kind, some in KINDS.items() for one in get_args(some)]
    raise ValueError(
        f"offers={word!s} is not known. It may be + or - and one of {', '.join(ABILITIES)}, or one of logprobs:NUMBER,"
        f" {', '.join(settings)}, ids:none, score:none."
    )


def _chosen(choices: Choices, words: str | None) -> Choices:
    known = {one.name for one in fields(Choices)}
    for word in _words(words):
        name, _, value = word.partition(":")
        if name not in known or not value:
            raise ValueError(f"choices={word!s} is not known; it may be NAME:VALUE with one of: {', '.join(known)}.")
        read: Any = tuple(value.split(">")) if name in ("sampler_order", "eos_files") else value
        chosen: Any = {name: value == "true" if name == "batch_invariant" else read}
        choices = replace(choices, **chosen)
    return choices


def _words(option: str | None) -> list[str]:
    return [word.strip() for word in (option or "").split(",") if word.strip()]

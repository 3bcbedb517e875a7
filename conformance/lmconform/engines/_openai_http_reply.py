"""What comes back: choices, whole or in the events of a stream, and what they say of ids and log-probabilities.

Servers write log-probabilities in two ways: as OpenAI's completions have them (lists of ``tokens``, ``token_logprobs``
and ``top_logprobs``), or as its chat has them (``content``, a record for each token). A token is named by its id, by
``token_id:7``, by its bytes or by its string.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from lmconform.adapter import Completion, NotOffered, Request
from lmconform.engines._openai_http_client import ReplyCutOff, ReplyMalformed
from lmconform.engines._openai_http_offer import Offer
from lmconform.engines._openai_http_spelling import Spelling, Unspelled

LEAST = -9999.0
"""What vLLM writes for minus infinity, which JSON has no word for; llama.cpp writes the least float32. No probability
of a float32 softmax is as small."""
PREFIX = "token_id:"
Step = dict[int, float]
Reason = Literal["stop", "length", "unspecified"]


class Reader:
    """Reads replies of one server about one checkpoint."""

    def __init__(self, offer: Offer, spelling: Spelling | None, asked: str) -> None:
        """``asked`` is what messages call the request: the server and its path."""
        self.offer, self.spelling, self.asked = offer, spelling, asked

    def whole(self, reply: Any, request: Request) -> list[Completion]:
        """The completions of a reply that is not streamed."""
        return [self._completion(one, request, reply) for one in self.choices(reply, request.n)]

    def streamed(self, events: Iterable[Any], request: Request) -> list[Completion]:
        """The completions of a stream. Raises ReplyCutOff for one that ends without a reason."""
        rows: dict[int, list[Mapping[str, Any]]] = {index: [] for index in range(request.n)}
        usage: Mapping[str, Any] = {}
        for event in events:
            parts = self._get(event, "choices", list, "an event of the stream")
            usage = event if event.get("usage") else usage
            for part in parts:
                index = self._get(part, "index", int, "a choice of the stream")
                if index not in rows:
                    raise self._wrong(f"a choice of the stream has index {index}, and {request.n} were asked for")
                rows[index].append(part)
        return [self._joined(parts, request, usage) for parts in rows.values()]

    def choices(self, reply: Any, count: int) -> list[Mapping[str, Any]]:
        """The choices of a reply, in the order of their indices; there must be ``count``."""
        found = self._get(reply, "choices", list, "the reply")
        indices = sorted(self._get(one, "index", int, "a choice") for one in found)
        if indices != list(range(count)):
            raise self._wrong(f"the reply has {len(found)} choices with indices {indices}; {count} were asked for")
        return sorted(found, key=lambda one: int(one["index"]))

    def ids(self, choice: Mapping[str, Any]) -> tuple[int, ...]:
        """The new ids of a choice, or of a part of one; none as long as nobody knows where they stand."""
        if self.offer.ids is None:
            return ()
        if self.offer.ids == "token_ids":
            given = choice.get("token_ids")
            if given is None and not choice.get("text"):
                return ()  # the part of a stream that brings the reason alone
            if not isinstance(given, list) or not all(type(token) is int for token in given):
                raise self._wrong(f"token_ids is {given!r}; a list of ids was expected")
            return tuple(given)
        if self.offer.ids == "logprobs":
            return tuple(token for token, _ in self.steps(choice.get("logprobs")))
        return self._chunk(choice.get("text") or "")

    def _chunk(self, text: str) -> tuple[int, ...]:
        """The one token whose text a chunk of a stream is."""
        if not text or self.spelling is None:
            return ()
        try:
            return (self.spelling.id_of(text.encode()),)
        except Unspelled as reason:  # two tokens that make up one character come as one chunk
            raise NotOffered(f"the ids of all new tokens: a chunk of the stream is {text!r}, and {reason}") from None

    def steps(self, logprobs: Any) -> list[tuple[int, Step]]:
        """For each step the id that was taken, and the log-probabilities."""
        if logprobs is None:
            return []
        if not isinstance(logprobs, dict):
            raise self._wrong(f"logprobs is {type(logprobs).__name__}; an object was expected")
        if "content" in logprobs:
            return [self._record(one) for one in logprobs["content"] or []]
        names, values = logprobs.get("tokens") or [], logprobs.get("token_logprobs") or []
        tops = logprobs.get("top_logprobs") or [None] * len(names)
        if not len(names) == len(values) == len(tops):
            raise self._wrong(
                f"logprobs has {len(names)} tokens, {len(values)} token_logprobs and {len(tops)} top_logprobs"
            )
        return [self._columns(*one) for one in zip(names, values, tops, strict=True)]

    def prompt_steps(self, given: Any) -> list[Step]:
        """vLLM's ``prompt_logprobs``: for each token but the first, id to log-probability."""
        if not isinstance(given, list) or not all(isinstance(one, dict) for one in given[1:]):
            raise self._wrong(f"prompt_logprobs is {str(given)[:80]!r}; a list of objects was expected")
        return [{int(token): self._value(one.get("logprob")) for token, one in step.items()} for step in given[1:]]

    def _completion(self, choice: Mapping[str, Any], request: Request, usage: Mapping[str, Any]) -> Completion:
        steps = self.steps(choice.get("logprobs")) if request.logprobs is not None else []
        if request.logprobs is not None and choice.get("logprobs") is None and self.ids(choice):
            raise self._wrong("the choice has no logprobs, and the request asks for them")
        return Completion(
            tokens=self.ids(choice),
            finish_reason=_reason(choice.get("finish_reason")),
            text=self._get(choice, "text", str, "a choice"),
            logprobs=tuple(step for _, step in steps) if request.logprobs is not None else None,
            cached_tokens=_cached(usage),
        )

    def _joined(self, parts: list[Mapping[str, Any]], request: Request, usage: Mapping[str, Any]) -> Completion:
        reasons = [part["finish_reason"] for part in parts if part.get("finish_reason")]
        if not reasons:
            told = f"a row of the stream ended after {len(parts)} parts without a finish_reason"
            raise ReplyCutOff(f"{self.asked}: {told}.")
        pieces = tuple(ids for part in parts if (ids := self.ids(part)))
        steps = [step for part in parts for step in self.steps(part.get("logprobs"))]
        self._counted(sum(pieces, ()), reasons[-1], usage, request)
        return Completion(
            tokens=sum(pieces, ()),
            finish_reason=_reason(reasons[-1]),
            text="".join(part.get("text") or "" for part in parts),
            logprobs=tuple(step for _, step in steps) if request.logprobs is not None else None,
            pieces=pieces if request.stream else None,
            cached_tokens=_cached(usage),
        )

    def _counted(self, tokens: tuple[int, ...], reason: str, usage: Mapping[str, Any], request: Request) -> None:
        """Compare with the server's own count: a chunk may hold two tokens, or name none of the one it is about."""
        count = (usage.get("usage") or {}).get("completion_tokens")
        if self.offer.ids == "token_ids" or type(count) is not int or request.n > 1:
            return
        silent = 0 if reason == "length" or request.stop_strings else 1  # a stop id may have no text and no record
        if len(tokens) > count:
            raise self._wrong(f"the stream has {len(tokens)} tokens, and {count} by its own count")
        if len(tokens) < count - silent:
            raise NotOffered(f"the ids of all new tokens: a stream names {len(tokens)} of the {count} that it counts")

    def _record(self, one: Any) -> tuple[int, Step]:
        token = self._id(one)
        step = {self._id(other): self._value(other.get("logprob")) for other in one.get("top_logprobs") or []}
        return token, {**self._likely(step), token: self._value(one.get("logprob"))}

    def _columns(self, name: str, value: Any, top: Mapping[str, Any] | None) -> tuple[int, Step]:
        token = self._named(name)
        step = {self._named(other): self._value(number) for other, number in (top or {}).items()}
        return token, step if value is None else {**self._likely(step), token: self._value(value)}

    def _likely(self, step: Step) -> Step:
        """The step without the ids that the option ``least_logprob`` leaves out."""
        least = self.offer.least_logprob
        return step if least is None else {token: value for token, value in step.items() if value >= least}

    def _id(self, record: Any) -> int:
        if not isinstance(record, dict):
            raise self._wrong(f"a record of logprobs is {record!r}; an object was expected")
        if type(record.get("id")) is int:
            return int(record["id"])
        if record.get("bytes") and not str(record.get("token", "")).startswith(PREFIX):
            return self._spelled(bytes(record["bytes"]))
        return self._named(str(record.get("token")))

    def _named(self, name: str) -> int:
        rest = name.removeprefix(PREFIX)
        return int(rest) if rest != name and rest.isdigit() else self._spelled(name.encode())

    def _spelled(self, piece: bytes) -> int:
        if self.spelling is None:
            raise self._wrong(f"it names the token {piece!r}, and there is no tokenizer.json to find its id in")
        try:
            return self.spelling.id_of(piece)
        except Unspelled as reason:
            raise self._wrong(f"it names a token by a string, and {reason}") from None

    def _value(self, value: Any) -> float:
        if type(value) not in (int, float):
            raise self._wrong(f"a log-probability is {value!r}; a number was expected")
        return -math.inf if value <= LEAST else float(value)

    def _get(self, record: Any, name: str, kind: type, what: str) -> Any:
        if not isinstance(record, dict) or type(record.get(name)) is not kind:
            given = record.get(name) if isinstance(record, dict) else record
            raise self._wrong(f"{what} has {name} = {str(given)[:200]!r}; the type {kind.__name__} was expected")
        return record[name]

    def _wrong(self, what: str) -> ReplyMalformed:
        return ReplyMalformed(f"{self.asked}: {what}.")


def _reason(given: Any) -> Reason:
    return "stop" if given == "stop" else "length" if given == "length" else "unspecified"


def _cached(reply: Mapping[str, Any]) -> int | None:
    """Prompt tokens that were taken from a cache, if the server says."""
    details = (reply.get("usage") or {}).get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens")
    return cached if type(cached) is int else None

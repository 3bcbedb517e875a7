"""Right ways to end a row and to say so, as engines declare them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from lmconform.adapter import Choices, Completion, NotOffered, Refused, Request
from lmconform.engines.reference import Reference, ReferenceModel
from lmconform.faults.legal.legal import Legal, legal
from refdecoder import Stops


class _Declares(Reference):
    """A reference with other choices."""

    declared: ClassVar[dict[str, Any]]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.choices = replace(self.choices, **self.declared)


class _Each(ReferenceModel):
    """Looks at each completion, beside its request."""

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        owners = [request for request in requests for _ in range(request.n)]
        return [self.each(one, done) for one, done in zip(owners, super().generate(requests), strict=True)]

    def each(self, request: Request, done: Completion) -> Completion:
        raise NotImplementedError

    def stopped_by(self, request: Request, done: Completion) -> int:
        """How many of the last tokens are the stop id, or the longest stop sequence, that ended the row."""
        if done.finish_reason != "stop":
            return 0
        ids = request.stop_ids + (self.decoder.config.eos_token_ids if request.eos else ())
        ended = [one for one in request.stop_sequences if done.tokens[-len(one) :] == one]
        return max([done.tokens[-1] in ids, *map(len, ended)])


class _Drops(_Each):
    def each(self, request: Request, done: Completion) -> Completion:
        kept = len(done.tokens) - self.stopped_by(request, done)
        return replace(
            done,
            tokens=done.tokens[:kept],
            logprobs=None if done.logprobs is None else done.logprobs[:kept],
            pieces=None if done.pieces is None else done.pieces[:kept],
        )


class DropsStopTokens(_Declares):
    """The stop id or stop sequence that ended a row is not returned."""

    name = "legal: stop token dropped"
    declared: ClassVar = {"stop_token": "dropped"}
    model_class = _Drops


class _ReturnsText(_Each):
    def each(self, request: Request, done: Completion) -> Completion:
        return done if self.text is None else replace(done, text=self.text.decode(done.tokens))


class ReturnsStopText(_Declares):
    """The text holds the stop that ended the row."""

    name = "legal: stop text returned"
    declared: ClassVar = {"stop_text": "returned"}
    model_class = _ReturnsText


class _Unmasked(Stops):
    def mask(self, logits: Tensor, count: int) -> Tensor:
        return logits


class IgnoresEarlyStops(_Declares):
    """A stop id among the first tokens is drawn, and does not stop."""

    name = "legal: early stops ignored"
    declared: ClassVar = {"min_tokens": "ignore"}
    stops_class = _Unmasked


class _Strict(ReferenceModel):
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        for request in requests:
            if request.max_new_tokens < 1:
                raise Refused("max_new_tokens must be 1 or more.")
            if len(request.prompt) + request.max_new_tokens > self.max_length:
                raise Refused(f"Prompt and continuation must fit into {self.max_length} tokens.")
        return super().generate(requests)


class RefusesWhatDoesNotFit(_Declares):
    """No new tokens, and continuations past the context limit, are refused."""

    name = "legal: refuses"
    declared: ClassVar = {"zero_tokens": "refused", "long_continuation": "refused"}
    model_class = _Strict


class _EmptyAnswers(ReferenceModel):
    """A prompt past the limit comes back with no new tokens."""

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        fitting = [len(request.prompt) <= self.max_length for request in requests]
        rows = iter(super().generate([one for one, fits in zip(requests, fitting, strict=True) if fits]))
        empty = Completion(tokens=(), finish_reason="length", text=None if self.text is None else "", logprobs=())
        return [
            next(rows) if fits else empty
            for request, fits in zip(requests, fitting, strict=True)
            for _ in range(request.n)
        ]


class AnswersLongPromptsWithNothing(_Declares):
    """A prompt past the context limit gets no new tokens."""

    name = "legal: long prompt empty"
    declared: ClassVar = {"long_prompt": "empty"}
    model_class = _EmptyAnswers


class _Silent(_Each):
    def each(self, request: Request, done: Completion) -> Completion:
        return replace(done, finish_reason="unspecified", cached_tokens=None)


class SaysNothing(Reference):
    """No finish reason, and no declared choice."""

    name = "legal: nothing declared"
    model_class = _Silent

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.choices = Choices()


class _Textless(_Each):
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        if any(request.stop_strings for request in requests):
            raise NotOffered("Stop strings: the engine has no tokenizer.")
        return super().generate(requests)

    def each(self, request: Request, done: Completion) -> Completion:
        return replace(done, text=None)


class HasNoText(Reference):
    """No tokenizer: ids in, ids out."""

    name = "legal: no text"
    model_class = _Textless


LEGAL: tuple[Legal, ...] = (
    legal(DropsStopTokens, "the stop id or sequence that ended a row is not returned, as declared"),
    legal(ReturnsStopText, "the text holds its stop, as declared"),
    legal(IgnoresEarlyStops, "a stop id before the minimum is drawn without effect, as declared"),
    legal(RefusesWhatDoesNotFit, "max_new_tokens of 0, and continuations past the limit, are refused, as declared"),
    legal(AnswersLongPromptsWithNothing, "a prompt past the context limit gets no new tokens, as declared"),
    legal(SaysNothing, "no finish reason and no declared choice: what is not said is not judged"),
    legal(HasNoText, "no tokenizer: stop strings and texts are not offered"),
)

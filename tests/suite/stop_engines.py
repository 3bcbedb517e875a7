"""Engines that end rows rightly, and choose otherwise than the reference."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lmconform.adapter import Choices, Completion, Needs, Refused, Request
from lmconform.engines.reference import Reference, ReferenceModel
from refdecoder.stopping import Detokenizer, Stops, Watch


def tokenizer_eos(checkpoint: Path) -> tuple[int, ...]:
    """The EOS id that the tokenizer's files name."""
    token = json.loads((checkpoint / "tokenizer_config.json").read_text()).get("eos_token")
    vocab = json.loads((checkpoint / "tokenizer.json").read_text())["model"]["vocab"]
    return () if token is None else (vocab[token],)


class _Ignoring(Stops):
    def mask(self, logits: Tensor, count: int) -> Tensor:
        return logits


class _Silent(ReferenceModel):
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return [replace(one, finish_reason="unspecified") for one in super().generate(requests)]


class Silent(Reference):
    """Declares nothing, gives no reasons, and ignores stop ids before the minimum."""

    stops_class = _Ignoring
    model_class = _Silent

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.choices = Choices(scores="logits", logprobs="raw")


class _Dropping(ReferenceModel):
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        if any(request.max_new_tokens == 0 for request in requests):
            raise Refused("No tokens were asked for.")
        owners = [request for request in requests for _ in range(request.n)]
        return [self._dropped(request, one) for request, one in zip(owners, super().generate(requests), strict=True)]

    def _dropped(self, request: Request, one: Completion) -> Completion:
        if one.finish_reason != "stop":
            return one
        ids = request.stop_ids + (self.decoder.config.eos_token_ids if request.eos else ())
        ends = [*((token,) for token in ids), *request.stop_sequences]
        size = max((len(end) for end in ends if one.tokens[-len(end) :] == end), default=0)
        kept = one.tokens[: len(one.tokens) - size]
        text = one.text if size < 2 or self.text is None else self.text.decode(kept)
        return replace(one, tokens=kept, text=text, pieces=one.pieces and one.pieces[: len(kept)])


class Dropping(Reference):
    """Drops every stop, refuses a request for no tokens, and reads EOS from the tokenizer alone."""

    model_class = _Dropping

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        files = ("tokenizer_config.json",)
        self.choices = replace(self.choices, stop_token="dropped", zero_tokens="refused", eos_files=files)

    def load(self, checkpoint: Path, needs: Needs) -> Any:
        model: Any = super().load(checkpoint, needs)
        model.decoder.config = replace(model.decoder.config, eos_token_ids=tokenizer_eos(checkpoint))
        return model


class _KeepsTheString(Watch):
    def push(self, token: int, last: bool = False) -> tuple[str, bool]:
        seen = len(self.text)
        self.stops, strings = replace(self.stops, strings=()), self.stops.strings
        _, stopped = super().push(token, last)
        self.stops = replace(self.stops, strings=strings)
        due = len(self.tokens) > self.stops.min_new_tokens
        places = [(self.text.find(one, max(0, seen - len(one) + 1)), one) for one in strings if due]
        if found := [(at, one) for at, one in places if at >= 0]:
            at, string = min(found)
            self.text, stopped = self.text[: at + len(string)], True
        elif token in self.stops.ids and stopped and self.detokenizer is not None:
            self.text += self.detokenizer.push(token)
        return self.text if stopped or last else "", stopped


class _Returning(Stops):
    def watch(self, detokenizer: Detokenizer | None) -> Watch:
        return _KeepsTheString(self, detokenizer)


class Returning(Reference):
    """Returns every stop, a string to its last character; takes EOS ids of the tokenizer and of generation_config."""

    stops_class = _Returning

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        files = ("tokenizer_config.json", "generation_config.json")
        self.choices = replace(self.choices, stop_text="returned", eos_files=files)

    def load(self, checkpoint: Path, needs: Needs) -> Any:
        model: Any = super().load(checkpoint, needs)
        named = model.decoder.config.eos_token_ids if (checkpoint / "generation_config.json").exists() else ()
        model.decoder.config = replace(model.decoder.config, eos_token_ids=(*tokenizer_eos(checkpoint), *named))
        return model

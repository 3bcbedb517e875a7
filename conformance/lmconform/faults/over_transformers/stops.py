"""Stop conditions, broken in transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import EosTokenCriteria, StoppingCriteria, StopStringCriteria

from lmconform.adapter import Completion, Model, Needs, Request
from lmconform.engines.transformers import TransformersModel
from lmconform.faults.over_transformers.patch import Broken


class _OtherCriteria(Broken):
    """transformers whose stopping criteria are changed before each call of ``generate``."""

    def change(self, llama: Any) -> None:
        right = llama._get_stopping_criteria

        def criteria(*given: Any, **named: Any) -> Any:
            found = right(*given, **named)
            found[:] = [self.criterion(one) for one in found]
            return found

        llama._get_stopping_criteria = criteria

    def criterion(self, one: Any) -> Any:
        """The criterion that stands in place of ``one``."""
        raise NotImplementedError


class LooksAtTheFirstStopIdOnly(_OtherCriteria):
    """Only the first id of a list ends a row."""

    def criterion(self, one: Any) -> Any:
        return EosTokenCriteria(one.eos_token_id[:1]) if isinstance(one, EosTokenCriteria) else one


class KeepsOneEosId(Broken):
    """Of several EOS ids only the first is kept."""

    def load(self, checkpoint: Path, needs: Needs) -> Model:
        loaded = super().load(checkpoint, needs)
        assert isinstance(loaded, TransformersModel)
        loaded.eos_ids = loaded.eos_ids[:1]
        return loaded


class _InThePrompt(EosTokenCriteria):
    def __call__(self, input_ids: Any, scores: Any, new_token_length: int = 1, **named: Any) -> Any:
        return super().__call__(input_ids, scores, new_token_length=input_ids.shape[1])


class StopsAtAnIdOfThePrompt(_OtherCriteria):
    """A stop id anywhere in the prompt ends the row with its first token."""

    def criterion(self, one: Any) -> Any:
        return _InThePrompt(one.eos_token_id) if isinstance(one, EosTokenCriteria) else one


class _Strings(_OtherCriteria):
    """Around the criterion of transformers is one of the adapter, which shows it the tokens from ``start`` on."""

    start: int

    def criterion(self, one: Any) -> Any:
        shown: Any = getattr(one, "criterion", None)
        if isinstance(getattr(shown, "criterion", None), StopStringCriteria):
            shown.start = self.start
        return one


class StringsBeginInThePrompt(_Strings):
    """A stop string may begin in the prompt."""

    start = 0


class LooksAtSinglePieces(_Strings):
    """A stop string is found only inside the text of one token."""

    start = -1


class _All(StoppingCriteria):
    def __init__(self, right: Any) -> None:
        self.right = right

    def __call__(self, input_ids: Tensor, scores: Any, **named: Any) -> Any:
        ended = self.right(input_ids, scores, **named)
        return ended.any().expand_as(ended)


class OneRowEndsTheBatch(_OtherCriteria):
    """The first row that stops ends all rows of the batch."""

    def criterion(self, one: Any) -> Any:
        return _All(one) if isinstance(one, EosTokenCriteria) else one


class _OneMore(TransformersModel):
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return super().generate([replace(one, max_new_tokens=one.max_new_tokens + 1) for one in requests])


class GivesOneTokenTooMany(Broken):
    """The limit is compared before the token is counted."""

    model_class = _OneMore


ENGINES: tuple[type[Broken], ...] = (
    LooksAtTheFirstStopIdOnly,
    KeepsOneEosId,
    StopsAtAnIdOfThePrompt,
    StringsBeginInThePrompt,
    LooksAtSinglePieces,
    OneRowEndsTheBatch,
    GivesOneTokenTooMany,
)

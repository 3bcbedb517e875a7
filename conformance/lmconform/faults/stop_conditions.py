"""Planted faults of the stop conditions of one row: what counts as a stop, and when."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import refdecoder
from lmconform.adapter import Model, Needs, Request
from lmconform.engines.reference import Reference, ReferenceModel
from lmconform.faults.fault import Fault
from refdecoder.config import DecoderConfig, read_json
from refdecoder.stopping import Detokenizer, Stops, Watch


class _FirstIdOnly(Stops):
    def watch(self, detokenizer: Detokenizer | None) -> Watch:
        return Watch(replace(self, ids=self.ids[:1]), detokenizer)


class LooksAtTheFirstStopIdOnly(Reference):
    """Only the first id of a list ends a row."""

    name = "fault: first stop id only"
    stops_class = _FirstIdOnly


class KeepsOneEosId(Reference):
    """Of several EOS ids only the first is kept."""

    name = "fault: first EOS id only"

    def build(self, config: DecoderConfig, attention: str) -> refdecoder.Decoder:
        return super().build(replace(config, eos_token_ids=config.eos_token_ids[:1]), attention)


class ReadsConfigJsonOnly(Reference):
    """EOS ids of generation_config.json are not read."""

    name = "fault: generation_config.json ignored"

    def load(self, checkpoint: Path, needs: Needs) -> Model:
        model = super().load(checkpoint, needs)
        assert isinstance(model, ReferenceModel)
        model.decoder.config = DecoderConfig.from_dict(read_json(checkpoint / "config.json"))
        return model


class _AlwaysEos(ReferenceModel):
    def _rows(self, request: Request) -> list[refdecoder.Request]:
        return super()._rows(replace(request, eos=True))


class StopsAtEosUnasked(Reference):
    """The checkpoint's EOS ids end every row."""

    name = "fault: EOS is never ignored"
    model_class = _AlwaysEos


@dataclass(frozen=True)
class _Told(Stops):
    """Stops that know the prompt, which a faulty watch then looks at."""

    prompt: tuple[int, ...] = ()


class _Telling(ReferenceModel):
    told: type[_Told]

    def _rows(self, request: Request) -> list[refdecoder.Request]:
        rows = super()._rows(request)
        return [replace(row, stops=self.told(**vars(row.stops), prompt=request.prompt)) for row in rows]


class _IdsOfThePrompt(_Told):
    def watch(self, detokenizer: Detokenizer | None) -> Watch:
        return _AnyIdStops(self, detokenizer)


class _AnyIdStops(Watch):
    stops: _IdsOfThePrompt

    def push(self, token: int, last: bool = False) -> tuple[str, bool]:
        text, stopped = super().push(token, last)
        return text, stopped or bool({*self.stops.prompt} & {*self.stops.ids})


class _LooksForIds(_Telling):
    told = _IdsOfThePrompt


class StopsAtAnIdOfThePrompt(Reference):
    """A stop id anywhere in the prompt ends the row with its first token."""

    name = "fault: stop ids of the prompt"
    model_class = _LooksForIds


class _SequencesFromThePrompt(_Told):
    def watch(self, detokenizer: Detokenizer | None) -> Watch:
        return _AllTokens(self, detokenizer)


class _AllTokens(Watch):
    stops: _SequencesFromThePrompt

    def push(self, token: int, last: bool = False) -> tuple[str, bool]:
        text, stopped = super().push(token, last)
        whole = (*self.stops.prompt, *self.tokens)
        due = len(self.tokens) > self.stops.min_new_tokens
        return text, stopped or (due and any(whole[-len(one) :] == one for one in self.stops.sequences))


class _LooksForSequences(_Telling):
    told = _SequencesFromThePrompt


class SequencesBeginInThePrompt(Reference):
    """A stop sequence may begin in the prompt."""

    name = "fault: sequences from the prompt"
    model_class = _LooksForSequences


class _StringsFromThePrompt(_Told):
    def watch(self, detokenizer: Detokenizer | None) -> Watch:
        watch = Watch(self, detokenizer)
        if detokenizer is not None:
            watch.text = detokenizer.decode(self.prompt)
            watch.released = len(watch.text)
        return watch


class _LooksForStrings(_Telling):
    told = _StringsFromThePrompt


class StringsBeginInThePrompt(Reference):
    """A stop string may begin in the prompt."""

    name = "fault: strings from the prompt"
    model_class = _LooksForStrings


class _OneMore(ReferenceModel):
    def _rows(self, request: Request) -> list[refdecoder.Request]:
        return super()._rows(replace(request, max_new_tokens=request.max_new_tokens + (request.max_new_tokens > 0)))


class GivesOneTokenTooMany(Reference):
    """The limit is compared before the token is counted."""

    name = "fault: one token too many"
    model_class = _OneMore


class _PromptInLimit(ReferenceModel):
    def _rows(self, request: Request) -> list[refdecoder.Request]:
        left = max(request.max_new_tokens - len(request.prompt), 1)
        return super()._rows(replace(request, max_new_tokens=min(left, request.max_new_tokens)))


class CountsThePromptInTheLimit(Reference):
    """The limit is one of prompt and new tokens together."""

    name = "fault: limit with the prompt"
    model_class = _PromptInLimit


class _AtLeastOne(ReferenceModel):
    def _rows(self, request: Request) -> list[refdecoder.Request]:
        return super()._rows(replace(request, max_new_tokens=max(request.max_new_tokens, 1)))


class DrawsBeforeItCounts(Reference):
    """A request for no tokens gives one."""

    name = "fault: one token instead of none"
    model_class = _AtLeastOne


class _Sequences(Watch):
    """A watch with another idea of what a stop sequence is."""

    def push(self, token: int, last: bool = False) -> tuple[str, bool]:
        self.stops, sequences = replace(self.stops, sequences=()), self.stops.sequences
        text, stopped = super().push(token, last)
        self.stops = replace(self.stops, sequences=sequences)
        return text, stopped or any(self.ends(one) for one in sequences)

    def ends(self, sequence: tuple[int, ...]) -> bool:
        raise NotImplementedError


class _InAnyOrder(_Sequences):
    def ends(self, sequence: tuple[int, ...]) -> bool:
        return {*sequence} <= {*self.tokens}


class _InAnyOrderStops(Stops):
    def watch(self, detokenizer: Detokenizer | None) -> Watch:
        return _InAnyOrder(self, detokenizer)


class MatchesSequencesInAnyOrder(Reference):
    """A stop sequence is complete when all its ids have come, in any order."""

    name = "fault: sequences as sets"
    stops_class = _InAnyOrderStops


class _LastId(_Sequences):
    def ends(self, sequence: tuple[int, ...]) -> bool:
        return self.tokens[-1] == sequence[-1]


class _LastIdStops(Stops):
    def watch(self, detokenizer: Detokenizer | None) -> Watch:
        return _LastId(self, detokenizer)


class MatchesTheLastIdOfASequence(Reference):
    """The last id of a stop sequence ends the row, whatever came before it."""

    name = "fault: last id of a sequence"
    stops_class = _LastIdStops


class _Late(_Sequences):
    def ends(self, sequence: tuple[int, ...]) -> bool:
        longest = max(map(len, self.stops.sequences))
        return len(self.tokens) >= longest and tuple(self.tokens[-len(sequence) :]) == sequence


class _LateStops(Stops):
    def watch(self, detokenizer: Detokenizer | None) -> Watch:
        return _Late(self, detokenizer)


class WaitsForTheLongestSequence(Reference):
    """No stop sequence is looked for before the longest could be complete."""

    name = "fault: waits for the longest sequence"
    stops_class = _LateStops


class _LimitFirst(Watch):
    def push(self, token: int, last: bool = False) -> tuple[str, bool]:
        text, stopped = super().push(token, last)
        return text, stopped and not last


class _LimitFirstStops(Stops):
    def watch(self, detokenizer: Detokenizer | None) -> Watch:
        return _LimitFirst(self, detokenizer)


class ChecksTheLimitFirst(Reference):
    """The reason of a row that is full is "length", also if its last token completes a stop."""

    name = "fault: limit before stop"
    stops_class = _LimitFirstStops


class _OneKind(Stops):
    def watch(self, detokenizer: Detokenizer | None) -> Watch:
        others = bool(self.strings or self.sequences)
        return Watch(replace(self, ids=() if others else self.ids), detokenizer)


class ChecksOneKindOfStop(Reference):
    """Stop ids are not looked at where there are stop strings or sequences."""

    name = "fault: one kind of stop"
    stops_class = _OneKind


FAULTS = (
    Fault(LooksAtTheFirstStopIdOnly, "STOP-1", "vllm#4589", "stops.ids"),
    Fault(KeepsOneEosId, "STOP-2", "transformers#38330", "stops.eos"),
    Fault(ReadsConfigJsonOnly, "STOP-3", "TensorRT-Model-Connect#640", "stops.eos"),
    Fault(StopsAtEosUnasked, "STOP-4", "text-generation-inference#1544", "stops.eos"),
    Fault(StopsAtAnIdOfThePrompt, "STOP-5", "haystack#5316", "stops.prompt"),
    Fault(SequencesBeginInThePrompt, "STOP-5", "haystack#5316", "stops.prompt"),
    Fault(StringsBeginInThePrompt, "STOP-5", "haystack#5316", "stops.prompt"),
    Fault(GivesOneTokenTooMany, "STOP-6", "mistral.rs#1539", "stops.limit"),
    Fault(CountsThePromptInTheLimit, "STOP-6", "transformers#13983", "stops.limit"),
    Fault(DrawsBeforeItCounts, "STOP-7", "transformers#28579", "stops.limit"),
    Fault(MatchesSequencesInAnyOrder, "STOP-8", "haystack#5502", "stops.sequence"),
    Fault(MatchesTheLastIdOfASequence, "STOP-8", "haystack#5502", "stops.sequence"),
    Fault(WaitsForTheLongestSequence, "STOP-8", "mlx-examples#524", "stops.sequence"),
    Fault(ChecksTheLimitFirst, "STOP-14", "sglang#30291", "stops.reason"),
    Fault(ChecksOneKindOfStop, "STOP-15", "vllm#5243", "stops.ids"),
)

"""Planted faults of stop conditions that are alive for part of the ids, of the tokens, or of the settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import refdecoder
from lmconform.adapter import Model, Needs, Request
from lmconform.engines.reference import Reference, ReferenceModel
from lmconform.faults.fault import Fault
from refdecoder.config import DecoderConfig, read_json
from refdecoder.stopping import Detokenizer, Stops, Watch


class _OneByte(Stops):
    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "ids", tuple(one % 256 for one in self.ids))


class KeepsStopIdsInAByte(Reference):
    """Of a stop id the lowest 8 bits are compared."""

    name = "fault: stop ids in a byte"
    stops_class = _OneByte


class _NoZero(Stops):
    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "ids", tuple(one for one in self.ids if one))


class TakesStopIdZeroForNone(Reference):
    """A stop id of 0 is taken for no stop id."""

    name = "fault: stop id 0 is none"
    stops_class = _NoZero


class _NotAtOnce(Watch):
    def push(self, token: int, last: bool = False) -> tuple[str, bool]:
        first = not self.tokens
        self.stops, ids = replace(self.stops, ids=() if first else self.stops.ids), self.stops.ids
        text, stopped = super().push(token, last)
        self.stops = replace(self.stops, ids=ids)
        return text, stopped


class _NotAtOnceStops(Stops):
    def watch(self, detokenizer: Detokenizer | None) -> Watch:
        return _NotAtOnce(self, detokenizer)


class PassesAStopAtOnce(Reference):
    """The first new token, which prefill gives, is not compared with the stop ids."""

    name = "fault: first new token unchecked"
    stops_class = _NotAtOnceStops


class IgnoresAListOfEosIds(Reference):
    """A list of several EOS ids is compared with a token as a whole, and none of them ends a row."""

    name = "fault: list of EOS ids ignored"

    def build(self, config: DecoderConfig, attention: str) -> refdecoder.Decoder:
        ids = config.eos_token_ids
        return super().build(replace(config, eos_token_ids=ids if len(ids) == 1 else ()), attention)


class ConfigJsonComesFirst(Reference):
    """EOS ids of config.json replace those of generation_config.json where both files name some."""

    name = "fault: config.json before generation_config.json"

    def load(self, checkpoint: Path, needs: Needs) -> Model:
        model = super().load(checkpoint, needs)
        assert isinstance(model, ReferenceModel)
        own = DecoderConfig.from_dict(read_json(checkpoint / "config.json"))
        model.decoder.config = own if own.eos_token_ids else model.decoder.config
        return model


class _EosBesideStopIds(ReferenceModel):
    def _rows(self, request: Request) -> list[refdecoder.Request]:
        return super()._rows(replace(request, eos=request.eos or bool(request.stop_ids)))


class StopIdsBringEosAlong(Reference):
    """A request with stop ids of its own ends at EOS ids too."""

    name = "fault: EOS beside stop ids"
    model_class = _EosBesideStopIds


class _PromptInMinimum(ReferenceModel):
    def _rows(self, request: Request) -> list[refdecoder.Request]:
        left = max(request.min_new_tokens - len(request.prompt), 0)
        return super()._rows(replace(request, min_new_tokens=left))


class CountsThePromptInTheMinimum(Reference):
    """The minimum is one of prompt and new tokens together."""

    name = "fault: minimum with the prompt"
    model_class = _PromptInMinimum


class _IdsAlone(Watch):
    def push(self, token: int, last: bool = False) -> tuple[str, bool]:
        early = len(self.tokens) < self.stops.min_new_tokens
        stops = self.stops
        self.stops = replace(stops, ids=() if early else stops.ids, min_new_tokens=0)
        text, stopped = super().push(token, last)
        self.stops = stops
        return text, stopped


class _IdsAloneStops(Stops):
    def watch(self, detokenizer: Detokenizer | None) -> Watch:
        return _IdsAlone(self, detokenizer)


class MinimumForIdsAlone(Reference):
    """Stop strings and sequences take effect among the first tokens, too; stop ids do not."""

    name = "fault: minimum for ids alone"
    stops_class = _IdsAloneStops


FAULTS = (
    Fault(KeepsStopIdsInAByte, "STOP-1", "openvino.genai#3583", "stops.ids"),
    Fault(TakesStopIdZeroForNone, "STOP-1", "openvino.genai#3583", "stops.ids"),
    Fault(PassesAStopAtOnce, "STOP-1", "mistral.rs#1539", "stops.ids"),
    Fault(IgnoresAListOfEosIds, "STOP-2", "mlx-vlm#309", "stops.eos"),
    Fault(ConfigJsonComesFirst, "STOP-3", "InfiniLM#387", "stops.eos"),
    Fault(StopIdsBringEosAlong, "STOP-4", "text-generation-inference#1544", "stops.eos"),
    Fault(CountsThePromptInTheMinimum, "STOP-12", "vllm#46243", "stops.minimum"),
    Fault(MinimumForIdsAlone, "STOP-12", "vllm#46243", "stops.minimum"),
)

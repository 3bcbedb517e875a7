"""Runtimes that execute a graph which optimum exports from a transformers model: what their adapters share.

A checkpoint is loaded by transformers, strictly, and exported once; the runtime then computes the logits. ``generate``
is transformers' own, over the runtime's forward pass, as optimum offers it.
"""

from __future__ import annotations

import json
import tempfile
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from lmconform.adapter import Array, Engine, Model, Needs, NotOffered, Refused, Session
from lmconform.engines.common import check_tokens, choose, read_config, regime_settings
from lmconform.engines.tensors import numbers
from lmconform.engines.transformers import (
    Settings,
    TransformersModel,
    build,
    eos_ids,
    load_tokenizer,
    load_weights,
)

Past = tuple[tuple[torch.Tensor, torch.Tensor], ...]
"""Keys and values of each layer, [1, H_kv, S, D]."""


class Exporting(Engine):
    """Exports each checkpoint when it is first loaded, and runs it from a folder of its own.

    ``attention`` (sdpa, eager) is the form in which transformers hands attention to the export.
    """

    def __init__(self, attention: str) -> None:
        form = choose("attention", attention, ("sdpa", "eager"))
        self.settings = Settings("float32", form, "dynamic", torch.device("cpu"))
        self._folder = tempfile.TemporaryDirectory(prefix="lmconform-exported-")
        self._exported: dict[tuple[str, int, str, bool], tuple[Path, tuple[int, ...]]] = {}
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()

    @abstractmethod
    def export(self, model: Any, folder: Path, stateful: bool) -> None:
        """Write the graph of a transformers model into a folder.

        Past keys and values go in and come out of it or, if it is ``stateful``, stay inside.
        """

    @abstractmethod
    def run(self, folder: Path, regime: Mapping[str, Any]) -> Any:
        """Load what was exported."""

    def accepts(self, config: Mapping[str, Any]) -> str | None:
        """Return why transformers, which reads the checkpoint, refuses this config.json."""
        try:
            build(config, self.settings)
        except Refused as reason:
            return str(reason)
        return None

    def load(self, checkpoint: Path, needs: Needs) -> Model:
        """Export a Hugging Face directory, once, and load the graph. Refuses what transformers or optimum refuse."""
        regime = regime_settings(self.regimes(), needs)
        checkpoint = Path(checkpoint)
        config = read_config(checkpoint)
        try:
            changed = (checkpoint / "model.safetensors").stat().st_mtime_ns
        except OSError as reason:
            raise Refused(f"{checkpoint} has no model.safetensors: {reason}") from reason
        if (refusal := self.accepts(config)) is not None:
            raise Refused(refusal)
        stateful = bool(regime.get("stateful"))
        key = (str(checkpoint), changed, json.dumps(config, sort_keys=True), stateful)
        if key not in self._exported:
            self._exported[key] = self._export(checkpoint, stateful)
        folder, stops = self._exported[key]
        settings = replace(self.settings, padding=regime.get("padding", self.settings.padding))
        return ExportedModel(self.run(folder, regime), stops, load_tokenizer(checkpoint), settings, needs, stateful)

    def _export(self, checkpoint: Path, stateful: bool) -> tuple[Path, tuple[int, ...]]:
        """The folder of a new export, and the EOS ids that transformers found."""
        folder = Path(self._folder.name) / str(len(self._exported))
        model = load_weights(checkpoint, self.settings)
        stops = eos_ids(model.generation_config)
        try:
            self.export(model.eval(), folder, stateful)
        except (RuntimeError, ValueError, KeyError, OSError) as reason:
            words = " ".join(str(reason).split())[:400]
            raise Refused(f"optimum does not export {checkpoint}: {type(reason).__name__}: {words}") from reason
        return folder, stops

    def close(self) -> None:
        """Remove what was exported."""
        self._folder.cleanup()


class ExportedModel(TransformersModel):
    """A graph that a runtime has loaded."""

    def __init__(
        self,
        runtime: Any,
        stops: tuple[int, ...],
        tokenizer: Any,
        settings: Settings,
        needs: Needs,
        stateful: bool,
    ) -> None:
        self.eos_ids, self.stateful = stops, stateful
        runtime.generation_config = transformers.GenerationConfig()  # a blank one, as in the adapter of transformers
        self.model, self.tokenizer, self.settings, self.needs = runtime, tokenizer, settings, needs
        self.vocab_size = runtime.config.vocab_size
        learned = getattr(runtime.config, "model_type", "") == "gpt2"
        self.max_length = runtime.config.n_positions if learned else None

    def score(self, tokens: Sequence[int]) -> Array:
        """Return logits [T, V] of one forward pass over no past."""
        return self.score_batch([tokens])[0]

    def open(self) -> Session:
        """Return a session over no past."""
        if self.stateful:
            raise NotOffered("sessions: the graph keeps one past inside, and each pass over no past ends it.")
        return ExportedSession(self, ())


class ExportedSession(Session):
    """Past keys and values, which go into each pass and come out of it longer. No pass writes to them."""

    def __init__(self, owner: ExportedModel, past: Past) -> None:
        self.owner = owner
        self.past: Past | None = past

    @torch.inference_mode()
    def extend(self, tokens: Sequence[int]) -> Array:
        """Append a chunk and return its logits [n, V]."""
        past = self._open()
        held = _length(past)
        ids = check_tokens(tokens, self.owner.vocab_size, held=held, limit=self.owner.max_length)
        out = self.owner.model(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, held + len(ids), dtype=torch.long),
            position_ids=torch.arange(held, held + len(ids))[None],
            past_key_values=past or None,
            use_cache=True,
        )
        self.past = tuple((keys, values) for keys, values in out.past_key_values)
        return numbers(out.logits[0])

    def fork(self) -> Session:
        """Return a session over the same past."""
        return ExportedSession(self.owner, self._open())

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` tokens, as transformers crops a legacy cache."""
        past = self._open()
        if not 0 <= length <= _length(past):
            raise Refused(f"The session holds {_length(past)} tokens; it cannot be truncated to {length}.")
        if length == 0:
            self.past = ()
            return
        self.past = tuple((keys[:, :, :length], values[:, :, :length]) for keys, values in past)

    def cache_bytes(self) -> int:
        """Bytes of the past."""
        return sum(tensor.nbytes for layer in self._open() for tensor in layer)

    def close(self) -> None:
        """Release the past."""
        self.past = None

    def _open(self) -> Past:
        if self.past is None:
            raise Refused("The session is closed.")
        return self.past


def _length(past: Past) -> int:
    return past[0][1].shape[2] if past else 0

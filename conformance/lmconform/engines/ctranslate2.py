"""CTranslate2: scores by ``Generator.forward_batch``, ``generate`` by ``Generator.generate_batch``.

CTranslate2 runs models of a format of its own. A checkpoint is converted when it is first loaded, by the library's own
converter, which reads it with transformers; what the converter leaves out is missing, and is not mended here. The
library shows no KV cache, so there are no sessions.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import transformers
from ctranslate2.converters import transformers as converters
from safetensors import SafetensorError

from lmconform.adapter import (
    Array,
    Choices,
    Completion,
    Engine,
    Model,
    Needs,
    NotOffered,
    Precision,
    Refused,
    Request,
)
from lmconform.engines.common import (
    check_tokens,
    choose,
    read_config,
    regime_settings,
    top_logprobs,
    whole_number,
)

UNSOUND = (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError)
"""What the converter, transformers and the loader raise for a checkpoint that they cannot take."""
SMALL_BATCH = 2


@dataclass(frozen=True)
class Settings:
    """How one checkpoint is converted and run."""

    head_dim: str
    threads: int
    stepwise_prompt: bool = False
    batch: int = 0


class Converter(converters.TransformersConverter):
    """The library's converter, which reads weights from safetensors alone here."""

    def __init__(self, path: str, head_dim: int | None) -> None:
        super().__init__(path)
        self.head_dim = head_dim

    def load_model(self, model_class: Any, path: str, **options: Any) -> Any:
        """Load the transformers model."""
        return super().load_model(model_class, path, use_safetensors=True, local_files_only=True, **options)

    def _load(self) -> Any:
        spec = super()._load()
        for name in ("bos_token", "eos_token", "unk_token"):
            # A tokenizer may have none. The library cannot load the null that the converter then writes; for the
            # unk_token of a llama it writes the empty string, which is no token of the vocabulary.
            if getattr(spec.config, name) is None:
                setattr(spec.config, name, "")
        if self.head_dim is not None:
            for layer in spec.decoder.layer:
                vars(layer.self_attention)["head_dim"] = np.int32(self.head_dim)  # the class takes no new attributes
        return spec


class CTranslate2(Engine):
    """CTranslate2 on CPU, in float32.

    Options: ``head_dim`` (converter, config): the converter of llama does not pass the config's head_dim on, so that
    the library takes it for hidden_size / H_q, and checkpoints in which it is another are refused here; with
    ``config``, the adapter writes it into what the converter made, and the rest of the library can be judged on them.
    ``threads``. A value that is not legal raises ValueError.
    """

    converter = Converter
    name = "ctranslate2"
    version = f"{ctranslate2.__version__} (converter: transformers {transformers.__version__})"
    precision = Precision()
    choices = Choices(
        scores="logits",
        logprobs="raw",
        ties="first",  # its TopK takes std::max_element for one of them
        sampler_order=("top_k", "temperature", "top_p"),
        stop_token="returned",
        eos_files=("tokenizer_config.json",),
        min_tokens="mask",
        zero_tokens="refused",
        empty_prompt="refused",
    )

    def __init__(self, head_dim: str = "converter", threads: str = "1") -> None:
        self.settings = Settings(
            choose("head_dim", head_dim, ("converter", "config")), whole_number("threads", threads)
        )
        self.folder = tempfile.TemporaryDirectory(prefix="lmconform-ctranslate2-")
        self.converted: dict[tuple[str, int, str], Path] = {}
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()

    def accepts(self, config: Mapping[str, Any]) -> str | None:
        """Return why there is no converter for this config.json, or why what it makes cannot run."""
        kind = str(config.get("model_type"))
        known = kind in transformers.CONFIG_MAPPING
        if not known or transformers.CONFIG_MAPPING[kind].__name__ not in converters._MODEL_LOADERS:
            return f"CTranslate2 {ctranslate2.__version__} has no converter for the model_type {kind!r}."
        try:
            transformers.CONFIG_MAPPING[kind].from_dict(copy.deepcopy(dict(config)))  # a copy: it takes keys out
        except Exception as reason:
            words = " ".join(f"{type(reason).__name__}: {reason}".split())
            return (
                f"transformers, with which CTranslate2's converter reads checkpoints, refuses the config.json: {words}"
            )
        hidden, heads, size = (config.get(name) for name in ("hidden_size", "num_attention_heads", "head_dim"))
        if self.settings.head_dim == "converter" and size is not None and hidden and heads and hidden != heads * size:
            return (
                f"head_dim is {size} and hidden_size / num_attention_heads is {hidden / heads:g}; CTranslate2's "
                f"converter for {kind} does not pass head_dim on."
            )
        return None

    def regimes(self) -> Mapping[str, Mapping[str, Any]]:
        """In ``generate``: the prompt token by token, and more requests than a batch holds."""
        return {"stepwise-prompt": {"stepwise_prompt": True}, "small-batches": {"batch": SMALL_BATCH}}

    def load(self, checkpoint: Path, needs: Needs) -> Model:
        """Convert a Hugging Face directory, once, and load it. Refuses what the converter or the library refuses."""
        settings = replace(self.settings, **regime_settings(self.regimes(), needs))
        checkpoint = Path(checkpoint)
        config = read_config(checkpoint)
        try:
            changed = (checkpoint / "model.safetensors").stat().st_mtime_ns
        except OSError as reason:
            raise Refused(f"{checkpoint} has no model.safetensors: {reason}") from reason
        if (refusal := self.accepts(config)) is not None:
            raise Refused(refusal)
        key = (str(checkpoint), changed, json.dumps(config, sort_keys=True))
        if key not in self.converted:
            self.converted[key] = self._convert(checkpoint, config)
        return CTranslate2Model(self.converted[key], settings)

    def _convert(self, checkpoint: Path, config: Mapping[str, Any]) -> Path:
        """Convert a checkpoint into a new folder."""
        folder = Path(self.folder.name) / str(len(self.converted))
        head_dim = config.get("head_dim") if self.settings.head_dim == "config" else None
        try:
            self.converter(str(checkpoint), head_dim).convert(str(folder))
        except UNSOUND as reason:
            words = " ".join(f"{type(reason).__name__}: {reason}".split())
            raise Refused(f"CTranslate2's converter refuses the checkpoint {checkpoint}: {words}") from reason
        return folder

    def close(self) -> None:
        """Remove the converted checkpoints."""
        self.folder.cleanup()


class CTranslate2Model(Model):
    """A converted checkpoint, loaded."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.settings = settings
        try:
            self.generator = ctranslate2.Generator(str(folder), "cpu", intra_threads=settings.threads)
        except UNSOUND as reason:
            raise Refused(f"CTranslate2 does not load what its converter made: {reason}") from reason
        # generate_batch takes tokens, not ids.
        self.vocabulary: list[str] = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
        self.vocab_size = len(self.vocabulary)

    def score(self, tokens: Sequence[int]) -> Array:
        """Return logits [T, V] of one forward pass."""
        return self.score_batch([tokens])[0]

    def score_batch(self, sequences: Sequence[Sequence[int]]) -> list[Array]:
        """Return logits [T_b, V] of each sequence, from one forward pass that the library pads on the right."""
        rows = [check_tokens(tokens, self.vocab_size) for tokens in sequences]
        if not rows:
            return []
        try:
            logits = np.array(self.generator.forward_batch(rows))  # [B, T, V]
        except ValueError as reason:
            raise Refused(f"CTranslate2 refuses to compute: {reason}") from reason
        return [logits[b, : len(row)] for b, row in enumerate(rows)]

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Continue the requests; those that share all parameters go together as a batch, and the groups in turn."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        for place, request in enumerate(requests):
            check_tokens(request.prompt, self.vocab_size)
            _check_offered(request)
            # Where the prompt is a part of the result, all of it but its first token counts for the lengths of a call.
            length = len(request.prompt) if self.settings.stepwise_prompt else 0
            groups.setdefault((length, *_key(request, place)), []).append(place)
        done: dict[int, list[Completion]] = {}
        for places in groups.values():
            group = [requests[place] for place in places]
            done |= dict(zip(places, self._run(group), strict=True))
        return [completion for place in range(len(requests)) for completion in done[place]]

    def _run(self, group: Sequence[Request]) -> list[list[Completion]]:
        """One call of ``generate_batch``: the completions of each request."""
        pieces: dict[int, list[int]] = {}

        def keep(step: Any) -> bool:
            pieces.setdefault(step.hypothesis_id, []).append(step.token_id)
            return False  # go on

        options = _options(group[0])
        if self.settings.stepwise_prompt:
            options |= {name: options[name] + len(group[0].prompt) - 1 for name in ("max_length", "min_length")}
        if group[0].stream:
            options["callback"] = keep
        try:
            results = self.generator.generate_batch(
                [[self.vocabulary[token] for token in request.prompt] for request in group],
                include_prompt_in_result=self.settings.stepwise_prompt,
                max_batch_size=self.settings.batch,
                **options,
            )
        except ValueError as reason:
            raise Refused(f"CTranslate2 refuses the request: {reason}") from reason
        return [self._read(request, result, pieces) for request, result in zip(group, results, strict=True)]

    def _read(self, request: Request, result: Any, pieces: Mapping[int, Sequence[int]]) -> list[Completion]:
        """The completions of one request."""
        skip = len(request.prompt) if self.settings.stepwise_prompt else 0
        found = []
        for which, sequence in enumerate(result.sequences_ids):
            tokens = tuple(sequence[skip:])
            logprobs = None
            if request.logprobs is not None:
                rows = result.logits[which]  # those of steps that repeat a prompt come first
                steps = zip(rows[len(rows) - len(tokens) :], tokens, strict=True)
                logprobs = tuple(_step(np.array(row), request.logprobs, token) for row, token in steps)
            portions = tuple((token,) for token in pieces.get(which, ())) if request.stream else None
            found.append(Completion(tokens=tokens, logprobs=logprobs, pieces=portions))
        return found

    def close(self) -> None:
        """Release the weights."""
        del self.generator


def _key(request: Request, place: int) -> tuple[Any, ...]:
    """Requests with equal keys can share a call."""
    sampling = (request.temperature, request.top_k, request.top_p, request.n)
    stops = (request.stop_ids, request.eos, request.min_new_tokens, request.max_new_tokens)
    return (sampling, stops, request.logprobs is not None, place if request.stream else None)


def _check_offered(request: Request) -> None:
    """Raise NotOffered for what ``generate_batch`` has no parameter for."""
    for name in ("stop_strings", "stop_sequences", "min_p"):
        if getattr(request, name):
            raise NotOffered(name)
    if request.seed is not None:
        raise NotOffered("seed: CTranslate2 seeds its generators once a process")
    if request.eos and request.stop_ids:
        raise NotOffered("stop ids beside the checkpoint's EOS: generate_batch takes one or the other")


def _options(request: Request) -> dict[str, Any]:
    """The parameters of ``generate_batch``. Everything is said, off included."""
    options: dict[str, Any] = {
        "beam_size": 1,
        "num_hypotheses": request.n,
        "length_penalty": 1,
        "repetition_penalty": 1,
        "no_repeat_ngram_size": 0,
        "disable_unk": False,
        "end_token": None if request.eos else list(request.stop_ids),
        "return_end_token": True,
        "max_length": request.max_new_tokens,
        "min_length": request.min_new_tokens,
        "return_logits_vocab": request.logprobs is not None,
        "sampling_topk": 1,
    }
    if request.temperature is not None:
        options["sampling_topk"] = request.top_k or 0
        options["sampling_topp"] = 1.0 if request.top_p is None else request.top_p
        options["sampling_temperature"] = request.temperature
    return options


def _step(row: Array, n: int, token: int) -> dict[int, float]:
    """The ``n`` greatest log-probabilities of logits [V], and that of the token that was taken."""
    wide = row.astype(np.float64).reshape(-1)
    wide -= wide.max()
    wide -= np.log(np.exp(wide).sum())
    return {**top_logprobs(wide, n), token: float(wide[token])}

"""Adapter to Hugging Face transformers 5: any causal language model that its Auto classes build.

``score`` is one forward pass, a session is a forward pass over a ``DynamicCache`` or a ``StaticCache``, and
``generate`` is the library's own ``model.generate``. Nothing is computed here that transformers computes itself.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers.utils import logging

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
    Session,
)
from lmconform.engines._transformers_generate import generate, padded
from lmconform.engines.common import check_tokens, choose, read_config, regime_settings, whole_number
from lmconform.engines.tensors import numbers, torch_device

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Llama-like models cast to float32 in their norms, their RoPE angles and their eager softmax, whatever the weights
# are. In float64 they are therefore no better than float32 between operations, and that is what we declare.
PRECISIONS = {
    "float32": Precision(),
    "float64": Precision(weights="float64", compute="float32", kv_cache="float64", scores="float64"),
    "bfloat16": Precision(weights="bfloat16", compute="bfloat16", kv_cache="bfloat16", scores="bfloat16"),
    "float16": Precision(weights="float16", compute="float16", kv_cache="float16", scores="float16"),
}
PREFILL_CHUNK = 4
SMALL_PASS = 12
# What transformers and safetensors raise, on purpose, for a checkpoint that is not sound.
UNSOUND = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


@dataclass(frozen=True)
class Settings:
    """How one checkpoint is loaded and run."""

    dtype: str
    attention: str
    cache: str
    device: torch.device
    padding: str = "left"
    prefill_chunk_size: int | None = None
    batching: str = "padded"
    compiled: bool = False
    """Whether ``generate`` compiles its decode step, where transformers does so by itself."""
    batch_tokens: int = 512
    """Most tokens of a pass of continuous batching; longer prompts come in chunks."""
    sharing: bool = True
    """Whether continuous batching lets prompts share the pages of a prefix."""


class Transformers(Engine):
    """Hugging Face transformers.

    Options: ``dtype`` (float32, float64, bfloat16, float16), ``attention`` (sdpa, eager, flex_attention), ``cache``
    (dynamic, static), ``compile`` the decode step of ``generate`` (no, yes; on a GPU with a static cache),
    ``batching`` of ``generate`` (padded, continuous), ``device`` (cpu, cuda, cuda:N, mps), ``threads`` (torch's CPU
    threads; left alone where it is not given). A value that is not legal raises ValueError.
    The constructor turns off the library's progress bars and advisory log lines, for the whole process.
    """

    name = "transformers"
    version = transformers.__version__
    choices = Choices(
        scores="logits",
        logprobs="raw",
        ties="first",  # torch.argmax promises the first of equal maxima
        sampler_order=("temperature", "top_k", "top_p", "min_p"),
        temperature_zero="refused",
        stop_token="returned",
        stop_text="returned",
        eos_files=("generation_config.json", "config.json"),
        zero_tokens="refused",
        min_tokens="mask",
        long_prompt="refused",
        long_continuation="refused",
        empty_prompt="refused",
    )

    def __init__(
        self,
        dtype: str = "float32",
        attention: str = "sdpa",
        cache: str = "dynamic",
        compile: str = "no",
        batching: str = "padded",
        device: str = "cpu",
        threads: str | None = None,
    ) -> None:
        compiled = choose("compile", compile, ("no", "yes")) == "yes"
        if compiled and (cache != "static" or not device.startswith("cuda")):
            raise ValueError(
                "Option compile=yes needs cache=static and device=cuda: transformers compiles a decode step only there."
            )
        self.settings = Settings(
            dtype=choose("dtype", dtype, DTYPES),
            attention=choose("attention", attention, ("sdpa", "eager", "flex_attention")),
            cache=choose("cache", cache, ("dynamic", "static")),
            batching=choose("batching", batching, ("padded", "continuous")),
            compiled=compiled,
            device=torch_device(device),
        )
        self.precision = PRECISIONS[dtype]
        if threads is not None:
            torch.set_num_threads(whole_number("threads", threads))
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def accepts(self, config: Mapping[str, Any]) -> str | None:
        """Return why transformers refuses this config.json, found by building the model without its weights."""
        try:
            build(config, self.settings)
        except Refused as reason:
            return str(reason)
        return None

    def regimes(self) -> Mapping[str, Mapping[str, Any]]:
        """Right-padded batches, the other cache, another attention, and ``generate`` with a prefill in chunks.

        With continuous batching: passes so small that prompts come in chunks, and pages that no prompts share.
        """
        if self.settings.batching == "continuous":
            return {"small-passes": {"batch_tokens": SMALL_PASS}, "no-sharing": {"sharing": False}}
        cache = "static" if self.settings.cache == "dynamic" else "dynamic"
        attention = "eager" if self.settings.attention == "sdpa" else "sdpa"
        return {
            "right-padding": {"padding": "right"},
            f"{cache}-cache": {"cache": cache},
            attention: {"attention": attention},
            "chunked-prefill": {"prefill_chunk_size": PREFILL_CHUNK},
        }

    def load(self, checkpoint: Path, needs: Needs) -> Model:
        """Load a Hugging Face directory. Refuses one with a missing, an extra or a misshapen tensor."""
        settings = replace(self.settings, **regime_settings(self.regimes(), needs))
        checkpoint = Path(checkpoint)
        config = read_config(checkpoint)
        build(config, settings)
        return TransformersModel(load_weights(checkpoint, settings), load_tokenizer(checkpoint), settings, needs)


class TransformersModel(Model):
    """A checkpoint that transformers has loaded."""

    def __init__(self, model: Any, tokenizer: Any, settings: Settings, needs: Needs) -> None:
        self.eos_ids = eos_ids(model.generation_config)
        # A blank one: what `generate` finds unset, it takes from here, and the checkpoint's own would leak in.
        model.generation_config = transformers.GenerationConfig()
        self.model, self.tokenizer, self.settings, self.needs = (
            model.eval().requires_grad_(False),
            tokenizer,
            settings,
            needs,
        )
        if settings.batching == "continuous":  # it collects garbage twice a call, which takes seconds
            gc.freeze()
        self.vocab_size = model.config.get_text_config().vocab_size
        self.max_length = _max_length(model.config.get_text_config())

    @torch.inference_mode()
    def score(self, tokens: Sequence[int]) -> Array:
        """Return logits [T, V] of one forward pass without a cache."""
        ids = self._tensor([check_tokens(tokens, self.vocab_size, limit=self.max_length)])  # [1, T]
        return numbers(self.model(input_ids=ids, use_cache=False).logits[0])

    @torch.inference_mode()
    def score_batch(self, sequences: Sequence[Sequence[int]]) -> list[Array]:
        """Return logits [T_b, V] of each sequence, from one padded forward pass with mask and positions."""
        rows = [check_tokens(tokens, self.vocab_size, limit=self.max_length) for tokens in sequences]
        if not rows:
            return []
        ids, mask = padded(rows, self.settings.padding, self.settings.device)  # [B, T] each
        positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)  # as generate makes them
        logits = self.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        return [numbers(row[real.bool()]) for row, real in zip(logits, mask, strict=True)]

    def open(self) -> Session:
        """Return a session over an empty cache; a static one holds ``needs.max_tokens`` tokens."""
        config = self.model.config.get_text_config(decoder=True)
        if self.settings.cache == "static":
            return TransformersSession(
                self, transformers.StaticCache(config=config, max_cache_len=self.needs.max_tokens)
            )
        return TransformersSession(self, transformers.DynamicCache(config=config))

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Continue all requests with ``model.generate``, or by continuous batching; see the modules of both."""
        for request in requests:
            check_tokens(request.prompt, self.vocab_size, held=request.max_new_tokens, limit=self.max_length)
        if self.settings.batching == "continuous":
            # Older versions, which other runtimes still build on, have no such module.
            from lmconform.engines._transformers_continuous import generate_continuously

            return generate_continuously(self, requests)
        return generate(self, requests)

    def close(self) -> None:
        """Release the weights."""
        self.model = None
        if self.settings.device.type == "cuda":
            torch.cuda.empty_cache()

    def _tensor(self, rows: list[list[int]]) -> torch.Tensor:
        return torch.tensor(rows, dtype=torch.long, device=self.settings.device)


class TransformersSession(Session):
    """One transformers cache and the tokens it stands for."""

    def __init__(self, owner: TransformersModel, cache: Any, length: int = 0) -> None:
        self.owner, self.cache, self.length = owner, cache, length
        self.static = owner.settings.cache == "static"
        self.limit = owner.needs.max_tokens if self.static else owner.max_length

    @torch.inference_mode()
    def extend(self, tokens: Sequence[int]) -> Array:
        """Append a chunk and return its logits [n, V]. Positions and mask follow from the cache's length."""
        self._check_open()
        ids = check_tokens(tokens, self.owner.vocab_size, held=self.length, limit=self.limit)
        out = self.owner.model(input_ids=self.owner._tensor([ids]), past_key_values=self.cache, use_cache=True)
        self.length += len(ids)
        return numbers(out.logits[0])

    @torch.inference_mode()
    def fork(self) -> Session:
        """Return a session over a deep copy of the cache."""
        self._check_open()
        return TransformersSession(self.owner, copy.deepcopy(self.cache), self.length)

    @torch.inference_mode()
    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` tokens, by ``Cache.crop``; a static cache has none."""
        self._check_open()
        if not 0 <= length <= self.length:
            raise Refused(f"The session holds {self.length} tokens; it cannot be truncated to {length}.")
        if self.static:
            raise NotOffered("truncate: transformers' StaticCache cannot be cropped.")
        if length == self.length:
            return
        try:
            self.cache.crop(length - self.length)  # negative: so many tokens are removed
        except RuntimeError as reason:  # a sliding window that has already dropped what would be needed
            raise NotOffered(f"truncate: {reason}") from reason
        self.length = length

    def cache_bytes(self) -> int:
        """Bytes of the storages behind keys and values; a cropped cache keeps its storage until it grows again."""
        self._check_open()
        held = [tensor for layer in self.cache.layers for tensor in (layer.keys, layer.values) if tensor is not None]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
        return sum(storages.values())

    def close(self) -> None:
        """Release the cache."""
        self.cache = None

    def _check_open(self) -> None:
        if self.cache is None:
            raise Refused("The session is closed.")


def build(config: Mapping[str, Any], settings: Settings) -> None:
    """Build the model of this config.json without memory for its weights, or raise Refused."""
    kind = str(config.get("model_type"))
    if kind not in transformers.CONFIG_MAPPING:
        raise Refused(f"transformers {transformers.__version__} knows no model_type {kind!r}.")
    try:
        # A copy: from_dict takes keys out of the dictionary that it is given, nested ones too.
        built = transformers.CONFIG_MAPPING[kind].from_dict(copy.deepcopy(dict(config)))
        with torch.device("meta"):
            transformers.AutoModelForCausalLM.from_config(built, attn_implementation=settings.attention)
    except Exception as reason:
        raise Refused(f"transformers refuses the config.json: {_line(reason)}") from reason
    text = built.get_text_config()
    queries, keys = getattr(text, "num_attention_heads", None), getattr(text, "num_key_value_heads", None)
    if isinstance(queries, int) and isinstance(keys, int) and (keys < 1 or queries % keys != 0):
        # The constructor rounds H_q / H_kv down and the forward pass breaks on the shapes.
        raise Refused(f"num_attention_heads {queries} is not a multiple of num_key_value_heads {keys}.")


def load_weights(checkpoint: Path, settings: Settings) -> Any:
    """Load the weights. transformers draws missing tensors at random and drops extra ones; both are refused here."""
    try:
        # What comes back with output_loading_info is a pair, which the library's annotations do not say.
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            checkpoint,
            dtype=DTYPES[settings.dtype],
            attn_implementation=settings.attention,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except UNSOUND as reason:
        raise Refused(f"transformers refuses the checkpoint {checkpoint}: {_line(reason)}") from reason
    model, found = loaded
    words = {"missing_keys": "missing", "unexpected_keys": "not expected", "mismatched_keys": "of the wrong shape"}
    faults = [f"{word}: {', '.join(sorted(map(str, found[key])))}" for key, word in words.items() if found[key]]
    if faults:
        raise Refused(f"The checkpoint {checkpoint} is not sound; tensors {'; tensors '.join(faults)}.")
    return model.to(settings.device)


def load_tokenizer(checkpoint: Path) -> Any:
    """Return the checkpoint's tokenizer, or None if it has no tokenizer.json."""
    if not (checkpoint / "tokenizer.json").is_file():
        return None
    try:
        return transformers.AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False, local_files_only=True)
    except UNSOUND as reason:
        raise Refused(f"transformers refuses the tokenizer of {checkpoint}: {_line(reason)}") from reason


def _max_length(config: Any) -> int | None:
    """Return the size of a table of learned positions; None for RoPE, which has an angle for every position."""
    if getattr(config, "rope_parameters", None) is not None:
        return None
    return getattr(config, "max_position_embeddings", None)


def eos_ids(config: transformers.GenerationConfig) -> tuple[int, ...]:
    """Return the EOS ids that transformers would stop at; it takes config.json's where there is no other file."""
    found = config.eos_token_id
    return () if found is None else tuple(found) if isinstance(found, list) else (found,)


def _line(reason: BaseException) -> str:
    """Return the exception's message as one line. A KeyError says no more than the key that it did not find."""
    return f"it does not know {reason}." if isinstance(reason, KeyError) else " ".join(str(reason).split())

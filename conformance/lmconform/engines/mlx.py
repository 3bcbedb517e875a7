"""Adapter to mlx-lm: decoders on MLX, Apple's array library, which runs on plain CPUs too.

``score`` is one call of the model without a cache, ``score_batch`` a call over mlx-lm's batch cache, a session is a
call over its prompt cache, and ``generate`` is its ``BatchGenerator`` or ``generate_step``. Nothing is computed here
that mlx-lm computes itself.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache
from mlx_lm.utils import _get_classes, load_model, load_tokenizer

from lmconform.adapter import (
    Array,
    Choices,
    Completion,
    DType,
    Engine,
    Model,
    Needs,
    NotOffered,
    Precision,
    Refused,
    Request,
    Session,
)
from lmconform.engines._mlx_arrays import DTYPES, numbers
from lmconform.engines._mlx_generate import generate
from lmconform.engines.common import check_tokens, choose, read_config, regime_settings

PREFILL_CHUNK, FEW_SLOTS = 4, 2
UNSOUND = (OSError, ValueError, KeyError, TypeError, AssertionError, RuntimeError)
"""What mlx-lm and MLX raise for a checkpoint that they do not load."""
UNREAD = {
    "phi3": ("head_dim", lambda config: config["hidden_size"] // config["num_attention_heads"]),
    "gpt2": ("n_inner", lambda config: 4 * config["n_embd"]),
}
"""By family, a size that mlx-lm does not read, and what it takes instead. Its loader then refuses the tensors."""


@dataclass(frozen=True)
class Settings:
    """How one checkpoint is loaded and run. The defaults are mlx-lm's own."""

    dtype: DType
    kv_bits: int | None = None
    """Bits of a number in a quantised cache; None for a cache in ``dtype``."""
    kv_group_size: int = 32
    """How many of them share a scale and an offset; head_dim must be a multiple of it."""
    padding: str = "right"
    prefill_step_size: int = 2048
    completion_batch_size: int = 32
    prefill_batch_size: int = 8
    loop: str = "batch"
    """What generates: ``batch``, ``single`` or ``speculative``."""
    prefix_cache: bool = False


class MLX(Engine):
    """mlx-lm. Options: ``dtype`` (float32, float16, bfloat16), ``kv_bits`` (8: keys and values quantised)."""

    name = "mlx-lm"
    version = f"{mlx_lm.__version__} (mlx {mx.__version__})"
    choices = Choices(
        scores="logits",
        logprobs="raw",
        ties="first",
        sampler_order=("top_p", "min_p", "top_k", "temperature"),
        temperature_zero="greedy",
        stop_token="returned",
        stop_text="dropped",
        eos_files=("generation_config.json", "config.json", "tokenizer_config.json"),
        zero_tokens="refused",
        empty_prompt="refused",
    )

    def __init__(self, dtype: str = "float32", kv_bits: str | None = None) -> None:
        """Raise ValueError for a value that is not legal."""
        number = choose("dtype", dtype, DTYPES)
        bits = None if kv_bits is None else int(choose("kv_bits", kv_bits, ("8",)))
        # An 8-bit group has a scale and an offset of its own; q8_0, a block of as many with a scale, is no finer.
        cache: DType = number if bits is None else "q8_0"
        self.settings = Settings(number, bits, loop="batch" if bits is None else "single")
        self.precision = Precision(weights=number, compute=number, kv_cache=cache, scores=number, logprobs=number)

    def accepts(self, config: Mapping[str, Any]) -> str | None:
        """Return why mlx-lm refuses this config.json, found by building the model; its weights are never computed."""
        try:
            _build(config, self.settings)
        except Refused as reason:
            return str(reason)
        return None

    def regimes(self) -> Mapping[str, Mapping[str, Any]]:
        """Other padding, prefill in chunks, few slots, one request after the other, a prefix cache, drafts.

        With a quantised cache, which mlx-lm does not batch, the last two are not there, nor are slots.
        """
        chunks = {"chunked-prefill": {"prefill_step_size": PREFILL_CHUNK}}
        if self.settings.kv_bits is not None:
            return chunks
        slots = {"completion_batch_size": FEW_SLOTS, "prefill_batch_size": FEW_SLOTS}
        return {
            **chunks,
            "left-padding": {"padding": "left"},
            "few-slots": slots,
            "single": {"loop": "single"},
            "prefix-cache": {"prefix_cache": True},
            "speculative": {"loop": "speculative"},
        }

    def load(self, checkpoint: Path, needs: Needs) -> Model:
        """Load a Hugging Face directory. mlx-lm refuses missing, extra and misshapen tensors."""
        settings = replace(self.settings, **regime_settings(self.regimes(), needs))
        checkpoint = Path(checkpoint)
        fields = read_config(checkpoint)
        _build(fields, settings)
        network, config = self.read(checkpoint, {})
        draft = None
        if settings.loop == "speculative":  # the same checkpoint, its first layer alone
            draft, _ = self.read(checkpoint, {"num_hidden_layers": 1}, strict=False)
        return MLXModel(network, _tokenizer(checkpoint, config), config, settings, draft)

    def read(self, checkpoint: Path, changes: Mapping[str, Any], strict: bool = True) -> tuple[Any, dict[str, Any]]:
        """Return mlx-lm's model, in the format of the option, and its config; ``changes`` replace fields of it.

        The config is config.json, with the EOS ids of generation_config.json where it has some.
        """
        try:
            network, config = load_model(checkpoint, strict=strict, model_config=dict(changes))
        except UNSOUND as reason:
            raise Refused(f"mlx-lm refuses the checkpoint {checkpoint}: {_line(reason)}") from reason
        network.set_dtype(DTYPES[self.settings.dtype])
        mx.eval(network.parameters())
        return network, config


class MLXModel(Model):
    """A checkpoint that mlx-lm has loaded."""

    def __init__(self, network: Any, tokenizer: Any, config: Mapping[str, Any], settings: Settings, draft: Any) -> None:
        self.network, self.tokenizer, self.settings, self.draft = network, tokenizer, settings, draft
        self.eos_ids = _eos_ids(tokenizer, config)
        self.vocab_size = int(network.args.vocab_size)
        self.slots = settings.completion_batch_size if settings.loop == "batch" else 1
        self.prompt_caches: Any = None
        """Prompts and their caches, for the regime ``prefix-cache``; made by the first call of ``generate``."""

    def score(self, tokens: Sequence[int]) -> Array:
        """Return logits [T, V] of one call without a cache."""
        ids = check_tokens(tokens, self.vocab_size)
        return numbers(self.network(mx.array([ids]))[0])

    def score_batch(self, sequences: Sequence[Sequence[int]]) -> list[Array]:
        """Return logits [T_b, V] of each sequence, from one call over mlx-lm's cache for padded rows."""
        rows = [check_tokens(tokens, self.vocab_size) for tokens in sequences]
        if not rows:
            return []
        lengths = [len(row) for row in rows]
        missing = [max(lengths) - length for length in lengths]
        left = self.settings.padding == "left"
        cache = [one.merge([one] * len(rows)) for one in make_prompt_cache(self.network)]  # empty, for B rows
        for one in cache:
            if left:
                one.prepare(left_padding=missing)
            elif max(missing):
                one.prepare(lengths=lengths, right_padding=missing)
        padded = [[0] * gap + row if left else row + [0] * gap for row, gap in zip(rows, missing, strict=True)]
        logits = numbers(self.network(mx.array(padded), cache=cache))  # [B, longest, V]
        starts = missing if left else [0] * len(rows)
        return [logits[b, start : start + lengths[b]] for b, start in enumerate(starts)]

    def open(self) -> Session:
        """Return a session over an empty prompt cache."""
        cache = make_prompt_cache(self.network)
        if self.settings.kv_bits is not None:
            cache = [one.to_quantized(self.settings.kv_group_size, self.settings.kv_bits) for one in cache]
        return MLXSession(self, cache)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Continue all requests; see ``_mlx_generate``."""
        for request in requests:
            check_tokens(request.prompt, self.vocab_size)
        return generate(self, requests)

    def close(self) -> None:
        """Release the weights and the caches."""
        self.network = self.draft = self.prompt_caches = None
        mx.clear_cache()


class MLXSession(Session):
    """One prompt cache, and the number of tokens that it holds."""

    def __init__(self, owner: MLXModel, cache: list[Any], length: int = 0) -> None:
        self.owner, self.length = owner, length
        self.cache: list[Any] | None = cache

    def extend(self, tokens: Sequence[int]) -> Array:
        """Append a chunk and return its logits [n, V]. Positions and mask are those of the cache."""
        cache = self._open()
        ids = check_tokens(tokens, self.owner.vocab_size)
        logits = numbers(self.owner.network(mx.array([ids]), cache=cache)[0])
        self.length += len(ids)
        return logits

    def fork(self) -> Session:
        """Return a session over a deep copy, which is what mlx-lm's own prefix cache hands out."""
        return MLXSession(self.owner, copy.deepcopy(self._open()), self.length)

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` tokens, by ``trim_prompt_cache``."""
        cache = self._open()
        if not 0 <= length <= self.length:
            raise Refused(f"The session holds {self.length} tokens; it cannot be truncated to {length}.")
        if not can_trim_prompt_cache(cache):
            raise NotOffered("truncate: mlx-lm cannot trim this cache.")
        trim_prompt_cache(cache, self.length - length)
        self.length = length

    def cache_bytes(self) -> int:
        """Return the bytes of keys and values; mlx-lm makes room for 256 tokens at a time."""
        return sum(0 if one.empty() else int(one.nbytes) for one in self._open())

    def close(self) -> None:
        """Release the cache."""
        self.cache = None

    def _open(self) -> list[Any]:
        if self.cache is None:
            raise Refused("The session is closed.")
        return self.cache


def _build(config: Mapping[str, Any], settings: Settings) -> None:
    """Build the model of this config.json; MLX is lazy, so no weight is computed. Raises Refused."""
    family = config.get("model_type")
    try:
        network, arguments = _get_classes(dict(config))
        network(arguments.from_dict(copy.deepcopy(dict(config))))
        if family in UNREAD:
            name, own = UNREAD[family]
            if config.get(name) not in (None, own(config)):
                raise Refused(f"{name} is {config[name]}; mlx-lm's {family} always takes {own(config)}.")
    except UNSOUND as reason:
        raise Refused(f"mlx-lm refuses the config.json: {_line(reason)}") from reason
    queries, keys = config.get("num_attention_heads", 1), config.get("num_key_value_heads") or 1
    if queries % keys:  # MLX's attention says so at the first call
        raise Refused(f"num_attention_heads {queries} is not a multiple of num_key_value_heads {keys}.")
    width = config.get("head_dim") or config.get("hidden_size", 0) // queries
    if settings.kv_bits is not None and width % settings.kv_group_size:
        raise Refused(f"head_dim is {width}; a quantised cache needs a multiple of {settings.kv_group_size}.")


def _tokenizer(checkpoint: Path, config: Mapping[str, Any]) -> Any:
    """Return mlx-lm's wrapper of the checkpoint's tokenizer, or None if it has no tokenizer.json."""
    if not (checkpoint / "tokenizer.json").is_file():
        return None
    try:
        return load_tokenizer(checkpoint, eos_token_ids=config.get("eos_token_id"))
    except Exception as reason:  # transformers, which reads it, has errors of its own for configs that it refuses
        raise Refused(f"mlx-lm refuses the tokenizer of {checkpoint}: {_line(reason)}") from reason


def _eos_ids(tokenizer: Any, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the EOS ids that mlx-lm would stop at; without a tokenizer, those of its config."""
    if tokenizer is not None:
        return tuple(sorted(tokenizer.eos_token_ids))
    found = config.get("eos_token_id")
    return () if found is None else tuple(found) if isinstance(found, list) else (found,)


def _line(reason: BaseException) -> str:
    """Return the exception's message as one line. A KeyError says no more than the key that it did not find."""
    return f"it does not find {reason}." if isinstance(reason, KeyError) else " ".join(str(reason).split())

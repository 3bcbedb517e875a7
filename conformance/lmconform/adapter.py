"""The contract between an engine and the suite.

An adapter is three small classes: an ``Engine`` that loads checkpoints, the ``Model`` that it returns, and the
``Session`` (a KV cache) that a model opens. Override what the engine can do and leave the rest: what an adapter
overrides is what the suite exercises. Token ids go in, scores come out.

This module imports the standard library and NumPy alone, so that it runs in the engine's own environment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import numpy as np

DType = Literal["float64", "float32", "tf32", "bfloat16", "float16", "fp8_e4m3", "fp8_e5m2", "q8_0", "int8"]
Array = np.ndarray
Mask = Literal["none", "causal", "given"]


class NotOffered(Exception):
    """The engine does not have this ability. The suite reports ``unsupported`` with this message."""


class Refused(Exception):
    """The engine declines this input on purpose (a shape, an id out of range, an empty prompt, the context limit)."""


def _check_literals(record: Any) -> None:
    """Raise ValueError if a field annotated with a ``Literal`` holds a value outside it."""
    for name, allowed in _literals(record.__class__).items():
        value = getattr(record, name)
        if value not in allowed:
            told = ", ".join(map(str, allowed))
            raise ValueError(f"{type(record).__name__}.{name} is {value!r}; it may be one of: {told}.")


@cache
def _literals(kind: Any) -> dict[str, tuple[Any, ...]]:
    """The values that each field annotated with a ``Literal`` may hold. Hints are resolved once a class: it is slow."""
    hints = get_type_hints(kind)
    return {one.name: get_args(hints[one.name]) for one in fields(kind) if get_origin(hints[one.name]) is Literal}


@dataclass(frozen=True)
class Needs:
    """What the suite will ask of one loaded checkpoint. Many engines must fix these when they start."""

    max_tokens: int = 256
    """Longest sequence, prompt and continuation together."""
    max_rows: int = 8
    """Most sequences in one ``score_batch`` or ``generate`` call."""
    max_sessions: int = 8
    """Most sessions open at the same time."""
    top_n: int = 0
    """Most log-probabilities a step that a ``generate`` request will ask for; 0 asks for none."""
    regime: str | None = None
    """One of the names of ``Engine.regimes()``; None is the engine's default way of working."""


@dataclass(frozen=True)
class Precision:
    """The number formats that set the error budget. Declare what the engine really computes in."""

    weights: DType = "float32"
    """Format in which the weights take part in products. A GGUF file is written in it, see ``Engine.format``."""
    compute: DType = "float32"
    """Format to which results between operations are rounded. Products may accumulate in something wider."""
    kv_cache: DType = "float32"
    """Format in which cached keys and values are stored."""
    scores: DType = "float32"
    """Format of the returned scores before the adapter widens them."""
    logprobs: DType = "float32"
    """Format in which the log-probabilities of ``generate`` are computed from the scores."""

    def __post_init__(self) -> None:
        _check_literals(self)


@dataclass(frozen=True)
class Choices:
    """What engines may legitimately choose. The suite holds the engine to what it declares here.

    Not asked yet: ``temperature_zero``, ``empty_prompt`` and ``batch_invariant``.
    """

    scores: Literal["logits", "log-probabilities", "unspecified"] = "unspecified"
    """What ``score`` and ``extend`` return. Either way a row is judged up to a constant."""
    logprobs: Literal["raw", "processed", "unspecified"] = "unspecified"
    """Stage of the log-probabilities of ``generate``: of the model's own scores (raw), or after temperature and
    filters (processed)."""
    ties: Literal["first", "last", "random", "unspecified"] = "unspecified"
    """Which of several ids with the same top score greedy decoding takes: the lowest id, the highest, or any."""
    sampler_order: tuple[str, ...] | None = None
    """Order in which filters apply, such as ("temperature", "top_k", "top_p", "min_p"). None is unspecified."""
    temperature_zero: Literal["greedy", "refused", "unspecified"] = "unspecified"
    """What ``temperature=0`` does."""
    stop_token: Literal["returned", "dropped", "unspecified"] = "unspecified"
    """Whether ``Completion.tokens`` ends with the stop id, or the stop sequence, that ended the row. The tokens that
    complete a stop string are always returned."""
    stop_text: Literal["returned", "dropped", "unspecified"] = "unspecified"
    """Whether ``Completion.text`` holds the stop string, or the text of the stop id, that ended the row. The text of a
    stop sequence is there if its tokens are returned."""
    eos_files: tuple[str, ...] | None = None
    """Files of the checkpoint in which ``load`` looks for EOS ids, first the one that wins: "generation_config.json",
    "config.json", "tokenizer_config.json". The first that names any counts; later ones may count as well. None is
    unspecified."""
    zero_tokens: Literal["empty", "refused", "unspecified"] = "unspecified"
    """``max_new_tokens=0`` gives no token (empty), or is refused."""
    min_tokens: Literal["mask", "ignore", "unspecified"] = "unspecified"
    """Among the first ``min_new_tokens`` tokens a stop id cannot be drawn (mask), or is drawn and does not stop
    (ignore)."""
    long_prompt: Literal["refused", "empty", "unspecified"] = "unspecified"
    """A prompt of more than ``Model.max_length`` tokens is refused, or comes back with no new tokens and reason
    ``length``. ``score`` and ``extend`` can only refuse it."""
    long_continuation: Literal["refused", "stops", "unspecified"] = "unspecified"
    """A request whose prompt fits, and whose ``max_new_tokens`` lead past ``Model.max_length``, is refused, or ends
    there with reason ``length``."""
    empty_prompt: Literal["refused", "empty", "unspecified"] = "unspecified"
    """``score([])`` is refused, or gives an array of no rows."""
    batch_invariant: bool = False
    """A row's scores are the same bits whatever else is in the batch."""

    def __post_init__(self) -> None:
        _check_literals(self)


@dataclass(frozen=True)
class Request:
    """One prompt to continue. None means OFF: send the engine its neutral value, since engines have defaults."""

    prompt: tuple[int, ...]
    """Token ids, at least one. Nothing may be added to them."""
    max_new_tokens: int = 16
    """At most this many new tokens. A stop id counts as one, also where it is not returned."""
    min_new_tokens: int = 0
    """No stop takes effect among the first so many new tokens; with the next one, it does."""
    temperature: float | None = None
    """None is greedy decoding; otherwise scores are divided by it before drawing."""
    top_k: int | None = None
    """Keep the k most probable ids."""
    top_p: float | None = None
    """Keep the smallest set of most probable ids whose mass reaches p, the crossing id included."""
    min_p: float | None = None
    """Keep ids whose probability is at least min_p times the greatest."""
    seed: int | None = None
    """Seed of this request's draws; None leaves the choice to the engine."""
    stop_ids: tuple[int, ...] = ()
    """Ids that end the row. Empty, and without ``eos``, no id does."""
    eos: bool = False
    """The checkpoint's own EOS ids end the row too. Off, they are ids like any other."""
    stop_strings: tuple[str, ...] = ()
    """Strings whose appearance in the new text ends the row, with the token that completes the first of them."""
    stop_sequences: tuple[tuple[int, ...], ...] = ()
    """Sequences of ids; the row ends when its newest tokens are one of them."""
    n: int = 1
    """Independent completions of this prompt."""
    logprobs: int | None = None
    """Return the log-probabilities of at least the n most probable ids a step."""
    stream: bool = False
    """Also return the pieces as they would have been streamed."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", tuple(self.prompt))
        object.__setattr__(self, "stop_ids", tuple(self.stop_ids))
        object.__setattr__(self, "stop_strings", tuple(self.stop_strings))
        object.__setattr__(self, "stop_sequences", tuple(tuple(ids) for ids in self.stop_sequences))


@dataclass(frozen=True)
class Completion:
    """What one request produced."""

    tokens: tuple[int, ...]
    """The new token ids, without the prompt; with or without the stop that ended the row, see ``Choices``."""
    finish_reason: Literal["stop", "length", "unspecified"] = "unspecified"
    """Why the row ended: a stop id, string or sequence; the length limit; or the engine does not say."""
    text: str | None = None
    """The new text, with or without the stop that ended the row, see ``Choices``; None where the engine has no
    tokenizer."""
    logprobs: tuple[Mapping[int, float], ...] | None = None
    """A step: id to natural-log probability. None where it was not asked for."""
    pieces: tuple[tuple[int, ...], ...] | None = None
    """With ``stream``: the new tokens in the portions in which they were handed out."""
    cached_tokens: int | None = None
    """How many prompt tokens were taken from a prefix cache; None where the engine does not say."""

    def __post_init__(self) -> None:
        _check_literals(self)
        object.__setattr__(self, "tokens", tuple(self.tokens))


@dataclass(frozen=True)
class Operator:
    """One kernel of a library, under a name of its own: a variant, a tile size, a backend.

    Arrays come in as float32, with values that float16 and bfloat16 hold exactly, and go out in any floating format.
    What a kernel declines for its shape or its mask it refuses by raising ``Refused``; what is declared here is not
    asked in the first place.
    """

    kind: ClassVar[str]
    run: Callable[..., Array]

    def __post_init__(self) -> None:
        _check_literals(self)


@dataclass(frozen=True)
class AttentionOperator(Operator):
    """Softmax attention of one sequence, with scores divided by the root of D.

    ``run(q, k, v, causal, visible)``: q [H_q, n, D], k and v [H_kv, m, D] give [H_q, n, D], where m >= n and H_kv
    divides H_q. ``causal``: the last query stands at the last key and sees all, each earlier one a key less.
    ``visible``, where it is not None: bool [n, m], true where a query may see a key.
    """

    kind: ClassVar[str] = "attention"
    masks: tuple[Mask, ...] = ("none", "causal")
    """Which it takes: none at all, causal, or a given array ``visible``."""
    grouped: bool = True
    """Whether H_kv may be less than H_q."""
    head_dims: tuple[int, ...] | None = None
    """Head dimensions D that it takes; None for any multiple of 16."""
    max_queries: int | None = None
    """Most queries of a call: 1 for a decode kernel; None where there is no limit."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "masks", tuple(self.masks))
        if odd := set(self.masks) - set(get_args(Mask)):
            raise ValueError(f"AttentionOperator.masks holds {odd}; it may hold: {', '.join(get_args(Mask))}.")


@dataclass(frozen=True)
class RopeOperator(Operator):
    """Rotary position embedding. ``run(x, positions, base)``: x [H, T, D] and int positions [T] give [H, T, D]."""

    kind: ClassVar[str] = "rope"
    layout: Literal["half-split", "interleaved"] = "half-split"
    """Which entries form a pair: i and i + D/2, or neighbours."""
    head_dims: tuple[int, ...] | None = None
    """Head dimensions D that it takes; None for any multiple of 16."""


@dataclass(frozen=True)
class RMSNormOperator(Operator):
    """RMSNorm. ``run(x, weight, eps)``: x [n, hidden_size] and weight [hidden_size] give [n, hidden_size]."""

    kind: ClassVar[str] = "rms_norm"
    hidden_sizes: tuple[int, ...] | None = None
    """Widths that it takes; None for any multiple of 16."""


OPERATORS: dict[str, type[Operator]] = {one.kind: one for one in (AttentionOperator, RopeOperator, RMSNormOperator)}
"""Kinds of operators."""


class Session:
    """One KV cache that grows. Positions continue from its length.

    What it declines leaves it as it was. After ``close`` it declines everything but another ``close``.
    """

    def extend(self, tokens: Sequence[int]) -> Array:
        """Append ``tokens`` and return their scores, [n, V]; row i is for the token that follows tokens[i].

        Raises Refused for no tokens at all, and for more than ``Model.max_length`` in the session.
        """
        raise NotOffered("extend")

    def fork(self) -> Session:
        """Return an independent copy that holds the same tokens."""
        raise NotOffered("fork")

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` tokens; 0 forgets all.

        Raises Refused if the session holds fewer.
        """
        raise NotOffered("truncate")

    def cache_bytes(self) -> int:
        """Bytes allocated now for this session's keys and values, room that is not yet used included."""
        raise NotOffered("cache_bytes")

    def close(self) -> None:
        """Release the cache; closing twice is no error. The default does nothing."""


class Model:
    """A loaded checkpoint."""

    vocab_size: int = 0
    """V, the number of columns of every array of scores. Required."""
    max_length: int | None = None
    """Most tokens a sequence may hold, prompt and continuation together; None where there is no limit. A last token
    that is drawn and never fed may come on top."""
    slots: int | None = None
    """Rows that the engine really runs side by side; None where it does not say."""

    def score(self, tokens: Sequence[int]) -> Array:
        """Scores of one sequence in one pass, [T, V]; row t is for the token that follows tokens[t].

        Scores are logits or log-probabilities: each row is defined up to a constant.
        """
        raise NotOffered("score")

    def score_batch(self, sequences: Sequence[Sequence[int]]) -> list[Array]:
        """Scores of several sequences of different lengths in one call, a [T_b, V] array each, without padding."""
        raise NotOffered("score_batch")

    def open(self) -> Session:
        """Return a session with an empty KV cache."""
        raise NotOffered("open")

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Continue all requests in one batch. Completions come in the order of the requests, ``n`` for each."""
        raise NotOffered("generate")

    def close(self) -> None:
        """Release the weights. The default does nothing."""


class Engine:
    """An inference engine. The constructor takes ``--option KEY=VALUE`` as keyword arguments, all of them strings."""

    name: str = ""
    """Short name for reports. Required."""
    version: str = "unknown"
    """Version of the engine (not of the adapter)."""
    format: Literal["hf", "gguf"] = "hf"
    """Checkpoint format that ``load`` reads: a Hugging Face directory, or one GGUF file.

    ``hf``: config.json, generation_config.json, tokenizer.json, tokenizer_config.json and model.safetensors in float32.
    ``gguf``: one file of the architecture ``llama`` (no other family is written), with its matrices in the format
    ``precision.weights`` if that is float32, float16 or bfloat16, and else in float32. Rows of W_q and W_k are in
    GGUF's order. EOS ids are ``eos_token_id``, ``eot_token_id`` and ``eom_token_id``, and none where the checkpoint
    names none: the tokenizer, of the kind ``rwkv``, has no default. It has the pieces of tokenizer.json.
    """
    precision: Precision = Precision()
    choices: Choices = Choices()

    def accepts(self, config: Mapping[str, Any]) -> str | None:
        """Return why a checkpoint with this config.json cannot be loaded, or None if it can.

        The suite asks for ``model_type`` llama, phi3, once with a ``sliding_window``, and gpt2. The default takes llama
        alone.
        """
        family = config.get("model_type")
        return None if family == "llama" else f"model_type is {family!r}, and the adapter's accepts does not say more."

    def regimes(self) -> Mapping[str, Mapping[str, Any]]:
        """Other ways of working that must give the same scores: a name, and the settings that make it."""
        return {}

    def load(self, checkpoint: Path, needs: Needs) -> Model:
        """Load the checkpoint in the regime ``needs.regime``: a directory, or with ``format = "gguf"`` a file.

        Raise Refused with the reason if it is not sound.
        """
        raise NotOffered("load")

    def operators(self) -> Mapping[str, Operator]:
        """Single kernels by name, for a library that has no model around them."""
        raise NotOffered("operators")

    def close(self) -> None:
        """Release everything. The default does nothing."""


@dataclass(frozen=True)
class Description:
    """What an engine says of itself when it is started; the reply to ``hello``."""

    name: str
    version: str
    format: str
    precision: Precision
    choices: Choices
    regimes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    offers: tuple[str, ...] = ()


def offered(thing: Engine | Model | Session) -> tuple[str, ...]:
    """Names of the public methods that an adapter object overrides."""
    base = next(cls for cls in (Engine, Model, Session) if isinstance(thing, cls))
    names = [name for name, value in vars(base).items() if callable(value) and not name.startswith("_")]
    return tuple(name for name in names if getattr(type(thing), name) is not getattr(base, name))

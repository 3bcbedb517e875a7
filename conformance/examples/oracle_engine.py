#!/usr/bin/env python3
"""A whole engine in one file: the standard's llama decoder in NumPy, which speaks lmconform's wire protocol.

    lmconform check --command "python oracle_engine.py"
    lmconform check --command "python oracle_engine.py" --option dtype=float64

It needs Python 3.10 and NumPy, and nothing of lmconform: an engine in any other language has the same parts. They are,
from top to bottom: a reader of checkpoints, the decoder with its KV cache, sampling and stops, the types of messages,
and the loop that answers them. Clear comes before fast.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PROTOCOL = 1  # version of the wire protocol
LONGEST = 1 << 28  # most bytes that a line may announce after it
INLINE = 1024  # arrays of up to so many bytes travel inside the line
MOST_COMPLETIONS = 1000  # of one request


class Refused(Exception):
    """This input is declined on purpose."""


class NotOffered(Exception):
    """This engine does not have the ability."""


class Violation(Exception):
    """The message is not one of the protocol."""


# ---- The checkpoint: config.json and model.safetensors


@dataclass(frozen=True)
class Config:
    """What config.json says, under its own names; D is ``head_dim``, V is ``vocab_size``."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    hidden_act: str
    tie_word_embeddings: bool
    rope: dict[str, Any]  # rope_theta, rope_type, and the numbers of that type


ROPE_TYPES = {
    "default": set[str](),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
}
ONLY = {
    "model_type": "llama",
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "sliding_window": None,
    "quantization_config": None,
}
"""Fields for which this engine knows one value. Another value is refused: a field passed over in silence is a fault."""


def read_config(fields: dict[str, Any]) -> Config:
    """Read the fields of config.json; raise Refused for what this engine does not do."""
    for name, known in ONLY.items():
        if fields.get(name, None if name == "model_type" else known) != known:
            raise Refused(f"config.json has {name} = {fields.get(name)!r}; this engine knows {known!r} alone.")
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    given = {name: _size(fields, name) for name in (*sizes, "max_position_embeddings")}
    H_q = given["num_attention_heads"]
    H_kv = _size({"num_key_value_heads": H_q} | _said(fields), "num_key_value_heads")
    D = _size({"head_dim": given["hidden_size"] // H_q} | _said(fields), "head_dim")
    if H_q % H_kv or D % 2:
        raise Refused(f"config.json has H_q = {H_q}, H_kv = {H_kv}, D = {D}: H_kv must divide H_q, D must be even.")
    eps, activation = fields.get("rms_norm_eps", 1e-6), fields.get("hidden_act", "silu")
    if type(eps) not in (int, float) or not 0 <= eps < math.inf:
        raise Refused(f"config.json has rms_norm_eps = {eps!r}; a number of 0 or more was expected.")
    if activation not in ACTIVATIONS:
        raise Refused(f"config.json has hidden_act = {activation!r}; known are: {', '.join(ACTIVATIONS)}.")
    return Config(
        **given,
        num_key_value_heads=H_kv,
        head_dim=D,
        rms_norm_eps=eps,
        hidden_act=activation,
        tie_word_embeddings=fields.get("tie_word_embeddings", False) is True,
        rope=_read_rope(fields),
    )


def _said(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _size(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    if type(value) is not int or value < 1:
        raise Refused(f"config.json has {name} = {value!r}; a whole number of 1 or more was expected.")
    return value


def _read_rope(fields: dict[str, Any]) -> dict[str, Any]:
    """Bring both spellings together: ``rope_parameters``, and the older ``rope_theta`` with ``rope_scaling``."""
    newer, older = fields.get("rope_parameters") or {}, fields.get("rope_scaling") or {}
    if not isinstance(newer, dict) or not isinstance(older, dict):
        raise Refused("config.json has RoPE parameters that are no object.")
    rope: dict[str, Any] = {}
    usual: dict[str, Any] = {"rope_theta": 10000.0, "rope_type": "default"}
    for name, value in [*newer.items(), ("rope_theta", fields.get("rope_theta")), *older.items()]:
        name = "rope_type" if name == "type" else name
        if value is not None and rope.setdefault(name, value) != value:
            raise Refused(f"config.json says {name} = {rope[name]!r} in one place and {value!r} in another.")
    rope = usual | rope
    kind = rope["rope_type"]
    if not isinstance(kind, str) or kind not in ROPE_TYPES or rope.pop("partial_rotary_factor", 1.0) != 1.0:
        raise Refused(f"config.json asks for RoPE {rope}; known are: {', '.join(ROPE_TYPES)}, and none in part.")
    numbers = {"rope_theta"} | ROPE_TYPES[kind]
    if set(rope) != numbers | {"rope_type"}:
        raise Refused(f"RoPE of type {kind} needs exactly {sorted(numbers)}; config.json gives {sorted(rope)}.")
    for name in numbers:
        if type(rope[name]) not in (int, float) or not 0 < rope[name] < math.inf:
            raise Refused(f"config.json has {name} = {rope[name]!r}; a number above 0 was expected.")
    return rope


def tensor_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the checkpoint; a matrix is [out, in]."""
    hidden, inner, D = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_attention_heads * D, config.num_key_value_heads * D
    layer = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    table = (config.vocab_size, hidden)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": table, "model.norm.weight": (hidden,)}
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = table
    for number in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


def read_tensors(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str) -> dict[str, np.ndarray]:
    """Read a safetensors file: 8 bytes with the length of the header, the header in JSON, and the numbers.

    Raises Refused if the file is not sound, or if a tensor is missing, extra, or of another shape.
    """
    formats = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
    data = memoryview(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    try:
        header = json.loads(bytes(data[8:start]))
        header.pop("__metadata__", None)
        found = {name: tuple(entry["shape"]) for name, entry in header.items()}
        for name in sorted(found.keys() | shapes.keys()):
            if found.get(name) != shapes.get(name):
                raise Refused(f"Tensor {name} is {found.get(name)}; config.json asks for {shapes.get(name)}.")
        tensors = {}
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            stored = np.frombuffer(data[start + first : start + last], formats[entry["dtype"]])
            if entry["dtype"] == "BF16":  # the upper half of a float32
                stored = (stored.astype(np.uint32) << 16).view(np.float32)
            tensors[name] = stored.reshape(shapes[name]).astype(dtype)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"{path} is no sound safetensors file ({type(error).__name__}: {error}).") from error
    return tensors


# ---- The decoder


def silu(x: np.ndarray) -> np.ndarray:
    return x * np.exp(-np.logaddexp(0, -x))  # x / (1 + exp(-x)) without overflow


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2))) / 2


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


ACTIVATIONS = {"silu": silu, "gelu": gelu, "gelu_pytorch_tanh": gelu_tanh, "relu": relu}

Cache = list[tuple[np.ndarray, np.ndarray]]
"""Rotated keys and values of each layer, [H_kv, S, D]. No array is ever written to, so that a copied list is a fork."""


class Model:
    """A loaded checkpoint."""

    def __init__(self, directory: Path, dtype: str) -> None:
        """Raise Refused if the checkpoint is not sound, or asks for what this engine does not do."""
        try:
            fields = json.loads((directory / "config.json").read_text(encoding="utf-8"))
            if not isinstance(fields, dict):
                raise Refused("config.json holds no object.")
            self.config = read_config(fields)
            self.weights = read_tensors(directory / "model.safetensors", tensor_shapes(self.config), dtype)
            self.eos_ids = _eos_ids(directory, fields)
        except (OSError, ValueError) as error:
            raise Refused(f"The checkpoint {directory} cannot be read: {error}") from error
        self.dtype = dtype
        self.frequencies = _frequencies(self.config.head_dim, self.config.rope)

    def empty(self) -> Cache:
        """A cache of no tokens."""
        nothing = np.zeros((self.config.num_key_value_heads, 0, self.config.head_dim), self.dtype)
        return [(nothing, nothing)] * self.config.num_hidden_layers

    def forward(self, tokens: list[int], cache: Cache) -> tuple[np.ndarray, Cache]:
        """Scores [n, V] of the tokens that follow those of the cache, and the grown cache."""
        config, W = self.config, self.weights
        S, n = cache[0][0].shape[1], len(tokens)
        angle = np.arange(S, S + n)[:, None] * self.frequencies  # [n, D/2], in float64 whatever the dtype
        turn = np.cos(angle).astype(self.dtype), np.sin(angle).astype(self.dtype)
        x, grown = W["model.embed_tokens.weight"][tokens], []  # [n, hidden_size]
        for number, (keys, values) in enumerate(cache):
            layer = f"model.layers.{number}."
            normed = self._norm(x, layer + "input_layernorm.weight")
            q, k, v = (self._heads(normed, layer + f"self_attn.{name}_proj.weight") for name in "qkv")
            keys = np.concatenate([keys, _rotated(k, *turn)], axis=1)  # [H_kv, S + n, D]
            values = np.concatenate([values, v], axis=1)
            grown.append((keys, values))
            x = x + _attention(_rotated(q, *turn), keys, values) @ W[layer + "self_attn.o_proj.weight"].T
            normed = self._norm(x, layer + "post_attention_layernorm.weight")
            gate, up = (normed @ W[layer + f"mlp.{name}_proj.weight"].T for name in ("gate", "up"))
            x = x + (ACTIVATIONS[config.hidden_act](gate) * up) @ W[layer + "mlp.down_proj.weight"].T
        head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
        return self._norm(x, "model.norm.weight") @ W[head].T, grown

    def check(self, tokens: list[int], held: int = 0) -> list[int]:
        """Return the tokens if they can follow ``held`` others; raise Refused otherwise."""
        V, limit = self.config.vocab_size, self.config.max_position_embeddings
        if not tokens:
            raise Refused("There are no tokens; at least one is needed.")
        if wrong := [token for token in tokens if not 0 <= token < V]:
            raise Refused(f"Token id {wrong[0]} is out of range; ids are 0 to {V - 1}.")
        if held + len(tokens) > limit:
            raise Refused(f"The sequence would hold {held + len(tokens)} tokens; the limit is {limit}.")
        return tokens

    def _norm(self, x: np.ndarray, weight: str) -> np.ndarray:
        mean = np.mean(x * x, axis=-1, keepdims=True)
        return x / np.sqrt(mean + np.asarray(self.config.rms_norm_eps, self.dtype)) * self.weights[weight]

    def _heads(self, x: np.ndarray, weight: str) -> np.ndarray:
        projected = x @ self.weights[weight].T
        return projected.reshape(len(x), -1, self.config.head_dim).swapaxes(0, 1)  # [n, H * D] -> [H, n, D]


def _eos_ids(directory: Path, config: dict[str, Any]) -> list[int]:
    """EOS ids of generation_config.json, and of config.json where that names none."""
    path, found = directory / "generation_config.json", None
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    found = config.get("eos_token_id") if found is None else found
    return [] if found is None else found if isinstance(found, list) else [found]


def _frequencies(D: int, rope: dict[str, Any]) -> np.ndarray:
    """Radians a token by which each pair turns, [D/2]."""
    plain = float(rope["rope_theta"]) ** (-np.arange(0, D, 2) / D)
    if rope["rope_type"] == "default":
        return plain
    if rope["rope_type"] == "linear":
        return plain / rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] * plain / (2 * np.pi)
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return keep * plain + (1 - keep) * plain / rope["factor"]


def _rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """x [H, n, D] with each pair (i, i + D/2) turned."""
    first, second = np.split(x, 2, axis=-1)  # [H, n, D/2] each
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _attention(q: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What n queries [H_q, n, D] read from S + n positions [H_kv, S + n, D]: [n, H_q * D]."""
    (H_q, n, D), (H_kv, total, _) = q.shape, keys.shape
    q = q.reshape(H_kv, H_q // H_kv, n, D)  # the query heads of a group share its KV head
    scores = q @ keys[:, None].swapaxes(-1, -2) / math.sqrt(D)  # [H_kv, G, n, S + n]
    sees = np.arange(total) <= np.arange(total - n, total)[:, None]  # [n, S + n]: itself and what came before
    scores = np.where(sees, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = weights / weights.sum(axis=-1, keepdims=True) @ values[:, None]  # [H_kv, G, n, D]
    return mixed.reshape(H_q, n, D).swapaxes(0, 1).reshape(n, H_q * D)  # -> [n, H_q, D] -> [n, H_q * D]


class Session:
    """A KV cache that grows. What is declined leaves it as it was."""

    def __init__(self, model: Model, number: int, cache: Cache | None = None) -> None:
        self.model, self.owner = model, number
        self.cache = model.empty() if cache is None else cache

    @property
    def length(self) -> int:
        return int(self.cache[0][0].shape[1])

    def extend(self, tokens: list[int]) -> np.ndarray:
        """Append tokens and return their scores, [n, V]."""
        scores, self.cache = self.model.forward(self.model.check(tokens, self.length), self.cache)
        return scores

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` tokens."""
        if not 0 <= length <= self.length:
            raise Refused(f"The session holds {self.length} tokens; it cannot be cut to {length}.")
        self.cache = [(keys[:, :length].copy(), values[:, :length].copy()) for keys, values in self.cache]

    def cache_bytes(self) -> int:
        """Bytes of the keys and values."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.cache)


# ---- Continuing a prompt


def completions(model: Model, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The ``n`` completions of a request. The prompt is computed once, since a cache is never written to."""
    off: dict[str, Any] = {"max_new_tokens": 16, "min_new_tokens": 0, "stop_ids": [], "stop_sequences": [], "n": 1}
    request = off | request
    if request.get("stop_strings"):
        raise NotOffered("Stop strings: this engine has no tokenizer.")
    if not 1 <= request["n"] <= MOST_COMPLETIONS or request["max_new_tokens"] < 0 or request["min_new_tokens"] < 0:
        raise Refused(f"n is 1 to {MOST_COMPLETIONS}, max_new_tokens and min_new_tokens are 0 or more.")
    if (request.get("logprobs") or 0) < 0 or (request.get("seed") or 0) < 0:
        raise Refused("logprobs and seed are 0 or more.")
    if not all(request["stop_sequences"]):
        raise Refused("A stop sequence is empty; it would end every row at once.")
    prompt = model.check(request["prompt"])
    scores, cache = model.forward(prompt, model.empty())
    for number in range(request["n"]):
        seed = None if request.get("seed") is None else [request["seed"], number]
        yield _continued(model, request, scores[-1], cache, np.random.default_rng(seed))


def _continued(
    model: Model, request: dict[str, Any], row: np.ndarray, cache: Cache, rng: np.random.Generator
) -> dict[str, Any]:
    """One completion; ``row`` [V] holds the scores after the prompt."""
    stops = {token for token in request["stop_ids"] if 0 <= token < len(row)}
    stops |= set(model.eos_ids) if request.get("eos") else set()
    budget = min(request["max_new_tokens"], model.config.max_position_embeddings - len(request["prompt"]))
    tokens: list[int] = []
    steps: list[list[list[Any]]] = []
    reason = "length"
    while len(tokens) < budget:
        if tokens:
            scores, cache = model.forward(tokens[-1:], cache)
            row = scores[-1]
        steps.append(_top(row, request.get("logprobs") or 0))
        early = len(tokens) < request["min_new_tokens"]  # then no stop id can be drawn
        tokens.append(draw(row, sorted(stops) if early else [], request, rng))
        ended = any(tokens[-len(one) :] == one for one in request["stop_sequences"])
        if len(tokens) > request["min_new_tokens"] and (tokens[-1] in stops or ended):
            reason = "stop"
            break
    done: dict[str, Any] = {"tokens": tokens, "finish_reason": reason}
    if request.get("logprobs") is not None:
        done["logprobs"] = steps
    if request.get("stream"):
        done["pieces"] = [[token] for token in tokens]
    return done


def draw(row: np.ndarray, banned: list[int], request: dict[str, Any], rng: np.random.Generator) -> int:
    """The next id from scores [V]: greedy, or drawn after temperature, top-k, top-p and min-p, in this order."""
    scores = row.astype(np.float64)
    if np.isnan(scores).any():
        raise Refused("The scores hold NaN; nothing can be drawn from them.")
    scores[banned] = -np.inf
    if len(set(banned)) == len(scores):
        raise Refused("All ids are stop ids, and a stop may not come yet.")
    temperature, k, top_p, min_p = (request.get(name) for name in ("temperature", "top_k", "top_p", "min_p"))
    if not temperature:
        return int(scores.argmax())  # the first of equals
    if not 0 < temperature < math.inf or not 0 <= (top_p or 0) <= 1 or not 0 <= (min_p or 0) <= 1 or (k or 1) < 1:
        raise Refused("temperature is a finite number of 0 or more, top_k is 1 or more, top_p and min_p are 0 to 1.")
    order = np.argsort(-scores, kind="stable")  # most probable first, of equals the lower id
    p = np.exp((scores[order] - scores[order[0]]) / temperature)
    p /= p.sum()
    if k is not None:
        p[k:] = 0
        p /= p.sum()
    if top_p is not None and top_p < 1:
        p[1 + int(np.sum(np.cumsum(p) < top_p)) :] = 0  # the id that crosses the threshold stays
    if min_p is not None:
        p[p < min_p * p[0]] = 0
    return int(rng.choice(order, p=p / p.sum()))


def _top(row: np.ndarray, n: int) -> list[list[Any]]:
    """The n most probable ids of a row of scores [V], each with its log-probability."""
    shifted = row.astype(np.float64) - row.max()
    logprobs = shifted - np.log(np.exp(shifted).sum())
    return [[int(token), _number(logprobs[token])] for token in np.argsort(-logprobs, kind="stable")[:n]]


def _number(value: float) -> float | str:
    """A number as JSON can say it, which has no word for one that is not finite."""
    return float(value) if math.isfinite(value) else str(float(value))  # "inf", "-inf", "nan"


# ---- The messages

Field = Callable[[Any], bool]


def whole(value: Any) -> bool:
    return type(value) is int


def real(value: Any) -> bool:
    return type(value) is float or (whole(value) and abs(value) < 1 << 1000) or value in ("inf", "-inf", "nan")


def word(value: Any) -> bool:
    return isinstance(value, str)


def flag(value: Any) -> bool:
    return isinstance(value, bool)


def table(value: Any) -> bool:
    return isinstance(value, dict)


def maybe(one: Field) -> Field:
    return lambda value: value is None or one(value)


def several(one: Field) -> Field:
    return lambda value: isinstance(value, list) and all(map(one, value))


def index(value: Any) -> bool:
    return whole(value) and value >= 0


NEEDS = {**dict.fromkeys(("max_tokens", "max_rows", "max_sessions", "top_n"), index), "regime": maybe(word)}
REQUEST = {
    "prompt": several(whole),
    **dict.fromkeys(("max_new_tokens", "min_new_tokens", "n"), whole),
    **dict.fromkeys(("temperature", "top_p", "min_p"), maybe(real)),
    **dict.fromkeys(("top_k", "seed", "logprobs"), maybe(whole)),
    **dict.fromkeys(("eos", "stream"), flag),
    "stop_ids": several(whole),
    "stop_strings": several(word),
    "stop_sequences": several(several(whole)),
}
PART = {"rows": several(index), "columns": several(index)}
CALLS: dict[str, tuple[dict[str, Field], dict[str, Field]]] = {
    "hello": ({"protocol": whole}, {}),
    "accepts": ({"config": table}, {}),
    "load": ({"checkpoint": word, "needs": table}, {}),
    "score": ({"model": whole, "tokens": several(whole)}, PART),
    "score_batch": ({"model": whole, "sequences": several(several(whole))}, {**PART, "rows": several(several(index))}),
    "open": ({"model": whole}, {}),
    "extend": ({"session": whole, "tokens": several(whole)}, PART),
    "fork": ({"session": whole}, {}),
    "truncate": ({"session": whole, "length": whole}, {}),
    "cache_bytes": ({"session": whole}, {}),
    "generate": ({"model": whole, "requests": several(table)}, {}),
    "close": ({}, {"model": whole, "session": whole}),
    "bye": ({}, {}),
}
"""Fields of each call's arguments: those that must be there, and those that may."""
OTHERS = ("operators", "attention", "rope", "rms_norm")
"""Calls of the protocol that this engine does not offer."""


def checked(value: Any, required: dict[str, Field], allowed: dict[str, Field], where: str) -> dict[str, Any]:
    """Return ``value`` if it is an object with these fields; raise Violation otherwise."""
    if not isinstance(value, dict):
        raise Violation(f"{where} must be an object")
    known = {**required, **allowed}
    for name in required:
        if name not in value:
            raise Violation(f"{where} lacks {name}")
    for name, item in value.items():
        if name not in known:
            raise Violation(f"{where} has an unknown field {name!r}")
        if not known[name](item):
            raise Violation(f"{where}.{name} has the wrong type: {item!r:.80}")
    return value


def encode(array: np.ndarray, payload: list[bytes]) -> dict[str, Any]:
    """The JSON form of an array. A small one is in it as base64, a large one goes to the bytes after the line."""
    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    tag: dict[str, Any] = {"dtype": array.dtype.name, "shape": list(array.shape)}
    if len(data) <= INLINE:
        return {**tag, "base64": base64.b64encode(data).decode("ascii")}
    payload.append(data)
    return {**tag, "offset": sum(map(len, payload)) - len(data)}


# ---- The engine


class Server:
    """Answers calls: the method ``_CALL`` returns the result of CALL, or raises one of the three exceptions."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.greeted = self.finished = False
        self.models: dict[int, Model] = {}
        self.sessions: dict[int, Session] = {}
        self.last = 0  # handle that was given out
        self.payload: list[bytes] = []  # what follows the line of the reply

    def answer(self, line: bytes, read: Callable[[int], bytes]) -> list[bytes]:
        """The reply to a line, in parts to write one after the other; ``read`` takes bytes that follow the line."""
        number, self.payload = None, []
        try:
            message = self._parsed(line)
            if isinstance(message, dict):
                number = message["id"] if whole(message.get("id")) else None
                size = message.get("bytes", 0)
                if whole(size) and 0 < size <= LONGEST and len(read(size)) < size:
                    raise Violation(f"the line announces {size} bytes, and fewer came")
            checked(message, {"id": whole, "call": word, "arguments": table}, {"bytes": index}, "the request")
            reply: dict[str, Any] = {"id": number, "result": self._result(message["call"], message["arguments"])}
            if message.get("bytes"):
                raise Violation("bytes came, and the request has no array")
        except Exception as error:
            self.payload = []
            kinds = {Refused: "refused", NotOffered: "not-offered", Violation: "protocol"}
            report = {"kind": kinds.get(type(error), "raised"), "message": str(error), "type": type(error).__name__}
            if report["kind"] == "raised":
                report["traceback"] = traceback.format_exc()
            reply = {"id": number, "error": report}
        if self.payload:
            reply["bytes"] = sum(map(len, self.payload))
        return [json.dumps(reply, allow_nan=False).encode("ascii") + b"\n", *self.payload]

    def _parsed(self, line: bytes) -> Any:
        def refuse(constant: str) -> None:
            raise Violation(f"the bare word {constant} is not JSON")

        try:
            return json.loads(line.decode("utf-8"), parse_constant=refuse)
        except (ValueError, RecursionError) as error:
            raise Violation(f"the line is not JSON ({error})") from None

    def _result(self, call: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if call in OTHERS:
            raise NotOffered(call)
        if call not in CALLS:
            raise Violation(f"there is no call {call!r}")
        if not self.greeted and call not in ("hello", "bye"):
            raise Violation(f"{call} came before hello")
        result: dict[str, Any] = getattr(self, f"_{call}")(**checked(arguments, *CALLS[call], "arguments"))
        return result

    def _hello(self, protocol: int) -> dict[str, Any]:
        self.greeted = True
        fields = ("weights", "compute", "kv_cache", "scores")
        choices = {
            "scores": "logits",
            "logprobs": "raw",
            "ties": "first",
            "sampler_order": ["temperature", "top_k", "top_p", "min_p"],
            "temperature_zero": "greedy",
            "stop_token": "returned",
            "eos_files": ["generation_config.json", "config.json"],
            "zero_tokens": "empty",
            "min_tokens": "mask",
            "long_prompt": "refused",
            "long_continuation": "stops",
            "empty_prompt": "refused",
        }
        return {
            "protocol": PROTOCOL,
            "name": "oracle-engine",
            "version": f"NumPy {np.__version__}",
            "format": "hf",
            "precision": {**dict.fromkeys(fields, self.dtype), "logprobs": "float64"},
            "choices": choices,
            "offers": ["accepts", "load"],
        }

    def _accepts(self, config: dict[str, Any]) -> dict[str, Any]:
        try:
            read_config(config)
        except Refused as reason:
            return {"reason": str(reason)}
        return {"reason": None}

    def _load(self, checkpoint: str, needs: dict[str, Any]) -> dict[str, Any]:
        if checked(needs, {}, NEEDS, "arguments.needs").get("regime") is not None:
            raise Refused(f"There is no regime {needs['regime']!r}.")
        model = Model(Path(checkpoint), self.dtype)
        self.last += 1
        self.models[self.last] = model
        return {
            "model": self.last,
            "vocab_size": model.config.vocab_size,
            "max_length": model.config.max_position_embeddings,
            "offers": ["score", "score_batch", "open", "generate"],
        }

    def _score(self, model: int, tokens: list[int], **part: list[int]) -> dict[str, Any]:
        one = self._model(model)
        return {"scores": self._part(one.forward(one.check(tokens), one.empty())[0], **part)}

    def _score_batch(
        self,
        model: int,
        sequences: list[list[int]],
        rows: list[list[int]] | None = None,
        columns: list[int] | None = None,
    ) -> dict[str, Any]:
        one = self._model(model)
        if rows is not None and len(rows) != len(sequences):
            raise Violation(f"arguments.rows has {len(rows)} lists for {len(sequences)} sequences")
        batch = [one.forward(one.check(tokens), one.empty())[0] for tokens in sequences]
        wanted: list[Any] = [None] * len(batch) if rows is None else rows
        return {"scores": [self._part(scores, some, columns) for scores, some in zip(batch, wanted, strict=True)]}

    def _open(self, model: int) -> dict[str, Any]:
        return self._opened(Session(self._model(model), model))

    def _extend(self, session: int, tokens: list[int], **part: list[int]) -> dict[str, Any]:
        one = self._session(session)
        self._check_part((len(tokens), one.model.config.vocab_size), **part)  # before the session grows
        return {"scores": self._part(one.extend(tokens), **part)}

    def _fork(self, session: int) -> dict[str, Any]:
        one = self._session(session)
        return self._opened(Session(one.model, one.owner, one.cache))

    def _truncate(self, session: int, length: int) -> dict[str, Any]:
        self._session(session).truncate(length)
        return {}

    def _cache_bytes(self, session: int) -> dict[str, Any]:
        return {"cache_bytes": self._session(session).cache_bytes()}

    def _generate(self, model: int, requests: list[dict[str, Any]]) -> dict[str, Any]:
        one, prompt = self._model(model), {"prompt": REQUEST["prompt"]}
        for place, request in enumerate(requests):
            checked(request, prompt, REQUEST, f"arguments.requests[{place}]")
            for name in ("temperature", "top_p", "min_p"):
                if request.get(name) is not None:
                    request[name] = float(request[name])  # also of the words "inf", "-inf" and "nan"
        return {"completions": [done for request in requests for done in completions(one, request)]}

    def _close(self, model: int | None = None, session: int | None = None) -> dict[str, Any]:
        if (model is None) == (session is None):
            raise Violation("arguments must name either a model or a session")
        if session is not None:
            self._session(session)  # is open, or a violation
            del self.sessions[session]
        if model is not None:
            self._model(model)
            del self.models[model]
            self.sessions = {number: one for number, one in self.sessions.items() if one.owner != model}
        return {}

    def _bye(self) -> dict[str, Any]:
        self.finished = True
        return {}

    def _model(self, number: int) -> Model:
        if number not in self.models:
            raise Violation(f"no model {number} is open")
        return self.models[number]

    def _session(self, number: int) -> Session:
        if number not in self.sessions:
            raise Violation(f"no session {number} is open")
        return self.sessions[number]

    def _opened(self, session: Session) -> dict[str, Any]:
        self.last += 1
        self.sessions[self.last] = session
        return {"session": self.last, "offers": ["extend", "fork", "truncate", "cache_bytes", "close"]}

    def _check_part(
        self, shape: tuple[int, int], rows: list[int] | None = None, columns: list[int] | None = None
    ) -> None:
        for name, wanted, size in (("rows", rows, shape[0]), ("columns", columns, shape[1])):
            if wanted and max(wanted) >= size:
                raise Violation(f"arguments.{name} holds {max(wanted)}; the scores have {size} {name}")

    def _part(
        self, scores: np.ndarray, rows: list[int] | None = None, columns: list[int] | None = None
    ) -> dict[str, Any]:
        """Encode scores [n, V], or the rows and columns of them that were asked for."""
        self._check_part((len(scores), scores.shape[1]), rows, columns)
        scores = scores if rows is None else scores[rows]
        return encode(scores if columns is None else scores[:, columns], self.payload)


def main() -> None:
    """Answer one line after the other, until ``bye`` or the end of the input."""
    parser = argparse.ArgumentParser(description="An engine that speaks lmconform's protocol on stdin and stdout.")
    parser.add_argument("--option", action="append", default=[], metavar="dtype=float32|float64")
    options = dict(option.partition("=")[::2] for option in parser.parse_args().option)
    dtype = options.pop("dtype", "float32")
    if options or dtype not in ("float32", "float64"):
        parser.error("the only option is dtype=float32 or dtype=float64")
    wire = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints goes to stderr, not into a message
    server, reader = Server(dtype), sys.stdin.buffer
    while not server.finished and (line := reader.readline()):
        for part in server.answer(line, reader.read):
            wire.write(part)
        wire.flush()


if __name__ == "__main__":
    np.seterr(all="ignore")  # what overflows shows in the scores
    main()

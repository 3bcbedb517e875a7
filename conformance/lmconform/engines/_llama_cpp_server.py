"""``generate`` by llama.cpp's own server, which xllamacpp starts in this process and which listens on loopback.

Everything about a completion is decided by llama.cpp: requests go to the server's native endpoint ``/completion`` and
come back as it answers. The adapter says what to sample with and reads the answer; what the server cannot do, such as
stop at ids of the request's choice, is not offered.

llama.cpp keeps process-wide state for its server, so an engine runs one at a time, for the model that generated last.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import nan
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import xllamacpp

from lmconform.adapter import Completion, NotOffered, Refused, Request
from lmconform.engines._llama_cpp_library import ERRORS_ONLY

if TYPE_CHECKING:
    from lmconform.engines.llama_cpp import LlamaModel

RANDOM_SEED = 0xFFFFFFFF
"""``LLAMA_DEFAULT_SEED``: the server draws a seed of its own."""
IMPOSSIBLE = float(np.finfo(np.float32).min)
"""What the server writes for the logarithm of 0, since JSON has no -inf."""
SPARE_CONNECTIONS = 4
TIMEOUT = 3600.0
"""Seconds without an answer. The host's own time limit is far below."""


class CompletionServer:
    """A running server for one model. ``complete`` may be called any number of times, from one thread."""

    def __init__(self, model: LlamaModel) -> None:
        self.model = model
        self._server = xllamacpp.Server(_params(model))
        address = urlsplit(self._server.listening_address)
        self._place = (address.hostname or "127.0.0.1", address.port)

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Return ``n`` completions for each request, in their order; all requests are sent at the same time.

        Raises:
            NotOffered: a stop that the server does not know, or log-probabilities that it does not return.
            Refused: what the server refuses, with its message.
        """
        bodies = [_body(request, self.model) for request in requests]
        with ThreadPoolExecutor(max(len(requests), 1)) as pool:
            answers = list(pool.map(self._ask, bodies))
        return [one for request, answer in zip(requests, answers, strict=True) for one in _read(request, answer)]

    def close(self) -> None:
        """Stop the server and wait until it has ended."""
        del self._server

    def _ask(self, body: dict[str, Any]) -> list[list[dict[str, Any]]]:
        """The server's answer: for each completion its messages, of which all but the last are of a stream."""
        connection = http.client.HTTPConnection(*self._place, timeout=TIMEOUT)
        try:
            connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode("utf-8")
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise _error(response.status, text)
        if body["stream"]:
            return _streams([json.loads(line[len("data: ") :]) for line in text.splitlines() if line[:6] == "data: "])
        found = json.loads(text)
        return [[one] for one in (found if isinstance(found, list) else [found])]


def _params(model: LlamaModel) -> Any:
    """The server's parameters; what is not set here has the server's default."""
    settings = model.settings
    params = xllamacpp.CommonParams()
    params.model.path = str(model.path)
    params.n_parallel = model.slots
    params.n_ctx = model.slots * model.room
    params.n_batch, params.n_ubatch = settings.batch, settings.ubatch
    params.kv_unified = settings.unified
    params.kv_unified_per_slot = model.room if settings.unified else 0
    params.flash_attn_type = xllamacpp.llama_flash_attn_type(settings.flash)
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type(settings.cache_type)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.threads
    params.n_threads_http = model.needs.max_rows + SPARE_CONNECTIONS
    params.cache_prompt = settings.prefix_cache
    params.cache_ram_mib = 0  # prompts of slots are not kept in main memory
    params.cache_idle_slots = False
    params.slot_prompt_similarity = 0.1 if settings.prefix_cache else 0.0
    params.fit_params = False
    params.warmup = False
    params.ui = False
    params.verbosity = ERRORS_ONLY
    return params


def _body(request: Request, model: LlamaModel) -> dict[str, Any]:
    """The request for ``/completion``. The list of samplers leaves out penalties and all other filters."""
    stops = bool(request.stop_strings or (request.eos and model.weights.eog))
    if request.stop_ids or request.stop_sequences:
        raise NotOffered("stop ids and sequences of the request: the server stops at strings and at the file's EOG ids")
    if model.weights.eog and not request.eos:
        raise NotOffered("EOS ids that do not stop: the server stops at the file's EOG ids, or never draws them")
    if request.min_new_tokens and stops:
        raise NotOffered("min_new_tokens")
    return {
        "prompt": list(request.prompt),
        "n_predict": request.max_new_tokens,
        "n_cmpl": request.n,
        "samplers": ["top_k", "top_p", "min_p", "temperature"],
        "temperature": 0.0 if request.temperature is None else request.temperature,
        "top_k": request.top_k or 0,
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "min_p": request.min_p or 0.0,
        "seed": RANDOM_SEED if request.seed is None else request.seed,
        "stop": list(request.stop_strings),
        "n_probs": 0 if request.logprobs is None else max(request.logprobs, 1),
        "post_sampling_probs": False,
        "cache_prompt": model.settings.prefix_cache,
        "return_tokens": True,
        "stream": request.stream,
    }


def _streams(messages: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The messages of a stream, for each completion of the request."""
    indices = sorted({one["index"] for one in messages})
    return [[one for one in messages if one["index"] == index] for index in indices]


def _read(request: Request, answer: Sequence[Sequence[dict[str, Any]]]) -> list[Completion]:
    return [_completion(request, messages) for messages in answer]


def _completion(request: Request, messages: Sequence[dict[str, Any]]) -> Completion:
    """The completion that the messages of one row make; without a stream there is one message."""
    last = messages[-1]
    pieces = tuple(tuple(one["tokens"]) for one in messages if one["tokens"])
    tokens = sum(pieces, ())
    steps = [step for one in messages for step in one.get("completion_probabilities", ())]
    logprobs = None
    if request.logprobs is not None:
        if [step["id"] for step in steps] != list(tokens):
            raise NotOffered(
                "log-probabilities of every token: the server leaves out those of a stop string and of tokens that end"
                " inside a character"
            )
        logprobs = tuple(_step(step) for step in steps)
    return Completion(
        tokens=tokens,
        finish_reason="length" if last["stop_type"] == "limit" else "stop",
        text="".join(one["content"] for one in messages),
        logprobs=logprobs,
        pieces=pieces if request.stream else None,
        cached_tokens=last["timings"]["cache_n"],
    )


def _step(step: dict[str, Any]) -> dict[int, float]:
    """Log-probabilities of one step. JSON has no NaN either: the server writes null."""
    found = {one["id"]: one["logprob"] for one in (*step["top_logprobs"], step)}
    return {token: nan if value is None else value for token, value in found.items() if value != IMPOSSIBLE}


def _error(status: int, text: str) -> Exception:
    """The server's error: what it blames on the request is a refusal."""
    try:
        message = json.loads(text)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = text
    if 400 <= status < 500:
        return Refused(f"llama.cpp's server refuses the request: {message}")
    return RuntimeError(f"llama.cpp's server answered with status {status}: {message}")

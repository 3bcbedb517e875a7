"""One question to one server: a request becomes a body, and what comes back completions or scores."""

from __future__ import annotations

import http.client
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmconform.adapter import Array, Completion, NotOffered, Refused, Request
from lmconform.engines._openai_http_client import Client, ReplyMalformed, ServerFault
from lmconform.engines._openai_http_offer import Offer
from lmconform.engines._openai_http_reply import Reader, Step
from lmconform.engines._openai_http_request import body
from lmconform.engines._openai_http_spelling import Spelling

COMPLETIONS = "/v1/completions"
MODELS = "/v1/models"


@dataclass(frozen=True)
class Door:
    """A running server with one checkpoint, and what its requests need to know of that."""

    client: Client
    model: str | None
    """What requests call the model."""
    spelling: Spelling | None
    max_length: int | None = None
    owner: str = ""
    """Who serves it, as the server itself says."""
    names_eos: bool = False
    """Whether the checkpoint names EOS ids, which a row that does not ask for them has to pass."""

    def complete(self, offer: Offer, request: Request, streamed: bool = False) -> list[Completion]:
        """The ``n`` completions of a request; ``streamed`` has them in a stream, also where it does not ask."""
        if self.names_eos and not request.eos:
            offer.need("eos_off")
        stream = streamed or request.stream or offer.ids == "chunks"
        stream |= offer.streams_stops and bool(request.stop_strings)
        sent = body(offer, self.model, request, self.spelling, stream)
        reader = self._reader(offer)
        if stream:
            return reader.streamed(self.client.stream(COMPLETIONS, sent), request)
        return reader.whole(self.client.post(COMPLETIONS, sent), request)

    def score(self, offer: Offer, tokens: Sequence[int], vocab_size: int) -> Array:
        """Log-probabilities [T, V] of the ids that follow each token, from one request for one new token."""
        request = Request(tuple(tokens), max_new_tokens=1, logprobs=vocab_size)
        sent = body(offer, self.model, request, self.spelling, stream=False)
        sent |= {"prompt_logprobs": vocab_size} if offer.score == "prompt_logprobs" else {"echo": True}
        reader = self._reader(offer)
        (choice,) = reader.choices(self.client.post(COMPLETIONS, sent), 1)
        steps = [step for _, step in reader.steps(choice.get("logprobs"))]
        if offer.score == "prompt_logprobs":
            steps = [*reader.prompt_steps(choice.get("prompt_logprobs")), *steps[:1]]
        else:
            steps = steps[1 : len(tokens) + 1]  # before them stands the first token, which nothing predicts
        return self._rows(steps, len(tokens), vocab_size)

    def _rows(self, steps: Sequence[Step], length: int, vocab_size: int) -> Array:
        if len(steps) != length:
            raise ReplyMalformed(
                f"{self.client.url}, POST {COMPLETIONS}: it gives log-probabilities of {len(steps)} places; {length}"
                " were expected, one for each token of the prompt."
            )
        rows = np.empty((length, vocab_size))
        for row, step in zip(rows, steps, strict=True):
            if not all(token in step for token in range(vocab_size)):
                raise NotOffered(f"scores of all {vocab_size} ids: {len(step)} come in a step")
            row[:] = [step[token] for token in range(vocab_size)]
        return rows

    def _reader(self, offer: Offer) -> Reader:
        return Reader(offer, self.spelling, f"{self.client.url}, POST {COMPLETIONS}")


def opened(client: Client, model: str | None, spelling: Spelling | None, names_eos: bool = False) -> Door:
    """The door to a server that is ready. ``model`` is what its requests name; None asks the server what it has."""
    try:
        given = client.get(MODELS)
        first = given["data"][0]
        owner = str(first.get("owned_by") or "")
    except (Refused, ServerFault, KeyError, IndexError, TypeError):
        return Door(client, model, spelling, owner=_version(client), names_eos=names_eos)
    meta = first.get("meta") or {}
    lengths = (first.get("max_model_len"), meta.get("n_ctx"))
    max_length = next((one for one in lengths if type(one) is int and one > 0), None)
    name = model if model is not None else str(first.get("id"))
    owner = " ".join(filter(None, (owner, _version(client))))
    return Door(client, name, spelling, max_length, owner, names_eos)


def _version(client: Client) -> str:
    """What the server says of its version, at the places where vLLM and llama.cpp say it."""
    for path, field in (("/version", "version"), ("/props", "build_info")):
        try:
            if client.status(path, client.timeout) == 200:
                return str(client.get(path)[field])
        except (OSError, http.client.HTTPException, Refused, ServerFault, KeyError, TypeError):
            continue
    return ""

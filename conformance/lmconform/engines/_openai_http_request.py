"""What is sent: the body of a completion request, in the words that the server was found to understand.

Servers have defaults of their own for nearly everything, so that what is off is said to be off.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lmconform.adapter import NotOffered, Refused, Request
from lmconform.engines._openai_http_offer import Offer
from lmconform.engines._openai_http_spelling import Spelling

EXTRA: dict[str, Any] = {
    "repetition_penalty": 1.0,
    "repeat_penalty": 1.0,
    "typical_p": 1.0,
    "dry_multiplier": 0.0,
    "xtc_probability": 0.0,
    "mirostat": 0,
    "skip_special_tokens": False,
    "add_special_tokens": False,
    "spaces_between_special_tokens": False,
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
}
"""Neutral values of what servers have beside OpenAI's fields, and what makes them return ids. None knows all of them,
and those that take any ignore the others."""
NO_EOS = -1
"""An id that no token has."""


def body(offer: Offer, model: str | None, request: Request, spelling: Spelling | None, stream: bool) -> dict[str, Any]:
    """The JSON of a request. Raises NotOffered for what the server does not have, and Refused for an empty prompt."""
    _check(offer, request)
    found: dict[str, Any] = {
        "prompt": prompt(offer, request.prompt, spelling),
        "max_tokens": request.max_new_tokens,
        "temperature": 0.0 if request.temperature is None else request.temperature,
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "n": request.n,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stream": stream,
    }
    found |= {} if model is None else {"model": model}
    found |= {} if request.seed is None else {"seed": request.seed}
    found |= {"stop": list(request.stop_strings)} if request.stop_strings else {}
    most = max(request.logprobs or 0, 1 if offer.ids == "logprobs" else 0)
    found |= {"logprobs": most} if most else {}
    found |= {"stream_options": {"include_usage": True}} if stream and offer.form != "generation_config" else {}
    if offer.form == "fields":
        return found | EXTRA | _fields(offer, request)
    if offer.form == "generation_config":
        kept = ("model", "prompt", "max_tokens", "seed", "stop", "stream")
        config = json.dumps(_generation_config(offer, request))
        return {name: value for name, value in found.items() if name in kept} | {"generation_config": config}
    return found


def prompt(offer: Offer, tokens: Sequence[int], spelling: Spelling | None) -> list[int] | str:
    """The prompt as the server takes it. Raises Refused for no tokens."""
    if not tokens:
        raise Refused("The prompt is empty; at least one token id is needed.")
    if offer.prompt == "ids":
        return list(tokens)
    if spelling is None:
        raise NotOffered("prompts of token ids: the server takes text, and no tokenizer.json says how ids are spelled")
    if not all(0 <= token < len(spelling.names) for token in tokens):
        raise Refused(f"The prompt holds an id that is out of range; ids are 0 to {len(spelling.names) - 1}.")
    return spelling.prompt(tokens)


def _check(offer: Offer, request: Request) -> None:
    """Raise NotOffered unless the server offers all that the request asks for."""
    asked = {
        "sampling": request.temperature is not None,
        "top_k": request.top_k is not None,
        "top_p": request.top_p is not None,
        "min_p": request.min_p is not None,
        "seed": request.seed is not None,
        "n": request.n > 1,
        "stream": request.stream,
        "stop_strings": bool(request.stop_strings),
        "stop_ids": bool(request.stop_ids),
        "min_tokens": request.min_new_tokens > 0,
        "eos_beside_ids": request.eos and bool(request.stop_ids),
    }
    for ability, needed in asked.items():
        if needed:
            offer.need(ability)
    if request.stop_sequences:
        raise NotOffered("stop sequences of ids: the interface has none")
    if request.n < 1:
        raise Refused(f"n is {request.n}; it must be 1 or more.")
    if (request.logprobs or 0) > offer.logprobs:
        raise NotOffered(f"{request.logprobs} log-probabilities a step: the server gives {offer.logprobs or 'none'}")


def _fields(offer: Offer, request: Request) -> dict[str, Any]:
    """The fields that vLLM, llama.cpp and their relatives have beside OpenAI's."""
    found: dict[str, Any] = {"top_k": -1 if request.top_k is None else request.top_k}
    found |= {"min_p": 0.0 if request.min_p is None else request.min_p}
    found |= {"ignore_eos": not request.eos}
    found |= {"stop_token_ids": list(request.stop_ids)} if request.stop_ids else {}
    found |= {"min_tokens": request.min_new_tokens} if request.min_new_tokens else {}
    return found


def _generation_config(offer: Offer, request: Request) -> dict[str, Any]:
    """What transformers' server takes as ``generation_config``. What is not said there comes from the checkpoint."""
    found: dict[str, Any] = {
        "do_sample": request.temperature is not None,
        "num_beams": 1,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "typical_p": 1.0,
    }
    if request.temperature is not None:
        found |= {
            "temperature": request.temperature,
            "top_k": request.top_k or 0,
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "min_p": request.min_p,
        }
    found |= {"min_new_tokens": request.min_new_tokens} if request.min_new_tokens else {}
    if request.stop_ids or not request.eos:
        found["eos_token_id"] = list(request.stop_ids) or [NO_EOS]
    return found

"""Continuous batching of transformers: a paged cache, requests that enter and leave a running batch, prefix sharing.

A manager runs one set of sampling parameters, so requests that share them go together, each with its own EOS ids and
its own limit. Its tokens are its own; of log-probabilities it has that of the chosen token alone. Processors that it
does not support it drops with a warning: what would need them is not offered here.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import transformers
from transformers import ContinuousBatchingConfig

from lmconform.adapter import Completion, NotOffered, Refused, Request
from lmconform.engines.common import check_tokens

if TYPE_CHECKING:
    from lmconform.engines.transformers import TransformersModel

PAGE = 16
"""Tokens of a page; the library's 256 would hold every sequence in one."""
SECONDS = 60.0
"""For the manager's thread to end."""
Sampling = tuple[Any, ...]


def generate_continuously(model: TransformersModel, requests: Sequence[Request]) -> list[Completion]:
    """Return ``n`` completions for each request, in the order of the requests.

    Raises:
        NotOffered: what continuous batching has not: log-probabilities of other ids than the chosen one, stop strings
            and sequences, a minimum of new tokens, pieces of a stream.
        Refused: parameters that transformers refuses, no new tokens, or a stop id out of range.
    """
    groups: dict[Sampling, list[int]] = {}
    for place, request in enumerate(requests):
        _check(model, request)
        groups.setdefault(_sampling(request, place), []).append(place)
    done: dict[int, list[Completion]] = {}
    for sampling, places in groups.items():
        done |= zip(places, _run(model, sampling, [requests[place] for place in places]), strict=True)
    return [completion for place in range(len(requests)) for completion in done[place]]


def _check(model: TransformersModel, request: Request) -> None:
    lacking = {
        "logprobs: continuous batching returns that of the chosen token alone": request.logprobs is not None,
        "stop_strings in continuous batching": request.stop_strings,
        "stop_sequences in continuous batching": request.stop_sequences,
        "min_new_tokens: continuous batching drops the processor for it": request.min_new_tokens,
        "stream in continuous batching": request.stream,
    }
    if absent := [name for name, asked in lacking.items() if asked]:
        raise NotOffered(f"{absent[0]}.")
    if request.max_new_tokens < 1 or request.n < 1:
        raise Refused(f"max_new_tokens is {request.max_new_tokens} and n is {request.n}; both must be 1 or more.")
    if request.stop_ids:
        check_tokens(request.stop_ids, model.vocab_size)


def _sampling(request: Request, place: int) -> Sampling:
    """Requests with equal keys can share a manager, which has one seed."""
    if request.temperature is None:
        return ()
    alone = place if request.seed is not None else None
    return (request.temperature, request.top_k, request.top_p, request.min_p, request.seed, alone)


def _run(model: TransformersModel, sampling: Sampling, requests: Sequence[Request]) -> list[list[Completion]]:
    """The completions of each request, from a manager of their own."""
    rows = [request for request in requests for _ in range(request.n)]
    try:
        # The manager's thread allocates pages for its whole life; a session of its own a call keeps no prefix.
        with model.model.continuous_batching_context_manager(
            generation_config=_config(sampling, rows),
            continuous_batching_config=_batching(model, sampling, rows),
            timeout=SECONDS,
        ) as manager:
            names = [
                manager.add_request(list(row.prompt), max_new_tokens=row.max_new_tokens, eos_token_id=_eos(model, row))
                for row in rows
            ]
            found = _collected(manager, names)
    except ValueError as reason:
        raise Refused(f"transformers refuses the request: {reason}") from reason
    whole = iter([_completion(model, row, found[name]) for row, name in zip(rows, names, strict=True)])
    return [[next(whole) for _ in range(request.n)] for request in requests]


def _collected(manager: Any, names: Sequence[str]) -> dict[str, Any]:
    """The results of all requests, by name. Raises RuntimeError with the library's reason if one fails."""
    found: dict[str, Any] = {}
    while len(found) < len(names):
        result = manager.get_result(timeout=1)
        if result is not None and result.is_finished():
            if result.error is not None:
                raise RuntimeError(f"Continuous batching failed: {result.error}")
            found[result.request_id] = result
        elif result is None and not manager.is_running():
            raise RuntimeError("The thread of continuous batching ended before all requests were done.")
    return found


def _config(sampling: Sampling, rows: Sequence[Request]) -> transformers.GenerationConfig:
    """Everything is said, off included."""
    config: dict[str, Any] = {"max_new_tokens": max(row.max_new_tokens for row in rows), "do_sample": bool(sampling)}
    if sampling:
        temperature, top_k, top_p, min_p, *_ = sampling
        config |= {"temperature": temperature, "top_k": top_k or 0, "top_p": 1.0 if top_p is None else top_p}
        config |= {"min_p": min_p}
    return transformers.GenerationConfig(eos_token_id=-1, pad_token_id=0, **config)


def _batching(model: TransformersModel, sampling: Sampling, rows: Sequence[Request]) -> ContinuousBatchingConfig:
    tokens = sum(len(row.prompt) + row.max_new_tokens + PAGE for row in rows)
    return ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=ceil(tokens / PAGE) + len(rows),
        max_batch_tokens=model.settings.batch_tokens,
        allow_block_sharing=model.settings.sharing,
        seed=sampling[4] if sampling else None,
    )


def _eos(model: TransformersModel, row: Request) -> list[int]:
    """Ids that end the row; -1 is none."""
    return [*row.stop_ids, *(model.eos_ids if row.eos else ())] or [-1]


def _completion(model: TransformersModel, row: Request, result: Any) -> Completion:
    tokens = tuple(result.generated_tokens)
    stopped = tokens and tokens[-1] in _eos(model, row)
    text = None if model.tokenizer is None else model.tokenizer.decode(tokens, skip_special_tokens=False)
    return Completion(tokens=tokens, finish_reason="stop" if stopped else "length", text=text)

"""Requests as vLLM's ``SamplingParams``, and what its engine puts out as scores and completions."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from vllm.exceptions import VLLMValidationError
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from lmconform.adapter import Array, Completion, NotOffered, Refused, Request

Reason = Literal["stop", "length", "unspecified"]
REFUSALS = (ValueError, VLLMValidationError)
"""What vLLM raises for a request that it does not take."""
REASONS: dict[str | None, Reason] = {"stop": "stop", "length": "length"}


class Row:
    """One completion under way: the outputs of the engine's steps, put together."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.text = ""
        self.pieces: list[tuple[int, ...]] = []
        self.logprobs: list[Any] = []
        self.prompt_logprobs: Any = None
        self.reason: str | None = None
        self.cached_tokens: int | None = None

    def take(self, output: RequestOutput, completion: CompletionOutput) -> None:
        """Add what one step says of this row: all of it at its end, or in a stream what is new."""
        self.tokens += completion.token_ids
        self.text += completion.text
        if completion.token_ids:
            self.pieces.append(tuple(completion.token_ids))
        if completion.logprobs is not None:
            self.logprobs.append(completion.logprobs)
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = output.prompt_logprobs
        self.reason = completion.finish_reason or self.reason
        self.cached_tokens = output.num_cached_tokens


def sampling(request: Request, vocab_size: int, spelled: bool) -> SamplingParams:
    """A request as vLLM's parameters. Everything is said, off included; ``spelled``: there is a tokenizer.

    Raises NotOffered for stop sequences, and for stop strings without a tokenizer; Refused where vLLM refuses a value.
    """
    if request.stop_sequences:
        raise NotOffered("stop_sequences: vLLM has stop ids and stop strings")
    if request.stop_strings and not spelled:
        raise NotOffered("stop_strings: the checkpoint has no tokenizer")
    try:
        return SamplingParams(
            n=request.n,
            temperature=0.0 if request.temperature is None else request.temperature,
            top_k=0 if request.top_k is None else request.top_k,
            top_p=1.0 if request.top_p is None else request.top_p,
            min_p=0.0 if request.min_p is None else request.min_p,
            presence_penalty=0.0,
            frequency_penalty=0.0,
            repetition_penalty=1.0,
            seed=request.seed,
            stop=list(request.stop_strings),
            stop_token_ids=list(request.stop_ids),
            ignore_eos=not request.eos,
            max_tokens=request.max_new_tokens,
            min_tokens=request.min_new_tokens,
            logprobs=None if request.logprobs is None else min(request.logprobs, vocab_size),
            detokenize=spelled,
            skip_special_tokens=False,
            include_stop_str_in_output=False,
            output_kind=RequestOutputKind.DELTA if request.stream else RequestOutputKind.FINAL_ONLY,
        )
    except REFUSALS as reason:
        raise Refused(f"vLLM refuses the request: {line(reason)}") from reason


def answered(request: Request, row: Row, spelled: bool) -> Completion:
    """What came of a request. An id with a log-probability of -inf cannot be drawn, and is left out."""
    logprobs = None
    if request.logprobs is not None:
        steps = [step for part in row.logprobs for step in part]
        logprobs = tuple({token: one.logprob for token, one in step.items() if one.logprob > -np.inf} for step in steps)
    return Completion(
        tokens=tuple(row.tokens),
        finish_reason=REASONS.get(row.reason, "unspecified"),
        text=row.text if spelled else None,
        logprobs=logprobs,
        pieces=tuple(row.pieces) if request.stream else None,
        cached_tokens=row.cached_tokens,
    )


def scores(row: Row, vocab_size: int) -> Array:
    """Log-probabilities [T, V] of a prompt; the first token has none, and the last row is of the drawn token."""
    (drawn,) = row.logprobs
    length = len(row.prompt_logprobs)
    found = np.full((length, vocab_size), np.nan, dtype=np.float32)  # [T, V]
    for t in range(length):
        flat, place = (row.prompt_logprobs, t + 1) if t + 1 < length else (drawn, 0)
        these = slice(flat.start_indices[place], flat.end_indices[place])
        found[t, flat.token_ids[these]] = flat.logprobs[these]
    return found


def line(reason: BaseException) -> str:
    """Return the exception's message as one line; its type where it has none."""
    return " ".join(str(reason).split()) or f"{type(reason).__name__} without a word."

"""How an engine is asked: greedy generation from random prompts, with the cache or without."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from benchmarks.lab import Impossible, Party
from benchmarks.paired import Call
from benchmarks.tally import Products, tally
from lmconform.adapter import NotOffered, Refused, Request
from lmconform.transport.client import RemoteModel


def prompts(vocab_size: int, length: int, rows: int) -> list[list[int]]:
    """Random prompts, the same in every run; no two rows share a beginning that a prefix cache could keep."""
    draw = random.Random(f"{vocab_size} {length} {rows}")
    return [[draw.randrange(vocab_size) for _ in range(length)] for _ in range(rows)]


def generation(model: RemoteModel, length: int, new: int, batch: int = 1) -> Call:
    """A call that continues ``batch`` prompts of ``length`` tokens by ``new`` tokens each."""
    return _continue(model, prompts(model.vocab_size, length, batch), new)


def uncached(model: RemoteModel, length: int, new: int) -> Callable[[], list[float]]:
    """A call that generates ``new`` tokens and keeps nothing between them: each is the first one of a fresh prompt.

    It returns the seconds of each token.
    """
    [prompt] = prompts(model.vocab_size, length, 1)

    def run() -> list[float]:
        tokens, seconds = list(prompt), []
        for _ in range(new):
            started = time.perf_counter()
            tokens += _asked(model, [Request(tuple(tokens), max_new_tokens=1)], 1)[0]
            seconds.append(time.perf_counter() - started)
        return seconds

    return run


def step_products(party: Party, model: RemoteModel, length: int) -> Products | None:
    """What one decode step behind a prompt of ``length`` tokens multiplies; None where that cannot be seen."""
    if not party.spec.in_process:
        return None
    calls = [generation(model, length, new) for new in (2, 1)]
    for call in calls:  # what is captured or compiled once is no part of a step
        call()
    two, one = map(tally, calls)
    step = two - one
    return step if step.projection_flops > 0 else None


def cache_bytes(model: RemoteModel, length: int) -> int:
    """Bytes of the cache of a session of ``length`` tokens. Raises Impossible where there is none to ask."""
    [prompt] = prompts(model.vocab_size, length, 1)
    try:
        with model.open() as session:
            session.extend(prompt, rows=[-1])
            return session.cache_bytes()
    except (NotOffered, Refused) as reason:
        raise Impossible(f"{model.connection.name} tells no size of its cache: {reason}") from reason


def _continue(model: RemoteModel, given: Sequence[Sequence[int]], new: int) -> Call:
    requests = [Request(tuple(prompt), max_new_tokens=new) for prompt in given]
    return lambda: _asked(model, requests, new)


def _asked(model: RemoteModel, requests: Sequence[Request], new: int) -> list[tuple[int, ...]]:
    """The new tokens of each request. Raises Impossible where the engine declines, or ends a row too soon."""
    try:
        tokens = [completion.tokens for completion in model.generate(requests)]
    except (NotOffered, Refused) as reason:
        raise Impossible(f"{model.connection.name} declines generate: {reason}") from reason
    if short := [len(row) for row in tokens if len(row) != new]:
        raise Impossible(
            f"{new} new tokens were asked of {model.connection.name} and a row has {short[0]}, though nothing was to "
            "stop it. Its time would say nothing."
        )
    return tokens

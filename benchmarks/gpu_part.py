"""One part of the GPU run, in a process: the benchmarks of a model in a number format, or the suite in one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.counting import parameters
from benchmarks.lab import Impossible, Lab
from benchmarks.shapes import Size, size_of
from benchmarks.suite_time import time_suite
from benchmarks.trials import Trial, cache_gain, decode, first_token, grouped_queries, sweep
from lmconform.transport.client import EngineFault, EngineSpec

FAILURES = (Impossible, EngineFault, torch.OutOfMemoryError)
"""What leaves one benchmark out and lets the others run."""
LARGE = 4e9
"""Parameters from which a second model, with a KV head for each query head, is too much for disk and time."""
MOST_JOBS = 12
"""Workers of the suite, each with the engine on the same GPU."""


@dataclass(frozen=True)
class Wish:
    """One benchmark of a part."""

    name: str
    make: Callable[[Lab], Trial]
    share: float
    """Of the part's time, the most that its rounds are planned to take."""


def wishes(size: Size) -> Iterator[Wish]:
    """What is asked of one model, the dearest to know first.

    An engine may take all of its room when it loads, so the model is loaded twice: for long prompts in one row, and for
    short ones in many. Long prompts have the first baseline alone beside them, and the sweep none: to compile for each
    length and batch would take the time of all the rest.
    """
    first, *middle, last = size.contexts
    few, many = replace(size, contexts=(*middle, last), batches=(1,)), replace(size, contexts=(first,))
    large = parameters(size.shape) >= LARGE
    yield Wish(f"prefill[{size.name}-{last}]", partial(_beside_one, first_token, size=few, context=last), 0.06)
    yield Wish(f"decode[{size.name}-{last}]", partial(_beside_one, decode, size=few, context=last), 0.1)
    if not large:
        for context in middle:
            yield Wish(f"decode[{size.name}-{context}]", partial(_beside_one, decode, size=few, context=context), 0.1)
        yield Wish(f"gqa[{size.name}]", partial(grouped_queries, size=few), 0.1)
    yield Wish(f"decode[{size.name}-{first}]", partial(decode, size=many, context=first), 0.2)
    for batch in size.batches:
        alone = partial(sweep, size=many, batch=batch, beside=())
        yield Wish(f"batch[{size.name}-{batch}]", alone, 0.2 / len(size.batches))
    yield Wish(f"cache[{size.name}]", partial(cache_gain, size=many), 0.1)


def _beside_one(make: Callable[..., Trial], lab: Lab, size: Size, context: int) -> Trial:
    """A trial beside the first baseline alone."""
    return make(lab, size, context, lab.baselines[:1])


def run_model(
    name: str, subject: EngineSpec, baselines: Sequence[str], seconds: float, folder: Path, into: Path
) -> None:
    """Time one model for ``seconds``; ``into`` is written after each benchmark, so that nothing is lost.

    ``folder`` takes the checkpoints. Raises StartError and ValueError as ``Lab`` does.
    """
    deadline = time.monotonic() + seconds
    size = size_of(name)
    lab = Lab(subject, baselines, folder)
    try:
        lab.calibrate()
        for wish in wishes(size):
            lab.results.write(into)
            left = deadline - time.monotonic()
            if left <= 0:
                lab.results.left_out[wish.name] = "no time was left"
                continue
            try:
                trial = wish.make(lab)
                turns = trial.turns()
                turns.run(turns.rounds(min(wish.share * seconds, left)))
                lab.results.records.append(trial.record(turns.times))
            except FAILURES as reason:
                lab.results.left_out[wish.name] = str(reason)
                if lab.device.type == "cuda":
                    torch.cuda.empty_cache()
        lab.results.write(into)
    finally:
        lab.close()


def run_suite(subject: EngineSpec, seconds: float, folder: Path, into: Path) -> None:
    """Judge the engine with the quick profile, for at most ``seconds``."""
    lab = Lab(subject, ())
    try:
        try:
            jobs = max(1, min(MOST_JOBS, (os.cpu_count() or 1) - 1))
            lab.results.records.append(time_suite(subject, "quick", folder / "report", jobs, seconds))
        except Impossible as reason:
            lab.results.left_out["suite[quick]"] = str(reason)
        lab.results.write(into)
    finally:
        lab.close()

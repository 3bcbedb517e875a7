"""How often the host waits for the GPU while a call lasts, by torch's profiler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.asking import generation
from lmconform.transport.client import RemoteModel

BLOCKING = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""Calls of CUDA's runtime that return when the device has done its work."""
READ = "aten::_local_scalar_dense"
"""What reads one number of a tensor; on a GPU it waits, and shows as one of the above too."""
FEW, MANY = 5, 13


def events(call: Callable[[], object], device: torch.device) -> Counter[str]:
    """How often each event happened while ``call`` lasted."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as watch:
        call()
    found: Counter[str] = Counter()
    for event in watch.key_averages():
        found[event.key] += event.count
    return found


def waits_of_a_step(model: RemoteModel, length: int, device: torch.device) -> float:
    """Waits in one decode step behind a prompt of ``length`` tokens: what more steps add, so the call's own cancel."""
    calls = [generation(model, length, new) for new in (FEW, MANY)]
    for call in calls:  # what is captured or compiled once is no part of a step
        call()
    few, many = (_waits(events(call, device)) for call in calls)
    return (many - few) / (MANY - FEW)


def _waits(found: Counter[str]) -> int:
    return sum(found[name] for name in BLOCKING)

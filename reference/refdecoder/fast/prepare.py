"""How a step that will run many times is made fast: compiled by torch, and on CUDA recorded as a graph."""

from __future__ import annotations

import importlib.util
import inspect
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

Step = Callable[[int, bool], None]
"""Runs one step, given ``seen`` and ``aligned`` for ``StaticCache.aim``."""
OPTIONS = {"cpu": {"cpp_wrapper": True}, "cuda": {"coordinate_descent_tuning": True}}
"""For torch.compile, by device.

On a CPU the hundreds of kernels of a step are called from C++; from Python, their calls took 2 to 5 % of a step of
134M parameters. On CUDA, where a recording calls them, a product with one row is bound by reading the weights; triton's
kernels, tuned, then stand in for the library's.
"""
WARM_UP = 3
"""Runs before a recording, in which libraries take the memory that they work in."""


def prepared(step: Step, slots: int, device: torch.device, compile: bool) -> Step:
    """Return ``step`` compiled, if ``compile`` says so, and recorded, if ``device`` is a CUDA device.

    It is run for that, with all ``slots`` slots seen, so all rows must rest. A recorded step reads all of them forever.

    Raises:
        InputError: there is nothing to compile with.
    """
    if compile:
        step = _compiled(step, slots, device)
        with warnings.catch_warnings():
            # The function that has a cache gives the same tensor for the same arguments, cached or not.
            warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
            step(slots, False)
    return _recorded(step, slots, device) if device.type == "cuda" else step


def missing_compiler(device: torch.device) -> str | None:
    """Return what ``torch.compile`` needs for ``device`` and does not find, in words; None if it is all there."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton"
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    return None if shutil.which(name) else f"a C++ compiler (looked for {name}; the variable CXX may name another)"


def _compiled(step: Step, slots: int, device: torch.device) -> Step:
    """Return ``step`` as one graph for every number of slots seen; it never takes rows for aligned.

    An int would be a constant of the graph. So what is compiled takes a tensor of as many entries, for its size alone.
    """
    if missing := missing_compiler(device):
        raise InputError(f"torch.compile cannot work here without {missing}. Install it, or pass compile=False.")
    settings: dict[str, Any] = {"options": OPTIONS.get(device.type, {})}
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:  # newer than torch 2.11
        settings["isolate_recompiles"] = True  # so that many generators do not use up one limit

    def sized(entries: Tensor) -> None:
        step(entries.shape[0], False)

    made = torch.compile(sized, fullgraph=True, dynamic=False, **settings)
    ruler = torch.empty(slots, dtype=torch.bool)

    def run(seen: int, aligned: bool) -> None:
        entries = ruler[:seen]
        if slots > 2 and device.type != "cuda":  # a recording has one size, as have two slots
            torch._dynamo.mark_dynamic(entries, 0, min=2, max=slots)
        made(entries)

    return run


def _recorded(step: Step, slots: int, device: torch.device) -> Step:
    """Return what plays a recording of ``step`` again: all its kernels, at the same addresses, in one launch."""
    with torch.cuda.device(device):
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                step(slots, False)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step(slots, False)
    return lambda seen, aligned: graph.replay()

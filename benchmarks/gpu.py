"""The whole run on one GPU, unattended, in under ten minutes: plain Python, nothing to install.

    python benchmarks/gpu.py

Models of 8B, 1B and 134M with random weights in bfloat16 and float32 are timed against transformers, eager and with a
compiled static cache: decode, a prefill of 4,096 tokens, waits of the host, the cache, batches of 1 to 256. Then the
suite judges the engine on the GPU. Each part is a process with a time limit; what it wrote before it ended is kept.

    python benchmarks/gpu.py --option path=fast --minutes 5 --only 8B:bfloat16
    python benchmarks/gpu.py --device cpu --only tiny:float32 --minutes 1
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PLACES = [str(ROOT), str(ROOT / "conformance"), str(ROOT / "reference")]
# The checkout, not what is installed; and not this folder, whose files must not hide modules of the same name.
sys.path[:] = PLACES + [place for place in sys.path if Path(place).resolve() != HERE]

if TYPE_CHECKING:
    from benchmarks.results import Results

NEEDED = ("torch", "numpy", "safetensors", "ml_dtypes", "tokenizers", "markdown_it")
OF_BASELINES = ("transformers",)
OF_SUITE = ("pytest", "hypothesis", "scipy", "rich", "typer", "threadpoolctl", "transformers", "xdist")
OF_PLOTS = ("matplotlib",)
BASELINES = {
    "cuda": ("transformers", "transformers,cache=static,compile=yes"),
    "cpu": ("transformers",),
}
SUITE = "suite"
START_SECONDS = 20.0
"""What a part takes beside its time: imports before it, and at its end the benchmark that is under way."""
LEAST_SECONDS = 5.0
"""A part with less is not begun."""


@dataclass(frozen=True)
class Part:
    """A model in a number format, or the suite in one."""

    model: str
    dtype: str
    share: float
    """Of the time of all parts."""
    beside: bool = True
    """Whether baselines are timed too."""

    def __str__(self) -> str:
        return f"{self.model}:{self.dtype}"


# Most important first: what the time does not reach is at the end.
PARTS = (
    Part("8B", "bfloat16", 0.38),
    Part("1B", "bfloat16", 0.14),
    Part("134M", "bfloat16", 0.09),
    Part(SUITE, "bfloat16", 0.09),
    Part("134M", "float32", 0.06),
    Part("1B", "float32", 0.07),
    Part(SUITE, "float32", 0.08),
    Part("8B", "float32", 0.09, beside=False),  # three copies of 32 GB would take all of the time to load
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all parts; return 0 if any was measured, 1 if none was, 2 if the run cannot start."""
    given = _parser().parse_args(arguments)
    if lacking := [name for name in NEEDED if find_spec(name) is None]:
        print(f"gpu.py needs {', '.join(lacking)} in the environment of {sys.executable}.", file=sys.stderr)
        return 2
    os.environ["PYTHONPATH"] = os.pathsep.join(PLACES)  # for the suite's processes
    if given.commit:
        os.environ["LMCONFORM_COMMIT"] = given.commit
    if given.part:
        return _child(given)
    for names, what in ((OF_BASELINES, "baselines"), (OF_SUITE, "suite"), (OF_PLOTS, "plots")):
        if lacking := [name for name in names if find_spec(name) is None]:
            print(f"No {what}: {', '.join(lacking)} is missing here.", flush=True)
    try:
        parts = _parts(given.only)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="lmconform-gpu-") as folder:
        return _run(given, parts, Path(folder))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Benchmarks and suite on one GPU, in under ten minutes.")
    parser.add_argument("--engine", default="reference", metavar="X", help="adapter to time (default reference)")
    parser.add_argument("--option", action="append", default=[], metavar="K=V", help="passed to it; may be repeated")
    parser.add_argument("--baseline", action="append", metavar="X[,K=V]", help="to hold it against; none for none")
    parser.add_argument("--device", default="cuda", help="torch device (default cuda)")
    parser.add_argument("--minutes", type=float, default=9.5, help="for everything (default 9.5)")
    parser.add_argument("--only", action="append", metavar="MODEL:DTYPE", help="these parts; suite:DTYPE is the suite")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", metavar="DIR")
    parser.add_argument("--commit", metavar="ID", help="commit of these files, where they are no git checkout")
    parser.add_argument("--part", metavar="MODEL:DTYPE", help=argparse.SUPPRESS)  # what this program asks of itself
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    return parser


def _parts(only: Sequence[str] | None) -> list[Part]:
    """The parts to run. Raises ValueError for a name of another form."""
    if not only:
        return list(PARTS)
    known = {str(part): part for part in PARTS}
    found = []
    for name in only:
        model, _, dtype = name.partition(":")
        if not model or not dtype:
            raise ValueError(f"--only takes MODEL:DTYPE, such as 8B:bfloat16; got {name!r}.")
        found.append(known.get(name, Part(model, dtype, 0.1)))
    return found


def _run(given: argparse.Namespace, parts: Sequence[Part], folder: Path) -> int:
    from benchmarks import tables

    deadline = time.monotonic() + 60 * given.minutes
    files: dict[str, Path] = {}
    merged: dict[str, Results] = {}
    waiting = sum(part.share for part in parts)
    for part in parts:
        left = deadline - time.monotonic()
        # Time that earlier parts did not need goes to those that are left; each may overrun by its start.
        seconds = left * part.share / waiting - START_SECONDS
        waiting -= part.share
        if seconds < LEAST_SECONDS:
            print(f"{part}: not run, {max(0.0, left):.0f} s were left.", flush=True)
            continue
        print(f"{part}: {seconds:.0f} s of {left:.0f} s", flush=True)
        started = time.monotonic()
        _one(given, part, seconds, folder, merged)
        print(f"{part}: took {time.monotonic() - started:.0f} s", flush=True)
        if results := merged.get(part.dtype):
            name = f"{_slug(results.machine['device'])}-{part.dtype}-{results.file_name()}"
            results.write(files.setdefault(part.dtype, given.results / name))
    for results in merged.values():
        print("\n".join(["", *tables.lines(results)]))
    for path in files.values():
        print(f"Wrote {path}")
    return 0 if any(results.records for results in merged.values()) else 1


def _one(given: argparse.Namespace, part: Part, seconds: float, folder: Path, merged: dict[str, Results]) -> None:
    """Run one part in a process of its own, and take in what it wrote."""
    from benchmarks.results import read

    into, scratch = folder / f"{_slug(str(part))}.json", folder / _slug(str(part))
    command = [sys.executable, str(Path(__file__).resolve()), "--part", str(part), "--seconds", str(seconds)]
    command += ["--folder", str(scratch), "--into", str(into), "--engine", given.engine]
    command += ["--device", given.device, *(f"--option={pair}" for pair in given.option)]
    baselines = given.baseline or _baselines(given.device)
    command += [f"--baseline={words}" for words in (baselines if part.beside else ("none",))]
    reason = ""
    try:
        done = subprocess.run(command, timeout=seconds + START_SECONDS, check=False)
        reason = f"the process ended with code {done.returncode}" if done.returncode else ""
    except subprocess.TimeoutExpired:
        reason = f"it was ended after {seconds + START_SECONDS:.0f} s"
    shutil.rmtree(scratch, ignore_errors=True)  # the disk does not hold the checkpoints of all parts
    if not into.exists():
        print(f"{part}: nothing was measured; {reason or 'no reason is known'}.", flush=True)
        return
    found = read(into)
    if reason:
        found.left_out[str(part)] = reason
    if part.dtype not in merged:
        merged[part.dtype] = found
    else:
        merged[part.dtype].records += found.records
        merged[part.dtype].left_out |= found.left_out


def _child(given: argparse.Namespace) -> int:
    """Run one part in this process."""
    from benchmarks.gpu_part import run_model, run_suite
    from lmconform.transport.client import EngineSpec
    from lmconform.transport.spec import options_of

    model, _, dtype = given.part.partition(":")
    options = {"dtype": dtype, "device": given.device} | options_of(given.option)
    spec = EngineSpec(given.engine, options=options, in_process=model != SUITE)
    baselines = [words for words in given.baseline if words != "none"]
    if model == SUITE:
        run_suite(spec, given.seconds, given.folder, given.into)
    else:
        run_model(model, spec, baselines, given.seconds, given.folder, given.into)
    return 0


def _baselines(device: str) -> Sequence[str]:
    """What is installed of the usual ones."""
    if any(find_spec(name) is None for name in OF_BASELINES):
        return ("none",)
    return BASELINES["cuda" if device.startswith("cuda") else "cpu"]


def _slug(words: str) -> str:
    return "-".join("".join(char if char.isalnum() else " " for char in words).lower().split())


if __name__ == "__main__":
    sys.exit(main())

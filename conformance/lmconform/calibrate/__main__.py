"""Prints what right engines use of their budgets, one line for each thing that is judged; all figures to ``--json``."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from lmconform.calibrate import operators, readings, scores
from lmconform.calibrate.engines import started
from lmconform.calibrate.table import Table
from lmconform.judging.budgets import FACTORS

PARTS = ("scores", "readings", "operators")
DTYPES = ("float64", "float32", "bfloat16", "float16")


def measure(dtype: str, count: int, parts: tuple[str, ...] = PARTS) -> Table:
    """Everything that is judged in one format, with scores on ``count`` random checkpoints."""
    table = Table(dtype)
    if "operators" in parts:
        operators.measure(table)
    if {"scores", "readings"} & set(parts):
        with started(dtype) as engines:
            for engine in engines:
                if "scores" in parts:
                    scores.measure(engine, count, table)
                if "readings" in parts:
                    readings.measure(engine, table)
    return table


def main() -> None:
    """Print the table of each format."""
    parser = argparse.ArgumentParser(prog="python -m lmconform.calibrate", description=__doc__)
    parser.add_argument("--dtype", nargs="+", default=DTYPES, choices=DTYPES)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--checkpoints", type=int, default=len(scores.KINDS), help="random checkpoints for each engine")
    parser.add_argument("--json", type=Path, help="write all figures there")
    chosen = parser.parse_args()
    content = {}
    for dtype in chosen.dtype:
        begun = time.monotonic()
        table = measure(dtype, chosen.checkpoints, tuple(chosen.parts))
        print("\n".join(table.lines()))
        seconds = time.monotonic() - begun
        print(f"{dtype}: {len(table.ways)} legal ways, factors {FACTORS[dtype]}, {seconds:.0f} s", flush=True)
        content[dtype] = table.content()
        if chosen.json:
            chosen.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""The results as lines to print: what was measured beside what the machine could do, and what was counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.counting import BYTES, Formats
from benchmarks.results import Record, Results
from benchmarks.roofline import Rates, balance_batch, measured_balance
from lmconform.checkpoints.layout import Shape

TITLES = {
    "decode": "Decode",
    "prefill": "Prefill: time to the first token",
    "cache": "Cache on and off",
    "gqa": "Grouped queries against a KV head for each query head",
    "batch": "Batches",
    "suite": "The suite's own time",
}
Table = tuple[list[str], list[list[str]]]
"""Column titles, and rows."""


def lines(results: Results) -> Iterator[str]:
    """All tables as text."""
    yield from heading(results)
    for title, (columns, rows) in tables(results):
        yield ""
        yield title
        yield from _aligned(columns, rows)
    for told in balances(results):
        yield ""
        yield told
    if results.left_out:
        yield ""
        yield "Left out"
        yield from (f"  {name}: {reason}" for name, reason in results.left_out.items())


def heading(results: Results) -> Iterator[str]:
    """The machine, what it can do, and the engines."""
    machine, calibration = results.machine, results.calibration
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    cores, commit = f"{machine['usable_cores']} cores, {machine['threads']} threads", machine["commit"]
    yield f"machine: {machine['processor']}, {cores}; device {machine['device']}"
    yield f"versions: Python {machine['python']}, {versions}"
    yield f"commit: {commit}{', and changes' * bool(machine['changed'])}"
    if calibration:
        stream, rate = si(calibration["bytes_per_second"]), si(calibration["flops_per_second"])
        yield (
            f"calibration: stream ({calibration['stream']}) {stream}B/s; product ({calibration['product']}, "
            f"{calibration['dtype']}) {rate}FLOP/s; {calibration['flops_per_byte']:.3g} FLOP/byte"
        )
    for role, one in (("engine", results.engine), *(("baseline", one) for one in results.baselines)):
        options = " ".join(f"{key}={value}" for key, value in one["options"].items())
        yield f"{role}: {one['name']} {one['version']} {options}".rstrip()


def tables(results: Results) -> Iterator[tuple[str, Table]]:
    """A table for each kind of benchmark, with its title."""
    for kind, title in TITLES.items():
        records = [record for record in results.records if record.kind == kind]
        if not records:
            continue
        rooflines = any(record.roofline for record in records)
        ratios = list(dict.fromkeys(name for record in records for name in record.ratios))
        figures = [
            name
            for name in dict.fromkeys(name for record in records for name in record.figures)
            if not any(isinstance(record.figures.get(name), list | dict) for record in records)
        ]
        counted = list(dict.fromkeys(name for record in records for name in record.counted))
        columns = ["benchmark", *(["floor", "measured", "floor : measured"] if rooflines else []), *ratios, *figures]
        columns += [f"{name} (counted)" for name in counted]
        rows = [
            [
                record.name,
                *(_roofline(record) if rooflines else []),
                *(str(record.ratios.get(name, "")) for name in ratios),
                *(_figure(record.figures.get(name)) for name in figures),
                *(_figure(record.counted.get(name)) for name in counted),
            ]
            for record in records
        ]
        yield title, (columns, rows)


def balances(results: Results) -> Iterator[str]:
    """For each size of a batch sweep: where bandwidth and compute balance, predicted and measured."""
    sweeps: dict[str, list[Record]] = {}
    for record in results.records:
        if record.kind == "batch" and record.roofline:
            sweeps.setdefault(record.settings["size"], []).append(record)
    for size, records in sweeps.items():
        predicted, textbook = predicted_balance(records, results)
        steps = {record.settings["batch"]: record.roofline["measured"] for record in records if record.roofline}
        told = (
            f"{predicted:.3g}"
            if predicted is not None
            else "never: a row's own keys and values take longer than its products"
        )
        yield (
            f"{size}: bandwidth and compute balance at a batch of {told} (predicted; {textbook:.3g} without keys and "
            f"values); measured: {measured_balance(steps):.3g}, from batches of {min(steps)} to {max(steps)}"
        )


def predicted_balance(records: Sequence[Record], results: Results) -> tuple[float | None, float]:
    """The balance of a sweep by the calibration: with keys and values at its length, and as textbooks count."""
    settings = records[0].settings
    rates = Rates(results.calibration["bytes_per_second"], results.calibration["flops_per_second"])
    shape, formats = Shape(**settings["shape"]), Formats(BYTES[settings["weights"]], BYTES[settings["kv_cache"]])
    length = settings["prompt"] + settings["new"] / 2
    textbook = balance_batch(shape, rates, formats)
    assert textbook is not None  # without keys and values there always is one
    return balance_batch(shape, rates, formats, length), textbook


def si(value: float) -> str:
    """A number with a prefix: 1.23 G."""
    for prefix, unit in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= unit:
            return f"{value / unit:.3g} {prefix}"
    return f"{value:.3g} "


def _roofline(record: Record) -> list[str]:
    line = record.roofline
    if line is None:
        return ["", "", ""]
    return [
        f"{1e3 * line['floor']:.3g} ms ({line['bound']})",
        f"{1e3 * line['measured']:.3g} ms",
        f"{line['ratio']:.3g}",
    ]


def _figure(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return si(value).rstrip() if abs(value) >= 1e4 else f"{value:.4g}"


def _aligned(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """One block for each row: a benchmark has more columns than a terminal."""
    width = max(map(len, columns))
    for row in rows:
        yield f"  {row[0]}"
        yield from (f"    {name:<{width}}  {cell}" for name, cell in zip(columns[1:], row[1:], strict=True) if cell)

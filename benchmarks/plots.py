"""Plots of a run as SVG: decode against length, the cache on and off, and the batch sweep under its roofline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.counting import BYTES, Formats, decode_step
from benchmarks.paired import SUBJECT
from benchmarks.results import Record, Results
from benchmarks.roofline import Rates, floor
from benchmarks.tables import predicted_balance
from benchmarks.trials import steps_of
from lmconform.checkpoints.layout import Shape

MINE, THEIRS, BOUND = "#0b5fa5", ("#d1495b", "#7a7a7a", "#3c8d5a"), "#b08900"
Draw = Callable[[Axes, Sequence[Record], Results], None]


def draw(results: Results, folder: Path) -> list[Path]:
    """Write a plot for each size and kind that was measured; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    return list(_files(results, folder))


def _files(results: Results, folder: Path) -> Iterator[Path]:
    kinds: dict[str, tuple[Draw, int]] = {"decode": (_decode, 2), "cache": (_cache, 1), "batch": (_batch, 2)}
    sizes = dict.fromkeys(record.settings.get("size") for record in results.records)
    for kind, (draw_into, least) in kinds.items():
        for size in sizes:
            records = [one for one in results.records if one.kind == kind and one.settings.get("size") == size]
            records = [one for one in records if one.times]
            if len(records) < least:
                continue
            figure = Figure(figsize=(6.4, 4.0), layout="constrained")
            axes = figure.add_subplot()
            draw_into(axes, records, results)
            axes.legend(frameon=False)
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
            path = folder / f"{kind}-{_file_name(str(size))}.svg"
            # No date, and ids that do not change: the same results give the same file.
            with matplotlib.rc_context({"svg.hashsalt": "lmconform", "svg.fonttype": "none"}):
                figure.savefig(path, format="svg", metadata={"Date": None})
            yield path


def _decode(axes: Axes, records: Sequence[Record], results: Results) -> None:
    """Microseconds a step by the length of the prompt, of everybody, above the floor."""
    records = sorted(records, key=lambda record: record.settings["prompt"])
    lengths = [record.settings["prompt"] for record in records]
    for name, colour, steps in _parties(results, records):
        points = [(record.settings["prompt"], 1e6 * seconds) for record, seconds in steps]
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name)
    floors = [1e6 * record.roofline["floor"] for record in records if record.roofline]
    axes.plot(lengths, floors, "--", color=BOUND, label="floor: bytes read at the stream's rate")
    axes.set(title=f"Decode, {records[0].settings['size']}, batch 1", xlabel="tokens in the prompt")
    axes.set(ylabel="microseconds a step", ylim=(0, None))


def _cache(axes: Axes, records: Sequence[Record], results: Results) -> None:
    """Seconds until the n-th token, with the cache and without."""
    [record] = records
    total, off = 0.0, [0.0]
    for seconds in record.figures["seconds of each token without the cache"]:
        off.append(total := total + seconds)
    axes.plot(range(len(off)), off, color=THEIRS[0], label="cache off")
    on = record.figures["seconds with the cache by tokens"]
    axes.plot([0, *map(int, on)], [0.0, *on.values()], "o-", color=MINE, label="cache on")
    axes.set(title=f"The cache, {record.settings['size']}, prompt of {record.settings['prompt']}")
    axes.set(xlabel="tokens generated", ylabel="seconds")


def _batch(axes: Axes, records: Sequence[Record], results: Results) -> None:
    """Tokens a second by batch, under the roofline of the calibration."""
    records = sorted(records, key=lambda record: record.settings["batch"])
    batches = [record.settings["batch"] for record in records]
    for name, colour, steps in _parties(results, records):
        points = [(record.settings["batch"], record.settings["batch"] / seconds) for record, seconds in steps]
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name)
    settings = records[0].settings
    rates_here = Rates(results.calibration["bytes_per_second"], results.calibration["flops_per_second"])
    shape, formats = Shape(**settings["shape"]), Formats(BYTES[settings["weights"]], BYTES[settings["kv_cache"]])
    length = settings["prompt"] + settings["new"] / 2
    grid = [min(batches) * (max(batches) / min(batches)) ** (place / 60) for place in range(61)]
    roof = [batch / floor(decode_step(shape, length, formats, batch), rates_here).seconds for batch in grid]
    axes.plot(grid, roof, "--", color=BOUND, label="roofline")
    predicted, _ = predicted_balance(records, results)
    if predicted is not None and min(batches) <= predicted <= max(batches):
        axes.axvline(predicted, color=BOUND, alpha=0.5, linewidth=1)
        axes.annotate("balance", (predicted, axes.get_ylim()[0]), rotation=90, va="bottom", ha="right", color=BOUND)
    axes.set(
        title=f"Batches, {settings['size']}, prompt of {settings['prompt']}", xlabel="rows", ylabel="tokens a second"
    )
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.xaxis.set_minor_locator(NullLocator())


def _parties(results: Results, records: Sequence[Record]) -> Iterator[tuple[str, str, list[tuple[Record, float]]]]:
    """Name and colour of each engine, and its seconds a step in each record that timed it."""
    labels = [(SUBJECT, results.engine["name"], MINE)]
    for place, one in enumerate(results.baselines):
        labels.append((one["label"], one["label"], THEIRS[place % len(THEIRS)]))
    for label, name, colour in labels:
        timed = [record for record in records if label in record.times]
        steps = [(one, median(steps_of(one.times, label, one.settings["new"] - 1))) for one in timed]
        if steps:
            yield name, colour, steps


def _file_name(words: str) -> str:
    return "".join(char if char.isalnum() else "-" for char in words)

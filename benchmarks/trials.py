"""The benchmarks: what is called in turn, and what the times say. Both pytest and the GPU run use these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.asking import cache_bytes, generation, step_products, uncached
from benchmarks.counting import Work, decode_step, kv_bytes, parameters, prefill
from benchmarks.lab import Impossible, Lab, Party
from benchmarks.paired import SUBJECT, Call, Ratio, Times, Turns, ratio_of
from benchmarks.results import Record
from benchmarks.roofline import Rates, floor
from benchmarks.shapes import Size, multi_head
from benchmarks.waits import waits_of_a_step
from lmconform.checkpoints.layout import Shape
from lmconform.transport.client import EngineFault

STREAM, PRODUCT = "stream", "product"
FIRST = " first"  # ends the name of the party that makes the first token alone


@dataclass
class Trial:
    """One benchmark: the calls that take turns, and how their times become a record."""

    name: str
    kind: str
    settings: dict[str, Any]
    subject: Call
    others: dict[str, Call]
    conclude: Callable[[Record, Times], None]
    """Fills in ratios, figures and roofline."""
    counted: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def turns(self) -> Turns:
        """The parties, ready to take turns."""
        return Turns(self.subject, self.others)

    def bare(self) -> Record:
        """What was counted, without times."""
        return Record(self.name, self.kind, self.settings, counted=self.counted, notes=list(self.notes))

    def record(self, times: Times) -> Record:
        """What the times of all rounds say."""
        found = self.bare()
        found.times = {name: list(seconds) for name, seconds in times.items()}
        self.conclude(found, times)
        return found


def decode(lab: Lab, size: Size, context: int, beside: Sequence[Party] | None = None) -> Trial:
    """Steps of one row behind a prompt of ``context`` tokens, and what a step was seen to do.

    Beside it all baselines, or those given. Raises Impossible where the engine cannot do it.
    """
    trial = _stepping(lab, size, context, 1, beside)
    trial.name, trial.kind = f"decode[{size.name}-{context}]", "decode"
    model = lab.model(lab.subject, size)
    if products := step_products(lab.subject, model, context):
        trial.counted = {
            "operations of a step's projections": products.projection_flops,
            "operations of its attention": products.attention_flops,
            "bytes of its matrices": products.projection_bytes,
            "bytes of its keys and values": products.attention_bytes,
        }
    else:
        trial.notes.append("torch ran no product in this process that could be counted")
    if lab.device.type == "cuda" and lab.subject.spec.in_process:
        trial.counted["waits of the host in a step"] = waits_of_a_step(model, context, lab.device)
    return trial


def sweep(lab: Lab, size: Size, batch: int, beside: Sequence[Party] | None = None) -> Trial:
    """Steps of ``batch`` rows behind the shortest prompt. Raises Impossible."""
    trial = _stepping(lab, size, size.contexts[0], batch, beside)
    trial.name = f"batch[{size.name}-{batch}]"
    return trial


def _stepping(lab: Lab, size: Size, context: int, batch: int, beside: Sequence[Party] | None) -> Trial:
    """The time of ``size.new`` tokens less that of the first; in turn the same of each baseline, and the stream."""
    shape, steps = size.shape, size.new - 1
    parties, notes = _able(lab, size, beside)
    calls = _generations(SUBJECT, lab.model(lab.subject, size), context, size.new, batch)
    for party in parties:
        calls |= _generations(party.label, lab.model(party, size), context, size.new, batch)
    calls[STREAM] = lambda: lab.calibration.stream.run()  # allocated where it is timed
    # The cache grows by a token a step, so a step meets on average half of the new tokens.
    work = decode_step(shape, context + 1 + (steps - 1) / 2, lab.subject.formats, batch)

    def conclude(record: Record, times: Times) -> None:
        mine = steps_of(times, SUBJECT, steps)
        for party in parties:
            record.ratios[f"speed against {party.label}"] = _ratio(steps_of(times, party.label, steps), mine)
        reading = [lab.calibration.stream.amount / seconds for seconds in times[STREAM]]
        record.ratios["share of the memory bandwidth"] = ratio_of(
            [work.bytes / step / rate for step, rate in zip(mine, reading, strict=True)]
        )
        step = median(mine)
        record.figures |= {
            "tokens a second": batch / step,
            "microseconds a step": 1e6 * step,
            "milliseconds to the first token": 1e3 * median(times[_first(SUBJECT)]),
            "bytes a step must read": work.bytes,
            "operations a step must do": work.flops,
        }
        record.roofline = _roofline(work, Rates(median(reading), lab.calibration.rates.products), step)

    settings = _settings(lab, size, shape) | {"prompt": context, "new": size.new, "batch": batch}
    return Trial("", "batch", settings, calls.pop(SUBJECT), calls, conclude, notes=notes)


def first_token(lab: Lab, size: Size, context: int, beside: Sequence[Party] | None = None) -> Trial:
    """The time to the first token of a prompt, which is its prefill; beside it the product. Raises Impossible."""
    work = prefill(size.shape, context, lab.subject.formats)
    parties, notes = _able(lab, size, beside)
    others = {party.label: generation(lab.model(party, size), context, 1) for party in parties}
    others[PRODUCT] = lambda: lab.calibration.product.run()

    def conclude(record: Record, times: Times) -> None:
        mine = times[SUBJECT]
        for party in parties:
            record.ratios[f"speed against {party.label}"] = _ratio(times[party.label], mine)
        rates = [lab.calibration.product.amount / seconds for seconds in times[PRODUCT]]
        record.ratios["share of the matmul rate"] = ratio_of(
            [work.flops / seconds / rate for seconds, rate in zip(mine, rates, strict=True)]
        )
        seconds = median(mine)
        record.figures |= {
            "tokens a second": context / seconds,
            "milliseconds to the first token": 1e3 * seconds,
            "operations it must do": work.flops,
        }
        record.roofline = _roofline(work, Rates(lab.calibration.rates.bandwidth, median(rates)), seconds)

    settings = _settings(lab, size, size.shape) | {"prompt": context}
    call = generation(lab.model(lab.subject, size), context, 1)
    return Trial(f"prefill[{size.name}-{context}]", "prefill", settings, call, others, conclude, notes=notes)


def cache_gain(lab: Lab, size: Size) -> Trial:
    """``size.uncached`` tokens with the cache, and each from a fresh prompt. Raises Impossible."""
    model, prompt, new = lab.model(lab.subject, size), size.contexts[0], size.uncached
    quarter = max(1, new // 4)
    without = uncached(model, prompt, new)
    off: list[list[float]] = []
    others = {
        "cache off": lambda: off.append(without()),
        "cache on, first quarter": generation(model, prompt, quarter),
        "cache on, all but the last quarter": generation(model, prompt, new - quarter),
    }

    def conclude(record: Record, times: Times) -> None:
        on = times[SUBJECT]
        each = [median(column) for column in zip(*off[-len(on) :], strict=True)]  # before them, the warm-up's
        record.ratios["cache off : cache on"] = _ratio(times["cache off"], on)
        late = median(a - b for a, b in zip(on, times["cache on, all but the last quarter"], strict=True))
        record.figures |= {
            "seconds with the cache": median(on),
            "seconds without": median(times["cache off"]),
            "microseconds of a late token with the cache": 1e6 * late / quarter,
            "microseconds of a late token without": 1e6 * median(each[-quarter:]),
            "microseconds of an early token without": 1e6 * median(each[:quarter]),
            "seconds of each token without the cache": each,
            "seconds with the cache by tokens": {
                str(quarter): median(times["cache on, first quarter"]),
                str(new - quarter): median(times["cache on, all but the last quarter"]),
                str(new): median(on),
            },
        }

    counted = {}
    early, late = (step_products(lab.subject, model, length) for length in (prompt, prompt + new))
    if early and late:
        counted = {
            "projections of an early step": early.projection_flops,
            "projections of a late step": late.projection_flops,
        }
    settings = _settings(lab, size, size.shape) | {"prompt": prompt, "new": new}
    name = f"cache[{size.name}]"
    return Trial(name, "cache", settings, generation(model, prompt, new), others, conclude, counted)


def grouped_queries(lab: Lab, size: Size) -> Trial:
    """Steps of the model, and of the same model with a KV head for each query head (MHA). Raises Impossible."""
    shape, full = size.shape, multi_head(size.shape)
    context, steps = size.contexts[-1], size.new - 1
    grouped = lab.model(lab.subject, size)
    every = lab.model(lab.subject, size, full)
    calls = _generations(SUBJECT, grouped, context, size.new, 1) | _generations("MHA", every, context, size.new, 1)
    notes: list[str] = []
    try:
        held = {"GQA": cache_bytes(grouped, context), "MHA": cache_bytes(every, context)}
    except Impossible as reason:
        held, notes = {}, [str(reason)]

    def conclude(record: Record, times: Times) -> None:
        gqa, mha = steps_of(times, SUBJECT, steps), steps_of(times, "MHA", steps)
        record.ratios["MHA : GQA, time of a step"] = _ratio(mha, gqa)
        number = lab.subject.formats.kv_cache
        record.figures |= {
            "microseconds a step, GQA": 1e6 * median(gqa),
            "microseconds a step, MHA": 1e6 * median(mha),
            "bytes that GQA must keep": kv_bytes(shape, context, number),
            "bytes that MHA must keep": kv_bytes(full, context, number),
            **{f"bytes of the cache, {name}": value for name, value in held.items()},
        }

    counted = {"bytes of the cache": float(held["GQA"])} if held else {}
    settings = _settings(lab, size, shape) | {"prompt": context, "new": size.new, "room": size.longest}
    return Trial(f"gqa[{size.name}]", "gqa", settings, calls.pop(SUBJECT), calls, conclude, counted, notes)


def _able(lab: Lab, size: Size, beside: Sequence[Party] | None) -> tuple[list[Party], list[str]]:
    """The baselines, or those of them that are given, which load the model; and why others do not."""
    able, notes = [], []
    for party in lab.baselines if beside is None else beside:
        try:
            lab.model(party, size)
            able.append(party)
        except (EngineFault, Impossible) as reason:
            notes.append(f"not beside {party.label}: {reason}")
    return able, notes


def _generations(label: str, model: Any, context: int, new: int, batch: int) -> dict[str, Call]:
    """Two calls of a party: all new tokens, and the first alone."""
    return {
        label: generation(model, context, new, batch),
        _first(label): generation(model, context, 1, batch),
    }


def _first(label: str) -> str:
    return label + FIRST


def steps_of(times: Times, label: str, steps: int) -> list[float]:
    """Seconds a step in each round. Where the first token alone took longer than all, noise was larger than the steps;
    such a round counts as a step of its long call's share, the most that it can have taken."""
    pairs = zip(times[label], times[_first(label)], strict=True)
    return [(long - first if long > first else long) / steps for long, first in pairs]


def _ratio(slow: list[float], fast: list[float]) -> Ratio:
    return ratio_of([a / b for a, b in zip(slow, fast, strict=True)])


def _roofline(work: Work, rates: Rates, measured: float) -> dict[str, Any]:
    least = floor(work, rates)
    return {
        "bound": least.bound,
        "floor": least.seconds,
        "measured": measured,
        "ratio": least.seconds / measured,
        "bytes_per_second": rates.bandwidth,
        "flops_per_second": rates.products,
    }


def _settings(lab: Lab, size: Size, shape: Shape) -> dict[str, Any]:
    """What all benchmarks of a model share. Two records are comparable where the settings are equal."""
    precision = lab.subject.connection.description.precision
    return {
        "size": size.name,
        "shape": dict(vars(shape)),
        "parameters": parameters(shape),
        "weights": precision.weights,
        "kv_cache": precision.kv_cache,
        "device": lab.device.type,
    }

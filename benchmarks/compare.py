"""Holds a run against a stored one: a regression of a ratio, or of a counted quantity, never of wall time.

A counted quantity has regressed where it is more than ``COUNTED_MARGIN`` greater. A ratio has regressed where its whole
interval lies below the stored one's by more than ``RATIO_MARGIN``. Without a change that happens with the probability
that the report names; the margin is room for what differs between two runs of the same program.

    python -m benchmarks.compare OLD.json NEW.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.paired import LEAST_ROUNDS, Ratio, false_alarm
from benchmarks.results import Record, Results, Unreadable, read

COUNTED_MARGIN = 0.01
RATIO_MARGIN = 0.10
SHARE, LEAST_SHARE = "share of", 0.3
"""Ratios to what the machine can do begin with the words. Below this part of it a model is bound by the costs of its
calls, which slow down in another way than a stream or a product does; such a share is not judged."""
SAME_MACHINE = ("system", "architecture", "processor", "usable_cores", "threads", "device")
"""Facts of a machine on which a ratio of two programs depends; another clock or neighbour slows both."""

Status = Literal["regressed", "better", "same", "not judged"]


@dataclass(frozen=True)
class Finding:
    """One quantity of one benchmark, then and now."""

    record: str
    quantity: str
    old: Ratio | float
    new: Ratio | float
    status: Status
    why: str = ""

    def __str__(self) -> str:
        told = f"{self.record}, {self.quantity}: {_shown(self.old)} before, {_shown(self.new)} now"
        return f"{told}: {self.why}" if self.why else told


@dataclass
class Comparison:
    """What two runs have to do with each other."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    false_alarm: float = 0.0
    """Bound on the probability that a run without a change fails by its ratios."""

    @property
    def regressed(self) -> list[Finding]:
        """What fails."""
        return [one for one in self.findings if one.status == "regressed"]

    @property
    def judged(self) -> list[Finding]:
        """What could be held against each other."""
        return [one for one in self.findings if one.status != "not judged"]

    @property
    def exit_code(self) -> int:
        """0: nothing regressed; 1: something did; 2: nothing could be judged."""
        return 1 if self.regressed else 0 if self.judged else 2

    def lines(self) -> Iterator[str]:
        """What to print: notes, regressions, improvements, what was not judged, and the sum."""
        yield from self.notes
        for status in ("regressed", "better", "not judged"):
            for one in self.findings:
                if one.status == status:
                    yield f"{status}: {one}"
        ratios = sum(isinstance(one.new, Ratio) for one in self.judged)
        end = (
            f"{len(self.regressed)} regressed" if self.regressed else "none regressed" if self.judged else "no verdict"
        )
        yield f"{ratios} ratios and {len(self.judged) - ratios} counted quantities judged: {end}."
        yield f"Without any change, a run fails by a ratio with a probability of at most {self.false_alarm:.1g}."


def compare(old: Results, new: Results) -> Comparison:
    """Hold ``new`` against ``old``, benchmark by benchmark, where both have it with the same settings."""
    found = Comparison()
    ratios_told = _differences(old, new, found)
    for record in new.records:
        before = old.record(record.name)
        if before is None:
            continue
        if changed := _changed(before, record):
            found.notes.append(f"{record.name} is not comparable: {changed}.")
            continue
        found.findings += _counts(before, record)
        found.findings += _ratios(before, record, ratios_told)
    _missing(old, new, found)
    pairs = [(one.old, one.new) for one in found.judged]
    found.false_alarm = sum(
        false_alarm(was, now) for was, now in pairs if isinstance(was, Ratio) and isinstance(now, Ratio)
    )
    return found


def _differences(old: Results, new: Results, found: Comparison) -> dict[str, str]:
    """Note what differs between the runs; return why ratios are not judged, by a part of their names ("" for all)."""
    told: dict[str, str] = {}
    facts = [key for key in SAME_MACHINE if old.machine.get(key) != new.machine.get(key)]
    if facts:
        listed = "; ".join(f"{key} {old.machine.get(key)}, now {new.machine.get(key)}" for key in facts)
        found.notes.append(
            f"Another machine: {listed}. Counted quantities are judged; ratios of two programs differ from machine to "
            "machine and are only shown. Run once here without --compare to judge them."
        )
        told[""] = "another machine"
    for key in ("name", "version", "options"):
        if old.engine.get(key) != new.engine.get(key):
            found.notes.append(f"The engine's {key} was {old.engine.get(key)!r}, now {new.engine.get(key)!r}.")
    versions = {name: old.machine.get("versions", {}).get(name) for name in ("torch", "transformers")}
    for name, was in versions.items():
        if was != (now := new.machine.get("versions", {}).get(name)):
            found.notes.append(f"{name} was {was}, now {now}; a change may be its own.")
    before = {one["label"]: one for one in old.baselines}
    for one in new.baselines:
        was = before.get(one["label"])
        if was is not None and any(was.get(key) != one.get(key) for key in ("version", "options")):
            told[f"against {one['label']}"] = (
                f"{one['label']} was {was.get('version')} {was.get('options')}, now {one.get('version')} "
                f"{one.get('options')}"
            )
    return told


def _changed(old: Record, new: Record) -> str:
    """Why two records cannot be held against each other, or nothing."""
    keys = sorted({*old.settings, *new.settings})
    return "; ".join(
        f"{key} was {_brief(old.settings.get(key))}, now {_brief(new.settings.get(key))}"
        for key in keys
        if old.settings.get(key) != new.settings.get(key)
    )


def _counts(old: Record, new: Record) -> Iterator[Finding]:
    for name, was in old.counted.items():
        if name not in new.counted:
            continue
        now = new.counted[name]
        if now > was * (1 + COUNTED_MARGIN):
            times = f"{now / was:.3g} times as much" if was else "none before"
            yield Finding(new.name, name, was, now, "regressed", times)
        elif now < was * (1 - COUNTED_MARGIN):
            yield Finding(new.name, name, was, now, "better", f"{now / was:.3g} times as much")
        else:
            yield Finding(new.name, name, was, now, "same")


def _ratios(old: Record, new: Record, told: dict[str, str]) -> Iterator[Finding]:
    for name, was in old.ratios.items():
        if name not in new.ratios:
            continue
        now = new.ratios[name]
        reasons = [reason for part, reason in told.items() if part == "" or name.endswith(part)]
        if name.startswith(SHARE) and was.median < LEAST_SHARE:
            reasons.append(f"below {LEAST_SHARE:g} the machine is not what binds it")
        if not (was.judged and now.judged):
            reasons.append(f"fewer than {LEAST_ROUNDS} rounds; --seconds gives it more time")
        if reasons:
            yield Finding(new.name, name, was, now, "not judged", reasons[0])
        elif now.high < was.low * (1 - RATIO_MARGIN):
            yield Finding(new.name, name, was, now, "regressed", f"{now.median / was.median:.3g} times the old ratio")
        elif now.low > was.high * (1 + RATIO_MARGIN):
            yield Finding(new.name, name, was, now, "better", f"{now.median / was.median:.3g} times the old ratio")
        else:
            yield Finding(new.name, name, was, now, "same")


def _missing(old: Results, new: Results, found: Comparison) -> None:
    """Note what was measured before and not now, or the other way."""
    then, now = ({record.name: record for record in one.records} for one in (old, new))
    if gone := [name for name in then if name not in now]:
        why = {name: new.left_out[name] for name in gone if name in new.left_out}
        told = "; ".join(f"{name} ({why[name]})" if name in why else name for name in gone)
        found.notes.append(f"Not measured this time: {told}.")
    for name in [name for name in now if name in then]:
        if lost := [one for one in then[name].counted if one not in now[name].counted]:
            found.notes.append(f"{name} no longer counts: {', '.join(lost)}.")
    if not then.keys() & now.keys():
        found.notes.append(
            "The two runs have no benchmark in common: " + _names(then) + " before, " + _names(now) + " now. Give the "
            "same --size and selection."
        )


def _names(records: dict[str, Record]) -> str:
    names = list(records)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") if names else "none"


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _shown(value: Ratio | float) -> str:
    return str(value) if isinstance(value, Ratio) else f"{value:.6g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare two files; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description="Hold a run against another.")
    parser.add_argument("old", type=Path, help="results of an earlier run")
    parser.add_argument("new", type=Path, help="results to judge")
    given = parser.parse_args(arguments)
    try:
        found = compare(read(given.old), read(given.new))
    except Unreadable as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(found.lines()))
    return found.exit_code


if __name__ == "__main__":
    sys.exit(main())

"""How long the conformance suite takes to judge an engine, by profile."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

from benchmarks.lab import Impossible
from benchmarks.paired import SUBJECT
from benchmarks.results import Record
from lmconform.transport.client import EngineSpec


def time_suite(spec: EngineSpec, profile: str, report: Path, jobs: int = 1, limit: float | None = None) -> Record:
    """Run ``lmconform check`` on the engine and return what it took; ``report`` is its folder.

    Raises Impossible where it does not end within ``limit`` seconds, or writes no report.
    """
    named = ["--command", shlex.join(spec.command)] if spec.command else [spec.target]
    options = [part for key, value in spec.options.items() for part in ("--option", f"{key}={value}")]
    python = ["--python", str(spec.python)] if spec.python else []
    command = [sys.executable, "-m", "lmconform", "check", *named, *options, *python, "--profile", profile]
    command += ["--jobs", str(jobs), "--report", str(report), "--no-controls"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired as error:
        raise Impossible(f"profile {profile} of the suite did not end within {limit:.0f} s") from error
    path = report / "report.json"
    if not path.exists():
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise Impossible(f"lmconform check wrote no report: {last}")
    told = json.loads(path.read_text(encoding="utf-8"))
    costs, verdicts = told["run"]["costs"], [one["verdict"] for one in told["requirements"]]
    settings = {"profile": profile, "engine": spec.label, "options": dict(spec.options), "jobs": jobs}
    record = Record(f"suite[{profile}]", "suite", settings, times={SUBJECT: [told["run"]["seconds"]]})
    record.figures = {
        "seconds": told["run"]["seconds"],
        "seconds in the engine": costs["engine_seconds"],
        "calls": costs["calls"],
        "loads": costs["loads"],
        "conforms": told["conforms"],
        "verdicts": ", ".join(f"{verdicts.count(one)} {one}" for one in dict.fromkeys(verdicts)),
    }
    return record

"""Judges one recorded counterexample again."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

from lmconform.spec import pages
from lmconform.suite.bench import Bench, Record
from lmconform.suite.dsl import Decides
from lmconform.suite.examples import Example
from lmconform.suite.plan import PROFILES, Case, Plan, given_material
from lmconform.transport.client import Connection, EngineSpec


class Unreadable(Exception):
    """The file is no counterexample of this version of the suite."""


def replay_file(path: Path, engine: str | None, python: Path | None, in_process: bool) -> Record:
    """Judge the counterexample in ``path`` with its own engine or another. Raises Unreadable or StartError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        spec = _test(content["test"])
        example = Example({name: _tuple(value) for name, value in content["structure"].items()}, content["seed"])
        case = Case(content["checkpoint"], content["regime"])
        chosen = EngineSpec(
            engine or content["engine"]["target"],
            python=python or content["engine"]["python"],
            options={} if engine else content["engine"]["options"],
            in_process=in_process,
        )
        profile, seed = PROFILES[content["profile"]], content["plan_seed"]
        given = given_material(Path(content["recipe"]["path"])) if "path" in content["recipe"] else None
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Unreadable(
            f"{path} is no counterexample of this version of the suite ({type(error).__name__}: {error}). Give a file "
            "from the folder counterexamples of a report."
        ) from error
    with Connection.start(chosen) as connection:
        bench = Bench(connection, Plan(connection, profile, seed, given), math.inf)
        return bench.replay(spec, case, example)


def _test(name: str) -> Decides:
    """The test function of this name, from all modules of the suite."""
    for page in pages():
        try:
            module: Any = importlib.import_module(f"lmconform.suite.test_{page.replace('-', '_')}")
        except ModuleNotFoundError:
            continue
        if hasattr(module, name):
            found: Decides = getattr(module, name).decides
            return found
    raise KeyError(name)


def _tuple(value: Any) -> Any:
    return tuple(_tuple(one) for one in value) if isinstance(value, list) else value

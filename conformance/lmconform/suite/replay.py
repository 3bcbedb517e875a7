"""Judges one recorded counterexample again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from lmconform.checkpoints.gguf import MissingPackage
from lmconform.suite.bench import Bench, Record
from lmconform.suite.dsl import Decides
from lmconform.suite.examples import Example
from lmconform.suite.modules import decisions
from lmconform.suite.operators import Sizes
from lmconform.suite.plan import PROFILES, Case, Plan, given_material
from lmconform.transport.client import Connection, EngineSpec


class Unreadable(Exception):
    """The file is no counterexample of this version of the suite, or cannot be judged here."""


def replay_file(
    path: Path, engine: str, command: str, python: Path | None, in_process: bool, time_limit: float
) -> Record:
    """Judge the counterexample in ``path`` with its own engine, or with another if one of ``engine`` and ``command``
    names it. ``time_limit`` seconds bound a call. Raises Unreadable or StartError.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        spec = _test(content["test"])
        example = Example({name: _tuple(value) for name, value in content["structure"].items()}, content["seed"])
        if example.structure.keys() != spec.structure.keys():
            raise ValueError(f"the test {spec.body.__name__} is described by {', '.join(spec.structure) or 'nothing'}")
        case = Case(content["checkpoint"], content["regime"])
        recorded = content["engine"]
        profile, seed = PROFILES[content["profile"]], int(content["plan_seed"])
        directory = content["recipe"].get("path")
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}.") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _foreign(path, error) from error
    try:
        chosen = _engine(recorded, engine, command, python, in_process)
        given = given_material(Path(directory)) if directory else None
    except (AttributeError, KeyError, TypeError) as error:
        raise _foreign(path, error) from error
    except ValueError as error:
        raise Unreadable(str(error)) from error
    connection = Connection.start(chosen, time_limit)
    try:
        judge = Bench(connection, Plan(connection, profile, seed, given), math.inf)
    except MissingPackage as error:
        raise Unreadable(str(error)) from error
    with closing(judge) as bench:
        try:
            return bench.replay(spec, case, example)
        except (AttributeError, LookupError, TypeError, ValueError) as error:  # no structure that this test could draw
            raise _foreign(path, error) from error


def _engine(
    recorded: Mapping[str, Any], engine: str, command: str, python: Path | None, in_process: bool
) -> EngineSpec:
    """The engine that failed, or the other one that is named. Raises ValueError."""
    if not engine and not command:
        return EngineSpec.recorded(recorded, python, in_process)
    python = python or (None if command else recorded["python"])
    return EngineSpec.named(engine, command, python=python, in_process=in_process)


def _foreign(path: Path, error: Exception) -> Unreadable:
    return Unreadable(
        f"{path} is no counterexample of this version of the suite ({type(error).__name__}: {error}). Give a file from "
        "the folder counterexamples of a report."
    )


def _test(name: str) -> Decides:
    """The test function of this name, from all modules of the suite."""
    for spec in decisions():
        if spec.body.__name__ == name:
            return spec
    raise KeyError(name)


def _tuple(value: Any) -> Any:
    """A number or a word, tuples of them, which JSON has as lists, or the sizes of an attention call."""
    if isinstance(value, dict):
        return Sizes(**value)
    if isinstance(value, list):
        return tuple(_tuple(one) for one in value)
    if not isinstance(value, int | float | str):
        raise TypeError(f"{value!r} is neither a number nor a word")
    return value

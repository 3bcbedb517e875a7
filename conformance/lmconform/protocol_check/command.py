"""``lmconform protocol-check``: tries one rule after the other, and prints a line for each."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from rich.console import Console

from lmconform.checkpoints.gguf import SUFFIX, MissingPackage, write_gguf
from lmconform.checkpoints.random import SHAPES, random_checkpoint
from lmconform.protocol_check import ending, kernels, messages, models, sessions
from lmconform.protocol_check.rules import Broken, NotExercised, Rule, rules_of
from lmconform.protocol_check.talk import Material, Talk
from lmconform.transport.client import EngineSpec, StartError

RULES = [rule for module in (messages, models, sessions, kernels, ending) for rule in rules_of(module)]
Outcome = Literal["kept", "broken", "not exercised"]


class CannotCheck(Exception):
    """The program could not be started; the message says why, and what to do."""


@dataclass(frozen=True)
class Judged:
    """What came of a rule."""

    rule: Rule
    outcome: Outcome
    why: str = ""


def run(command: str, options: list[str], time_limit: float, console: Console) -> int:
    """Try all rules and print them; 0 if none is broken, 1 if one is, 2 if none could be tried. Raises CannotCheck."""
    if not time_limit > 0:
        raise CannotCheck(f"--time-limit is {time_limit:g}; a number above 0 was expected.")
    found: list[Judged] = []
    try:
        spec = EngineSpec.named(command=command, options=options)
        with talking(spec, time_limit) as talk:
            for one in judge(talk):
                found.append(one)
                _print(console, one)
    except (StartError, MissingPackage, ValueError) as error:
        raise CannotCheck(str(error)) from None
    except KeyboardInterrupt:
        console.print("Interrupted: the rules above are those that had been tried.")
    counts = Counter(one.outcome for one in found)
    told = ", ".join(
        f"{counts[outcome]} {outcome}" for outcome in ("kept", "broken", "not exercised") if counts[outcome]
    )
    console.print(f"{spec.label}: {len(found)} rules, {told}", markup=False, soft_wrap=True)
    return 1 if counts["broken"] else 0 if counts["kept"] else 2


def judge(talk: Talk, rules: Sequence[Rule] = RULES) -> Iterator[Judged]:
    """Try each rule; after a broken one the program is started again. Without hello, nothing else is tried."""
    for rule in rules:
        try:
            rule.check(talk)
            yield Judged(rule, "kept")
        except NotExercised as reason:
            yield Judged(rule, "not exercised", str(reason))
        except Broken as broken:
            yield Judged(rule, "broken", str(broken))
            talk.end()
            if rule is RULES[0]:
                return


@contextmanager
def talking(spec: EngineSpec, limit: float) -> Iterator[Talk]:
    """A conversation with the program, which is ended after it."""
    with tempfile.TemporaryDirectory() as folder:

        @cache
        def material(file_format: str) -> Material:
            checkpoint = random_checkpoint(SHAPES[0], "loud", 0)
            hf = checkpoint.write(Path(folder) / "checkpoint")
            path = hf if file_format == "hf" else write_gguf(checkpoint, Path(folder) / f"checkpoint{SUFFIX}")
            return Material(hf, path)

        talk = Talk(spec, material, limit)
        try:
            yield talk
        finally:
            talk.end()


def _print(console: Console, one: Judged) -> None:
    console.print(f"{one.outcome:<14} {one.rule.name}: {one.rule.sentence}", markup=False, soft_wrap=True)
    if one.why:
        console.print(f"{'':<14} {one.why}", markup=False, soft_wrap=True)

"""The commands that judge the suite itself: ``lmconform faults`` and ``lmconform mutants``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmconform.cli_words import PlantedIn, ProfileName, stop


def faults(
    wanted: Annotated[
        list[str] | None, typer.Argument(help="Faults by name, by requirement (CM-4) or by page (CM); all if none.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="Print the library, and judge nothing.")] = False,
    over: Annotated[
        PlantedIn,
        typer.Option(help="What they are planted in; `nothing` judges engines that are right, which must not fail."),
    ] = PlantedIn.REFERENCE,
    by_primary: Annotated[
        bool,
        typer.Option("--by-primary", help="Ask only the requirement that each fault breaks: many seeds are cheap."),
    ] = False,
    every_regime: Annotated[
        bool, typer.Option("--every-regime", help="Enter every regime of an engine that is right, not one alone.")
    ] = False,
    profile: Annotated[ProfileName, typer.Option(help="How much to do with each.")] = ProfileName.MATRIX,
    seed: Annotated[int, typer.Option(help="The first seed.", min=0)] = 0,
    seeds: Annotated[int, typer.Option(help="How many seeds.", min=1)] = 1,
    jobs: Annotated[int, typer.Option("--jobs", "-n", help="Engines judged at a time.", min=1)] = 2,
    report: Annotated[Path, typer.Option(help="Where faults.jsonl goes.")] = Path("lmconform-faults"),
    reads: Annotated[
        list[Path] | None, typer.Option("--read", help="Judge nothing: print the tables of earlier reports.")
    ] = None,
) -> None:
    """Judge the planted faults, to show what the suite catches, by which requirement, and how soon.

    Exit code 0: each is caught in 19 of 20 seeds or more; 1: not so; 2: the run could not start.
    """
    from lmconform.matrix.command import CannotJudge, Wish, listing, run

    names = wanted or []
    try:
        if listed:
            listing(names, over.value)
            return
        wish = Wish(names, profile.value, seed, seeds, jobs, report, by_primary, every_regime, over.value, reads or [])
        raise typer.Exit(run(wish))
    except CannotJudge as error:
        stop(str(error))


def mutants(
    seed: Annotated[int, typer.Option(help="Which mutants are drawn, and with which checkpoints they are judged.")] = 0,
    count: Annotated[int, typer.Option(help="How many mutants.", min=1)] = 300,
    jobs: Annotated[int, typer.Option("--jobs", "-n", help="Mutants judged side by side.", min=1)] = 2,
    only: Annotated[str, typer.Option(help="Requirements or pages to judge with, such as CM-4 or CM,ROPE.")] = "",
    calls: Annotated[int, typer.Option(help="Calls that tell a live mutant from an equivalent one.", min=1)] = 10_000,
    mutant: Annotated[
        list[str] | None, typer.Option(help="The id of a mutant to judge, instead of drawn ones.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Where mutants.json goes.")] = None,
    every: Annotated[bool, typer.Option("--list", help="Print all mutants and judge none.")] = False,
    show: Annotated[list[str] | None, typer.Option(help="The id of a mutant to print; none is judged.")] = None,
) -> None:
    """Change the reference in small ways, and count how many changes the suite notices.

    Exit code 0: it kills at least 90 % of the live mutants; 1: it kills fewer; 2: nothing could be judged.
    """
    from lmconform.mutants import command

    try:
        if every or show:
            command.show(show or [])
            return
        wish = command.Wish(seed, count, jobs, calls, only, mutant or [], report)
        raise typer.Exit(command.run(wish))
    except command.CannotRun as error:
        stop(str(error))

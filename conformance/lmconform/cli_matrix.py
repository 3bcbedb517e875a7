"""The command that judges many engines: ``lmconform matrix``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmconform.cli_words import ProfileName, stop
from lmconform.engine_matrix.entries import OURS


def matrix(
    names: Annotated[list[str] | None, typer.Argument(help="Entries of the list; all if none.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="Print the entries, and judge nothing.")] = False,
    entries: Annotated[
        Path, typer.Option("--engines", help="The list: a TOML file, one table an engine.", show_default=False)
    ] = OURS,
    profile: Annotated[ProfileName, typer.Option(help="How much to do with each.")] = ProfileName.STANDARD,
    seed: Annotated[int, typer.Option(help="Seed of checkpoints and examples.", min=0)] = 0,
    minutes: Annotated[
        float | None, typer.Option(help="Minutes for each engine; by default the entry's, or the profile's.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-n", help="Workers, each with an engine of its own.", min=1)] = 1,
    report: Annotated[Path, typer.Option(help="Where matrix.json, matrix.md and the engines' reports go.")] = Path(
        "lmconform-matrix"
    ),
    environments: Annotated[
        Path | None, typer.Option(help="Where environments are made and kept; by default in the report.")
    ] = None,
) -> None:
    """Judge many engines, each in an environment of its own, and write one table.

    An engine that does not install is a row of the table too. Rows of earlier runs stay, so that single engines can be
    judged again. Exit code 0: all that were judged conform; 1: one does not; 2: none was judged.
    """
    from lmconform.engine_matrix.command import CannotJudge, Wish, listing, run

    arguments = ["--profile", profile.value, "--seed", str(seed), "--jobs", str(jobs)]
    if minutes is not None:
        arguments += ["--minutes", str(minutes)]
    try:
        if listed:
            listing(entries)
            return
        place = environments or report / "environments"
        raise typer.Exit(run(Wish(names or [], entries, place, report, arguments)))
    except CannotJudge as error:
        stop(str(error))

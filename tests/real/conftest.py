"""Checks on trained weights. They are collected only where a checkpoint is named:

    lmconform model smollm2 DIR
    pytest tests/real --smollm2 DIR

An ordinary run of the tests neither collects nor skips them.
"""

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--smollm2", metavar="DIR", help="directory that `lmconform model smollm2 DIR` has written")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave this folder out unless the option is given."""
    return None if config.getoption("--smollm2", default=None) else True


@pytest.fixture(scope="session")
def smollm2(request: pytest.FixtureRequest) -> Path:
    """The directory of the trained checkpoint."""
    directory = Path(request.config.getoption("--smollm2"))
    if not (directory / "model.safetensors").is_file():
        raise pytest.UsageError(
            f"--smollm2 {directory} holds no model.safetensors. Make the checkpoint:"
            f" lmconform model smollm2 {directory}"
        )
    return directory

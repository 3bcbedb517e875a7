"""The checks and conversions that adapters share."""

from pathlib import Path

import numpy as np
import pytest

from lmconform.adapter import Needs, Refused
from lmconform.engines.common import check_tokens, choose, read_config, regime_settings, top_logprobs, whole_number


def test_choose_lists_the_legal_values() -> None:
    assert choose("cache", "static", ("dynamic", "static")) == "static"
    with pytest.raises(ValueError, match="cache=paged is not known; it may be one of: dynamic, static"):
        choose("cache", "paged", ("dynamic", "static"))


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", ""])
def test_whole_number_refuses_what_is_none(value: str) -> None:
    assert whole_number("threads", "3") == 3
    with pytest.raises(ValueError, match=r"threads=.* must be a whole number of 1 or more"):
        whole_number("threads", value)


def test_check_tokens_returns_plain_ints() -> None:
    assert check_tokens(np.array([0, 4]), 5, held=3, limit=5) == [0, 4]
    assert all(type(token) is int for token in check_tokens(np.array([0, 4]), 5))


@pytest.mark.parametrize(
    ("tokens", "held", "words"),
    [
        ([], 0, "empty"),
        ([0, 5], 0, "Token id 5 at place 1 is out of range; ids are 0 to 4"),
        ([-1], 0, "Token id -1 at place 0"),
        ([0, 1], 4, "would hold 6 tokens; the limit is 5"),
    ],
)
def test_check_tokens_refuses(tokens: list[int], held: int, words: str) -> None:
    with pytest.raises(Refused, match=words):
        check_tokens(tokens, 5, held=held, limit=5)


def test_top_logprobs_takes_the_lower_id_of_equals_and_no_impossible_id() -> None:
    row = np.array([-3.0, -1.0, -np.inf, -1.0, -1.0], dtype=np.float32)
    assert list(top_logprobs(row, 2).items()) == [(1, -1.0), (3, -1.0)]
    assert list(top_logprobs(row, 5)) == [1, 3, 4, 0]
    assert top_logprobs(row, 0) == {}


def test_top_logprobs_agrees_with_a_full_sort() -> None:
    rows = np.random.default_rng(0).integers(-4, 0, size=(50, 12)).astype(np.float64)
    for row in rows:
        for n in range(13):
            best = sorted(range(12), key=lambda token, row=row: (-row[token], token))[:n]
            assert list(top_logprobs(row, n)) == best


def test_a_regime_is_what_it_changes_and_another_is_refused() -> None:
    regimes = {"small": {"batch": 2}}
    assert regime_settings(regimes, Needs()) == {}
    assert regime_settings(regimes, Needs(regime="small")) == {"batch": 2}
    with pytest.raises(Refused, match="Regime 'large' is not known; it may be one of: small"):
        regime_settings(regimes, Needs(regime="large"))


@pytest.mark.parametrize("content", [None, b"{", b"\xff"])
def test_a_config_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(Refused, match=r"has no readable config\.json"):
        read_config(tmp_path)

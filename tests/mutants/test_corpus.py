"""The corpus says the same each time, and tells mutants that matter from those that do not."""

import pytest

from lmconform.matrix.forked import Ended, each
from lmconform.matrix.judged import one_thread
from lmconform.mutants.judge import digests, first_difference
from lmconform.mutants.loaded import install
from lmconform.mutants.material import Made, write_all
from lmconform.mutants.mutate import mutants

CALLS = 300
LIVE = (
    "return frequency * rope.factor",
    "keep = ((turns + low) / (high - low)).clamp(0, 1)",
    "twin.keys, twin.values = (self.keys, self.values.clone())",
    "visible = visible & (slots >= positions[:, :, None] - self.window)",
    "p[self.top_k + 1:] = 0",
    "due = len(self.tokens) >= self.stops.min_new_tokens",
    "last = len(self.watch.tokens) + 2 == self.budget",
    "self.scale = config.head_dim * -0.5",
)
EQUIVALENT = "rows = torch.arange(len(self.lengths))[:, None]"
"""There is but one device."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Made]:
    one_thread()
    return write_all(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def plain(made: list[Made]) -> list[bytes]:
    return list(digests(made, CALLS))


def difference(line: str, made: list[Made], plain: list[bytes]) -> int | None:
    """The first call that the mutant with this line answers otherwise than the reference; it is asked in a child."""
    mutant = next(one for one in mutants() if one.diff()[1] == line)

    def ask(_: str) -> int | None:
        install(mutant)
        return first_difference(made, plain)

    ((_, found),) = each([line], ask, 1, 300.0)
    assert not isinstance(found, Ended), found
    return found


def test_the_reference_answers_the_same_each_time(made, plain) -> None:
    assert first_difference(made, plain) is None
    assert len(set(plain)) > 0.9 * CALLS


def test_each_family_and_form_is_asked_first(made) -> None:
    assert {one.family for one in made} == {"llama", "phi3", "gpt2"}
    assert 2 * len(made) < CALLS


@pytest.mark.parametrize("line", LIVE)
def test_a_mutant_that_matters_is_live(line, made, plain) -> None:
    assert difference(line, made, plain) is not None


def test_a_mutant_that_changes_nothing_is_not(made, plain) -> None:
    assert difference(EQUIVALENT, made, plain) is None

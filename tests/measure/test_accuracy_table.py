"""The table of accuracy: what it says of lines that were read, and of those that were not."""

from lmconform.calibrate.sheets import cell, table
from lmconform.measure.sheet import choice, missing, number


def test_a_number_shows_its_uncertainty_and_the_part_of_the_bound_that_was_used() -> None:
    lines = [number("rope", "base", got, 10_000.0, 2.0) for got in (10_000.5, 9_999.0)]
    assert cell(lines) == "± 2e+00 (0.50)"


def test_what_was_told_what_could_not_be_and_what_is_wrong() -> None:
    told = choice("rope", "pairs", "halves", "halves")
    assert cell([told, told]) == "yes"
    assert cell([number("rope", "base", 1.0, 1.1, 0.5, telling=0.5)]) == "no: ± 5e-01"
    assert cell([told, choice("rope", "pairs", "neighbours", "halves")]) == "**differs**"
    assert cell([]) == "–"


def test_every_line_of_any_column_has_a_row() -> None:
    lines = choice("rope", "pairs", "halves", "halves"), missing("gpt2", "scale", "0.125", "no such family")
    rows = [*table({"one": {("rope", "pairs"): [lines[0]]}, "other": {("gpt2", "scale"): [lines[1]]}})]
    assert rows[0] == "| line | standard | one | other |"
    assert rows[2:] == ["| rope: pairs | halves | yes | – |", "| gpt2: scale | 0.125 | – | not offered |"]

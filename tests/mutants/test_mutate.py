"""Each operator makes exactly its changes; what is not computing is spared; ids are stable."""

import re
import textwrap

import pytest

from lmconform.mutants.mutate import SHOWN, TARGETS, drawn, mutants, mutants_of, named, source_of
from lmconform.mutants.operators import OPERATORS


def changes(folder, operator: str, source: str) -> list[str]:
    """What an operator makes of a function's source, line by line."""
    path = folder / "module.py"
    path.write_text(textwrap.dedent(source))
    return [mutant.diff()[1] for mutant in mutants_of("module", path) if mutant.operator == operator]


@pytest.mark.parametrize(
    ("operator", "before", "after"),
    [
        ("boundary", "x = a < b", ["x = a <= b"]),
        ("boundary", "x = 0 <= a > b", ["x = 0 < a > b", "x = 0 <= a >= b"]),
        ("negation", "x = a == b", ["x = a != b"]),
        ("negation", "x = a is None", ["x = a is not None"]),
        ("negation", "x = a not in b", ["x = a in b"]),
        ("arithmetic", "x = a - b * c", ["x = a + b * c", "x = a - b / c"]),
        ("arithmetic", "x = (a + b) ** c", ["x = (a + b) * c", "x = (a - b) ** c"]),
        ("arithmetic", "x += a & b", ["x -= a & b", "x += a | b"]),
        ("logic", "x = a and b and c", ["x = a or b or c"]),
        ("inversion", "x = not a", ["x = a"]),
        ("inversion", "x = ~a[-b]", ["x = a[-b]", "x = ~a[b]"]),
        ("integer", "x = a[-1]", ["x = a[0]", "x = a[-2]"]),
        ("integer", "x = True", []),
        ("dimension", "x = a.mean(dim=-1)", ["x = a.mean(dim=-2)", "x = a.mean(dim=0)"]),
        ("integer", "x = a.mean(dim=-1)", []),
        ("dimension", "x = a.mean(dim=0)", ["x = a.mean(dim=-2)"]),
        ("fraction", "x = 0.25", ["x = 0.5", "x = 0.0"]),
        ("fraction", "x = 0.0", ["x = 1.0"]),
        ("flag", "x = f(True)", ["x = f(False)"]),
        ("extreme", "x = max(a).argmin()", ["x = max(a).argmax()", "x = min(a).argmin()"]),
        ("extreme", "x = a.clamp(min=0)", ["x = a.clamp(max=0)"]),
        ("bound", "x = a[b:]", ["x = a[b + 1:]", "x = a[b - 1:]", "x = a[:]"]),
        ("bound", "x = a[:-1]", ["x = a[:]"]),
        ("statement", "x.y = a", ["pass"]),
        ("statement", "x.y, x.z = a", ["pass"]),
        ("statement", "x = f(a)", []),
        ("statement", "f(a)", ["pass"]),
        ("argument", "x = f(a, b, c)", ["x = f(b, a, c)", "x = f(a, c, b)"]),
        ("keyword", "x = f(a, b=1, c=2)", ["x = f(a, c=2)", "x = f(a, b=1)"]),
        ("call", "x = a.clone().clamp(min=0)", ["x = a.clone()", "x = a.clamp(min=0)"]),
        ("call", "x = list(a)", ["x = a"]),
        ("operand", "return a + b", ["return a", "return b"]),
        ("operand", "return a or b", ["return a", "return b"]),
        ("condition", "x = [a for a in b if a]", ["x = [a for a in b if True]", "x = [a for a in b if False]"]),
        ("condition", "x = a if b else c", ["x = a if True else c", "x = a if False else c"]),
        ("conditional", "x = a if b else c", ["x = c if b else a"]),
        ("conditional", "x = a if b > 0 else c", []),
    ],
)
def test_an_operator_makes_exactly_its_changes(tmp_path, operator, before, after) -> None:
    assert changes(tmp_path, operator, f"def f():\n    {before}\n") == after


def test_every_operator_is_shown_above_and_used() -> None:
    assert {mutant.operator for mutant in mutants()} == set(OPERATORS)


@pytest.mark.parametrize(
    "source",
    [
        "if a < 1 and not b:\n    raise ValueError(f'{a + 1} is wrong.', 2)",
        "for a in b[1:]:\n    if a % 2:\n        raise ValueError(a)",
        "assert a > 1, a + 1",
        "x: dict[1, 2] = a",
        "x = f'{a + 1:>{b - 1}}'",
        "if a:\n    raise ValueError('no')\nelif 0 <= b:\n    raise ValueError('neither')",
    ],
)
def test_validation_messages_and_annotations_are_spared(tmp_path, source) -> None:
    path = tmp_path / "module.py"
    path.write_text("@g(3)\ndef f(a: T[1], *, b: T[0]) -> T[2]:\n" + textwrap.indent(source, "    ") + "\n")
    assert mutants_of("module", path) == []


def test_what_only_validation_makes_use_of_is_spared(tmp_path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "LIMIT, USED = 3, 4\n\nMOST = 5\n\n"
        "def check(a):\n    if a > MOST:\n        raise ValueError(words(a))\n\n"
        "def words(a):\n    return str(a + 1)\n\n"
        "def f(a):\n    check(a)\n    return a * USED\n"
    )
    touched = {mutant.diff()[0] for mutant in mutants_of("module", path)}
    assert touched == {"LIMIT, USED = (3, 4)", "return a * USED"}


def test_a_condition_that_also_computes_is_not_spared(tmp_path) -> None:
    source = "def f():\n    if a > 1:\n        raise ValueError\n    elif b > 1:\n        x = 2\n"
    assert changes(tmp_path, "boundary", source) == ["if b >= 1:"]


def test_every_mutant_has_one_change_an_id_and_a_short_diff() -> None:
    every = mutants()
    assert len({mutant.id for mutant in every}) == len(every) > 800
    for mutant in every:
        before, after = mutant.diff()
        assert before != after
        assert len(after) <= 2 * SHOWN
        assert re.fullmatch(r"[a-z]+\.py:\d+:\d+:[a-z]+:\d+", mutant.id)
    assert {mutant.module for mutant in every} == {f"refdecoder.{name}" for name in TARGETS}


def test_the_code_of_a_mutant_is_the_module_with_that_change() -> None:
    path = source_of("rope")
    line, changed = "return frequency / rope.factor", "return frequency * rope.factor"
    (mutant,) = [one for one in mutants() if one.diff() == (line, changed)]
    assert mutant.code() == compile(path.read_text().replace(line, changed), str(path), "exec")
    assert named(mutant.id) is mutant


def test_the_draw_depends_on_the_seed_alone() -> None:
    ids = [mutant.id for mutant in drawn(40, 1)]
    assert ids == [mutant.id for mutant in drawn(40, 1)]
    assert ids != [mutant.id for mutant in drawn(40, 2)]
    assert ids == [mutant.id for mutant in mutants() if mutant.id in set(ids)]
    assert drawn(10**6, 1) == list(mutants())


def test_an_unknown_id_is_answered_with_the_nearest() -> None:
    near = mutants()[0].id
    with pytest.raises(LookupError, match=re.escape(near)):
        named(near + "1")

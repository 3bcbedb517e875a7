"""Requirements are read as they stand, and a malformed one is refused with its place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lmconform.spec import SpecError
from lmconform.spec.parser import parse

GOOD = """# Causal mask

## Requirements

### CM-1
**A token MUST NOT change
the past.**
`law` · `score` `generate` · Somebody 2017, section 3
Why it matters.
And what breaks.

### CM-3
**Position t SHOULD attend to itself.**
`measurement` · `score` · the definition above

## Sources
"""


def page(folder: Path, text: str, name: str = "causal-mask") -> Path:
    path = folder / f"{name}.md"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_requirement_is_read_with_all_its_parts(tmp_path: Path) -> None:
    path = page(tmp_path, GOOD)
    first, second = parse(path)
    assert (first.id, first.number, first.line, first.page, first.path) == ("CM-1", 1, 5, "causal-mask", path)
    assert (first.keyword, first.text) == ("MUST NOT", "A token MUST NOT change the past.")
    assert (first.kind, first.access, first.source) == ("law", ("score", "generate"), "Somebody 2017, section 3")
    assert first.note == "Why it matters. And what breaks."
    assert (second.id, second.keyword, second.access, second.note) == ("CM-3", "SHOULD", ("score",), "")


def test_the_digest_sees_the_sentence_and_not_its_spaces(tmp_path: Path) -> None:
    first, _ = parse(page(tmp_path, GOOD))
    assert first.digest == "02637c6d"
    assert replace(first, text=first.text.replace(" ", "\n ")).digest == first.digest
    assert replace(first, note="Other words.", line=7).digest == first.digest
    assert replace(first, text=first.text.replace("past", "future")).digest != first.digest


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("SHOULD attend", "attends", r"causal-mask\.md:12: CM-3 has no keyword"),
        ("SHOULD attend", "MUST, or MUST NOT, attend", r"causal-mask\.md:12: CM-3 has 2 keywords \(MUST, MUST NOT\)"),
        ("`measurement`", "`guess`", r"causal-mask\.md:12: CM-3 is of kind 'guess'.*law, differential, measurement"),
        ("`score` ·", "`score` `door` ·", r"causal-mask\.md:12: CM-3 asks for access 'door'"),
        ("`score` ·", "`` ·", r"causal-mask\.md:12: CM-3 asks for access ''"),
        (" · the definition above", "", r"causal-mask\.md:12: CM-3 does not have the shape"),
        ("**Position", "Position", r"causal-mask\.md:12: CM-3 does not have the shape"),
        ("### CM-3", "### CM-1", r"causal-mask\.md:12: CM-1 already stands in line 5"),
        ("### CM-3", "### CM-03", r"causal-mask\.md:12: 'CM-03' is no requirement ID"),
        ("### CM-3", "### ABC-3", r"causal-mask\.md:12: 'ABC-3' is no requirement ID"),
        ("### CM-3", "### Something else", r"causal-mask\.md:12: 'Something else' is no requirement ID"),
        ("### CM-3", "### KV-3", r"causal-mask\.md:12: KV-3 belongs to kv-cache\.md"),
        ("### CM-1", "### CM-4", r"causal-mask\.md:12: CM-3 stands after CM-4"),
        ("### CM-3", "#### CM-3", r"causal-mask\.md:12: CM-3 is not a heading of level 3"),
        ("## Requirements", "## Rules", r"causal-mask\.md:5: CM-1 is not a heading of level 3"),
    ],
)
def test_a_malformed_requirement_is_refused(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    assert GOOD.count(old) == 1
    with pytest.raises(SpecError, match=complaint):
        parse(page(tmp_path, GOOD.replace(old, new)))

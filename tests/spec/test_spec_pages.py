"""The standard's own pages: they import, their examples run, their index and links are right."""

from __future__ import annotations

import doctest
import re

import pytest

from lmconform.spec import directory, pages, requirements, worked_examples
from lmconform.spec.loader import blocks
from lmconform.spec.parser import PAGE_OF

MECHANISMS = sorted(PAGE_OF.values())
SECTIONS = ["Notation", "Definition", "Worked example", "Requirements", "Mistakes seen in real engines", "Sources"]


def text(page: str) -> str:
    return (directory() / f"{page}.md").read_text(encoding="utf-8")


def run(example: doctest.DocTest) -> str:
    """Run a doctest and return its complaints."""
    report: list[str] = []
    doctest.DocTestRunner().run(example, out=report.append)
    return "".join(report)


def test_every_mechanism_has_its_page() -> None:
    assert set(MECHANISMS) <= set(pages())


@pytest.mark.parametrize("page", pages())
def test_worked_examples_run(page: str) -> None:
    assert run(worked_examples(page)) == ""


def test_the_example_in_the_readme_runs() -> None:
    example = doctest.DocTestParser().get_doctest(blocks(text("README"), "pycon"), {}, "README", "README.md", 0)
    assert example.examples
    assert run(example) == ""


@pytest.mark.parametrize("page", MECHANISMS)
def test_a_page_has_a_worked_example_and_its_sections_in_order(page: str) -> None:
    assert worked_examples(page).examples
    headings = re.findall(r"^## (.+)$", text(page), flags=re.MULTILINE)
    assert [heading for heading in headings if heading in SECTIONS] == SECTIONS


def test_the_index_lists_every_requirement_as_it_stands() -> None:
    index = text("README").partition("## Index of requirements\n")[2]
    rows = [
        f"| [{one.id}]({one.page}.md#{one.id.lower()}) | {one.text} | `{one.kind}` | "
        f"{' '.join(f'`{door}`' for door in one.access)} |"
        for one in requirements().values()
    ]
    assert [line for line in index.splitlines() if line.startswith("| [")] == rows


def test_the_mask_page_is_complete() -> None:
    assert [one.id for one in requirements().values() if one.page == "causal-mask"] == [f"CM-{n}" for n in range(1, 14)]


@pytest.mark.parametrize("page", ["README", *pages()])
def test_links_between_pages_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([\w-]+\.md)[^)]*\)", text(page)):
        assert (directory() / target).is_file(), f"{page}.md links to {target}, which is not there"

"""Requirements, read from the pages.

A requirement stands below a heading of level 3 in the section "Requirements" of its page::

    ### CM-1
    **A token MUST NOT change the scores at any earlier position.**
    `law` · `score` `session` · Vaswani et al. 2017, section 3.2.3
    Why it matters, in two or three sentences.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NoReturn

from markdown_it import MarkdownIt

from lmconform.spec.loader import SpecError, directory, pages

PAGE_OF = {
    "CM": "causal-mask",
    "SDP": "scaled-dot-product",
    "KV": "kv-cache",
    "GQA": "grouped-query-attention",
    "ROPE": "rope",
    "PNR": "pre-norm-residual",
    "CAT": "categorical-output",
    "STOP": "stop-conditions",
    "DEC": "decoder",
}
"""Prefix of an ID, and the one page that may use it."""

KINDS = ("law", "differential", "measurement")
DOORS = ("operators", "score", "session", "generate")


def access(door: str) -> str:
    """The access that the page of a test with this door names: a batch is scored as a sequence is."""
    return door.removesuffix("_batch")


# The negative ones first, so that MUST NOT is not read as MUST.
KEYWORDS = ("MUST NOT", "SHOULD NOT", "MUST", "SHOULD", "MAY")
_KEYWORD = re.compile(rf"\b(?:{'|'.join(KEYWORDS)})\b")
_ID = re.compile(r"([A-Z]+)-([1-9][0-9]*)")
_BODY = re.compile(
    r"\*\*(?P<text>[^*]+)\*\*\n"
    r"`(?P<kind>[^`\n]*)` · (?P<access>`[^`\n]*`(?: `[^`\n]*`)*) · (?P<source>[^\n]+)"
    r"(?:\n(?P<note>.*))?",
    re.DOTALL,
)


@dataclass(frozen=True)
class Requirement:
    """One sentence of the standard, and where it stands."""

    id: str
    """Stable name, such as ``CM-1``; never reused."""
    keyword: str
    """The one RFC 2119 keyword of the sentence."""
    text: str
    """The sentence."""
    kind: str
    """law, differential or measurement."""
    access: tuple[str, ...]
    """The doors that decide it; an engine needs any one of them."""
    source: str
    """Paper, section, equation."""
    page: str
    """Name of the page, such as ``causal-mask``."""
    path: Path
    """File of the page."""
    line: int
    """Line of the heading, counted from 1."""
    note: str
    """Why it matters, and what an engine that breaks it looks like."""

    @property
    def digest(self) -> str:
        """Hash of the sentence. A test pins it, so that a changed sentence asks for its test to be read again."""
        return hashlib.sha256(" ".join(self.text.split()).encode()).hexdigest()[:8]

    @property
    def number(self) -> int:
        """The number in the ID: 1 for ``CM-1``."""
        return int(self.id.rpartition("-")[2])


@cache
def requirements() -> dict[str, Requirement]:
    """Return all requirements by ID, page by page, in the order in which they stand.

    Raises SpecError, which names page and line, at the first that is malformed.
    """
    found = [requirement for page in pages() for requirement in parse(directory() / f"{page}.md")]
    return {requirement.id: requirement for requirement in found}


def parse(path: Path) -> list[Requirement]:
    """Read the requirements of one page."""
    tokens = MarkdownIt().parse(path.read_text(encoding="utf-8"))
    found: list[Requirement] = []
    section = ""
    for at, token in enumerate(tokens):
        if token.type != "heading_open" or token.map is None:
            continue
        heading, line = tokens[at + 1].content, token.map[0] + 1
        if token.tag in ("h1", "h2"):
            section = heading
        elif section == "Requirements" and token.tag == "h3":
            body = []
            for following in tokens[at + 3 :]:
                if following.type == "heading_open":
                    break
                if following.type == "inline":
                    body.append(following.content)
            found.append(_requirement(path, line, heading, "\n".join(body), found))
        elif _ID.fullmatch(heading):
            _refuse(path, line, f'{heading} is not a heading of level 3 in the section "Requirements". Move it there.')
    return found


def _requirement(path: Path, line: int, heading: str, body: str, before: list[Requirement]) -> Requirement:
    """Build one requirement from its heading and the text below it."""
    _check_id(path, line, heading, before)
    parts = _BODY.fullmatch(body)
    if parts is None:
        _refuse(
            path,
            line,
            f"{heading} does not have the shape of a requirement. Write the sentence in ** on the lines after the "
            "heading, then one line `kind` · `access` · source, then the reason.",
        )
    text, kind = " ".join(parts["text"].split()), parts["kind"]
    keywords = _KEYWORD.findall(text)
    if len(keywords) != 1:
        seen = f"has {len(keywords)} keywords ({', '.join(keywords)})" if keywords else "has no keyword"
        _refuse(path, line, f"{heading} {seen}. State it with exactly one of: {', '.join(KEYWORDS)}.")
    if kind not in KINDS:
        _refuse(path, line, f"{heading} is of kind {kind!r}. A kind is one of: {', '.join(KINDS)}.")
    access = tuple(re.findall(r"`([^`]*)`", parts["access"]))
    unknown = [door for door in access if door not in DOORS]
    if unknown:
        _refuse(path, line, f"{heading} asks for access {unknown[0]!r}. Access is one or more of: {', '.join(DOORS)}.")
    return Requirement(
        id=heading,
        keyword=keywords[0],
        text=text,
        kind=kind,
        access=access,
        source=parts["source"].strip(),
        page=path.stem,
        path=path,
        line=line,
        note=" ".join((parts["note"] or "").split()),
    )


def _check_id(path: Path, line: int, heading: str, before: list[Requirement]) -> None:
    """Refuse an ID that is malformed, foreign to the page, used before or out of order."""
    parts = _ID.fullmatch(heading)
    if parts is None or parts[1] not in PAGE_OF:
        _refuse(
            path,
            line,
            f"{heading!r} is no requirement ID. An ID is one of the prefixes {', '.join(PAGE_OF)}, a hyphen and a "
            "number from 1, such as CM-1.",
        )
    if PAGE_OF[parts[1]] != path.stem:
        _refuse(path, line, f"{heading} belongs to {PAGE_OF[parts[1]]}.md. Use the prefix of this page, or move it.")
    for earlier in before:
        if earlier.id == heading:
            _refuse(
                path, line, f"{heading} already stands in line {earlier.line}. IDs are never reused: take a new one."
            )
    if before and int(parts[2]) < before[-1].number:
        _refuse(path, line, f"{heading} stands after {before[-1].id}. Requirements of a page ascend in number.")


def _refuse(path: Path, line: int, problem: str) -> NoReturn:
    raise SpecError(f"{path.name}:{line}: {problem}")

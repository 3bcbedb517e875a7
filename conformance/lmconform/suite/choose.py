"""Requirements and doors by the names that a user types."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from lmconform.spec import Requirement, requirements

DOORS = {
    "score": "score",
    "score_batch": "score_batch",
    "session": "open",
    "generate": "generate",
    "operators": "operators",
}
"""Ways of asking an engine, and the method behind each: the engine's for ``operators``, the model's for the others."""


class UnknownRequirement(ValueError):
    """Nothing in the spec has this name."""


def matching(names: Iterable[str]) -> list[Requirement]:
    """The requirements named: ``CM-4`` is one, ``CM`` all of its page. Raises UnknownRequirement with the nearest."""
    known = requirements()
    found: dict[str, Requirement] = {}
    for name in names:
        wanted = name.strip().upper()
        own = [one for one in known.values() if one.id == wanted or one.id.startswith(wanted + "-")]
        if not own:
            pages = sorted({one.partition("-")[0] for one in known})
            near = get_close_matches(wanted, [*known, *pages], n=2, cutoff=0.4)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise UnknownRequirement(
                f"There is no requirement {name.strip()!r}.{hint} Pages with requirements: {', '.join(pages)}; "
                "`lmconform explain PAGE` prints those of one page."
            )
        found |= {one.id: one for one in own}
    return list(found.values())


def doors(names: Iterable[str]) -> list[str]:
    """The doors named. Raises ValueError with the nearest."""
    found = []
    for name in names:
        if name.strip() not in DOORS:
            near = get_close_matches(name.strip(), DOORS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"There is no door {name.strip()!r}.{hint} Known are: {', '.join(DOORS)}.")
        found.append(name.strip())
    return found

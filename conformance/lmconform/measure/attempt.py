"""What becomes of a reading that an engine does not allow."""

from __future__ import annotations

from collections.abc import Callable

from lmconform.adapter import NotOffered, Refused
from lmconform.measure.observation import NotShown
from lmconform.measure.sheet import Entry, Outcome, missing
from lmconform.suite.findings import Unfit
from lmconform.transport.client import EngineFault


def attempt(section: str, quantity: str, wanted: str, read: Callable[[], list[Entry]]) -> list[Entry]:
    """The lines that ``read`` makes, or one for ``quantity`` that says why there are none.

    An engine that breaks down in the middle of a reading differs: no right engine does.
    """
    try:
        return read()
    except NotOffered as error:
        return [missing(section, quantity, wanted, f"the engine does not offer {error}")]
    except Refused as error:
        return [missing(section, quantity, wanted, f"the engine refused: {error}")]
    except (NotShown, Unfit) as error:
        return [Entry(section, quantity, "", wanted, Outcome.NOT_RESOLVABLE, note=str(error))]
    except EngineFault as fault:
        return [Entry(section, quantity, "broke down", wanted, Outcome.DIFFERS, note=str(fault))]

"""Planted faults: engines that are wrong in one place, to show that the suite can fail, and at the right requirement.

Each is the reference with a few lines replaced, and an engine like any other:

    lmconform check lmconform.faults.causal_mask:LeaksOneAhead

A module of this package holds those of one page, and lists them in its ``FAULTS``. Its package ``over_transformers``
holds some of them over again, as patches of transformers, and is imported by nothing here.
"""

from __future__ import annotations

import importlib
import pkgutil

from lmconform.faults.fault import Fault

FAULTS: tuple[Fault, ...] = tuple(
    fault
    for module in sorted(found.name for found in pkgutil.iter_modules(__path__) if not found.ispkg)
    for fault in getattr(importlib.import_module(f"{__name__}.{module}"), "FAULTS", ())
)

__all__ = ["FAULTS", "Fault"]

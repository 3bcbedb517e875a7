"""Planted faults: engines that are wrong in one place, to show that the suite can fail, and at the right requirement.

Each is the reference with a few lines replaced, and an engine like any other:

    lmconform check lmconform.faults.causal_mask:LeaksOneAhead
"""

from __future__ import annotations

from lmconform.faults.causal_mask import FAULTS as CAUSAL_MASK
from lmconform.faults.fault import Fault

FAULTS: tuple[Fault, ...] = CAUSAL_MASK

__all__ = ["FAULTS", "Fault"]

"""Engines that must never fail: right ways to work that differ from the reference's, and faults that are none.

``LEGAL`` holds what engines may do otherwise, ``EQUIVALENT`` what looks like a fault and changes nothing observable.
An alarm at one of them is an error of the suite, or of the standard.
"""

from __future__ import annotations

from lmconform.faults.legal import attention, batches, caches, endings, formats, positions, products, sampling, scores
from lmconform.faults.legal.equivalents import EQUIVALENT
from lmconform.faults.legal.legal import Legal

LEGAL: tuple[Legal, ...] = (
    *formats.LEGAL,
    *attention.LEGAL,
    *products.LEGAL,
    *positions.LEGAL,
    *scores.LEGAL,
    *caches.LEGAL,
    *batches.LEGAL,
    *sampling.LEGAL,
    *endings.LEGAL,
)
"""Engines that work in another way, each with the reason that it is right."""

__all__ = ["EQUIVALENT", "LEGAL", "Legal"]

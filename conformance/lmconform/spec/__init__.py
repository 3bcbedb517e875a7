"""The standard: pages as importable modules, and the requirements that they state.

``from lmconform.spec.causal_mask import causal_visible`` imports a definition from ``spec/causal-mask.md``.
``requirements()`` reads every requirement with its place. Importing this package runs no page.
"""

from lmconform.spec.loader import SpecError, directory, extract, install, module_name, pages, worked_examples
from lmconform.spec.parser import Requirement, access, requirements

install()

__all__ = [
    "Requirement",
    "SpecError",
    "access",
    "directory",
    "extract",
    "module_name",
    "pages",
    "requirements",
    "worked_examples",
]

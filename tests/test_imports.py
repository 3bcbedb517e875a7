"""Importing lmconform, its plugin or its command line loads neither torch nor transformers."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["lmconform", "lmconform.plugin", "lmconform.cli", "lmconform.suite.bench"])
def test_no_heavy_import(module) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers', 'refdecoder'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_adapter_needs_the_standard_library_and_numpy_alone() -> None:
    code = (
        "import sys, numpy; before = set(sys.modules); import lmconform.adapter;"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(sorted(new - set(sys.stdlib_module_names) - {'numpy', 'lmconform'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""Pages are modules whose lines are the lines of the Markdown."""

from __future__ import annotations

import doctest
import importlib
import inspect
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

import lmconform
from lmconform.spec import SpecError, directory, extract, loader, pages, worked_examples

PAGE = """# A page

Prose with `code`, and a block in another language:

```text
not python (
```

```python
class Half:
    divisor = 2
```

More prose.

```python
def half(x: int) -> float:
    assert x > 0, "x is not positive"
    return x / Half.divisor
```

- A list item may hold one as well.

```pycon
>>> half(4)
2.0
```
"""

Write = Callable[[str, str], Path]


def test_a_failing_assertion_points_into_the_page(write_page: Write) -> None:
    path = write_page("some-page", PAGE)
    page = importlib.import_module("lmconform.spec.some_page")
    with pytest.raises(AssertionError, match="not positive") as caught:
        page.half(-1)
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (last.filename, last.lineno) == (str(path), 18)
    assert last.line == 'assert x > 0, "x is not positive"'


def test_a_syntax_error_points_into_the_page(write_page: Write) -> None:
    path = write_page("some-page", PAGE.replace("def half(x: int)", "def half(x: int"))
    with pytest.raises(SyntaxError) as caught:
        importlib.import_module("lmconform.spec.some_page")
    assert (caught.value.filename, caught.value.lineno) == (str(path), 17)


def test_inspect_shows_the_definition(write_page: Write) -> None:
    write_page("some-page", PAGE)
    page = importlib.import_module("lmconform.spec.some_page")
    assert inspect.getsource(page.half).startswith("def half(x: int) -> float:\n    assert x > 0")
    assert inspect.getsourcelines(page.half)[1] == 17
    assert inspect.getsource(page.Half) == "class Half:\n    divisor = 2\n"


def test_a_wrong_example_is_reported_with_its_line(write_page: Write) -> None:
    path = write_page("some-page", PAGE.replace("2.0", "3.0"))
    report: list[str] = []
    assert doctest.DocTestRunner().run(worked_examples("some-page"), out=report.append).failed == 1
    assert f'File "{path}", line 25' in "".join(report)


def test_pages_import_each_other(write_page: Write) -> None:
    write_page("some-page", PAGE)
    write_page("other-page", "```python\nfrom lmconform.spec.some_page import half\n\nquarter = half(1) / 2\n```\n")
    assert importlib.import_module("lmconform.spec.other_page").quarter == 0.25


def test_nothing_is_written_beside_a_page(write_page: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = write_page("some-page", PAGE)
    importlib.import_module("lmconform.spec.some_page")
    assert list(path.parent.iterdir()) == [path]


def test_a_name_without_a_page_is_not_found(write_page: Write) -> None:
    write_page("some-page", PAGE)
    with pytest.raises(ModuleNotFoundError, match="no_such_page"):
        importlib.import_module("lmconform.spec.no_such_page")


def test_missing_pages_are_named(write_page: Write, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=str(tmp_path)):
        pages()


def test_extracted_blocks_keep_their_lines(write_page: Write, tmp_path: Path) -> None:
    write_page("some-page", PAGE)
    build = tmp_path / "build"
    (build / "spec").mkdir(parents=True)
    (build / "spec" / "gone.py").touch()
    assert extract(build) == [build / "spec" / "some_page.py"]
    assert not (build / "spec" / "gone.py").exists()
    lines, code = PAGE.splitlines(), (build / "spec" / "some_page.py").read_text(encoding="utf-8").splitlines()
    assert {number: line for number, line in enumerate(code, start=1) if line} == {
        number: lines[number - 1] for number in (10, 11, 17, 18, 19)
    }


def test_an_installed_package_reads_the_pages_beside_it(tmp_path: Path) -> None:
    package = tmp_path / "lmconform"
    shutil.copytree(Path(loader.__file__).parent, package / "spec", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(directory(), package / "spec", dirs_exist_ok=True)
    shutil.copy(lmconform.__file__, package)
    script = "import lmconform.spec as spec, lmconform.spec.rope as rope; print(spec.directory(), rope.__file__)"
    shown = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == [str(package / "spec"), str(package / "spec" / "rope.md")]


def test_importing_the_package_runs_no_page_and_loads_no_torch() -> None:
    script = "import sys, lmconform.spec as s; s.requirements(); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(shown.stdout.split())
    assert "lmconform.spec" in loaded
    assert not loaded & {"torch", "transformers", "lmconform.spec.causal_mask"}

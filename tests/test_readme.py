"""The README's adapter works as it stands, in a file outside the repository."""

import json
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_adapter_of_the_readme_conforms(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "my_adapter.py").write_text(code)
    command = [sys.executable, "-m", "lmconform", "check", "my_adapter.py:MyEngine", "--python", sys.executable]
    done = subprocess.run([*command, "--only", "CM-4,CM-9"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "lmconform-report" / "report.json").read_text())
    assert {one["id"]: one["verdict"] for one in report["requirements"]} == {"CM-4": "pass", "CM-9": "pass"}
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"lmconform-report", "my_adapter.py"}
    assert len([line for line in code.splitlines() if line.strip()]) <= 20


def test_the_verdicts_of_the_readme_are_those_of_the_code() -> None:
    from lmconform.judging.verdict import Verdict

    table = README.read_text(encoding="utf-8").partition("## Read a verdict")[2].partition("## More")[0]
    assert set(re.findall(r"^\| `([a-z-]+)`", table, re.MULTILINE)) == set(Verdict)

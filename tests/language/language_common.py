"""What the tests of the language door share: replies on a wire, the examples, and a compiled C engine."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from lmconform.checkpoints.layout import Checkpoint, Shape, StoredDType, on_grid
from lmconform.transport.protocol import ERROR_KINDS

EXAMPLES = Path(__file__).parents[2] / "conformance" / "examples"
ORACLE, C_SOURCE = EXAMPLES / "oracle_engine.py", EXAMPLES / "c" / "engine.c"
COMPILER = shutil.which("cc")
CHECKED = ("-O2", "-Wall", "-Wextra", "-Werror", "-std=c11")
SANITIZED = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def compiled(folder: Path, *flags: str) -> Path | None:
    """The C engine, built in ``folder``; None if this compiler cannot do it with these flags."""
    program = folder / "engine"
    command = [str(COMPILER), *CHECKED, *flags, "-o", str(program), str(C_SOURCE), "-lm"]
    built = subprocess.run(command, capture_output=True, text=True)
    assert "warning" not in built.stderr, built.stderr
    return program if built.returncode == 0 else None


def parsed_replies(wire: bytes) -> list[dict[str, Any]]:
    """All replies on the wire, each by the protocol; what follows a line is skipped."""
    found, at = [], 0
    while at < len(wire):
        end = wire.index(b"\n", at)
        message = json.loads(wire[at:end], parse_constant=_no_word)
        assert isinstance(message, dict)
        assert set(message) <= {"id", "result", "error", "bytes"}
        assert ("result" in message) != ("error" in message)
        assert message["id"] is None or type(message["id"]) in (int, float)
        if "error" in message:
            assert message["error"]["kind"] in ERROR_KINDS
            assert message["error"]["message"]
        at = end + 1 + message.get("bytes", 0)
        found.append(message)
    assert at == len(wire), "all bytes that were announced came"
    return found


def _no_word(word: str) -> None:
    raise AssertionError(f"{word} is not JSON")


def tiny(folder: Path, dtype: StoredDType = "float32", **changes: Any) -> Path:
    """Write a tiny llama of random weights; ``changes`` are of its config.json."""
    shape = Shape(hidden_size=8, num_attention_heads=4, head_dim=4, intermediate_size=12, vocab_size=11)
    rng = np.random.default_rng(0)
    weights = {name: on_grid(rng.normal(size=size)) for name, size in shape.tensors().items()}
    return Checkpoint("tiny", {**shape.config(), "max_position_embeddings": 64, **changes}, weights).write(
        folder, dtype
    )

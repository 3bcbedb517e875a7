"""Kernels of MLX, ONNX and JAX, hosted by their own interpreters: each is the definition in every format."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import own_environment
import pytest

from lmconform.adapter import NotOffered, Operator
from lmconform.judging.operators import AttentionCall, NormCall, RopeCall
from lmconform.judging.verdict import Verdict
from lmconform.transport.client import Connection, EngineSpec
from lmconform.transport.errors import StartError

FAULTS = Path(__file__).with_name("mlx_faults.py")
VARIABLES = {
    "mlx-kernels": "LMCONFORM_MLX_PYTHON",
    "onnx-kernels": "LMCONFORM_ONNX_PYTHON",
    "jax-kernels": "LMCONFORM_JAX_PYTHON",
}
OFFERED = {
    "mlx-kernels": {"sdpa", "sdpa-additive-mask", "rope", "rope-traditional", "rope-freqs", "rope-offsets", "rms-norm"},
    "onnx-kernels": {
        "ort-attention",
        "ort-attention-static-cache",
        "ort-multi-head-attention",
        "ort-group-query-attention",
        "ort-rotary-embedding",
        "ort-rotary-embedding-interleaved",
        "ort-rms-normalization",
        "reference-attention",
        "reference-attention-static-cache",
        "reference-rotary-embedding",
        "reference-rotary-embedding-interleaved",
        "reference-rms-normalization",
    },
    "jax-kernels": {"xla"},
}
# Largest errors of these calls in each format; a wrong mask, head or pair is wrong by more than 0.3.
NEAR = {"float32": 1e-5, "float16": 2e-2, "bfloat16": 0.15}
ABSENT = {("onnx-kernels", "bfloat16"), ("jax-kernels", "float16")}
FORMATS = [(library, dtype) for library in VARIABLES for dtype in NEAR if (library, dtype) not in ABSENT]


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).integers(-16, 17, shape) / 8).astype(np.float32)


@pytest.fixture(scope="module", params=FORMATS, ids="-".join)
def kernels(request: pytest.FixtureRequest) -> Iterator[tuple[str, str, dict[str, Operator]]]:
    library, dtype = request.param
    python = own_environment.interpreter(VARIABLES[library], f"{library}.txt")
    with own_environment.connected(library, python, dtype=dtype) as connection:
        yield library, dtype, connection.operators()


def test_all_that_is_there_is_offered(kernels: tuple[str, str, dict[str, Operator]]) -> None:
    library, dtype, found = kernels
    assert set(found) <= OFFERED[library]
    assert set(found) == OFFERED[library] or dtype != "float32"


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 7), (3, 7), (5, 5)])
def test_attention_kernels_are_the_definition(kernels: tuple[str, str, dict[str, Operator]], n: int, m: int) -> None:
    _, dtype, found = kernels
    given = np.random.default_rng(3).random((n, m)) < 0.5
    given[:, 0] = True
    for name, operator in found.items():
        for mask in operator.masks if operator.kind == "attention" else ():
            heads = 2 if operator.grouped else 6
            q, k, v = numbers(6, n, 16), numbers(heads, m, 16, seed=1), numbers(heads, m, 16, seed=2)
            call = AttentionCall(q, k, v, mask == "causal", given if mask == "given" else None)
            error = np.abs(operator.run(*call.inputs) - call.truth()).max()
            assert error < NEAR[dtype], (name, mask)


def test_the_other_kernels_are_the_definition(kernels: tuple[str, str, dict[str, Operator]]) -> None:
    _, dtype, found = kernels
    for name, operator in found.items():
        if operator.kind == "attention":
            continue
        rope = operator.kind == "rope"
        positions = np.array([0, 1, 5, 40])
        turn = RopeCall(numbers(3, 4, 16), positions, 10_000.0, operator.layout if rope else "half-split")
        call = turn if rope else NormCall(numbers(3, 48), numbers(48, seed=1), 1e-5)
        assert np.abs(operator.run(*call.inputs) - call.truth()).max() < NEAR[dtype], name


@pytest.mark.parametrize("library", VARIABLES)
def test_an_unknown_format_names_the_legal_ones(library: str) -> None:
    python = own_environment.interpreter(VARIABLES[library], f"{library}.txt")
    with pytest.raises(StartError, match="float32, float16"):
        Connection.start(EngineSpec(library, python=python, options={"dtype": "int8"}))


def test_a_format_that_jax_has_no_product_for_is_not_offered() -> None:
    """On a CPU. Where there is one, the kernels must be right."""
    python = own_environment.interpreter(VARIABLES["jax-kernels"], "jax-kernels.txt")
    with own_environment.connected("jax-kernels", python, dtype="float16") as connection:
        found, said = set(), ""
        try:
            found = set(connection.operators())
        except NotOffered as reason:
            said = str(reason)
    assert found == OFFERED["jax-kernels"] or (not found and "F16_F16_F32" in said)


def test_kernels_with_a_fault_are_caught_by_its_mechanism() -> None:
    python = own_environment.interpreter("LMCONFORM_MLX_PYTHON", "mlx.txt")  # its faults are in one file with mlx-lm's
    wanted = ("GQA-1", "GQA-2", "PNR-5", "ROPE-2", "CM-4", "SDP-1", "ROPE-13")
    with own_environment.connected(f"{FAULTS}:KernelsInAnotherShape", python) as connection:
        records = own_environment.judge(connection, *wanted, doors=("operators",))
    failed = {(one.requirement, one.case) for one in records if one.verdict == Verdict.FAIL}
    assert failed == {
        ("GQA-1", "sdpa"),
        ("GQA-1", "sdpa-additive-mask"),
        ("GQA-2", "sdpa"),
        ("GQA-2", "sdpa-additive-mask"),
        ("PNR-5", "rms-norm"),
        ("ROPE-2", "rope"),
    }

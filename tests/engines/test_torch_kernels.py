"""torch's kernels as operators: what is offered, and that each is the definition in every format."""

import numpy as np
import pytest

from lmconform.adapter import offered
from lmconform.engines import known, resolve
from lmconform.engines.torch_kernels import TorchKernels
from lmconform.judging.operators import AttentionCall, NormCall, RopeCall

# Largest errors of these calls in each format; a wrong mask, head or pair is wrong by more than 0.3.
NEAR = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-2, "bfloat16": 0.15}


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).integers(-16, 17, shape) / 8).astype(np.float32)


def test_it_is_known_by_its_name_and_has_operators_alone() -> None:
    assert known()["torch-kernels"].target == resolve("torch-kernels")
    assert offered(TorchKernels()) == ("operators",)


def test_the_backends_of_this_machine_are_found() -> None:
    names = TorchKernels().operators()
    assert {"sdpa-math", "sdpa-flash", "flex-attention", "refdecoder-eager", "refdecoder-sdpa"} <= set(names)
    assert "sdpa-efficient" not in names  # it has no CPU kernel


@pytest.mark.parametrize("dtype", list(NEAR))
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 7), (3, 7), (5, 5)])
def test_attention_kernels_are_the_definition(dtype, n, m) -> None:
    q, k, v = numbers(6, n, 16), numbers(2, m, 16, seed=1), numbers(2, m, 16, seed=2)
    given = np.random.default_rng(3).random((n, m)) < 0.5
    given[:, 0] = True
    for name, operator in TorchKernels(dtype=dtype).operators().items():
        for mask in operator.masks if operator.kind == "attention" else ():
            call = AttentionCall(q, k, v, mask == "causal", given if mask == "given" else None)
            error = np.abs(operator.run(*call.inputs) - call.truth()).max()
            assert error < NEAR[dtype], (name, mask)


@pytest.mark.parametrize("dtype", list(NEAR))
def test_the_other_kernels_are_the_definition(dtype) -> None:
    calls = {
        "rope": RopeCall(numbers(3, 4, 16), np.array([0, 1, 5, 40]), 10_000.0),
        "rms_norm": NormCall(numbers(3, 48), numbers(48, seed=1), 1e-5),
    }
    found = [one for one in TorchKernels(dtype=dtype).operators().values() if one.kind in calls]
    assert {one.kind for one in found} == set(calls)
    for operator in found:
        call = calls[operator.kind]
        assert np.abs(operator.run(*call.inputs) - call.truth()).max() < NEAR[dtype]


@pytest.mark.parametrize(("option", "value"), [("dtype", "int8"), ("device", "nowhere")])
def test_unknown_options_are_turned_down(option, value) -> None:
    with pytest.raises(ValueError, match=value):
        TorchKernels(**{option: value})

"""LayerNorm and GELU of a gpt2: read right on both engines, and faults of each named by its line."""

from typing import Any

import pytest
import torch
from sheets import differing, outcomes, sheet

from lmconform.engines.reference import Reference
from lmconform.faults.decoder_families import ExactGelu, LayerNormEps1e6  # noqa: F401  named by this module
from lmconform.measure.layer_norm import layer_norm
from lmconform.measure.sheet import Outcome
from refdecoder.gpt2 import LayerNorm


@pytest.mark.parametrize("engine", ["reference", "transformers"])
@pytest.mark.parametrize(("checkpoint", "form"), [("gpt2-balance", "GELU tanh"), ("exact-gpt2-balance", "GELU exact")])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_read_right(checkpoint: str, form: str, engine: str, dtype: str) -> None:
    lines = sheet(layer_norm, checkpoint, engine, dtype=dtype)
    assert outcomes(lines) <= {Outcome.EQUAL, Outcome.NOT_RESOLVABLE}
    assert form in lines["activation"].measured
    if dtype == "float32":
        assert outcomes(lines) == {Outcome.EQUAL}
        assert lines["activation"].measured == form
        assert float(lines["eps of ln_2"].measured) == pytest.approx(2.0**-4, rel=1e-3)


class _Swapped(Reference):
    """A gpt2 with other norms."""

    part: type[LayerNorm]
    where = "ln_"

    def build_gpt2(self, config: Any, attention: str) -> Any:
        decoder = super().build_gpt2(config, attention)
        for name, module in decoder.named_modules():
            if isinstance(module, LayerNorm) and self.where in name:
                module.__class__ = self.part
        return decoder


class _KeepsTheMean(LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps) * self.weight + self.bias


class RmsForTheMlp(_Swapped):
    """The norm of the MLP keeps the mean."""

    part, where = _KeepsTheMean, "ln_2"


class _EpsOutside(LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x - x.mean(dim=-1, keepdim=True)
        return y / (y.square().mean(dim=-1, keepdim=True).sqrt() + self.eps) * self.weight + self.bias


class EpsOutsideTheRoot(_Swapped):
    """eps is added to the standard deviation."""

    part = _EpsOutside


EPS = {f"eps of {norm}" for norm in ("ln_1", "ln_2", "ln_f")}
CURVE = {f"activation at {point}" for point in ("-3", "-2", "-1", "1")}


@pytest.mark.parametrize(
    ("fault", "wanted"),
    [
        ("ExactGelu", {"activation", *CURVE}),
        ("LayerNormEps1e6", EPS),
        ("RmsForTheMlp", {"shifted load after ln_2"}),
        ("EpsOutsideTheRoot", EPS),
    ],
)
def test_a_fault_is_named_by_its_line(fault: str, wanted: set[str]) -> None:
    found = differing(sheet(layer_norm, "gpt2-balance", f"{__name__}:{fault}"))
    assert set(found) == wanted

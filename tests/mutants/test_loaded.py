"""A mutant in place: whoever imports the reference afterwards gets the changed one."""

import sys

import pytest

from lmconform.matrix.forked import each
from lmconform.mutants.loaded import install
from lmconform.mutants.mutate import mutants

LINE = "return torch.cat((a * cos - b * sin, b * cos - a * sin), dim=-1).to(x.dtype)"


def in_a_child(work):
    ((_, found),) = each(["mutant"], lambda _: work(), 1, 60.0)
    return found


@pytest.mark.parametrize("before", [(), ("refdecoder", "lmconform.engines.reference", "lmconform.faults")])
def test_all_importers_get_the_mutant(before) -> None:
    mutant = next(one for one in mutants() if one.diff()[1] == LINE)

    def work():
        for name in [name for name in sys.modules if name.startswith("refdecoder")]:
            del sys.modules[name]
        for name in before:
            __import__(name)
        install(mutant)
        import torch

        import lmconform.engines
        import refdecoder
        from lmconform.engines.reference import Reference
        from lmconform.faults import FAULTS
        from refdecoder.rope import rotate

        one = torch.ones(1, 1, 1, 2)
        return (
            rotate(one, torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)).flatten().tolist(),
            refdecoder.model.rotate is rotate,
            Reference.attention_class is refdecoder.Attention,
            lmconform.engines.reference.Reference is Reference,
            any(issubclass(fault.engine, Reference) for fault in FAULTS),
            refdecoder.rope.__file__ == str(mutant.path),
        )

    assert in_a_child(work) == ([-1.0, -1.0], True, True, True, True, True)

"""What ranks load in the tests of refdecoder; a module of its own, since other processes import it."""

from functools import partial
from pathlib import Path

import torch
from torch.distributed.device_mesh import DeviceMesh

from refdecoder import CausalLM, build, load
from refdecoder.parallel import parallelize


def load_share(mesh: DeviceMesh, directory: str, attention: str = "eager", nan: int | None = None) -> CausalLM:
    """This rank's share of a checkpoint, in float64; all that comes of the id ``nan`` is NaN."""
    model = load(Path(directory), torch.float64, build=partial(build, attention=attention))
    if nan is not None:
        model.embed_tokens.weight[nan] = torch.nan
    return parallelize(model, mesh)


def fail_on_the_second(mesh: DeviceMesh, directory: str) -> CausalLM:
    """The same, with a fault that only rank 1 has."""
    if mesh.get_rank() == 1:
        raise ValueError("a bug of rank 1")
    return load_share(mesh, directory)


def spoil_the_first(mesh: DeviceMesh, directory: str) -> CausalLM:
    """The same, with a model that fails on rank 0 in its second layer, where others wait for it."""
    model = load_share(mesh, directory)
    if mesh.get_rank() == 0:
        model.layers[1].register_forward_pre_hook(lambda *_: [].pop())
    return model


class EndsWhoLoadsIt:
    """No rank can be given this loader."""

    def __reduce__(self) -> tuple[type[SystemExit], tuple[int]]:
        return _end, (3,)


def _end(code: int) -> None:
    raise SystemExit(code)

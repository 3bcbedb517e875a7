"""What adapters to torch share: the device of an option, and tensors as arrays."""

from __future__ import annotations

import torch

from lmconform.adapter import Array


def numbers(tensor: torch.Tensor) -> Array:
    """Return a tensor as a NumPy array on the host: float64 stays, all else widens to float32."""
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    array: Array = tensor.to("cpu", wide).numpy()
    return array


def torch_device(name: str) -> torch.device:
    """Return the torch device ``name``; raise ValueError if this machine does not have it."""
    try:
        torch.ones(1, device=name).tolist()
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:  # torch built without a backend asserts
        raise ValueError(f"Option device={name} cannot be used here: {str(error).splitlines()[0]}") from error

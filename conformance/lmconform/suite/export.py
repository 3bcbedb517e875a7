"""Checkpoints of the suite as files for the user: an instrument, or a random decoder, by name."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Literal, get_args

from lmconform.adapter import Precision
from lmconform.checkpoints.gguf import SUFFIX, MissingPackage, write_gguf
from lmconform.checkpoints.layout import CannotWrite, Checkpoint, StoredDType
from lmconform.checkpoints.place import CannotMake, check_place
from lmconform.checkpoints.random import FAMILIES, SHAPES, Volume, random_checkpoint
from lmconform.suite.instruments import INSTRUMENTS

FileFormat = Literal["hf", "gguf"]
RANDOM = {f"{volume}-{index}": (volume, shape) for volume in get_args(Volume) for index, shape in enumerate(SHAPES)}
RANDOM |= {f"{volume}-{shape.family}": (volume, shape) for volume in get_args(Volume) for shape in FAMILIES}
"""Random checkpoints by name: how loud they are, and their shape."""


def export(name: str, directory: Path, dtype: StoredDType, file_format: FileFormat, seed: int) -> str:
    """Write the checkpoint ``name`` into a new or empty directory; return what was written, in a sentence.

    Raises CannotMake if there is no such name, if the directory holds something, or if the format cannot hold it.
    """
    checkpoint = _named(name, dtype, seed)
    check_place(directory)
    try:
        if file_format == "hf":
            path = checkpoint.write(directory, dtype)
        else:
            path = write_gguf(checkpoint, directory / f"{name}{SUFFIX}", dtype)
    except (CannotWrite, MissingPackage) as error:
        raise CannotMake(str(error)) from error
    except OSError as error:
        raise CannotMake(f"{directory} cannot be written: {error.strerror}. Give another path.") from error
    count = sum(weight.size for weight in checkpoint.weights.values())
    family, vocabulary = checkpoint.config["model_type"], checkpoint.vocab_size
    return f"Wrote {path}: {name}, a {family} of {count:,} weights in {dtype}, with {vocabulary} ids."


def _named(name: str, dtype: StoredDType, seed: int) -> Checkpoint:
    """The checkpoint ``name``, made for an engine that computes in ``dtype``."""
    if name in INSTRUMENTS:
        return INSTRUMENTS[name](Precision(weights=dtype, compute=dtype, kv_cache=dtype, scores=dtype)).checkpoint
    if name in RANDOM:
        volume, shape = RANDOM[name]
        return random_checkpoint(shape, volume, seed)
    names = [*INSTRUMENTS, *RANDOM]
    near = get_close_matches(name, names, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise CannotMake(f"There is no checkpoint {name!r}.{hint} There are: {', '.join(names)}.")

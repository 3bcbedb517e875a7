"""What a result depends on: the machine, the versions, the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
COMMIT = "LMCONFORM_COMMIT"
"""Variable of the environment that names the commit of files that are no checkout."""
PACKAGES = ("torch", "transformers", "numpy", "safetensors", "triton")


def machine(device: torch.device) -> dict[str, Any]:
    """Return what is known of this machine, of torch here, and of the checkout."""
    found: dict[str, Any] = {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": _device(device),
        "python": platform.python_version(),
        "versions": {name: installed for name in PACKAGES if (installed := _version(name))},
        **_checkout(),
    }
    if device.type == "cuda":
        found["cuda"] = torch.version.cuda
    return found


def _device(device: torch.device) -> str:
    """The name of the device that computes: a GPU's own, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _processor() -> str:
    """The processor's model. Linux tells it in a file, other systems in ``platform``."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _checkout() -> dict[str, Any]:
    """The commit, and whether files differ from it. Outside a checkout: what ``COMMIT`` says, and that is not known."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": os.environ.get(COMMIT), "changed": None}
    return {"commit": commit, "changed": bool(_git("status", "--porcelain"))}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()

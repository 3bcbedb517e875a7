"""The adapter to refdecoder as several processes that share a model (tensor parallel), by torch's DTensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.distributed.device_mesh import DeviceMesh

import refdecoder
from lmconform.adapter import Engine
from lmconform.engines.common import choose, whole_number
from lmconform.engines.reference import Reference
from lmconform.engines.tensors import torch_device
from refdecoder.parallel import check_ranks, parallelize
from refdecoder.ranks import BACKENDS, Ranks


class ReferenceTP(Reference, Engine):  # Engine is named for those who list engines by reading files
    """refdecoder in ranks. Options: ``ranks``, ``device`` (cpu or cuda), and ``dtype``, ``attention``, ``threads``."""

    name = "refdecoder-tp"

    def __init__(
        self,
        ranks: str = "2",
        dtype: str = "float32",
        device: str = "cpu",
        attention: str = "eager",
        threads: str | None = None,
    ) -> None:
        """Raise ValueError if an option has a value that is not known or not available here."""
        super().__init__(dtype, "cpu", attention, threads)  # a model is read on the CPU, and cut on its way to a GPU
        self.size = whole_number("ranks", ranks)
        self.place = choose("device", device, BACKENDS)
        torch_device(device)
        self._ranks: Ranks | None = None

    def accepts(self, config: Mapping[str, Any]) -> str | None:
        """Return why refdecoder refuses this config.json, or so many ranks for it, or None."""
        try:
            check_ranks(refdecoder.config_from_dict(config), self.size)
        except refdecoder.CheckpointError as error:
            return str(error)
        return None

    def decoder(self, checkpoint: Path, attention: str) -> refdecoder.CausalLM:
        """Return a model of which each rank has loaded its share. The ranks start with the first, and after a death."""
        if self._ranks is None or self._ranks.ended is not None:
            self._ranks = None  # the engine is copied to the other ranks
            self._ranks = Ranks.start(self.share, self.size, self.place)
        return self._ranks.load(checkpoint=str(checkpoint), attention=attention)

    def share(self, mesh: DeviceMesh, checkpoint: str, attention: str) -> refdecoder.CausalLM:
        """Return this rank's share of a checkpoint. Each rank has a copy of the engine, and calls this."""
        return parallelize(super().decoder(Path(checkpoint), attention), mesh)

    def close(self) -> None:
        """End the other ranks."""
        if self._ranks is not None:
            self._ranks.close()

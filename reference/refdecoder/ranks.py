"""Processes that run one model together, the ranks: rank 0 leads, the others follow.

Rank 0 has a model like any other, a ``ParallelLM``: it alone reads requests, draws tokens and knows when a row ends.
Before each pass it tells the other ranks what is fed, and then all run the pass, each on its share (``parallel.py``).
So ranks need not agree on a seed, a draw or a stop. Were each to draw for itself, one logit whose last bit differs
between two of them would leave them waiting for each other.

Orders are JSON, broadcast as bytes. What fails while all ranks work ends the others; a rank that loses rank 0 ends.
"""

from __future__ import annotations

import itertools
import json
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from .cache import Cache
from .errors import CheckpointError, InputError
from .model import CausalLM
from .workers import RankError, Workers

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
"""What carries a pass on each kind of device."""
MEETING = timedelta(minutes=5)
"""How long a rank waits for the others; after a load, until all have loaded. gloo notices a death at once."""
IDLE = timedelta(days=365)
"""How long the others wait for an order of rank 0."""
CLOSING_SECONDS = 3.0
"""How long the other ranks may take to leave."""

Loader = Callable[..., CausalLM]
"""Given a device mesh, and by name what ``Ranks.load`` was given, returns this rank's share of a model."""


class Ranks:
    """This process as one of the ranks: rank 0 loads models and uses them, the others ``follow``."""

    def __init__(self, loader: Loader, device: str = "cpu", workers: Workers | None = None, **meeting: Any) -> None:
        """Join the other ranks.

        Args:
            loader: the same on every rank.
            device: "cpu", or "cuda" where each rank has a GPU.
            workers: the other ranks, where this one has started them.
            meeting: ``rank``, ``world_size`` and ``store`` for torch's ``init_process_group``, which otherwise takes
                those that torchrun gives.

        Raises:
            InputError: the device is not in ``BACKENDS``.
            RankError: this process is one of a group of ranks already.
        """
        _check(device)
        if device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", meeting.get("rank", 0))))
        dist.init_process_group(BACKENDS[device], timeout=MEETING, **meeting)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.ended: str | None = None
        """Why the ranks work no more."""
        self._loader, self._workers = loader, workers or Workers()
        self._mesh = init_device_mesh(device, (self.size,))
        self._orders = dist.new_group(backend="gloo", timeout=MEETING if self.rank == 0 else IDLE)
        self._numbers = itertools.count()
        self._forgotten: list[int] = []

    @classmethod
    def start(cls, loader: Loader, size: int, device: str = "cpu") -> Ranks:
        """Start ranks 1 to ``size`` - 1 on this machine, and return rank 0, which is this process.

        Args:
            loader: is pickled for the other ranks, which must be able to import it.
            size: number of ranks.
            device: as above.

        Raises:
            InputError, RankError: as above, or a rank could not be started.
        """
        _check(device)
        workers = Workers.start(_follow, (loader, device), size - 1)
        try:
            return cls(loader, device, workers, rank=0, world_size=size, store=workers.store)
        except BaseException:
            workers.end()
            raise

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the other ranks end, and leave them. Closing twice is no error."""
        if self.rank == 0 and self.ended is None:
            with suppress(RuntimeError):  # some rank has ended before it was told
                self.tell("end")
        if self.ended is None:
            self._end("They were closed.", CLOSING_SECONDS)

    # --- rank 0 -------------------------------------------------------------------------------------------------------

    def load(self, **settings: Any) -> ParallelLM:
        """Let each rank load its share of a model, by the loader with ``settings`` (JSON), and return the model.

        Raises:
            CheckpointError: the loader refuses the checkpoint, on all ranks.
        """
        number = next(self._numbers)
        self.tell("load", model=number, settings=settings)
        try:
            share = self._loader(self._mesh, **settings)
        except BaseException:
            self._forgotten.append(number)
            raise
        return ParallelLM(self, number, share)

    def tell(self, call: str, **order: Any) -> None:
        """Give the other ranks an order for ``follow``."""
        forgotten = [self._forgotten.pop() for _ in range(len(self._forgotten))]
        body = json.dumps({"call": call, "forgotten": forgotten, **order}).encode()
        with self.together():
            dist.broadcast(torch.tensor([len(body)]), 0, self._orders)
            dist.broadcast(torch.frombuffer(bytearray(body), dtype=torch.uint8), 0, self._orders)

    def number(self, cache: Cache) -> int:
        """Return a number by which the other ranks know their share of a cache."""
        number = next(self._numbers)
        self.forget_with(cache, number)
        return number

    def forget_with(self, thing: object, number: int) -> None:
        """Once ``thing`` is gone, let the other ranks forget their share of it."""
        weakref.finalize(thing, self._forgotten.append, number).atexit = False

    @contextmanager
    def together(self) -> Iterator[None]:
        """Enter what needs all ranks. If it fails here, the others would wait in vain, and are ended.

        Raises:
            RankError: another rank has ended. What failed on this rank alone passes through.
        """
        if self.ended is not None:
            raise RankError(f"The ranks have ended. {self.ended} Load the checkpoint again.")
        try:
            yield
        except BaseException as error:
            others = self._fault_of_others(error)
            self._end(others or f"Rank {self.rank} failed with {type(error).__name__}: {error}")
            if others:
                raise RankError(others) from error
            raise

    def _fault_of_others(self, error: BaseException) -> str:
        """Return what other ranks have to do with an error of this one, or ""."""
        if not isinstance(error, RuntimeError):  # as all errors of gloo and NCCL are
            return ""
        late = f"Another rank did not come within {MEETING.seconds} s. {error}" if "Timed out" in str(error) else ""
        return self._workers.deaths() or late

    def _end(self, reason: str, grace: float = 0.0) -> None:
        self.ended = reason
        self._workers.end(grace)
        dist.destroy_process_group()

    # --- the others ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def follow(self) -> None:
        """Do what rank 0 tells, until it closes."""
        held: dict[int, Any] = {}  # models and caches
        while (order := self._heard())["call"] != "end":
            for number in order["forgotten"]:
                held.pop(number, None)
            self._obey(order, held)

    def _heard(self) -> dict[str, Any]:
        size = torch.zeros(1, dtype=torch.long)
        dist.broadcast(size, 0, self._orders)
        body = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(body, 0, self._orders)
        order: dict[str, Any] = json.loads(body.numpy().tobytes())
        return order

    def _obey(self, order: Mapping[str, Any], held: dict[int, Any]) -> None:
        match order["call"]:
            case "load":
                with suppress(CheckpointError):  # rank 0 has met it too, and says it
                    held[order["model"]] = self._loader(self._mesh, **order["settings"])
            case "new_cache":
                held[order["cache"]] = held[order["model"]].new_cache(order["rows"], order["capacity"])
            case "fork":
                held[order["twin"]] = held[order["cache"]].fork()
            case "truncate":
                held[order["cache"]].truncate(order["row"], order["length"])
            case "run":
                cache: Cache = held[order["cache"]]
                cache.lengths = order["lengths"]
                device = self._mesh.device_type
                tokens, positions = (torch.tensor(order[name], device=device) for name in ("tokens", "positions"))
                held[order["model"]](tokens, positions, cache, order["last"])
            case unknown:
                raise AssertionError(f"rank 0 has told {unknown}")


def _check(device: str) -> None:
    if device not in BACKENDS:
        raise InputError(f"Ranks work on {' or '.join(BACKENDS)}; the device is {device!r}.")
    if dist.is_initialized():
        raise RankError("This process is one of a group of ranks already; close it before another is started.")


def _follow(loader: Loader, device: str, **meeting: Any) -> None:
    """The work of a rank that rank 0 has started."""
    with Ranks(loader, device, **meeting) as ranks:
        ranks.follow()


class ParallelLM(CausalLM):
    """On rank 0, a model of which each rank has a share."""

    def __init__(self, ranks: Ranks, number: int, share: CausalLM) -> None:
        super().__init__()
        self.config, self.ranks, self.number, self.share = share.config, ranks, number, share
        ranks.forget_with(self, number)

    @property
    def embed_tokens(self) -> nn.Embedding:  # type: ignore[override]
        """This rank's share of the embedding."""
        return self.share.embed_tokens

    def new_cache(self, rows: int, capacity: int) -> ParallelCache:
        """Return an empty cache, of which each rank has the KV heads of its share."""
        with torch.inference_mode(False):  # as passes are
            cache = ParallelCache(self.ranks, self.share.new_cache(rows, capacity))
        self.ranks.tell("new_cache", model=self.number, cache=cache.number, rows=rows, capacity=capacity)
        return cache

    def forward(self, tokens: Tensor, positions: Tensor, cache: Cache, last: bool = False) -> Tensor:
        """Return logits [B, T, V], or [B, V]; see ``CausalLM.forward``. The cache is one of ``new_cache``."""
        assert isinstance(cache, ParallelCache), "other ranks know the caches of new_cache alone"
        fed = {"tokens": tokens.tolist(), "positions": positions.tolist(), "last": last}
        self.ranks.tell("run", model=self.number, cache=cache.number, lengths=cache.lengths, **fed)
        # In inference mode DTensor plans products anew in every pass (torch 2.13), which doubles its cost.
        with self.ranks.together(), torch.inference_mode(False), torch.no_grad():
            logits: Tensor = self.share(tokens, positions, cache, last)
        return logits


class ParallelCache(Cache):
    """On rank 0, a cache of which each rank has some KV heads; ``keys`` and ``values`` are those of rank 0."""

    def __init__(self, ranks: Ranks, share: Cache) -> None:
        vars(self).update(vars(share))
        self.ranks, self.number = ranks, ranks.number(self)

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values on all ranks, the spare slots included."""
        return self.ranks.size * super().nbytes

    def truncate(self, row: int, length: int) -> None:
        """Forget all but the first ``length`` tokens of a row; raise InputError if it holds fewer."""
        super().truncate(row, length)
        self.ranks.tell("truncate", cache=self.number, row=row, length=length)

    def fork(self) -> ParallelCache:
        """Return a copy that shares no memory with this cache."""
        with torch.inference_mode(False):  # as passes are
            twin = ParallelCache(self.ranks, super().fork())
        self.ranks.tell("fork", cache=self.number, twin=twin.number)
        return twin

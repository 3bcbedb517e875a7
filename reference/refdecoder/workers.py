"""The processes of ranks 1, 2, ... where rank 0 starts them itself. Under torchrun there are none to start."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

LOOPBACK = "127.0.0.1"
START_SECONDS = 300.0
"""How long a process may take to import what it needs."""
DEATH_SECONDS = 10.0
"""How long rank 0, when a pass has failed, waits for news of another rank's end."""
LEAVING_SECONDS = 1.0
"""How long a rank that failed waits for the end of rank 0, whose connections may break a moment before it ends."""


class RankError(RuntimeError):
    """Another rank has ended, or was not started; the message says which, and of what."""


class Workers:
    """Processes of this machine, and the store in which they and rank 0 find each other."""

    def __init__(self, processes: Sequence[Any] = (), store: dist.Store | None = None) -> None:
        self.processes, self.store = list(processes), store

    @classmethod
    def start(cls, work: Callable[..., None], arguments: tuple[Any, ...], count: int) -> Workers:
        """Start ``count`` processes that call ``work``, and return when all are up.

        They have as many threads as this process. They and rank 0 listen on the loopback interface alone.

        Args:
            work: called with ``arguments`` and, by name, the ``rank``, ``world_size`` and ``store`` of the process.
                It is pickled, as are the arguments, so the processes must be able to import it.
            arguments: the same for every process.
            count: how many; 0 makes the store alone.

        Raises:
            RankError: a process ended, or was not up in time.
        """
        loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        for backend in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{backend}_SOCKET_IFNAME", loopback)
        door = socket.create_server((LOOPBACK, 0))
        port = door.getsockname()[1]
        # Left to itself the store would listen on every interface.
        store = dist.TCPStore(LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=door.detach())
        given = (work, arguments, count + 1, port, torch.get_num_threads())
        spawned = mp.spawn(_work, given, count, join=False, daemon=True).processes if count else []
        workers = cls(spawned, store)
        try:
            workers._wait()
        except BaseException:
            workers.end()
            raise
        return workers

    def _wait(self) -> None:
        """Return when all processes are up."""
        store, deadline = self.store, time.monotonic() + START_SECONDS
        assert store is not None
        while not store.check([_up(rank) for rank, _ in enumerate(self.processes, 1)]):
            wait([process.sentinel for process in self.processes], 0.05)
            if dead := self._dead():
                raise RankError(dead)
            if time.monotonic() > deadline:
                raise RankError(f"The other ranks were not up after {START_SECONDS:g} s.")

    def deaths(self) -> str:
        """Return which ranks have ended and of what, or "" if none does so within a few seconds."""
        deadline = time.monotonic() + DEATH_SECONDS
        while self.processes and time.monotonic() < deadline:
            if dead := self._dead():
                return dead
            wait([process.sentinel for process in self.processes], 0.05)
        return ""

    def end(self, grace: float = 0.0) -> None:
        """End the processes; each has ``grace`` seconds to leave by itself."""
        deadline = time.monotonic() + grace
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.join()

    def _dead(self) -> str:
        told = []
        for rank, process in enumerate(self.processes, 1):
            assert self.store is not None
            if self.store.check([_fault(rank)]):
                told.append(f"Rank {rank} failed with {self.store.get(_fault(rank)).decode()}")
            elif (code := process.exitcode) is not None:
                end = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                told.append(f"Rank {rank} ended with {end}.")
        return " ".join(told)


def _work(
    index: int, work: Callable[..., None], arguments: tuple[Any, ...], size: int, port: int, threads: int
) -> None:
    """What a process does."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # torch sends it when rank 0 dies: end at once, and in silence
    torch.set_num_threads(threads)
    rank = index + 1
    store = dist.TCPStore(LOOPBACK, port, is_master=False)
    store.set(_up(rank), "")
    try:
        work(*arguments, rank=rank, world_size=size, store=store)
    except Exception as error:
        first = multiprocessing.parent_process()
        if first is not None:
            first.join(LEAVING_SECONDS)
        if first is None or not first.is_alive():
            return  # rank 0 has gone, and with it the work
        traceback.print_exc()
        with suppress(RuntimeError):
            store.set(_fault(rank), f"{type(error).__name__}: {error}")
        sys.exit(1)


def _up(rank: int) -> str:
    return f"up {rank}"


def _fault(rank: int) -> str:
    return f"fault {rank}"

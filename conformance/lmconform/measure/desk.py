"""The desk of a measurement: one engine, and the instruments that it has loaded."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from threadpoolctl import threadpool_limits

from lmconform.suite.bench import Bench
from lmconform.suite.plan import PROFILES, Case, Plan
from lmconform.suite.subject import Subject
from lmconform.transport.client import Connection


class Desk:
    """Loads instruments into the engine. As a context manager it ends the engine and removes the checkpoints.

    The preflight of the suite runs before the first instrument of each regime: an adapter that is off by one would
    otherwise be read as a wrong mechanism.
    """

    def __init__(self, connection: Connection, seed: int = 0) -> None:
        """``seed`` draws the one random checkpoint, which only the preflight uses."""
        self.connection = connection
        threadpool_limits(1, user_api="blas")  # the oracle's products are small, and threads fight over the cores
        self._bench = Bench(connection, Plan(connection, PROFILES["quick"], seed), inf)

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def regimes(self) -> Mapping[str, object]:
        """The regimes that the engine declares, by name; the default one has none."""
        return self.connection.description.regimes

    def subject(self, checkpoint: str, regime: str | None = None) -> Subject:
        """The instrument of this name, a key of ``INSTRUMENTS``, loaded in this regime.

        A few models stay loaded, so that asking again for the last ones costs nothing. Raises NotOffered or Refused
        where the engine does not load it, ``preflight.AdapterOff`` where the adapter is at fault, and EngineFault
        where the engine breaks down.
        """
        return self._bench.subject(Case(checkpoint, regime))

    def close(self) -> None:
        """End the engine and remove the checkpoints."""
        self._bench.close()

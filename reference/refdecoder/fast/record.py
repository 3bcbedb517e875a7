"""What the steps of the fast path leave on the device for the host to read later."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..rope import wide


class Record:
    """The drawn ids of B rows, and with each of them the log-probabilities of the most probable ids."""

    def __init__(self, rows: int, steps: int, best: int | None, dtype: torch.dtype, device: torch.device) -> None:
        """Make room for ``steps`` tokens a row, with ``best`` log-probabilities each; None keeps tokens alone.

        ``dtype`` is that of the logits.
        """
        self.best = best
        self.tokens = torch.zeros(rows, steps, dtype=torch.long, device=device)
        if best is not None:
            self.ids = torch.zeros(rows, steps, best + 1, dtype=torch.long, device=device)  # the last: the drawn one
            self.values = torch.zeros(rows, steps, best + 1, dtype=wide(dtype), device=device)

    def keep(self, count: Tensor, drawn: Tensor, logits: Tensor) -> None:
        """Note ``drawn`` [B] and what ``logits`` [B, V] say about it, as entry ``count`` [1] of each row."""
        self.tokens.index_copy_(1, count, drawn[:, None])
        if self.best is not None:
            logprobs = logits.to(wide(logits.dtype)).log_softmax(dim=-1)
            ids = torch.cat((logprobs.topk(self.best).indices, drawn[:, None].clamp(min=0)), dim=-1)  # [B, best + 1]
            self.ids.index_copy_(1, count, ids[:, None])
            self.values.index_copy_(1, count, logprobs.gather(1, ids)[:, None])

    def read(self, start: int, stop: int) -> Reading:
        """Wait for the device, and return the entries from ``start`` to before ``stop`` of every row."""
        tokens = self.tokens[:, start:stop].tolist()
        if self.best is None:
            return Reading(tokens, [], [])
        return Reading(tokens, self.ids[:, start:stop].tolist(), self.values[:, start:stop].tolist())


@dataclass(frozen=True)
class Reading:
    """Entries of all rows, on the host; ids and log-probabilities are in the order of probability, the drawn last."""

    tokens: list[list[int]]  # [B][steps]
    ids: list[list[list[int]]]  # [B][steps][best + 1]
    values: list[list[list[float]]]

    def logprobs(self, row: int, step: int, best: int | None) -> dict[int, float] | None:
        """Return the log-probabilities of the ``best`` most probable ids and of the drawn one; None for None."""
        if best is None:
            return None
        ids, values = self.ids[row][step], self.values[row][step]
        wanted = [*range(min(best, len(ids) - 1)), len(ids) - 1]
        return {ids[i]: values[i] for i in wanted}

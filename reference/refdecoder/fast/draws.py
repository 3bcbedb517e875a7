"""The next token of every row of a batch at once, on the device: what ``sampling.py`` says of one row, in tensors.

A row's random numbers are drawn before its first step, one for each token, from a generator of its own. A step then
reads its column and finds where it falls among the summed probabilities. So a step asks nothing of the host, and one
that was recorded draws anew when it is played again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..generate import Row

OFF = 2.0
"""A top_p that no sum of probabilities reaches, however it is rounded."""


@dataclass(frozen=True)
class Kind:
    """What the draws of a batch need. What no row asks for is left out of the step."""

    sampled: bool
    """Some row has a temperature."""
    filtered: bool
    """Some row has a top_k, top_p or min_p."""
    masked: bool
    """Some row may not stop at first."""
    logprobs: int | None
    """The most log-probabilities that a row asks for."""


class Draws:
    """Settings and random numbers of B rows, at fixed addresses. Rows without a request are greedy."""

    def __init__(self, rows: int, steps: int, vocab_size: int, device: torch.device) -> None:
        """Make room for ``steps`` tokens a row."""
        self.wide = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.ids = torch.arange(vocab_size, device=device)
        self.greedy = torch.ones(rows, dtype=torch.bool, device=device)
        self.settings = torch.ones(4, rows, 1, dtype=self.wide, device=device)  # temperature, top_k, top_p, min_p
        self.uniform = torch.ones(rows, steps, dtype=self.wide, device=device)  # in (0, 1]
        self.least = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.stop_ids = torch.zeros(rows, vocab_size, dtype=torch.bool, device=device)

    def set(self, rows: Sequence[Row]) -> Kind:
        """Take over the settings of the first ``len(rows)`` rows, and draw their random numbers.

        Raises:
            InputError: every id is a stop id of a row that may not stop at first.
        """
        samplers, stops = [row.request.sampler for row in rows], [row.request.stops for row in rows]
        settings = [
            [one.temperature or 1 for one in samplers],
            [len(self.ids) if one.top_k is None else one.top_k for one in samplers],
            [OFF if one.top_p is None or one.top_p == 1 else one.top_p for one in samplers],
            [one.min_p or 0 for one in samplers],
        ]
        n, asked = len(rows), [row.request.logprobs for row in rows]
        self.settings[:, :n, 0] = torch.tensor(settings, dtype=self.wide).to(self.settings.device)
        self.greedy.fill_(True)
        self.greedy[:n] = torch.tensor([not one.temperature for one in samplers]).to(self.greedy.device)
        self.least[:n, 0] = torch.tensor([one.min_new_tokens for one in stops]).to(self.least.device)
        for b, row in enumerate(rows):
            drawn = torch.rand(row.budget, dtype=self.wide, generator=row.generator, device=row.place)
            self.uniform[b, : row.budget] = (1 - drawn).to(self.uniform.device)
            self.stop_ids[b] = stops[b].mask(torch.zeros(len(self.ids)), 0).isinf().to(self.stop_ids.device)
        return Kind(
            sampled=any(one.temperature for one in samplers),
            filtered=any(one.temperature and (one.top_k or one.top_p is not None or one.min_p) for one in samplers),
            masked=any(one.min_new_tokens for one in stops),
            logprobs=max((min(n, len(self.ids)) for n in asked if n is not None), default=None),
        )

    def draw(self, logits: Tensor, count: Tensor, kind: Kind) -> Tensor:
        """Return the next ids, [B], for ``logits`` [B, V] and the number of tokens drawn before, ``count`` [1].

        An id is -1 where a temperature makes something else than numbers of the logits.
        """
        if kind.masked:
            logits = logits.masked_fill(self.stop_ids & (count < self.least), float("-inf"))
        best = logits.argmax(dim=-1)
        if not kind.sampled:
            return best
        scores = logits.to(self.wide) / self.settings[0]  # [B, V]
        p, ids = self.filtered(scores) if kind.filtered else (scores.softmax(dim=-1), self.ids.expand_as(scores))
        mass = p.cumsum(dim=-1)
        # The first sum to reach a share above 0 of the whole: one exists, and its own p is not 0.
        found = torch.searchsorted(mass, mass[:, -1:] * self.uniform.index_select(1, count))  # [B, 1]
        drawn = ids.gather(1, found.clamp(max=len(self.ids) - 1))[:, 0]
        drawn = torch.where(mass[:, -1].isfinite(), drawn, -1)
        return torch.where(self.greedy, best, drawn)

    def filtered(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return what may be drawn for ``scores`` [B, V], which the temperature has divided.

        Returns:
            Shares [B, V], the greatest first, 0 where a filter cuts; their ids, [B, V].
        """
        _, top_k, top_p, min_p = self.settings  # [B, 1] each
        scores, ids = scores.sort(dim=-1, descending=True, stable=True)
        p = torch.where(self.ids < top_k, scores.softmax(dim=-1), 0)
        p = p / p.sum(dim=-1, keepdim=True)
        short = p.cumsum(dim=-1) < top_p  # the mass down to this id is too little, so the next one stays too
        p = torch.cat((p[:, :1], torch.where(short[:, :-1], p[:, 1:], 0)), dim=-1)
        return torch.where(p >= min_p * p[:, :1], p, 0), ids

"""The fast path: prompts as in ``generate.py``, then steps that ask nothing of the host.

A step reads the last tokens and their positions, runs the model once, draws on the device, and writes the next tokens
and positions in place of the last. No part of it needs a number that the host would have to read back, so the host runs
ahead of the device; on CUDA a step is recorded once and played again. What is left to the host, where a row stops and
what its text is, needs the drawn ids alone: the host looks at them every few steps, and drops what a row drew after its
stop.

The loop in ``generate.py`` is the oracle. Greedy tokens are the same, up to rounding. Sampled tokens follow the same
distribution and a seed repeats them, but they are others, since a row spends one random number a token here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..cache import Side
from ..errors import InputError
from ..generate import Completion, Event, Request, Row, collected, prefill
from ..model import CausalLM
from ..stopping import Decode
from .draws import Draws, Kind
from .fused import fused
from .prepare import Step, missing_compiler, prepared
from .record import Record
from .static import StaticCache


class FastGenerator:
    """Generates in batches of up to B rows, one batch after the other, with one cache and with steps prepared once.

    A recorded step reads the whole cache every time, so that its shapes stay: on CUDA ask for the capacity that is
    needed, and no more. Any other step reads the slots in use, whose number the host knows by counting.
    """

    def __init__(
        self,
        model: CausalLM,
        rows: int,
        capacity: int,
        *,
        compile: bool | None = None,
        whole: bool = False,
        window: int | None = None,
    ) -> None:
        """Allocate for ``rows`` requests at a time, each of at most ``capacity`` tokens, prompt and new ones.

        Args:
            model: a decoder of any family, or what ``fused`` made of it; its weights are shared.
            rows: B.
            capacity: slots of each row.
            compile: whether ``torch.compile`` makes the steps, at the first batch that needs them; None for CUDA
                devices where it can.
            whole: have every step read the whole cache where it need not, too.
            window: steps between two looks at the drawn ids. None for 1 on a CPU, where looking is free, and 16
                elsewhere. A row that stops computes on to the end of its window.

        Raises:
            InputError: unusable sizes.
        """
        device = model.embed_tokens.weight.device
        cuda = device.type == "cuda"
        self.model, self.rows, self.device = fused(model), rows, device
        self.compile = (cuda and missing_compiler(device) is None) if compile is None else compile
        self.whole = whole or cuda
        self.window = (1 if device.type == "cpu" else 16) if window is None else window
        if self.window < 1:
            raise InputError(f"window is {window}; it must be 1 or more, or None.")
        with torch.inference_mode():
            self.cache = StaticCache(model.config, rows, capacity, model.embed_tokens.weight.dtype, device)
            self.draws = Draws(rows, capacity, model.config.vocab_size, device)
            self.tokens = torch.zeros(rows, 1, dtype=torch.long, device=device)  # the last of each row
            self.positions = torch.full_like(self.tokens, -1)  # where they will stand; -1 for a row at rest
            self.limits = torch.zeros_like(self.tokens)  # the positions at which rows come to rest
            self.count = torch.zeros(1, dtype=torch.long, device=device)  # tokens drawn so far
        self.steps: dict[Kind, tuple[Step, Record]] = {}
        self.batches = 0

    def generate(
        self,
        requests: Sequence[Request],
        *,
        decode: Decode | None = None,
        chunk: int | None = None,
        padding: Side = "right",
    ) -> list[Completion]:
        """Continue all requests in one batch and return a completion each; arguments and errors are those of stream.

        Where no request has a stop, the host looks once, when all is drawn.
        """
        stops = any(one.stops.ids or one.stops.sequences or one.stops.strings for one in requests)
        window = self.window if stops else self.cache.capacity
        return collected(requests, self._events(requests, decode, chunk, padding, first=window, window=window))

    def stream(
        self,
        requests: Sequence[Request],
        *,
        decode: Decode | None = None,
        chunk: int | None = None,
        padding: Side = "right",
    ) -> Iterator[Event]:
        """Continue all requests in one batch, and yield the first tokens, and then those of one window after the other.

        Args:
            requests: up to B prompts and their settings.
            decode: gives the text of ids; needed for stop strings.
            chunk: most prompt tokens a row and pass; None feeds whole prompts at once.
            padding: side on which shorter rows are padded.

        Raises:
            InputError: a request that cannot be met, or that the rows or slots are too few for, before the first event;
                another batch was begun before this one ended; nothing to compile with.
            FloatingPointError: the logits of a row with a temperature are no numbers.
        """
        return self._events(requests, decode, chunk, padding, first=1, window=self.window)

    def _events(
        self,
        requests: Sequence[Request],
        decode: Decode | None,
        chunk: int | None,
        padding: Side,
        *,
        first: int,
        window: int,
    ) -> Iterator[Event]:
        """Yield the events of one batch; the host looks when ``first`` tokens are drawn, and then every ``window``."""
        rows = [Row(self.model, index, request, decode) for index, request in enumerate(requests)]
        rows = [row for row in rows if row.budget]
        if not rows:
            return
        self._require(rows)
        self.batches = batch = self.batches + 1
        step, record = self._start(rows, chunk, padding)
        live, read, drawn, longest = dict(enumerate(rows)), 0, 1, max(row.budget for row in rows)
        while live:
            look = min(read + (window if read else first), longest)
            self._advance(step, rows, drawn, look)
            reading = record.read(read, look)  # the host waits here
            for i in range(look - read):
                for b, row in list(live.items()):
                    token, logprobs = reading.tokens[b][i], reading.logprobs(b, i, row.request.logprobs)
                    if token < 0:
                        raise FloatingPointError(f"Row {row.index} has logits that are no numbers; nothing was drawn.")
                    event = row.event(token, logprobs)
                    if event.reason is not None:
                        del live[b]
                    yield event
                    if batch != self.batches:
                        raise InputError("Another batch was begun before this one ended; use a generator for each.")
            read = drawn = look

    def _require(self, rows: Sequence[Row]) -> None:
        """Raise InputError if ``rows`` are too many, or one of them too long."""
        if len(rows) > self.rows:
            raise InputError(f"{len(rows)} requests were given to a generator of {self.rows} rows.")
        for row in rows:
            if row.room > self.cache.capacity:
                raise InputError(
                    f"Request {row.index} may come to {row.room} tokens, {row.budget} of them new, and the generator "
                    f"has {self.cache.capacity} slots a row. Ask for fewer new tokens or a larger capacity."
                )

    @torch.inference_mode()
    def _start(self, rows: Sequence[Row], chunk: int | None, padding: Side) -> tuple[Step, Record]:
        """Feed the prompts and draw the first tokens; return the step for the others, and where it keeps them."""
        kind = self.draws.set(rows)
        self.cache.clear()
        self.positions.fill_(-1)
        self.count.zero_()
        step, record = self._prepare(kind)
        prompts = [row.request.prompt for row in rows]
        found = prefill(self.model, self.cache, [*prompts, *[()] * (self.rows - len(rows))], chunk, padding)
        logits = found.new_zeros(self.rows, found.shape[1])  # [B, V]
        logits[: len(rows)] = found
        places = [[len(prompt) - 1, row.room - 1] for prompt, row in zip(prompts, rows, strict=True)]
        ends = torch.tensor(places).to(self.device)  # [len(rows), 2]; nothing follows the last token
        self.positions[: len(rows)], self.limits[: len(rows)] = ends[:, :1], ends[:, 1:]
        self.count.zero_()  # a preparation runs the step
        self._take(logits, kind, record)
        return step, record

    def _prepare(self, kind: Kind) -> tuple[Step, Record]:
        """Return the step for draws of this kind, and where it keeps them; prepare it at its first use."""
        if kind not in self.steps:
            dtype = self.model.embed_tokens.weight.dtype
            record = Record(self.rows, self.cache.capacity, kind.logprobs, dtype, self.device)

            def step(seen: int, aligned: bool) -> None:
                self.cache.aim(self.positions, seen, aligned=aligned)
                self._take(self.model(self.tokens, self.positions, self.cache, last=True), kind, record)

            self.steps[kind] = prepared(step, self.cache.capacity, self.device, self.compile), record
        return self.steps[kind]

    def _take(self, logits: Tensor, kind: Kind, record: Record) -> None:
        """Draw from ``logits`` [B, V], keep what is drawn, and make it what the next step reads."""
        drawn = self.draws.draw(logits, self.count, kind)  # [B]
        record.keep(self.count, drawn, logits)
        self.tokens.copy_(drawn[:, None].clamp(min=0))
        following = self.positions + 1
        goes_on = (self.positions >= 0) & (following < self.limits)
        self.positions.copy_(torch.where(goes_on, following, -1))
        self.count.add_(1)

    @torch.inference_mode()
    def _advance(self, step: Step, rows: Sequence[Row], drawn: int, until: int) -> None:
        """Run steps until ``until`` tokens are drawn where there are ``drawn``; the host counts, and does not look."""
        for count in range(drawn, until):
            fed = [b for b, row in enumerate(rows) if count < row.budget]  # of others the last token is drawn
            for b in fed:
                self.cache.lengths[b] += 1
            lengths = {self.cache.lengths[b] for b in fed}
            step(*(self.cache.capacity, False) if self.whole else (max(lengths), len(lengths) == 1))

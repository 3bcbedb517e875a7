"""The model under test: what it returns carries the tokens it was asked about.

A row of scores knows its context, so that ``expect`` can find the oracle's row and the budget for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from lmconform.adapter import Array, Choices, Completion, NotOffered, Refused, Request
from lmconform.checkpoints.attention_scope import AttentionScope
from lmconform.checkpoints.edits import Edit, edited
from lmconform.judging.budgets import Rounded, Yardstick
from lmconform.suite.findings import Unfit
from lmconform.suite.instruments import Material
from lmconform.suite.plan import Case
from lmconform.transport.client import RemoteModel, RemoteSession

Tokens = tuple[int, ...]
Instrument = TypeVar("Instrument")
MOST_LOGPROBS = 300
"""Log-probabilities a step that a ``generate`` request asks for at most; wider vocabularies give the top ones."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Rows of scores [n, K], and for each row the tokens and the position that it belongs to."""

    values: Array
    places: tuple[tuple[Tokens, int], ...]
    columns: tuple[int, ...] | None = None
    """Ids of the K columns; None for the whole vocabulary."""
    logprobs: Rounded = "logprobs"
    """Which declared format rounds them, if they may be log-probabilities; None where they are logits."""

    def __getitem__(self, rows: slice) -> Scores:
        return replace(self, values=self.values[rows], places=self.places[rows])

    def __len__(self) -> int:
        return len(self.values)

    def only(self, columns: Sequence[int]) -> Scores:
        """The same rows, of these ids alone."""
        index = {token: k for k, token in enumerate(self.columns)} if self.columns is not None else None
        picked = list(columns) if index is None else [index[token] for token in columns]
        return replace(self, values=self.values[:, picked], columns=tuple(columns))


def joined(parts: Sequence[Scores]) -> Scores:
    """The rows of all parts, which hold the same columns."""
    places = tuple(place for part in parts for place in part.places)
    return replace(parts[0], values=np.concatenate([part.values for part in parts]), places=places)


class SessionUnderTest:
    """A KV cache, and the tokens it holds. As a context manager it closes itself."""

    def __init__(self, remote: RemoteSession, logprobs: Rounded, tokens: Tokens = ()) -> None:
        self._remote = remote
        self._logprobs = logprobs
        self.tokens = tokens

    def __enter__(self) -> SessionUnderTest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def extend(self, tokens: Sequence[int], columns: Sequence[int] | None = None) -> Scores:
        """Append ``tokens``; their scores."""
        values = self._remote.extend(tokens, columns=columns)
        first = len(self.tokens)
        self.tokens += tuple(tokens)
        places = tuple((self.tokens, first + row) for row in range(len(tokens)))
        return Scores(values, places, _ids(columns), self._logprobs)

    def feed(self, tokens: Sequence[int]) -> None:
        """Append ``tokens``; their scores stay unread, whatever they are."""
        self._remote.extend(tokens, rows=())
        self.tokens += tuple(tokens)

    def fork(self) -> SessionUnderTest:
        """An independent copy."""
        return SessionUnderTest(self._remote.fork(), self._logprobs, self.tokens)

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` tokens."""
        self._remote.truncate(length)
        self.tokens = self.tokens[:length]

    def cache_bytes(self) -> int:
        """Bytes allocated now for its keys and values."""
        return self._remote.cache_bytes()

    def close(self) -> None:
        """Release the cache; closing twice is no error."""
        self._remote.close()


class Subject:
    """One checkpoint, loaded by the engine in one regime."""

    def __init__(
        self,
        remote: RemoteModel,
        material: Material,
        yardstick: Yardstick,
        case: Case,
        edited: Callable[[str], Subject],
        with_room: Callable[[int], Subject],
        most_draws: int = 0,
    ) -> None:
        self._remote = remote
        self.material = material
        self.yardstick = yardstick
        self.case = case
        self.edited = edited
        """Load this checkpoint after the named edit of ``checkpoints/edits.py``, as another model."""
        self.with_room = with_room
        """Load this checkpoint with room for sequences of so many tokens, as another model."""
        self.most_draws = most_draws
        """Most draws of a stage that the profile allows a test of the sampler."""
        self._logprobs: Rounded = None if self.choices.scores == "logits" else "scores"
        self.vocab_size = material.checkpoint.vocab_size

    @property
    def reported_vocab_size(self) -> int:
        """Ids that the engine says there are."""
        return self._remote.vocab_size

    @property
    def closed(self) -> bool:
        """Whether the model was closed; one that a dead engine lost is loaded again when it is next asked."""
        return self._remote.closed

    def close(self) -> None:
        """Let the engine release the model."""
        self._remote.close()

    @property
    def doors(self) -> tuple[str, ...]:
        """Methods that the engine's model offers."""
        return self._remote.offers

    @property
    def max_length(self) -> int | None:
        """Most tokens that the engine says a sequence may hold; None where it has no limit."""
        return self._remote.max_length

    @property
    def slots(self) -> int | None:
        """Rows that the engine says it runs side by side; None where it does not say."""
        return self._remote.slots

    @property
    def choices(self) -> Choices:
        """What the engine declares of its choices."""
        return self._remote.connection.description.choices

    @property
    def lengths(self) -> tuple[int, ...]:
        return self.material.lengths

    @property
    def scope(self) -> AttentionScope:
        """How to write prompts for the attention scope and read it; only on a scope checkpoint."""
        return self.instrument(AttentionScope)

    def instrument(self, kind: type[Instrument]) -> Instrument:
        """How to write prompts for this checkpoint and read it. Raises LookupError unless it is a ``kind``."""
        found = self.material.instrument
        if not isinstance(found, kind):
            raise LookupError(f"checkpoint {self.material.checkpoint.name} is no {kind.__name__}")
        return found

    def refusal(self, edit: str, asked: Callable[[Subject], object]) -> str | None:
        """Why the engine refuses this checkpoint after the edit, at the latest when it is ``asked``; None if not."""
        reason = self._remote.connection.accepts(edited(self.material.checkpoint, edit).config)
        if reason is not None:
            return reason
        try:
            asked(self.edited(edit))
        except Refused as refused:
            return str(refused)
        return None

    def score(self, tokens: Sequence[int], columns: Sequence[int] | None = None) -> Scores:
        """Scores of one sequence in one pass."""
        return self._whole(self._remote.score(tokens, columns=columns), tokens, columns)

    def score_batch(self, sequences: Sequence[Tokens], columns: Sequence[int] | None = None) -> list[Scores]:
        """Scores of several sequences in one call."""
        found = self._remote.score_batch(sequences, columns=columns)
        return [self._whole(values, tokens, columns) for values, tokens in zip(found, sequences, strict=True)]

    def open(self) -> SessionUnderTest:
        """An empty KV cache."""
        return SessionUnderTest(self._remote.open(), self._logprobs)

    def prefill_in_chunks(self, tokens: Tokens, sizes: Sequence[int], columns: Sequence[int] | None = None) -> Scores:
        """Scores of ``tokens`` as a session gives them, ``sizes`` tokens at a time."""
        session, start, parts = self.open(), 0, []
        for size in sizes:
            parts.append(session.extend(tokens[start : start + size], columns))
            start += size
        session.close()
        places = tuple((tokens, position) for position in range(len(tokens)))
        return Scores(np.concatenate([part.values for part in parts]), places, parts[0].columns, self._logprobs)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Completions of all requests, in one call."""
        return self._remote.generate(requests)

    def asking(self, prompt: Tokens, steps: int) -> Request:
        """A request for a greedy continuation of ``steps`` tokens, and the log-probabilities of each."""
        return Request(prompt=prompt, max_new_tokens=steps, logprobs=min(self.vocab_size, MOST_LOGPROBS))

    def continue_greedily(self, prompts: Sequence[Tokens], steps: int | Sequence[int]) -> list[Scores]:
        """Greedy continuations in one batch; row k of each: scores of step k, read from its log-probabilities.

        ``steps`` is the number of new tokens, for all rows or for each.
        """
        counts = [steps] * len(prompts) if isinstance(steps, int) else steps
        requests = [self.asking(prompt, count) for prompt, count in zip(prompts, counts, strict=True)]
        done = zip(prompts, self.generate(requests), counts, strict=True)
        return [read_steps(prompt, _with(completion, count))[:count] for prompt, completion, count in done]

    def new_tokens(self, prompts: Sequence[Tokens], steps: int | Sequence[int]) -> list[Tokens]:
        """Greedy continuations in one batch: the tokens alone, as an engine without log-probabilities gives them."""
        counts = [steps] * len(prompts) if isinstance(steps, int) else steps
        requests = [Request(prompt, max_new_tokens=count) for prompt, count in zip(prompts, counts, strict=True)]
        done = zip(self.generate(requests), counts, strict=True)
        return [_with(completion, count).tokens[:count] for completion, count in done]

    def as_if(self, visible: Callable[[int, int], Array], places: Sequence[tuple[Tokens, int]]) -> Array:
        """Scores [n, V] that the oracle gives at ``places`` under the mask ``visible``."""
        return _rows(lambda tokens: self.yardstick.faulty(tokens, visible), places)

    def as_edited(self, edit: Edit, places: Sequence[tuple[Tokens, int]]) -> Array:
        """Scores [n, V] that the oracle gives at ``places`` on the edited checkpoint."""
        return _rows(self.yardstick.edited(edit).oracle, places)

    def _whole(self, values: Array, tokens: Sequence[int], columns: Sequence[int] | None) -> Scores:
        whole = tuple(tokens)
        places = tuple((whole, position) for position in range(len(whole)))
        return Scores(values, places, _ids(columns), self._logprobs)


def _rows(table: Callable[[Tokens], Array], places: Sequence[tuple[Tokens, int]]) -> Array:
    tables = {tokens: table(tokens) for tokens in {tokens for tokens, _ in places}}
    return np.array([tables[tokens][position] for tokens, position in places])


def _ids(columns: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if columns is None else tuple(columns)


def _with(completion: Completion, count: int) -> Completion:
    """The completion, if it has ``count`` new tokens; what comes beyond them, STOP-6 says. Raises Unfit otherwise."""
    if len(completion.tokens) < count:
        raise Unfit(f"generate gave {len(completion.tokens)} of the {count} new tokens that were asked for")
    return completion


def read_steps(prompt: Tokens, completion: Completion) -> Scores:
    """The log-probabilities of a completion, a row for each step; of the ids that every step has."""
    if not completion.logprobs:
        raise NotOffered("log-probabilities of generate")
    shared = sorted(set.intersection(*(set(step) for step in completion.logprobs)))
    values = np.array([[step[token] for token in shared] for step in completion.logprobs], np.float64)
    contexts = [prompt + completion.tokens[:k] for k in range(len(completion.logprobs))]
    return Scores(values, tuple((tokens, len(tokens) - 1) for tokens in contexts), tuple(shared))

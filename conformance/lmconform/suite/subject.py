"""The model under test: what it returns carries the tokens it was asked about.

A row of scores knows its context, so that ``expect`` can find the oracle's row and the budget for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from lmconform.adapter import Array, Completion, NotOffered, Request
from lmconform.checkpoints.attention_scope import AttentionScope
from lmconform.checkpoints.edits import Edit
from lmconform.judging.budgets import Rounded, Yardstick
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


class SessionUnderTest:
    """A KV cache, and the tokens it holds."""

    def __init__(self, remote: RemoteSession, logprobs: Rounded) -> None:
        self._remote = remote
        self._logprobs = logprobs
        self.tokens: Tokens = ()

    def extend(self, tokens: Sequence[int], columns: Sequence[int] | None = None) -> Scores:
        """Append ``tokens``; their scores."""
        values = self._remote.extend(tokens, columns=columns)
        first = len(self.tokens)
        self.tokens += tuple(tokens)
        places = tuple((self.tokens, first + row) for row in range(len(tokens)))
        return Scores(values, places, _ids(columns), self._logprobs)

    def close(self) -> None:
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
    ) -> None:
        self._remote = remote
        self.material = material
        self.yardstick = yardstick
        self.case = case
        self.edited = edited
        """Load this checkpoint after the named edit of ``checkpoints/edits.py``, as another model."""
        self._logprobs: Rounded = None if remote.connection.description.choices.scores == "logits" else "scores"
        self.vocab_size = material.checkpoint.vocab_size

    @property
    def doors(self) -> tuple[str, ...]:
        """Methods that the engine's model offers."""
        return self._remote.offers

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

    def continue_greedily(self, prompts: Sequence[Tokens], steps: int) -> list[Scores]:
        """Greedy continuations in one batch; row k of each: scores of step k, read from its log-probabilities."""
        most = min(self.vocab_size, MOST_LOGPROBS)
        requests = [Request(prompt=prompt, max_new_tokens=steps, logprobs=most) for prompt in prompts]
        return [_steps(prompt, completion) for prompt, completion in zip(prompts, self.generate(requests), strict=True)]

    def new_tokens(self, prompts: Sequence[Tokens], steps: int) -> list[Tokens]:
        """Greedy continuations in one batch: the tokens alone, as an engine without log-probabilities gives them."""
        return [done.tokens for done in self.generate([Request(prompt, max_new_tokens=steps) for prompt in prompts])]

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


def _steps(prompt: Tokens, completion: Completion) -> Scores:
    if not completion.logprobs:
        raise NotOffered("log-probabilities of generate")
    shared = sorted(set.intersection(*(set(step) for step in completion.logprobs)))
    values = np.array([[step[token] for token in shared] for step in completion.logprobs], np.float64)
    contexts = [prompt + completion.tokens[:k] for k in range(len(completion.logprobs))]
    return Scores(values, tuple((tokens, len(tokens) - 1) for tokens in contexts), tuple(shared))

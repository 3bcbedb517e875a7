"""Any engine, seen through the narrowest door: tokens of ``generate``, without log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmconform.adapter import Completion, Engine, Model, Needs, NotOffered, Request
from lmconform.engines import resolve
from lmconform.transport.locate import construct


class TokensAlone(Engine):
    """The engine that the option ``engine`` names; further options are that engine's."""

    def __init__(self, engine: str, **options: str) -> None:
        """Raise UnknownEngine or Unusable if ``engine`` names no adapter, or one that does not take the options."""
        self._engine = construct(resolve(engine), options)
        self.name, self.version, self.format = self._engine.name, self._engine.version, self._engine.format
        self.precision, self.choices = self._engine.precision, self._engine.choices

    def accepts(self, config: Mapping[str, Any]) -> str | None:
        """Return what the engine itself says."""
        return self._engine.accepts(config)

    def regimes(self) -> Mapping[str, Mapping[str, Any]]:
        """Return those of the engine."""
        return self._engine.regimes()

    def load(self, checkpoint: Path, needs: Needs) -> Model:
        """Load the checkpoint; raises as the engine does."""
        return _Tokens(self._engine.load(checkpoint, needs))

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()


class _Tokens(Model):
    def __init__(self, model: Model) -> None:
        self._model = model
        self.vocab_size, self.max_length, self.slots = model.vocab_size, model.max_length, model.slots

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        if any(request.logprobs is not None for request in requests):
            raise NotOffered("log-probabilities")
        return self._model.generate(requests)

    def close(self) -> None:
        self._model.close()

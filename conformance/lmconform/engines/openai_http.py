"""The HTTP door: a server with OpenAI's completions, started from a command or given by its URL.

A client of servers, which live in environments of their own: it runs in the suite's, and needs no ``--python``. What a
server offers beyond plain completions is found out by asking it when the engine is constructed, with a checkpoint of
the suite that is made for it; see ``docs/engines/openai-http.md``. To print what is found:

    python -m lmconform.engines.openai_http command='vllm serve {checkpoint} --port {port}'
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

from lmconform.adapter import (
    Array,
    Completion,
    DType,
    Engine,
    Model,
    Needs,
    Precision,
    Refused,
    Request,
)
from lmconform.engines._openai_http_ask import MODELS, Door, opened
from lmconform.engines._openai_http_checkpoint import names_eos, vocab_size
from lmconform.engines._openai_http_client import Client, ServerFault
from lmconform.engines._openai_http_offer import Offer, Prompt, overridden
from lmconform.engines._openai_http_options import checked_url, listed, regime_name
from lmconform.engines._openai_http_probe import Ground, Probe, fixed_ground, tape_checkpoint
from lmconform.engines._openai_http_process import ServerProcess
from lmconform.engines._openai_http_spelling import Spelling, splitting
from lmconform.engines.common import check_tokens, choose, regime_settings, whole_number
from lmconform.transport.spec import options_of

READY = ("/health", MODELS)
ALONE, STREAMED = "one-at-a-time", "streamed"
Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class OpenAIHTTP(Engine):
    """A server with OpenAI's ``/v1/completions``.

    Options: ``command`` (a template with ``{checkpoint}`` and ``{port}``) or ``url``; ``format`` (hf, gguf), ``ready``,
    ``model``, ``timeout``, ``start_timeout``, ``servers``, ``concurrency``, ``dtype``, ``kv_cache``, ``offers``,
    ``choices``, ``least_logprob``, ``version``, ``families``, ``head_dims``, ``checkpoint``, ``remote``,
    ``key_variable``, and ``command_NAME`` for a regime NAME. An option that is not legal raises ValueError, and so does
    a server that cannot be asked.
    """

    name = "openai-http"

    def __init__(
        self,
        command: str | None = None,
        url: str | None = None,
        format: str = "hf",
        ready: str | None = None,
        model: str | None = None,
        timeout: str = "50",
        start_timeout: str = "300",
        servers: str = "1",
        concurrency: str = "32",
        dtype: str = "float32",
        kv_cache: str | None = None,
        offers: str | None = None,
        choices: str | None = None,
        least_logprob: str | None = None,
        version: str | None = None,
        families: str | None = None,
        head_dims: str | None = None,
        checkpoint: str | None = None,
        remote: str = "refused",
        key_variable: str | None = None,
        **commands: str,
    ) -> None:
        if (command is None) == (url is None):
            raise ValueError(
                "Either command= or url= must be given: a command that starts a server, such as"
                " command='vllm serve {checkpoint} --port {port}', or the URL of one that runs."
            )
        self._command, self._commands = command or "", {regime_name(name): line for name, line in commands.items()}
        self._url = None if url is None else checked_url(url, choose("remote", remote, ("refused", "allowed")))
        self.format = cast(Literal["hf", "gguf"], choose("format", format, ("hf", "gguf")))
        self._ready = (ready,) if ready else READY
        self._model_name = model
        self._timeout, self._start_timeout = (
            whole_number("timeout", timeout),
            whole_number("start_timeout", start_timeout),
        )
        self._room, self._threads = whole_number("servers", servers), whole_number("concurrency", concurrency)
        number = cast(DType, choose("dtype", dtype, get_args(DType)))
        cache = cast(DType, choose("kv_cache", kv_cache or dtype, get_args(DType)))
        self.precision = Precision(weights=number, compute=number, kv_cache=cache, scores=number)
        self._families, self._head_dims = listed(families), listed(head_dims)
        self._key = os.environ[key_variable] if key_variable else None
        self._servers: OrderedDict[str, ServerProcess] = OrderedDict()
        self._folder = tempfile.TemporaryDirectory(prefix="lmconform-http-")
        self._copies: dict[Path, Path] = {}
        self.offer = Offer()
        try:
            least = None if least_logprob is None else float(least_logprob)
            self.offer = replace(overridden(self._discovered(checkpoint), offers, choices), least_logprob=least)
            self.choices = self.offer.choices
            self.version = version or self._owner or "unknown"
        except BaseException:
            self.close()
            raise

    def accepts(self, config: Mapping[str, Any]) -> str | None:
        """Return why the options exclude this config.json. What they do not exclude, the server says when it loads."""
        family, heads = str(config.get("model_type")), config.get("num_attention_heads") or 1
        head_dim = str(config.get("head_dim") or int(config.get("hidden_size") or 0) // int(heads))
        if self._families and family not in self._families:
            return f"model_type is {family!r}, and the option families says {', '.join(self._families)}."
        if self._head_dims and family != "gpt2" and head_dim not in self._head_dims:
            return f"head_dim is {head_dim}, and the option head_dims says {', '.join(self._head_dims)}."
        return None

    def regimes(self) -> Mapping[str, Mapping[str, Any]]:
        """Requests one after the other, answers in streams, and what other commands start."""
        found: dict[str, dict[str, Any]] = {ALONE: {"concurrency": 1}} if self._threads > 1 else {}
        if "stream" in self.offer and self.offer.ids != "chunks":
            found[STREAMED] = {"stream": True}
        return found | {name: {"command": line} for name, line in self._commands.items()}

    def load(self, checkpoint: Path, needs: Needs) -> Model:
        """Start a server with the checkpoint, or take the one that runs. Refused if it ends before it is ready."""
        regime_settings(self.regimes(), needs)  # refuses one that is not declared
        if self.offer.score is not None:
            return ScoringModel(self, Path(checkpoint), needs)
        return HTTPModel(self, Path(checkpoint), needs)

    def door(self, checkpoint: Path, regime: str | None = None) -> Door:
        """The door to a server that has this checkpoint: one that runs, or one that is started now."""
        spelling = None if self.format == "gguf" else Spelling.of(checkpoint)
        if self._url is not None:
            return opened(
                Client(self._url, self._timeout, self._key), self._model_name, spelling, names_eos(checkpoint)
            )
        if self.offer.prompt == "text":
            checkpoint = self._split(checkpoint)
        line = self._commands.get(regime or "", self._command)
        key = line.replace("{checkpoint}", str(checkpoint))
        server = self._servers.pop(key, None)
        if server is None or not server.alive:
            if server is not None:
                server.stop()
            server = self._started(line, checkpoint)
        self._servers[key] = server
        name = None if self._model_name is None else self._model_name.replace("{checkpoint}", str(checkpoint))
        return opened(server.client, name, spelling, names_eos(checkpoint))

    def running(self, door: Door) -> bool:
        """Whether the server behind a door still runs; of a URL nobody can tell before asking."""
        return self._url is not None or any(one.client is door.client and one.alive for one in self._servers.values())

    def explained(self, door: Door, fault: ServerFault) -> ServerFault:
        """The fault, with the last words of the server that we started, and how it ended if it did."""
        for server in self._servers.values():
            if server.client is door.client:
                told = server.last_words() if server.running_on() else f" {server.ended()}"
                return type(fault)(f"{fault}{told}")
        return fault

    def close(self) -> None:
        """Stop all servers."""
        while self._servers:
            self._servers.popitem()[1].stop()
        self._folder.cleanup()

    def workers(self, regime: str | None) -> int:
        """How many requests are sent at the same time."""
        return 1 if regime == ALONE else self._threads

    def _started(self, line: str, checkpoint: Path) -> ServerProcess:
        while len(self._servers) >= self._room:
            self._servers.popitem(last=False)[1].stop()
        server = ServerProcess(line, checkpoint, self._key, self._timeout)
        try:
            server.wait(self._ready, self._start_timeout)
        except BaseException:
            server.stop()
            raise
        return server

    def _split(self, checkpoint: Path) -> Path:
        if checkpoint not in self._copies:
            self._copies[checkpoint] = splitting(checkpoint, Path(self._folder.name) / str(len(self._copies)))
        return self._copies[checkpoint]

    def _discovered(self, given: str | None) -> Offer:
        """Ask the server what it offers. Raises ValueError if it cannot even be asked."""
        if self._url is not None:
            checkpoint, ground = Path(given or self._folder.name), fixed_ground()
        else:
            checkpoint, ground = tape_checkpoint(Path(self._folder.name), self.format)
        reasons = []
        for prompt in get_args(Prompt):
            self.offer = Offer(prompt=prompt)
            try:
                probe = self._probe(checkpoint, ground)
                reason = probe.basics(prompt)
                if reason is None:
                    return probe.details()
            except (Refused, ServerFault) as error:
                raise ValueError(f"The server cannot be asked what it offers. {error}") from error
            reasons.append(f"With prompts as {prompt}: {reason}.")
            if self.format == "gguf" or self._url is not None:
                break  # text needs a tokenizer of ours
        raise ValueError(f"The server answers no completion request of this door. {' '.join(reasons)}")

    def _probe(self, checkpoint: Path, ground: Ground) -> Probe:
        door = replace(self.door(checkpoint), names_eos=False)  # whether rows can pass these is one of the questions
        self._owner = door.owner
        tape_width = 101 if self._url is None else 0

        def score(offer: Offer, tokens: Sequence[int]) -> Array:
            return door.score(offer, tokens, tape_width or len(door.spelling.names if door.spelling else ()))

        return Probe(door.complete, score, ground, door.max_length)


class HTTPModel(Model):
    """A checkpoint behind the door. Its server is started again if it is gone, or made room for another."""

    def __init__(self, engine: OpenAIHTTP, checkpoint: Path, needs: Needs) -> None:
        self.engine, self.checkpoint, self.needs = engine, checkpoint, needs
        self.vocab_size = vocab_size(checkpoint)
        self._door = engine.door(checkpoint, needs.regime)
        self.max_length = self._door.max_length

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Continue all requests, each in a connection of its own, at the same time."""
        streamed = self.needs.regime == STREAMED
        done = self.together(lambda one: self.door.complete(self.engine.offer, one, streamed), requests)
        return [completion for rows in done for completion in rows]

    def close(self) -> None:
        """Nothing: the server stays until its place is needed."""

    @property
    def door(self) -> Door:
        """The door to a running server with this checkpoint."""
        return self._door

    def together(self, ask: Callable[[Asked], Answer], questions: Sequence[Asked]) -> list[Answer]:
        """The answers to all questions, asked at the same time; raises what the first of them raises."""
        if not self.engine.running(self._door):
            self._door = self.engine.door(self.checkpoint, self.needs.regime)
        if not questions:
            return []
        with ThreadPoolExecutor(min(len(questions), self.engine.workers(self.needs.regime))) as pool:
            try:
                return list(pool.map(ask, questions))
            except ServerFault as fault:
                raise self.engine.explained(self._door, fault) from fault


class ScoringModel(HTTPModel):
    """The same where the server gives the log-probabilities of a prompt, of all ids."""

    def score(self, tokens: Sequence[int]) -> Array:
        """Log-probabilities [T, V]; the last row is that of the one new token."""
        return self.score_batch([tokens])[0]

    def score_batch(self, sequences: Sequence[Sequence[int]]) -> list[Array]:
        """Log-probabilities [T_b, V] of each sequence, asked at the same time."""
        rows = [check_tokens(one, self.vocab_size) for one in sequences]
        return self.together(partial(self._score), rows)

    def _score(self, tokens: Sequence[int]) -> Array:
        return self.door.score(self.engine.offer, tokens, self.vocab_size)


def main(pairs: Sequence[str]) -> None:
    """Print what the server of these options offers."""
    engine = OpenAIHTTP(**options_of(pairs))
    engine.close()
    print(engine.version, *engine.offer.lines(), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])

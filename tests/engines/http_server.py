"""A server with OpenAI's completions around an adapter to the reference, or around a faulty one.

    python http_server.py CHECKPOINT --port 8000 --speaks vllm --engine lmconform.engines.reference:Reference

Without a CHECKPOINT each request names its own in ``model``.

It speaks as one of three kinds of servers do: ``vllm`` (ids in and out, log-probabilities of prompts, many fields),
``openai`` (OpenAI's own fields, echo, tokens named by their strings) and ``transformers`` (text in and out, a JSON of a
generation config).
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from lmconform.adapter import Completion, Model, Needs, NotOffered, Refused, Request

PLAIN = {"model", "prompt", "max_tokens", "temperature", "top_p", "n", "presence_penalty", "frequency_penalty"}
PLAIN |= {"stream", "stream_options", "stop", "seed", "logprobs", "echo"}
OF_TRANSFORMERS = {"model", "prompt", "max_tokens", "seed", "stop", "stream", "generation_config"}
LIMIT = 1 << 9
"""Most tokens of a sequence."""


class BadRequest(Exception):
    """The body is declined, with this status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Served:
    """One checkpoint, and how the server speaks of it."""

    def __init__(self, checkpoint: Path, engine: str, speaks: str) -> None:
        module, _, name = engine.partition(":")
        self.model: Model = getattr(importlib.import_module(module), name)().load(checkpoint, Needs(max_tokens=LIMIT))
        self.tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        self.speaks = speaks
        self.lock = threading.Lock()
        generation = checkpoint / "generation_config.json"
        named = json.loads(generation.read_text())["eos_token_id"] if generation.exists() else None
        self.names_eos = named is not None

    def answer(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The choices of one request, with ``pieces``: for each token what a stream says of it."""
        request = self.request(body)
        with self.lock:
            done = self.model.generate([request])
            whole = self.model.score(request.prompt) if self.wants_prompt(body) else None
        return [self.choice(index, one, request, body, whole) for index, one in enumerate(done)]

    def request(self, body: Mapping[str, Any]) -> Request:
        """What the body asks for, of the engine behind the server."""
        known = {"openai": PLAIN, "transformers": OF_TRANSFORMERS}.get(self.speaks)
        if known is not None and (odd := set(body) - known):
            raise BadRequest(422, f"Unexpected fields in the request: {sorted(odd)}")
        if self.speaks == "transformers":
            return self.of_generation_config(body)
        if body["max_tokens"] < 1:
            raise BadRequest(400, f"max_tokens must be at least 1, got {body['max_tokens']}.")
        if len(body["prompt"]) + body["max_tokens"] > LIMIT:
            raise BadRequest(400, f"This model's maximum context length is {LIMIT} tokens.")
        draws = body["temperature"] > 0
        return Request(
            prompt=tuple(body["prompt"]),
            max_new_tokens=body["max_tokens"],
            min_new_tokens=body.get("min_tokens", 0),
            temperature=body["temperature"] if draws else None,
            top_k=body["top_k"] if draws and body.get("top_k", -1) > 0 else None,
            top_p=body["top_p"] if draws and body["top_p"] < 1 else None,
            min_p=body["min_p"] if draws and body.get("min_p") else None,
            seed=body.get("seed"),
            stop_ids=tuple(body.get("stop_token_ids", ())),
            eos=not body.get("ignore_eos", False) and self.names_eos,
            stop_strings=tuple(body.get("stop", ())),
            n=body["n"],
            logprobs=body.get("logprobs"),
        )

    def of_generation_config(self, body: Mapping[str, Any]) -> Request:
        """As transformers' server has it: text in, and settings as the JSON of a generation config."""
        if not isinstance(body["prompt"], str):
            raise BadRequest(400, "prompt must be a string.")
        config = json.loads(body.get("generation_config", "{}"))
        ids, draws = config.get("eos_token_id"), config.get("do_sample")
        return Request(
            prompt=tuple(self.tokenizer.encode(body["prompt"]).ids),
            max_new_tokens=body["max_tokens"],
            min_new_tokens=config.get("min_new_tokens", 0),
            temperature=config["temperature"] if draws else None,
            top_k=config["top_k"] or None if draws else None,
            top_p=config["top_p"] if draws and config["top_p"] < 1 else None,
            min_p=config["min_p"] if draws else None,
            seed=body.get("seed"),
            stop_ids=tuple(token for token in ids or () if token >= 0),
            eos=ids is None and self.names_eos,
            stop_strings=tuple(body.get("stop", ())),
        )

    def wants_prompt(self, body: Mapping[str, Any]) -> bool:
        """Whether log-probabilities of the prompt are asked for, in the way that this server has."""
        return bool(body.get({"vllm": "prompt_logprobs", "openai": "echo"}.get(self.speaks, "")))

    def choice(
        self, index: int, done: Completion, request: Request, body: Mapping[str, Any], whole: np.ndarray | None
    ) -> dict[str, Any]:
        """One choice, as this kind of server writes it."""
        text = self.text(done.tokens) if self.speaks == "transformers" else done.text or ""
        found: dict[str, Any] = {"index": index, "text": text, "finish_reason": done.finish_reason, "logprobs": None}
        steps = [dict(step) for step in done.logprobs or ()]
        tokens = list(done.tokens)
        rows: list[dict[int, float] | None] = []
        if whole is not None:
            rows = [None, *(_log_softmax(row) for row in whole[:-1])]
        if self.speaks == "vllm" and whole is not None:
            found["prompt_logprobs"] = [
                row and {str(token): {"logprob": value} for token, value in row.items()} for row in rows
            ]
        if self.speaks == "openai" and whole is not None:
            tokens, steps = [*request.prompt, *tokens], [*rows, *steps]
        if body.get("logprobs") is not None and self.speaks != "transformers":
            found["logprobs"] = self.logprobs(tokens, steps)
        if self.speaks == "vllm":
            found["token_ids"] = list(done.tokens)
        ends = [min(len(self.text(done.tokens[: k + 1])), len(text)) for k in range(len(done.tokens))]
        found["pieces"] = [
            {"text": text[start:end], "token_ids": [token], "logprobs": step and self.logprobs([token], [step])}
            for start, end, token, step in zip(
                [0, *ends][:-1], ends, done.tokens, done.logprobs or [None] * len(ends), strict=True
            )
        ]
        return found

    def logprobs(self, tokens: list[int], steps: list[Any]) -> dict[str, Any]:
        """OpenAI's record of log-probabilities."""
        named = [self.name(token) for token in tokens]
        return {
            "tokens": named,
            "token_logprobs": [step and _written(step[token]) for token, step in zip(tokens, steps, strict=True)],
            "top_logprobs": [step and {self.name(one): _written(p) for one, p in step.items()} for step in steps],
        }

    def name(self, token: int) -> str:
        """How log-probabilities name a token."""
        return f"token_id:{token}" if self.speaks == "vllm" else self.text((token,))

    def text(self, tokens: tuple[int, ...]) -> str:
        """The text of some tokens together."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=False))


def _log_softmax(row: np.ndarray) -> dict[int, float]:
    row = row.astype(np.float64)
    values = row - row.max() - math.log(np.exp(row - row.max()).sum())
    return dict(enumerate(values.tolist()))


def _written(value: float) -> float:
    return max(value, -9999.0)  # JSON has no word for minus infinity


def handler(served: Callable[[str], Served]) -> type[BaseHTTPRequestHandler]:
    """A handler for requests about the checkpoint that ``served`` finds for a model's name."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            known = {"/v1/models": {"data": [{"id": "served", "owned_by": "tests", "max_model_len": LIMIT}]}}
            known |= {"/health": {}, "/version": {"version": "1.0"}}
            self.reply(200 if self.path in known else 404, known.get(self.path, {}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                choices = served(body["model"]).answer(body)
            except BadRequest as error:
                return self.reply(error.status, {"detail": str(error)})
            except (Refused, NotOffered) as error:
                return self.reply(400, {"error": {"message": str(error)}})
            if body.get("stream"):
                return self.stream(choices)
            for one in choices:
                del one["pieces"]
            return self.reply(200, {"choices": choices, "usage": {"prompt_tokens_details": {"cached_tokens": 0}}})

        def stream(self, choices: list[dict[str, Any]]) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            for event in events(choices):
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")

        def reply(self, status: int, body: Any) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Nothing is printed."""

    return Handler


def events(choices: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One event a token, rows in turn, and one at the end of each with its reason."""
    for step in range(max(len(one["pieces"]) for one in choices)):
        for one in choices:
            if step < len(one["pieces"]):
                yield {"choices": [{"index": one["index"], **one["pieces"][step], "finish_reason": None}]}
    for one in choices:
        yield {"choices": [{"index": one["index"], "text": "", "finish_reason": one["finish_reason"]}]}


def main() -> None:
    """Serve one checkpoint until the process is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--speaks", default="vllm", choices=("vllm", "openai", "transformers"))
    parser.add_argument("--engine", default="lmconform.engines.reference:Reference")
    given = parser.parse_args()

    @cache
    def served(name: str) -> Served:
        return Served(Path(name), given.engine, given.speaks)

    try:
        chosen = served if given.checkpoint is None else partial(lambda one, name: one, served(given.checkpoint))
    except Refused as reason:
        sys.exit(f"Error: {reason}")
    ThreadingHTTPServer.daemon_threads = True
    ThreadingHTTPServer.request_queue_size = 64
    ThreadingHTTPServer(("127.0.0.1", given.port), handler(chosen)).serve_forever()


if __name__ == "__main__":
    main()

"""``python -m refdecoder generate MODEL_DIR PROMPT``: continue a prompt with a checkpoint, and print as it goes."""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import torch

from .checkpoint import DTYPES, build, load
from .errors import CheckpointError, InputError
from .generate import Request, stream
from .model import ATTENTION_FORMS
from .sampling import Sampler
from .stopping import Stops
from .text import Text


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, or 2 where the input is at fault."""
    options = _parser().parse_args(arguments)
    try:
        _generate(options)
    except (CheckpointError, InputError) as error:
        print(f"refdecoder: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m refdecoder", description="A readable decoder: llama, phi3, gpt2.")
    command = parser.add_subparsers(dest="command", required=True).add_parser(
        "generate", help="continue a prompt", description="Continue a prompt and print the new text as it comes."
    )
    command.add_argument("model_dir", type=Path, help="checkpoint: config.json, safetensors, tokenizer.json")
    command.add_argument("prompt", help="text to continue")
    command.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="at most N tokens (default 128)")
    command.add_argument("--temperature", type=float, help="divide logits by it; without it decoding is greedy")
    command.add_argument("--top-k", type=int, metavar="K", help="keep the K most probable ids")
    command.add_argument("--top-p", type=float, metavar="P", help="keep the most probable ids until their mass is P")
    command.add_argument("--min-p", type=float, metavar="P", help="keep ids of at least P times the top probability")
    command.add_argument("--seed", type=int, help="make the draws repeatable")
    command.add_argument("--stop", action="append", default=[], metavar="STRING", help="end before it; may be repeated")
    command.add_argument("--chunk", type=int, metavar="N", help="feed the prompt N tokens at a time")
    command.add_argument("--dtype", choices=DTYPES, default="float32", help="number format (default float32)")
    command.add_argument("--device", default="cpu", help="torch device, such as cpu or cuda (default cpu)")
    command.add_argument("--attention", choices=ATTENTION_FORMS, default="sdpa", help="form (default sdpa)")
    return parser


def _generate(options: argparse.Namespace) -> None:
    """Stream the continuation to stdout, and the speed to stderr."""
    sampler = Sampler(options.temperature, options.top_k, options.top_p, options.min_p)
    text = Text(options.model_dir)
    model = load(
        options.model_dir, DTYPES[options.dtype], _device(options.device), partial(build, attention=options.attention)
    )
    stops = Stops(ids=model.config.eos_token_ids, strings=tuple(options.stop))
    prompt = text.encode(options.prompt)
    request = Request(prompt, options.max_new_tokens, sampler, stops, options.seed)
    times = [time.perf_counter()]
    for event in stream(model, [request], decode=text.decode, chunk=options.chunk):
        times.append(time.perf_counter())
        print(event.text, end="", flush=True)
    print()
    if len(times) > 1:
        print(f"prefill {len(prompt)} tokens, {len(prompt) / (times[1] - times[0]):.1f} tokens/s", file=sys.stderr)
    if len(times) > 2:
        steps = len(times) - 2
        print(f"decode {steps} tokens, {steps / (times[-1] - times[1]):.1f} tokens/s", file=sys.stderr)


def _device(name: str) -> torch.device:
    """Return the torch device ``name``; raise InputError if this machine does not have it."""
    try:
        torch.ones(1, device=name).tolist()
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:  # torch built without a backend asserts
        reason = str(error).splitlines()[0]
        raise InputError(f"Device {name!r} cannot be used here: {reason}") from error


if __name__ == "__main__":
    sys.exit(main())

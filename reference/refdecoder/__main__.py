"""``python -m refdecoder generate MODEL_DIR PROMPT``: continue a prompt with a checkpoint, and print as it goes.

``torchrun --nproc-per-node R -m refdecoder generate ...`` does the same in R ranks that share the model.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch.distributed import is_torchelastic_launched

from .checkpoint import DTYPES, build, load
from .errors import CheckpointError, InputError
from .fast import FastGenerator
from .generate import Event, Request, stream
from .model import ATTENTION_FORMS, CausalLM
from .sampling import Sampler
from .stopping import Stops
from .text import Text


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, or 2 where the input is at fault."""
    options = _parser().parse_args(arguments)
    try:
        if is_torchelastic_launched():
            _generate_in_ranks(options)
        else:
            _generate(options, lambda: _load(options, _device(options.device)))
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
    command.add_argument("--path", choices=("fast", "plain"), help="fast, or readable as in ranks (default fast)")
    command.add_argument("--compile", action="store_true", help="on the fast path, compile a step before the first")
    command.add_argument(
        "--attention", choices=ATTENTION_FORMS, default="sdpa", help="form on the plain path (default sdpa)"
    )
    return parser


def _generate_in_ranks(options: argparse.Namespace) -> None:
    """Do the same as one of the ranks that torchrun has started; rank 0 alone prints."""
    from .parallel import parallelize  # imported here, since DTensor takes a second
    from .ranks import Ranks

    if options.path == "fast" or options.compile:
        raise InputError("The fast path is for one process. Leave out --path fast and --compile, or torchrun.")
    options.path = "plain"
    with Ranks(lambda mesh: parallelize(_load(options, "cpu"), mesh), options.device) as ranks:
        if ranks.rank == 0:
            _generate(options, ranks.load)
        else:
            ranks.follow()


def _load(options: argparse.Namespace, device: torch.device | str) -> CausalLM:
    return load(options.model_dir, DTYPES[options.dtype], device, partial(build, attention=options.attention))


def _generate(options: argparse.Namespace, load_model: Callable[[], CausalLM]) -> None:
    """Stream the continuation to stdout, and the speed to stderr."""
    sampler = Sampler(options.temperature, options.top_k, options.top_p, options.min_p)
    text = Text(options.model_dir)
    model = load_model()
    stops = Stops(ids=model.config.eos_token_ids, strings=tuple(options.stop))
    prompt = text.encode(options.prompt)
    request = Request(prompt, options.max_new_tokens, sampler, stops, options.seed)
    times = [time.perf_counter()]
    for event in _streaming(options, model, request)([request], decode=text.decode, chunk=options.chunk):
        times.append(time.perf_counter())
        print(event.text, end="", flush=True)
    print()
    if len(times) > 1:
        print(f"prefill {len(prompt)} tokens, {len(prompt) / (times[1] - times[0]):.1f} tokens/s", file=sys.stderr)
    if len(times) > 2:
        steps = len(times) - 2
        print(f"decode {steps} tokens, {steps / (times[-1] - times[1]):.1f} tokens/s", file=sys.stderr)


def _streaming(options: argparse.Namespace, model: CausalLM, request: Request) -> Callable[..., Iterator[Event]]:
    """Return what continues the request, on the path that was asked for."""
    if options.path == "plain":
        return partial(stream, model)
    capacity = min(len(request.prompt) + request.max_new_tokens, model.config.max_position_embeddings)
    return FastGenerator(model, 1, max(1, capacity), compile=options.compile).stream


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

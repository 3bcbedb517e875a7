"""Adapter to vLLM: continuous batching over a paged KV cache, with its engine in this process.

``score`` asks for the log-probabilities of a prompt, and ``generate`` hands requests to the engine's loop. vLLM shows
no KV cache, so there are no sessions. Nothing is computed here that vLLM computes itself.
"""

from __future__ import annotations

import gc
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import vllm
from safetensors import SafetensorError
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from vllm.sampling_params import SamplingParams
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.engine import core
from vllm.v1.engine.llm_engine import LLMEngine

from lmconform.adapter import (
    Array,
    Choices,
    Completion,
    DType,
    Engine,
    Model,
    Needs,
    Precision,
    Refused,
    Request,
)
from lmconform.engines._vllm_requests import REFUSALS, Row, answered, line, sampling, scores
from lmconform.engines.common import check_tokens, choose, read_config, regime_settings, whole_number

# An engine that ends takes the process groups of torch.distributed down, which those beside it still need. They are
# left as they are here.
core.cleanup_dist_env_and_memory = lambda: None

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a process of its own would be one a checkpoint, and take 20 s to start
    "VLLM_NO_USAGE_STATS": "1",
}
"""What vLLM reads there when it starts an engine."""
SMALL_BLOCK, PASS_TOKENS, FEW_SLOTS = 32, 16, 2
CACHE_BYTES = 1 << 30
"""Memory that vLLM may take for keys and values; it takes what its blocks need, which is much less."""
UNSOUND = (
    OSError,
    ValueError,
    AssertionError,
    RuntimeError,
    KeyError,
    TypeError,
    AttributeError,
    NotImplementedError,
    SafetensorError,
)
"""What vLLM raises for a checkpoint that it cannot take."""


@dataclass(frozen=True)
class Settings:
    """How one checkpoint is loaded and run. The defaults are vLLM's own, but for ``eager``."""

    dtype: DType
    eager: bool
    """Without torch.compile, which takes half a minute a checkpoint."""
    logprobs: str
    prefix_caching: bool = True
    block_size: int | None = None
    """Tokens of a block of the cache; None leaves it to vLLM, which takes 128 on a CPU."""
    scarce: bool = False
    """Room in the cache for one of the longest sequences, and no more."""
    pass_tokens: int | None = None
    """Most tokens of a pass; longer prompts come in chunks."""
    slots: int | None = None
    """Most rows side by side."""


class VLLM(Engine):
    """vLLM.

    Options: ``dtype`` (float32, float16, bfloat16), ``graph`` (eager, compiled: by torch.compile, half a minute a
    checkpoint), ``logprobs`` of ``generate`` (raw, processed), ``threads``. A value that is not legal raises
    ValueError.
    """

    name = "vllm"
    version = f"{vllm.__version__} ({current_platform.device_name})"

    def __init__(self, dtype: str = "float32", graph: str = "eager", logprobs: str = "raw", threads: str = "1") -> None:
        dtypes: tuple[DType, ...] = ("float32", "float16", "bfloat16")
        number = choose("dtype", dtype, dtypes)
        stages = ("raw", "processed")
        self.settings = Settings(
            dtype=number,
            eager=choose("graph", graph, ("eager", "compiled")) == "eager",
            logprobs=choose("logprobs", logprobs, stages),
        )
        self.precision = Precision(weights=number, compute=number, kv_cache=number, scores=number)
        self.choices = Choices(
            scores="log-probabilities",
            logprobs="raw" if logprobs == "raw" else "processed",
            ties="first",
            sampler_order=("temperature", "min_p", "top_k", "top_p"),
            temperature_zero="greedy",
            stop_token="returned",
            stop_text="dropped",
            eos_files=("generation_config.json", "config.json", "tokenizer_config.json"),
            zero_tokens="refused",
            min_tokens="mask",
            long_prompt="refused",
            long_continuation="stops",
            empty_prompt="refused",
        )
        os.environ.update(ENVIRONMENT)
        huggingface_hub.constants.HF_HUB_OFFLINE = True
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        torch.set_num_threads(whole_number("threads", threads))

    def accepts(self, config: Mapping[str, Any]) -> str | None:
        """Return why vLLM refuses this config.json, or its attention the head dimension that it names."""
        with tempfile.TemporaryDirectory(prefix="lmconform-vllm-") as folder:
            (Path(folder) / "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
            try:
                self._limit(Path(folder))
            except Refused as reason:
                return str(reason)
        return None

    def regimes(self) -> Mapping[str, Mapping[str, Any]]:
        """Other blocks, no prefix cache, prompts in chunks, few slots, and a cache too small for a batch.

        In the last, rows are preempted: vLLM forgets their keys and values, and computes them again later.
        """
        return {
            "small-blocks": {"block_size": SMALL_BLOCK},
            "no-prefix-cache": {"prefix_caching": False},
            "chunked-prefill": {"pass_tokens": PASS_TOKENS, "slots": PASS_TOKENS},
            "few-slots": {"slots": FEW_SLOTS},
            "scarce-cache": {"block_size": SMALL_BLOCK, "scarce": True},
        }

    def load(self, checkpoint: Path, needs: Needs) -> Model:
        """Start an engine with a Hugging Face directory, in this process.

        vLLM refuses missing and extra tensors, and most misshapen ones.
        """
        settings = replace(self.settings, **regime_settings(self.regimes(), needs))
        checkpoint = Path(checkpoint)
        read_config(checkpoint)  # its refusal says more
        limit = min(self._limit(checkpoint), needs.max_tokens + 1)
        gc.freeze()  # vLLM collects garbage several times a load, which would go through all that it has imported
        try:
            return VLLMModel(LLMEngine.from_engine_args(_arguments(checkpoint, settings, needs, limit)), limit)
        except UNSOUND as reason:
            gc.collect()  # a half-made engine holds its weights
            raise Refused(f"vLLM refuses the checkpoint {checkpoint}: {line(reason)}") from reason

    def _limit(self, checkpoint: Path) -> int:
        """Return the most tokens of a sequence that config.json allows, the last drawn one included. Raises Refused."""
        try:
            config = EngineArgs(model=str(checkpoint), **_common(self.settings)).create_model_config()
        except Exception as reason:  # transformers, which reads it, has many kinds
            raise Refused(f"vLLM refuses the config.json: {line(reason)}") from reason
        if current_platform.is_cpu():  # elsewhere the engine refuses it when it starts, here at its first pass
            sizes = AttentionBackendEnum.CPU_ATTN.get_class().get_supported_head_sizes()
            if config.get_head_size() not in sizes:
                known = ", ".join(map(str, sizes))
                raise Refused(f"head_dim is {config.get_head_size()}; vLLM's attention on a CPU has {known}.")
        return int(config.max_model_len)


class VLLMModel(Model):
    """A checkpoint in an engine of its own. ``limit`` is vLLM's ``max_model_len``, the last drawn token included."""

    def __init__(self, engine: LLMEngine, limit: int) -> None:
        self.engine = engine
        self.vocab_size = int(engine.model_config.get_vocab_size())
        self.max_length = limit - 1
        self.slots = int(engine.vllm_config.scheduler_config.max_num_seqs)
        self._asked = 0

    def score(self, tokens: Sequence[int]) -> Array:
        """Return log-probabilities [T, V]: those of the prompt, and of the one token that vLLM draws after it."""
        return self.score_batch([tokens])[0]

    def score_batch(self, sequences: Sequence[Sequence[int]]) -> list[Array]:
        """Return log-probabilities [T_b, V] of each sequence, handed in together."""
        prompts = [check_tokens(tokens, self.vocab_size) for tokens in sequences]
        all_ids = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            ignore_eos=True,
            prompt_logprobs=-1,
            logprobs=-1,
            detokenize=False,
            flat_logprobs=True,
        )
        return [scores(row, self.vocab_size) for (row,) in self._run(prompts, [all_ids] * len(prompts))]

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Hand all requests to the engine, and run it until they are done."""
        prompts = [check_tokens(request.prompt, self.vocab_size) for request in requests]
        spelled = self.engine.renderer.tokenizer is not None
        params = [sampling(request, self.vocab_size, spelled) for request in requests]
        rows = self._run(prompts, params)
        return [answered(request, row, spelled) for request, own in zip(requests, rows, strict=True) for row in own]

    def _run(self, prompts: Sequence[list[int]], params: Sequence[SamplingParams]) -> list[list[Row]]:
        """Run the engine's loop over the prompts: the rows of each, one for each of its ``n`` completions."""
        rows: dict[str, list[Row]] = {}
        try:
            for prompt, one in zip(prompts, params, strict=True):
                self._asked += 1
                name = str(self._asked)
                try:
                    self.engine.add_request(name, {"prompt_token_ids": prompt}, one)
                except REFUSALS as reason:
                    raise Refused(f"vLLM refuses the request: {line(reason)}") from reason
                rows[name] = [Row() for _ in range(one.n)]
            while self.engine.has_unfinished_requests():
                for output in self.engine.step():
                    for completion in output.outputs:
                        rows[output.request_id][completion.index].take(output, completion)
        finally:
            self.engine.abort_request(list(rows))  # those that an exception left over
        return list(rows.values())

    def close(self) -> None:
        """Release the weights and the cache."""
        self.engine.engine_core.shutdown()
        del self.engine
        gc.collect()


def _common(settings: Settings) -> dict[str, Any]:
    """What vLLM is told of every checkpoint: nothing is unpickled, and no code of the checkpoint's is run."""
    return {
        "dtype": settings.dtype,
        "load_format": "safetensors",
        "trust_remote_code": False,
        "enforce_eager": settings.eager,
        "max_logprobs": -1,
        "logprobs_mode": f"{settings.logprobs}_logprobs",
    }


def _arguments(checkpoint: Path, settings: Settings, needs: Needs, limit: int) -> EngineArgs:
    """What vLLM is told of one checkpoint. It starts each engine from seed 0 otherwise: free draws would repeat."""
    block = settings.block_size or 128
    blocks = -(-limit // block) * (1 if settings.scarce else needs.max_rows)
    options: dict[str, Any] = {
        "max_model_len": limit,
        "num_gpu_blocks_override": blocks + 1,  # one is never handed out
        "kv_cache_memory_bytes": CACHE_BYTES,
        "enable_prefix_caching": settings.prefix_caching,
        "block_size": settings.block_size,
        "max_num_batched_tokens": settings.pass_tokens,
        "max_num_seqs": settings.slots,
        "seed": int.from_bytes(os.urandom(4), "little"),
        "use_tqdm_on_load": False,
        "disable_log_stats": True,
    }
    tokenizer = (checkpoint / "tokenizer.json").is_file()
    return EngineArgs(model=str(checkpoint), skip_tokenizer_init=not tokenizer, **_common(settings), **options)

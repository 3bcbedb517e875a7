"""Tiny loud checkpoints of llama, phi3 and gpt2, and transformers' model made exact in float64."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from ref_common import LETTERS
from tokenizers import Tokenizer, decoders, models
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RMSNorm, Phi3RotaryEmbedding


@pytest.fixture(scope="session")
def save(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that saves a random Llama, with changes to its config, and returns the directory."""

    def build(seed: int = 0, shard: str = "1GB", **changes: Any) -> Path:
        sizes = {"vocab_size": 37, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 64}
        config = transformers.LlamaConfig(**{**sizes, **heads, **changes})
        return save_loud(transformers.LlamaForCausalLM, config, tmp_path_factory.mktemp("llama"), seed, shard)

    return build


@pytest.fixture(scope="session")
def save_phi3(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that saves a random phi3, with changes to its config, and returns the directory."""

    def build(seed: int = 0, shard: str = "1GB", **changes: Any) -> Path:
        sizes = {"vocab_size": 37, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64}
        config = transformers.Phi3Config(**{**sizes, **heads, "pad_token_id": None, "eos_token_id": None, **changes})
        return save_loud(transformers.Phi3ForCausalLM, config, tmp_path_factory.mktemp("phi3"), seed, shard)

    return build


@pytest.fixture(scope="session")
def save_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that saves a random gpt2, with changes to its config, and returns the directory."""

    def build(seed: int = 0, shard: str = "1GB", **changes: Any) -> Path:
        sizes = {"vocab_size": 37, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 20}
        config = transformers.GPT2Config(**{**sizes, "bos_token_id": None, "eos_token_id": None, **changes})
        return save_loud(transformers.GPT2LMHeadModel, config, tmp_path_factory.mktemp("gpt2"), seed, shard)

    return build


def save_loud(kind: Any, config: Any, directory: Path, seed: int, shard: str) -> Path:
    """Save a random model: loud, and neither norms nor biases at their neutral value."""
    torch.manual_seed(seed)
    model = kind(config)
    for name, parameter in model.named_parameters():
        scales = "norm" in name or ("ln_" in name and name.endswith("weight"))
        torch.nn.init.normal_(parameter.data, mean=float(scales), std=0.3)
    model.save_pretrained(directory, max_shard_size=shard)
    return directory


@pytest.fixture(scope="session")
def llama(save: Callable[..., Path]) -> Path:
    """A checkpoint with grouped queries, a head_dim that is not hidden_size / heads, and a tokenizer of letters."""
    directory = save(eos_token_id=36)
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(LETTERS)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture
def broken(llama: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that copies the checkpoint with keys of config.json changed, or removed where given None."""

    def change(**changes: Any) -> Path:
        for path in llama.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        config = json.loads((llama / "config.json").read_text()) | changes
        kept = {key: value for key, value in config.items() if value is not None}
        (tmp_path / "config.json").write_text(json.dumps(kept))
        return tmp_path

    return change


def frequencies(rope: dict[str, Any], head_dim: int) -> torch.Tensor:
    """Inverse frequencies in float64, written out with wavelengths and branches."""
    found = []
    for i in range(0, head_dim, 2):
        f = rope["rope_theta"] ** (-i / head_dim)
        if rope["rope_type"] == "linear":
            f /= rope["factor"]
        elif rope["rope_type"] == "llama3":
            length, wave = rope["original_max_position_embeddings"], 2 * math.pi / f
            if wave > length / rope["low_freq_factor"]:
                f /= rope["factor"]
            elif wave >= length / rope["high_freq_factor"]:
                low, high = rope["low_freq_factor"], rope["high_freq_factor"]
                smooth = (length / wave - low) / (high - low)
                f = (1 - smooth) * f / rope["factor"] + smooth * f
        found.append(f)
    return torch.tensor(found, dtype=torch.float64)


class ExactNorm(torch.nn.Module):
    """transformers' norm, whose own statistics are float32 whatever the model computes in, in float64."""

    def __init__(self, norm: LlamaRMSNorm) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps)


class ExactRotary(torch.nn.Module):
    """transformers' rotary table, whose own angles are float32 whatever the model computes in, in float64."""

    def __init__(self, rotary: LlamaRotaryEmbedding) -> None:
        super().__init__()
        config = rotary.config
        D = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.frequencies = frequencies(config.rope_parameters, D)

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angle = position_ids[..., None].double() * self.frequencies
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos(), angle.sin()


@pytest.fixture(scope="session")
def exact() -> Callable[[Path], Any]:
    """Return a function that loads transformers' model in float64, with no step left in float32."""

    def load(directory: Path) -> Any:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float64, attn_implementation="sdpa"
        ).eval()
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, LlamaRMSNorm | Phi3RMSNorm):
                    setattr(parent, name, ExactNorm(child))
                elif isinstance(child, LlamaRotaryEmbedding | Phi3RotaryEmbedding):
                    setattr(parent, name, ExactRotary(child))
        return model.requires_grad_(False)

    return load

"""Tiny random checkpoints for the adapters' tests."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models

VOCAB = 37


@pytest.fixture(scope="session")
def save(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that saves a tiny random Llama, with changes to its config, and returns the directory."""

    def build(**changes: object) -> Path:
        sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
        # Weights much louder than the library's default, so that attention is sharp and greedy margins are wide.
        config = transformers.LlamaConfig(
            **{**sizes, **heads, "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2, **changes}
        )
        directory = tmp_path_factory.mktemp("llama")
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(directory)
        return directory

    return build


@pytest.fixture(scope="session")
def llama(save: Callable[..., Path]) -> Path:
    """A tiny Llama with grouped queries, untied head, no tokenizer."""
    return save()


@pytest.fixture(scope="session")
def spelled(save: Callable[..., Path]) -> Path:
    """The same with a tokenizer: id i is one letter or digit."""
    directory = save()
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJK"
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)
    return directory

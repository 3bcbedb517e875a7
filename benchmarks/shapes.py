"""The models that are timed, all llamas with random weights, and how each is asked."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

from lmconform.checkpoints.layout import Shape


class UnknownSize(ValueError):
    """No size has this name, and it is no config.json that can be read; the message lists the sizes."""


@dataclass(frozen=True)
class Size:
    """A model, and the lengths and batches at which it is timed."""

    name: str
    shape: Shape
    contexts: tuple[int, ...]
    """Prompt lengths at which decode and prefill are timed, shortest first."""
    new: int
    """Tokens generated where decode is timed, the first of them included."""
    batches: tuple[int, ...]
    """Batch sizes of the sweep."""
    uncached: int
    """Tokens generated with the cache on and off."""

    @property
    def longest(self) -> int:
        """Most tokens that one sequence holds, prompt and continuation together."""
        return max(*(context + self.new for context in self.contexts), self.contexts[0] + self.uncached)

    @property
    def rows(self) -> int:
        """Most sequences side by side."""
        return max(self.batches)


def multi_head(shape: Shape) -> Shape:
    """The same model with a KV head for each query head (MHA)."""
    return replace(shape, num_key_value_heads=shape.num_attention_heads)


TINY = Shape(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=176,
    vocab_size=256,
    tie_word_embeddings=True,
)
M8 = Shape(
    hidden_size=256,
    num_hidden_layers=9,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=32,
    intermediate_size=704,
    vocab_size=6144,
    max_position_embeddings=4096,
    tie_word_embeddings=True,
)
# The sizes of SmolLM2-135M, Llama 3.2 1B, Llama 3.1 8B and Llama 2 7B, from their config.json files.
M134 = Shape(
    hidden_size=576,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    intermediate_size=1536,
    vocab_size=49152,
    max_position_embeddings=8192,
    rope_theta=100_000.0,
    tie_word_embeddings=True,
)
B1 = Shape(
    hidden_size=2048,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    intermediate_size=8192,
    vocab_size=128256,
    max_position_embeddings=8192,
    rope_theta=500_000.0,
    tie_word_embeddings=True,
)
B8 = replace(
    B1, hidden_size=4096, num_hidden_layers=32, head_dim=128, intermediate_size=14336, tie_word_embeddings=False
)
LLAMA2_7B = replace(B8, num_key_value_heads=32, intermediate_size=11008, vocab_size=32000)
"""Not timed: the textbook's example of where bandwidth and compute balance."""

POWERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SIZES = {
    size.name: size
    for size in (
        Size("tiny", TINY, contexts=(16, 48), new=8, batches=(1, 2, 4), uncached=8),
        Size("8M", M8, contexts=(16, 128, 512, 1024), new=33, batches=POWERS[:6], uncached=100),
        Size("134M", M134, contexts=(16, 512), new=25, batches=POWERS[:5], uncached=100),
        Size("1B", B1, contexts=(128, 1024, 4096), new=65, batches=POWERS, uncached=100),
        Size("8B", B8, contexts=(128, 1024, 4096), new=65, batches=POWERS, uncached=100),
    )
}


def size_of(name: str) -> Size:
    """Return the size of this name, or the model of a llama's config.json, asked as ``134M`` is.

    Raises UnknownSize.
    """
    if name in SIZES:
        return SIZES[name]
    path = Path(name)
    if path.suffix != ".json":
        raise UnknownSize(
            f"There is no size {name!r}. Known are: {', '.join(SIZES)}. A model of your own is the path of its "
            "config.json."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.get("model_type") != "llama":
            raise UnknownSize(f"{path} has model_type {config.get('model_type')!r}; the benchmarks make llamas alone.")
        found = {field.name: config[field.name] for field in fields(Shape) if field.name in config}
        found.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
        rope = config.get("rope_parameters") or {}
        found["rope_theta"] = rope.get("rope_theta", config.get("rope_theta", 10_000.0))
        return replace(SIZES["134M"], name=path.parent.name or path.stem, shape=Shape(**found))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UnknownSize):
            raise
        raise UnknownSize(f"{path} is no config.json of a llama that can be read: {error!r}.") from error

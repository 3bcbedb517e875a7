"""The reference and transformers on trained weights: SmolLM2-135M-Instruct, dequantised from Q4_1.

The bounds come from measurement: natural-log probabilities of all 49,152 ids at each of the 400 positions, on a CPU,
with eager and with SDPA attention (greatest difference, root mean square).

    float32, one engine against the other, or SDPA against eager        6.1e-5   6.8e-6
    float32, a session in chunks against one pass                       5.8e-5   5.0e-6
    float64, one engine against the other                               8.9e-5   3.3e-6
    float64, a session in chunks against one pass                       1.2e-13  9.5e-15
    float64, the reference's eager attention against its SDPA           1.9e-13  2.0e-14

transformers casts to float32 in its norms and its RoPE angles whatever the weights are, so in float64 the two engines
come no closer than in float32. The bounds are about six times the greatest of each kind.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from lmconform.adapter import Engine, Model, Needs, Request
from lmconform.engines.reference import Reference
from lmconform.engines.transformers import Transformers

SINGLE = 5e-4, 5e-5  # greatest difference and root mean square
DOUBLE = 1e-12, 1e-13
ENGINES = {"reference": Reference, "transformers": Transformers}
CHUNKS = (0, 300, 301, 302, 307, 400)

Load = Callable[..., Model]


@pytest.fixture(scope="module")
def load(smollm2: Path) -> Load:
    """Return a function that loads the checkpoint into an engine. Nothing is kept: a float64 copy takes a gigabyte."""

    def build(engine: str, **options: str) -> Model:
        made: Engine = ENGINES[engine](**options)
        return made.load(smollm2, Needs(max_tokens=512))

    return build


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    return Tokenizer.from_file(str(smollm2 / "tokenizer.json"))


@pytest.fixture(scope="module")
def prompt(tokenizer: Tokenizer) -> list[int]:
    """400 tokens of English."""
    text = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
    return tokenizer.encode(text).ids[:400]


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Return log-probabilities, [T, V], in float64."""
    scores = scores.astype(np.float64)
    scores -= scores.max(axis=-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))


def score_in_chunks(model: Model, tokens: Sequence[int]) -> np.ndarray:
    session = model.open()
    return np.concatenate([session.extend(tokens[a:b]) for a, b in pairwise(CHUNKS)])


def assert_near(got: np.ndarray, wanted: np.ndarray, bounds: tuple[float, float]) -> None:
    error = np.abs(log_softmax(got) - log_softmax(wanted))
    measured = float(error.max()), float(np.sqrt((error**2).mean()))
    assert measured[0] <= bounds[0], f"greatest difference {measured[0]:.2e}, bound {bounds[0]:.0e}"
    assert measured[1] <= bounds[1], f"root mean square {measured[1]:.2e}, bound {bounds[1]:.0e}"


@pytest.mark.parametrize("engine", ENGINES)
def test_it_knows_the_capital_of_france(load: Load, tokenizer: Tokenizer, engine: str) -> None:
    model = load(engine)
    tokens = tokenizer.encode("The capital of France is").ids
    (paris,) = tokenizer.encode(" Paris").ids
    probability = np.exp(log_softmax(model.score(tokens))[-1, paris])
    assert probability > 0.7
    (done,) = model.generate([Request(tuple(tokens), 4, logprobs=1)])
    assert done.tokens[0] == paris
    assert done.text is not None
    assert done.text.startswith(" Paris")
    assert done.logprobs is not None
    assert np.exp(done.logprobs[0][paris]) == pytest.approx(probability, rel=1e-4)
    print(f"{engine}: The capital of France is{done.text!r}, the first word with probability {probability:.4f}")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_two_engines_agree(load: Load, prompt: list[int], dtype: str, attention: str) -> None:
    ours = load("reference", dtype=dtype, attention=attention).score(prompt)
    theirs = load("transformers", dtype=dtype, attention=attention).score(prompt)
    assert_near(ours, theirs, SINGLE)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("dtype", "bounds"), [("float32", SINGLE), ("float64", DOUBLE)])
def test_a_session_in_chunks_is_one_pass(
    load: Load, prompt: list[int], engine: str, dtype: str, bounds: tuple[float, float]
) -> None:
    model = load(engine, dtype=dtype)
    assert_near(score_in_chunks(model, prompt), model.score(prompt), bounds)


def test_the_forms_of_attention_agree_in_float64(load: Load, prompt: list[int]) -> None:
    eager = load("reference", dtype="float64", attention="eager").score(prompt)
    sdpa = load("reference", dtype="float64", attention="sdpa").score(prompt)
    assert_near(sdpa, eager, DOUBLE)

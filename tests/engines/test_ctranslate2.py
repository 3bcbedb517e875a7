"""The adapter to CTranslate2, hosted by its own interpreter, against the oracle and against itself."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import own_environment
import pytest
from own_environment import MECHANISMS, NEAR, OTHER, PROMPT, THROUGH_EPS, greedy

from lmconform.adapter import Needs, NotOffered, Refused, Request
from lmconform.checkpoints.edits import edited
from lmconform.checkpoints.eos import EOS
from lmconform.checkpoints.layout import Checkpoint
from lmconform.checkpoints.random import SHAPES, random_checkpoint
from lmconform.checkpoints.tape import stop_tape
from lmconform.engines import known, resolve
from lmconform.transport.client import Connection, EngineSpec, RemoteModel
from lmconform.transport.errors import StartError

FAULTS = Path(__file__).with_name("ctranslate2_faults.py")
LOUD = random_checkpoint(SHAPES[4], "loud", 0)
"""Its head_dim is hidden_size / H_q, which is what the library's converter takes it for."""
WIDE = random_checkpoint(SHAPES[0], "loud", 0)
REGIMES = [None, "stepwise-prompt", "small-batches"]


@pytest.fixture(scope="module")
def python() -> Path:
    return own_environment.interpreter("LMCONFORM_CTRANSLATE2_PYTHON", "ctranslate2.txt")


@pytest.fixture(scope="module")
def engine(python: Path) -> Iterator[Connection]:
    with own_environment.connected("ctranslate2", python) as connection:
        yield connection


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def loud(folders: Path) -> Path:
    return LOUD.write(folders / "loud")


def load(engine: Connection, path: Path, regime: str | None = None) -> RemoteModel:
    return engine.load(path, Needs(regime=regime))


def oracle(tokens: tuple[int, ...], checkpoint: Checkpoint = LOUD) -> np.ndarray:
    return own_environment.oracle(checkpoint, tokens)


def test_it_is_known_by_its_name() -> None:
    assert known()["ctranslate2"].target == resolve("ctranslate2")


def test_scores_are_the_oracles(engine: Connection, loud: Path) -> None:
    model, rows = load(engine, loud), [PROMPT, OTHER, (2,)]
    assert model.vocab_size == LOUD.vocab_size
    for got, tokens in zip(model.score_batch(rows), rows, strict=True):
        np.testing.assert_allclose(got, oracle(tokens), **NEAR)
    np.testing.assert_allclose(model.score(PROMPT), oracle(PROMPT), **NEAR)
    assert model.score_batch([]) == []
    with pytest.raises(Refused, match="empty"):
        model.score(())
    with pytest.raises(Refused, match="Token id 101 at place 1"):
        model.score((1, 101))


def test_a_head_dim_of_its_own_needs_the_option(python: Path, engine: Connection, folders: Path) -> None:
    path = WIDE.write(folders / "wide")
    words = "head_dim is 16 and hidden_size / num_attention_heads is 8; CTranslate2's converter for llama does not"
    assert words in str(engine.accepts(WIDE.config))
    with pytest.raises(Refused, match=words):
        load(engine, path)
    with own_environment.connected("ctranslate2", python, head_dim="config") as mended:
        assert mended.accepts(WIDE.config) is None
        np.testing.assert_allclose(load(mended, path).score(PROMPT), oracle(PROMPT, WIDE), **NEAR)


def test_an_unsound_checkpoint_is_refused(engine: Connection, loud: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"no readable config\.json"):
        load(engine, tmp_path)
    cut = LOUD.write(tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((loud / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(Refused, match="converter refuses the checkpoint"):
        load(engine, cut)
    assert "no converter for the model_type 'mamba'" in str(engine.accepts({"model_type": "mamba"}))


def test_what_the_reader_of_the_config_refuses_is_refused(python: Path, folders: Path) -> None:
    """A hidden size of 52 and 6 heads are sound, since the config names head_dim; transformers does not take them."""
    uneven = random_checkpoint(replace(SHAPES[3], hidden_size=52), "loud", 0)
    with own_environment.connected("ctranslate2", python, head_dim="config") as mended:
        assert "transformers, with which" in str(mended.accepts(uneven.config))
        with pytest.raises(Refused, match="transformers, with which"):
            load(mended, uneven.write(folders / "uneven"))


@pytest.mark.parametrize("option", [{"head_dim": "64"}, {"threads": "none"}])
def test_bad_options_are_told(python: Path, option: dict[str, str]) -> None:
    ((name, value),) = option.items()
    with pytest.raises(StartError, match=f"Option {name}={value}"):
        Connection.start(EngineSpec("ctranslate2", python=python, options=option))


# --- generate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regime", REGIMES)
def test_completions_follow_the_scores(engine: Connection, loud: Path, regime: str | None) -> None:
    assert set(engine.description.regimes) == set(REGIMES) - {None}
    model = load(engine, loud, regime)
    prompts = [PROMPT, (4, 9), OTHER]
    done = model.generate([Request(prompt, 7, logprobs=5) for prompt in prompts])
    for prompt, one in zip(prompts, done, strict=True):
        assert one.tokens == greedy(model, prompt, 7)
        rows = model.score(prompt + one.tokens)[len(prompt) - 1 : -1].astype(np.float64)
        for row, step in zip(rows, one.logprobs or (), strict=True):
            row -= np.log(np.exp(row).sum())
            assert set(step) == set(np.argsort(-row)[:5].tolist())
            assert all(abs(row[token] - value) < 1e-4 for token, value in step.items())


def test_beside_a_prompt_of_one_token_the_others_come_back(engine: Connection, loud: Path) -> None:
    """Not continued, as CM-8 and STOP-16 ask: the library returns what it was given."""
    long, short = load(engine, loud).generate([Request(PROMPT, 7), Request((4,), 7)])
    assert long.tokens == PROMPT[1:8]
    assert short.tokens == greedy(load(engine, loud), (4,), 7)


def test_limits_and_pieces_are_each_requests_own(engine: Connection, loud: Path) -> None:
    model = load(engine, loud)
    free = greedy(model, PROMPT, 6)
    short, long, streamed = model.generate([Request(PROMPT, 2), Request(PROMPT, 6), Request(PROMPT, 4, stream=True)])
    assert (short.tokens, long.tokens, streamed.tokens) == (free[:2], free, free[:4])
    assert sum(streamed.pieces or (), ()) == free[:4]


def test_stop_ids_and_eos(engine: Connection, loud: Path, folders: Path) -> None:
    model = load(engine, loud)
    free = greedy(model, PROMPT, 6)
    (cut,) = model.generate([Request(PROMPT, 6, stop_ids=(free[3], 100))])
    assert cut.tokens == free[: free.index(free[3]) + 1]
    tape = stop_tape()
    named = load(engine, edited(tape.checkpoint, "eos").write(folders / "eos"))
    last = tape.before(EOS[0], 4)
    plain, stopped = named.generate([Request((last,), 9), Request((last,), 9, eos=True)])
    assert plain.tokens == tape.play(last, 9)
    assert stopped.tokens == plain.tokens[:4]
    for request, words in (
        (Request(PROMPT, 2, stop_strings=("x",)), "stop_strings"),
        (Request(PROMPT, 2, stop_sequences=((1, 2),)), "stop_sequences"),
        (Request(PROMPT, 2, temperature=1.0, seed=1), "seed"),
        (Request(PROMPT, 2, temperature=1.0, min_p=0.1), "min_p"),
        (Request(PROMPT, 2, eos=True, stop_ids=(1,)), "stop ids beside"),
    ):
        with pytest.raises(NotOffered, match=words):
            model.generate([request])


# --- faults in the conversion -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "caught", "also"),
    [
        (None, set(), set()),
        ("SwapsKVHeads", {"GQA-1", "GQA-2"}, set()),
        ("ChangesEps", {"PNR-5"}, THROUGH_EPS),
        ("DropsTheBase", {"ROPE-2"}, set()),
    ],
)
def test_a_fault_in_the_conversion_is_caught_by_its_mechanism(
    python: Path, fault: str | None, caught: set[str], also: set[str]
) -> None:
    target = "ctranslate2" if fault is None else f"{FAULTS}:{fault}"
    with own_environment.connected(target, python, head_dim="config") as engine:
        failed = own_environment.failing(engine, *MECHANISMS)
    assert caught <= failed <= caught | also

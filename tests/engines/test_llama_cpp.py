"""The adapter to llama.cpp, hosted by its own interpreter, against the oracle and against itself."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import own_environment
import pytest
from own_environment import MECHANISMS, NEAR, OTHER, PROMPT, THROUGH_EPS, greedy

from lmconform.adapter import Needs, NotOffered, Precision, Refused, Request
from lmconform.checkpoints import gguf as writer
from lmconform.checkpoints.edits import edited
from lmconform.checkpoints.eos import EOS
from lmconform.checkpoints.gguf import write_gguf
from lmconform.checkpoints.layout import Checkpoint
from lmconform.checkpoints.random import SHAPES, random_checkpoint
from lmconform.checkpoints.split_tape import split_tape
from lmconform.checkpoints.tape import stop_tape
from lmconform.engines import known, resolve
from lmconform.transport.client import Connection, EngineSpec, RemoteModel
from lmconform.transport.errors import EngineDied, StartError

LOUD = random_checkpoint(SHAPES[0], "loud", 0)
REGIMES = [None, "small-ubatch", "split-kv", "prefix-cache", "few-slots"]


@pytest.fixture(scope="module")
def python() -> Path:
    return own_environment.interpreter("LMCONFORM_LLAMA_CPP_PYTHON", "llama-cpp.txt")


@pytest.fixture(scope="module")
def engine(python: Path) -> Iterator[Connection]:
    with own_environment.connected("llama-cpp", python) as connection:
        yield connection


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf")


@pytest.fixture(scope="module")
def loud(files: Path) -> Path:
    return write_gguf(LOUD, files / "loud.gguf")


def load(engine: Connection, path: Path, regime: str | None = None, **needs: int) -> RemoteModel:
    return engine.load(path, Needs(regime=regime, **needs))


def oracle(tokens: tuple[int, ...], checkpoint: Checkpoint = LOUD) -> np.ndarray:
    return own_environment.oracle(checkpoint, tokens)


def test_it_is_known_by_its_name() -> None:
    assert known()["llama-cpp"].target == resolve("llama-cpp")


# --- scores and sessions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regime", REGIMES)
def test_scores_are_the_oracles(engine: Connection, loud: Path, regime: str | None) -> None:
    model, rows = load(engine, loud, regime), [PROMPT, OTHER, (2,)]
    assert (model.vocab_size, model.max_length) == (LOUD.vocab_size, 256)
    for got, tokens in zip(model.score_batch(rows), rows, strict=True):
        np.testing.assert_allclose(got, oracle(tokens), **NEAR)
    np.testing.assert_allclose(model.score(PROMPT), oracle(PROMPT), **NEAR)
    assert model.score_batch([]) == []
    model.close()


def test_every_declared_regime_is_tried(engine: Connection) -> None:
    assert set(engine.description.regimes) == set(REGIMES) - {None}
    assert engine.description.format == "gguf"


@pytest.mark.parametrize("regime", [None, "split-kv"])
def test_a_session_forks_and_forgets(engine: Connection, loud: Path, regime: str | None) -> None:
    model = load(engine, loud, regime)
    first = model.open()
    parts = [first.extend(PROMPT[start : start + 5]) for start in range(0, len(PROMPT), 5)]
    np.testing.assert_allclose(np.concatenate(parts), oracle(PROMPT), **NEAR)
    second = first.fork()
    first.truncate(4)
    np.testing.assert_allclose(first.extend(OTHER), oracle(PROMPT[:4] + OTHER)[4:], **NEAR)
    np.testing.assert_allclose(second.extend(OTHER), oracle(PROMPT + OTHER)[17:], **NEAR)
    first.close()
    third = model.open()  # in the place of the first
    np.testing.assert_allclose(third.extend(OTHER), oracle(OTHER), **NEAR)
    np.testing.assert_allclose(second.extend((1,)), oracle((*PROMPT, *OTHER, 1))[22:], **NEAR)
    model.close()


@pytest.mark.parametrize(("cache", "number_bytes"), [("float32", 4), ("float16", 2)])
def test_cache_bytes_are_the_sessions_share(python: Path, loud: Path, cache: str, number_bytes: int) -> None:
    with own_environment.connected("llama-cpp", python, cache=cache) as engine:
        compute = "float32" if cache == "float32" else "tf32"
        assert engine.description.precision == Precision(kv_cache=cache, compute=compute)
        session = load(engine, loud).open()
        one_token = 2 * 2 * 2 * 16 * number_bytes  # keys and values, layers, H_kv, D
        assert session.cache_bytes() == 256 * one_token
        got = session.extend(PROMPT)
    distance = np.abs(got - oracle(PROMPT)).max()
    assert (distance < 5e-5) == (cache == "float32")
    assert distance < 0.05


def test_what_is_declined(engine: Connection, loud: Path, tmp_path: Path) -> None:
    model = load(engine, loud, max_sessions=1)
    session = model.open()
    session.extend(PROMPT)
    for ask, words in (
        (lambda: model.score(()), "empty"),
        (lambda: model.score((1, 61)), "Token id 61 at place 1"),
        (lambda: model.score((1,) * 257), "would hold 257 tokens; the limit is 256"),
        (lambda: session.extend((1,) * 240), "would hold 257 tokens"),
        (lambda: session.truncate(18), "holds 17 tokens"),
        (lambda: model.open(), "1 sessions are open"),
        (lambda: model.generate([Request((1, -1))]), "Token id -1"),
    ):
        with pytest.raises(Refused, match=words):
            ask()
    np.testing.assert_allclose(session.extend((1,)), oracle((*PROMPT, 1))[17:], **NEAR)
    model.close()


# --- what cannot be loaded --------------------------------------------------------------------------------------------


def test_an_unsound_file_is_refused_with_the_words_of_the_log(engine: Connection, loud: Path, tmp_path: Path) -> None:
    whole = loud.read_bytes()
    for name, content, words in (
        ("empty", b"", "llama.cpp does not load empty.gguf"),
        ("text", b"no gguf file at all, whatever its name says", "invalid magic"),
        ("cut", whole[: len(whole) // 2], "cut.gguf"),
    ):
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        with pytest.raises(Refused, match=words) as error:
            load(engine, path)
        assert "\n" not in str(error.value)
    np.testing.assert_allclose(load(engine, loud).score(OTHER), oracle(OTHER), **NEAR)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cache": "float64"}, "Option cache=float64 is not known; it may be one of: float32, float16, q8_0, bfloat16"),
        ({"cache": "q8_0"}, "Option cache=q8_0 needs flash_attention=on"),
        ({"ubatch": "0"}, "Option ubatch=0 is not legal"),
        ({"kernel": "x"}, "There is no option 'kernel'"),
    ],
)
def test_bad_options_are_told(python: Path, options: dict[str, str], words: str) -> None:
    with pytest.raises(StartError, match=words):
        Connection.start(EngineSpec("llama-cpp", python=python, options=options))


# --- generate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regime", REGIMES)
def test_completions_follow_the_scores(engine: Connection, loud: Path, regime: str | None) -> None:
    model = load(engine, loud, regime, max_rows=4)
    assert model.slots == (2 if regime == "few-slots" else 4)
    prompts = [PROMPT, (4,), OTHER]
    for _ in range(2):
        done = model.generate([Request(prompt, 7, logprobs=5) for prompt in prompts])
        for prompt, one in zip(prompts, done, strict=True):
            assert one.tokens == greedy(model, prompt, 7)
            assert one.finish_reason == "length"
            rows = model.score(prompt + one.tokens)[len(prompt) - 1 : -1].astype(np.float64)
            for row, step in zip(rows, one.logprobs or (), strict=True):
                row -= np.log(np.exp(row).sum())
                assert set(step) == set(np.argsort(-row)[:5].tolist())
                assert all(abs(row[token] - value) < 1e-4 for token, value in step.items())
    cached = [one.cached_tokens for one in done]
    assert cached == ([16, 0, 4] if regime == "prefix-cache" else [0, 0, 0])
    model.close()


def test_a_seed_fixes_the_draws_and_completions_differ(engine: Connection, loud: Path) -> None:
    model = load(engine, loud, max_rows=4)
    hot = Request(PROMPT, 12, temperature=3.0, seed=5)
    first, free = model.generate([hot, replace(hot, seed=None)])
    second, other, again = model.generate([hot, replace(hot, seed=6), replace(hot, seed=None)])
    assert first.tokens == second.tokens != other.tokens
    assert free.tokens != again.tokens
    many = model.generate([replace(hot, n=4)])
    assert len({one.tokens for one in many}) == 4
    with pytest.raises(Refused, match="n_cmpl"):
        model.generate([replace(hot, n=5)])
    model.close()


def test_stops_are_those_of_the_server(engine: Connection, files: Path) -> None:
    tape = stop_tape()
    model = load(engine, write_gguf(tape.checkpoint, files / "tape.gguf"))
    script = tape.play(20, 8)
    text = "".join(tape.text(script))
    (whole,) = model.generate([Request((20,), 8)])
    assert (whole.tokens, whole.text, whole.finish_reason) == (script, text, "length")
    for stream in (False, True):
        (cut,) = model.generate([Request((20,), 8, stop_strings=(text[2:4],), stream=stream)])
        assert (text.startswith(str(cut.text)), cut.finish_reason) == (True, "stop")
        assert text[2:4] not in str(cut.text)
        assert cut.tokens == script[: len(cut.tokens)]
    assert sum(cut.pieces or (), ()) == cut.tokens
    for request, words in (
        (Request((20,), 8, stop_ids=(3,)), "stop ids and sequences"),
        (Request((20,), 8, stop_sequences=((3, 4),)), "stop ids and sequences"),
        (Request((20,), 8, stop_strings=("x",), min_new_tokens=2), "min_new_tokens"),
    ):
        with pytest.raises(NotOffered, match=words):
            model.generate([request])


def test_the_files_eos_stops_if_it_is_asked_to(engine: Connection, files: Path) -> None:
    tape = stop_tape()
    model = load(engine, write_gguf(edited(tape.checkpoint, "eos"), files / "eos.gguf"))
    (done,) = model.generate([Request((tape.before(EOS[0], 4),), 64, eos=True)])
    assert (len(done.tokens), done.tokens[-1], done.finish_reason) == (4, EOS[0], "stop")
    with pytest.raises(NotOffered, match="EOS ids that do not stop"):
        model.generate([Request((20,), 8)])


def test_log_probabilities_beside_split_characters_are_told_as_missing(engine: Connection, files: Path) -> None:
    tape = split_tape()
    model = load(engine, write_gguf(tape.checkpoint, files / "split.gguf"))
    start = next(
        token for token in range(tape.checkpoint.vocab_size) if any(map(tape.begun, _beginnings(tape.play(token, 6))))
    )
    (done,) = model.generate([Request((start,), 6)])
    assert done.tokens == tape.play(start, 6)
    with pytest.raises(NotOffered, match="tokens that end inside a character"):
        model.generate([Request((start,), 6, logprobs=3)])


def _beginnings(script: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [script[:n] for n in range(1, len(script) + 1)]


# --- faults in the conversion -----------------------------------------------------------------------------------------


def swap_kv_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of W_k and W_v are written with their heads in the opposite order."""
    arranged = writer._arranged

    def swapped(weights: Any, config: Any) -> dict[str, np.ndarray]:
        found = arranged(weights, config)
        for name, value in found.items():
            if name.endswith(("k_proj.weight", "v_proj.weight")):
                heads = value.reshape(-1, config.head_dim, value.shape[1])  # [H_kv, D, hidden]
                found[name] = np.ascontiguousarray(heads[::-1]).reshape(value.shape)
        return found

    monkeypatch.setattr(writer, "_arranged", swapped)


def change_eps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The eps is written ten times as large."""
    write = gguf.GGUFWriter.add_layer_norm_rms_eps
    monkeypatch.setattr(gguf.GGUFWriter, "add_layer_norm_rms_eps", lambda self, eps: write(self, 10 * eps))


def drop_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """The base is not written, so that llama.cpp takes 10,000."""
    monkeypatch.setattr(gguf.GGUFWriter, "add_rope_freq_base", lambda self, base: None)


@pytest.mark.parametrize(
    ("fault", "caught", "also"),
    [
        (None, set(), set()),
        (swap_kv_heads, {"GQA-1", "GQA-2"}, set()),
        (change_eps, {"PNR-5"}, THROUGH_EPS),
        (drop_the_base, {"ROPE-2"}, set()),
    ],
    ids=["none", "KV heads", "eps", "base"],
)
def test_a_fault_in_the_conversion_is_caught_by_its_mechanism(
    python: Path, monkeypatch: pytest.MonkeyPatch, fault: Any, caught: set[str], also: set[str]
) -> None:
    if fault is not None:
        fault(monkeypatch)
    with own_environment.connected("llama-cpp", python) as engine:
        failed = own_environment.failing(engine, *MECHANISMS)
    assert caught <= failed <= caught | also


def test_heads_that_do_not_divide_end_the_process(python: Path, files: Path) -> None:
    """Not refused, as GQA-5 asks: an assertion of llama.cpp fails."""
    path = write_gguf(edited(LOUD, "uneven-heads"), files / "uneven.gguf")
    with own_environment.connected("llama-cpp", python) as engine, pytest.raises(EngineDied):
        load(engine, path).score(OTHER)

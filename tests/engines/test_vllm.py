"""The adapter to vLLM, hosted by its own interpreter, against the oracle and against itself."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import own_environment
import pytest
from own_environment import NEAR, OTHER, PROMPT, greedy

from lmconform.adapter import Needs, NotOffered, Refused, Request
from lmconform.checkpoints.edits import edited
from lmconform.checkpoints.eos import EOS
from lmconform.checkpoints.layout import character
from lmconform.checkpoints.random import SHAPES, random_checkpoint
from lmconform.checkpoints.tape import stop_tape
from lmconform.engines import known, resolve
from lmconform.transport.client import Connection, EngineSpec, RemoteModel
from lmconform.transport.errors import StartError

FAULTS = Path(__file__).with_name("vllm_faults.py")
LOUD = random_checkpoint(SHAPES[5], "loud", 0)
"""Its head_dim is 32, the least that vLLM's attention has on a CPU."""
LONG = tuple(1 + place * 7 % 250 for place in range(70))
"""More than two small blocks."""
REGIMES = [None, "small-blocks", "no-prefix-cache", "chunked-prefill", "few-slots", "scarce-cache"]


@pytest.fixture(scope="module")
def python() -> Path:
    return own_environment.interpreter("LMCONFORM_VLLM_PYTHON", "vllm.txt")


@pytest.fixture(scope="module")
def engine(python: Path) -> Iterator[Connection]:
    with own_environment.connected("vllm", python) as connection:
        yield connection


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return LOUD.write(tmp_path_factory.mktemp("checkpoints") / "loud")


def load(engine: Connection, path: Path, regime: str | None = None) -> RemoteModel:
    return engine.load(path, Needs(max_tokens=96, regime=regime))


def oracle(tokens: tuple[int, ...]) -> np.ndarray:
    """Log-probabilities [T, V]."""
    scores = own_environment.oracle(LOUD, tokens)
    scores = scores - scores.max(axis=1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def test_it_is_known_by_its_name() -> None:
    assert known()["vllm"].target == resolve("vllm")


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regime", REGIMES)
def test_scores_are_the_oracles(engine: Connection, loud: Path, regime: str | None) -> None:
    model, rows = load(engine, loud, regime), [PROMPT, (2,), LONG, OTHER]
    assert (model.vocab_size, model.max_length) == (LOUD.vocab_size, 96)
    for got, tokens in zip(model.score_batch(rows), rows, strict=True):
        np.testing.assert_allclose(got, oracle(tokens), **NEAR)
    assert model.score_batch([]) == []
    with pytest.raises(Refused, match="empty"):
        model.score(())
    with pytest.raises(Refused, match="Token id 259 at place 1"):
        model.score((1, 259))
    with pytest.raises(Refused, match="longer than the maximum"):
        model.score((1,) * 97)
    assert len(model.score((1,) * 96)) == 96


def test_models_do_not_need_each_other(engine: Connection, loud: Path) -> None:
    """An engine of vLLM that ends would take what the others of its process stand on."""
    first, second = load(engine, loud), load(engine, loud, "small-blocks")
    wanted = second.score(PROMPT)
    first.close()
    np.testing.assert_array_equal(second.score(PROMPT), wanted)
    np.testing.assert_array_equal(load(engine, loud).score(PROMPT), wanted)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype_is_what_is_declared(python: Path, loud: Path, dtype: str) -> None:
    with own_environment.connected("vllm", python, dtype=dtype) as narrow:
        declared = narrow.description.precision
        assert {declared.weights, declared.compute, declared.kv_cache, declared.scores} == {dtype}
        error = np.abs(load(narrow, loud).score(PROMPT) - oracle(PROMPT)).max()
    assert 1e-4 < error < 0.5


# --- generate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regime", REGIMES)
def test_completions_follow_the_scores(engine: Connection, loud: Path, regime: str | None) -> None:
    assert set(engine.description.regimes) == set(REGIMES) - {None}
    model = load(engine, loud, regime)
    prompts, counts = [PROMPT, (4,), LONG, PROMPT[:9]], (7, 12, 5, 1)
    requests = [Request(prompt, count, logprobs=5) for prompt, count in zip(prompts, counts, strict=True)]
    for _ in range(2):  # the second time, a prefix cache has seen the prompts
        completions = model.generate(requests)
        for done, request in zip(completions, requests, strict=True):
            assert done.tokens == greedy(model, request.prompt, request.max_new_tokens)
            assert done.finish_reason == "length"
            rows = oracle(request.prompt + done.tokens)[len(request.prompt) - 1 : -1]
            for step, row in zip(done.logprobs or (), rows, strict=True):
                assert set(step) == set(np.argsort(-row)[:5].tolist())
                assert all(abs(row[token] - value) < 1e-4 for token, value in step.items())
    hits = {"small-blocks": {64}, "scarce-cache": {0, 32, 64}}  # whole blocks, if they were not needed for others
    assert completions[2].cached_tokens in hits.get(regime or "", {0})


def test_the_settings_of_a_regime_arrive(engine: Connection, loud: Path) -> None:
    slots = {regime: load(engine, loud, regime).slots for regime in REGIMES}
    assert (slots["few-slots"], slots["chunked-prefill"]) == (2, 16)
    assert min(slots[regime] or 0 for regime in (None, "small-blocks", "scarce-cache")) >= 32


def test_stops_end_their_own_row(engine: Connection, loud: Path) -> None:
    model = load(engine, loud)
    free, other = greedy(model, PROMPT, 8), greedy(model, OTHER, 8)
    text = "".join(map(character, free))
    requests = [
        Request(PROMPT, 8, stop_ids=(free[3],), stream=True),
        Request(PROMPT, 8, stop_strings=(text[2:4],)),
        Request(OTHER, 8),
        Request(PROMPT, 8, stop_ids=(free[3],), min_new_tokens=6),
    ]
    by_id, by_string, whole, late = model.generate(requests)
    assert by_id.tokens == by_string.tokens == free[:4]
    assert by_id.pieces == tuple((token,) for token in free[:4])
    assert (by_id.text, by_string.text) == (text[:3], text[:2])
    assert (by_id.finish_reason, by_string.finish_reason, whole.finish_reason) == ("stop", "stop", "length")
    assert whole.tokens == other
    assert len(late.tokens) >= 6
    assert free[3] not in late.tokens[:6]


def test_eos_ends_a_row_that_asks_for_it(engine: Connection, tmp_path: Path) -> None:
    tape = stop_tape()
    model = load(engine, edited(tape.checkpoint, "eos").write(tmp_path / "eos"))
    last = tape.before(EOS[0], 4)
    plain, stopped = model.generate([Request((last,), 9), Request((last,), 9, eos=True)])
    assert plain.tokens == tape.play(last, 9)
    assert stopped.tokens == plain.tokens[:4]


def test_seeds_repeat_and_free_draws_do_not(engine: Connection, loud: Path) -> None:
    model = load(engine, loud)
    seeded, free = Request(PROMPT, 12, temperature=2.0, seed=5), Request(PROMPT, 12, temperature=2.0)
    first, one = model.generate([seeded, free])
    two, second, other = model.generate([free, seeded, Request(PROMPT, 12, temperature=2.0, seed=6)])
    assert first.tokens == second.tokens != other.tokens
    assert one.tokens != two.tokens
    (again,) = load(engine, loud, "small-blocks").generate([free])  # after a load as well
    assert again.tokens not in (one.tokens, two.tokens)
    assert len({done.tokens for done in model.generate([Request(PROMPT, 12, temperature=2.0, seed=5, n=3)])}) == 3


def test_processed_logprobs_are_after_temperature_and_filters(python: Path, loud: Path) -> None:
    with own_environment.connected("vllm", python, logprobs="processed") as engine:
        assert engine.description.choices.logprobs == "processed"
        (done,) = load(engine, loud).generate([Request(PROMPT, 1, temperature=2.0, top_k=3, logprobs=5)])
    assert done.logprobs is not None
    best = np.sort(oracle(PROMPT)[-1])[::-1][:3] / 2
    wanted = best - np.log(np.exp(best).sum())
    np.testing.assert_allclose(sorted(done.logprobs[0].values(), reverse=True), wanted, **NEAR)


@pytest.mark.parametrize(
    ("request_", "kind", "words"),
    [
        (Request((1, 259)), Refused, "out of range"),
        (Request(PROMPT, 0), Refused, "max_tokens must be at least 1"),
        (Request(PROMPT, temperature=3.0), Refused, "temperature must be in"),
        (Request(PROMPT, n=2), Refused, "n must be 1 when using greedy"),
        (Request((1,) * 97), Refused, "longer than the maximum"),
        (Request(PROMPT, stop_ids=(259,)), Refused, "out-of-vocab"),
        (Request(PROMPT, stop_sequences=((1, 2),)), NotOffered, "stop_sequences"),
    ],
)
def test_a_declined_request_leaves_nothing_behind(
    engine: Connection, loud: Path, request_: Request, kind: type[Exception], words: str
) -> None:
    model = load(engine, loud)
    with pytest.raises(kind, match=words):
        model.generate([Request(OTHER, 3), request_])
    (done,) = model.generate([Request(PROMPT, 3)])
    assert done.tokens == greedy(model, PROMPT, 3)


def test_stop_strings_need_a_tokenizer(engine: Connection, loud: Path, tmp_path: Path) -> None:
    silent = Path(shutil.copytree(loud, tmp_path / "silent"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (silent / name).unlink()
    model = load(engine, silent)
    (done,) = model.generate([Request(PROMPT, 3)])
    assert (done.text, done.tokens) == (None, greedy(model, PROMPT, 3))
    with pytest.raises(NotOffered, match="no tokenizer"):
        model.generate([Request(PROMPT, 3, stop_strings=("x",))])


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "nonesuch"}, "does not recognize this architecture"),
        ({"head_dim": 16}, "head_dim is 16; vLLM's attention on a CPU has 32, 64"),
        ({"hidden_size": 130}, "130"),
    ],
)
def test_configs_that_are_not_accepted(engine: Connection, change: dict, words: str) -> None:
    assert engine.accepts(LOUD.config) is None
    assert words in str(engine.accepts({**LOUD.config, **change}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": 3}, "not initialized from checkpoint"),
        ({"num_hidden_layers": 1}, "no module or parameter named"),
        ({"num_key_value_heads": 3}, "not divisible by num_kv_heads"),
        ({"hidden_act": "relu"}, "Unsupported activation: relu"),
        ({"head_dim": 16}, "head_dim is 16"),
    ],
)
def test_checkpoints_that_vllm_refuses(
    engine: Connection, loud: Path, tmp_path: Path, change: dict, words: str
) -> None:
    other = Path(shutil.copytree(loud, tmp_path / "other"))
    (other / "config.json").write_text(json.dumps({**LOUD.config, **change}))
    with pytest.raises(Refused, match=words):
        load(engine, other)


def test_weights_that_are_no_safetensors_are_refused(engine: Connection, loud: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"no readable config\.json"):
        load(engine, tmp_path)
    cut = Path(shutil.copytree(loud, tmp_path / "cut"))
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[:-64])
    with pytest.raises(Refused, match="refuses the checkpoint"):
        load(engine, cut)
    (cut / "model.safetensors").rename(cut / "pytorch_model.bin")
    with pytest.raises(Refused, match="Cannot find any model weights"):
        load(engine, cut)


@pytest.mark.parametrize("option", [{"dtype": "int8"}, {"logprobs": "none"}])
def test_bad_options_are_told(python: Path, option: dict[str, str]) -> None:
    ((name, value),) = option.items()
    with pytest.raises(StartError, match=f"Option {name}={value}"):
        Connection.start(EngineSpec("vllm", python=python, options=option))


# --- faults in the checkpoint that vLLM loads -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "caught", "also"),
    [
        (None, set(), set()),
        ("SwapsKVHeads", {"GQA-1"}, set()),
        ("ChangesEps", {"PNR-5"}, own_environment.THROUGH_EPS),
        ("DropsTheBase", {"ROPE-2"}, set()),
    ],
)
def test_a_fault_in_the_checkpoint_is_caught_by_its_mechanism(
    python: Path, fault: str | None, caught: set[str], also: set[str]
) -> None:
    with own_environment.connected("vllm" if fault is None else f"{FAULTS}:{fault}", python) as engine:
        failed = own_environment.failing(engine, "GQA-1", "ROPE-2", "PNR-5")
    assert caught <= failed <= caught | also

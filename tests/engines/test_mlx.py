"""The adapter to mlx-lm, hosted by its own interpreter, against transformers and against itself."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import own_environment
import pytest
import torch
import transformers
from own_environment import NEAR, OTHER, PROMPT, greedy

from lmconform.adapter import Needs, NotOffered, Refused, Request
from lmconform.engines import known, resolve
from lmconform.judging.verdict import Verdict
from lmconform.transport.client import Connection, EngineSpec, RemoteModel
from lmconform.transport.errors import StartError

FAULTS = Path(__file__).with_name("mlx_faults.py")
REGIMES = [None, "chunked-prefill", "left-padding", "few-slots", "single", "prefix-cache", "speculative"]


@pytest.fixture(scope="module")
def python() -> Path:
    return own_environment.interpreter("LMCONFORM_MLX_PYTHON", "mlx.txt")


@pytest.fixture(scope="module")
def engine(python: Path) -> Iterator[Connection]:
    with own_environment.connected("mlx", python) as connection:
        yield connection


def load(engine: Connection, checkpoint: Path, regime: str | None = None) -> RemoteModel:
    return engine.load(checkpoint, Needs(regime=regime))


def wanted(checkpoint: Path, *prompts: tuple[int, ...]) -> list[np.ndarray]:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(checkpoint).eval().requires_grad_(False)
    return [theirs(torch.tensor([ids])).logits[0].numpy() for ids in prompts]


def test_it_is_known_by_its_name() -> None:
    assert known()["mlx"].target == resolve("mlx")
    assert known()["mlx-kernels"].target == resolve("mlx-kernels")


# --- scores and sessions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regime", [None, "left-padding"])
def test_scores_are_those_of_transformers(engine: Connection, llama: Path, regime: str | None) -> None:
    rows = [PROMPT, OTHER, (2,)]
    model = load(engine, llama, regime)
    assert model.vocab_size == 37
    for got, want in zip(model.score_batch(rows), wanted(llama, *rows), strict=True):
        np.testing.assert_allclose(got, want, **NEAR)
    np.testing.assert_allclose(model.score(PROMPT), wanted(llama, PROMPT)[0], **NEAR)
    assert model.score_batch([]) == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype_is_what_is_declared(python: Path, engine: Connection, llama: Path, dtype: str) -> None:
    with own_environment.connected("mlx", python, dtype=dtype) as narrow:
        assert set(vars(narrow.description.precision).values()) == {dtype}
        got = load(narrow, llama).score(PROMPT)
    exact = load(engine, llama).score(PROMPT)
    assert 1e-4 < np.abs(got - exact).max() < 0.5
    assert (got == torch.tensor(got).to(getattr(torch, dtype)).float().numpy()).all()


def test_a_session_in_chunks_is_one_pass(engine: Connection, llama: Path) -> None:
    model = load(engine, llama)
    session = model.open()
    assert session.cache_bytes() == 0
    parts = [session.extend(PROMPT[:5]), session.extend(PROMPT[5:6]), session.extend(PROMPT[6:])]
    np.testing.assert_allclose(np.concatenate(parts), model.score(PROMPT), **NEAR)
    assert session.cache_bytes() == 2 * 2 * 2 * 8 * 256 * 4  # keys and values, layers, H_kv, D, a step, float32


def test_fork_truncate_close(engine: Connection, llama: Path) -> None:
    model = load(engine, llama)
    session = model.open()
    session.extend(PROMPT)
    fork = session.fork()
    session.truncate(4)
    np.testing.assert_allclose(session.extend(OTHER), model.score(PROMPT[:4] + OTHER)[4:], **NEAR)
    np.testing.assert_allclose(fork.extend(OTHER), model.score(PROMPT + OTHER)[17:], **NEAR)
    session.close()
    np.testing.assert_allclose(fork.extend([1]), model.score((*PROMPT, *OTHER, 1))[22:], **NEAR)
    with pytest.raises(Refused, match="holds 23 tokens; it cannot be truncated to 24"):
        fork.truncate(24)
    fork.truncate(0)
    np.testing.assert_allclose(fork.extend(OTHER), model.score(OTHER), **NEAR)


# --- generate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regime", REGIMES)
def test_greedy_rows_are_those_of_the_scores(engine: Connection, llama: Path, regime: str | None) -> None:
    model = load(engine, llama, regime)
    prompts, counts = [PROMPT, (4,), OTHER, PROMPT[:9], (30, 3)], (7, 12, 3, 1, 9)
    requests = [Request(prompt, count, logprobs=5) for prompt, count in zip(prompts, counts, strict=True)]
    for _ in range(2):  # the second time, a prefix cache has seen the prompts
        completions = model.generate(requests)
        for done, request in zip(completions, requests, strict=True):
            assert done.tokens == greedy(model, request.prompt, request.max_new_tokens)
            assert done.finish_reason == "length"
            assert done.logprobs is not None
            scores = model.score(request.prompt + done.tokens)[len(request.prompt) - 1 : -1].astype(np.float64)
            normed = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
            for step, row in zip(done.logprobs, normed, strict=True):
                assert len(step) >= 5
                np.testing.assert_allclose(list(step.values()), row[list(step)], rtol=0, atol=1e-4)
    assert completions[0].cached_tokens == (len(PROMPT) - 2 if regime == "prefix-cache" else 0)


def test_slots_are_told(engine: Connection, llama: Path) -> None:
    assert [load(engine, llama, regime).slots for regime in (None, "few-slots", "single")] == [32, 2, 1]


@pytest.mark.parametrize("regime", [None, "single", "speculative"])
def test_stops_end_their_own_row(engine: Connection, llama: Path, regime: str | None) -> None:
    model = load(engine, llama, regime)
    free = [greedy(model, prompt, 8) for prompt in (PROMPT, OTHER)]
    idle = next(token for token in range(37) if token not in free[0])
    requests = [
        Request(PROMPT, 8, stop_ids=(idle, free[0][3]), stream=True),
        Request(PROMPT, 8, stop_sequences=(free[0][2:4],)),
        Request(PROMPT, 4, stop_ids=free[0][3:4]),
        Request(OTHER, 8, stop_sequences=((PROMPT[-1], free[0][0]),)),
    ]
    done = model.generate(requests)
    assert [one.tokens for one in done[:3]] == [free[0][: free[0].index(free[0][3]) + 1], free[0][:4], free[0][:4]]
    assert [one.finish_reason for one in done] == ["stop", "stop", "stop", "length"]
    assert done[0].pieces == tuple((token,) for token in done[0].tokens)
    assert done[3].tokens == free[1]


def test_seeds_repeat_and_free_draws_do_not(engine: Connection, llama: Path) -> None:
    model = load(engine, llama)
    seeded, free = Request(PROMPT, 12, temperature=2.0, seed=5), Request(PROMPT, 12, temperature=2.0)
    first, free_one = model.generate([seeded, free])
    free_two, second, other = model.generate([free, seeded, Request(PROMPT, 12, temperature=2.0, seed=6)])
    assert first.tokens == second.tokens != other.tokens
    assert free_one.tokens != free_two.tokens
    many = model.generate([Request(PROMPT, 12, temperature=2.0, seed=5, n=3)])
    assert len({completion.tokens for completion in many}) == 3


def test_a_refused_filter_leaves_the_draws_alone(engine: Connection, llama: Path) -> None:
    """In MLX itself nothing can be drawn afterwards."""
    model = load(engine, llama)
    with pytest.raises(Refused, match="top_k"):
        model.generate([Request(PROMPT, 2, temperature=1.0, top_k=37)])
    first, second = (model.generate([Request(PROMPT, 12, temperature=2.0)])[0].tokens for _ in range(2))
    assert first != second


def test_text_is_without_the_stop_string(engine: Connection, spelled: Path) -> None:
    model = load(engine, spelled)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJK"
    free = "".join(letters[token] for token in greedy(model, PROMPT, 8))
    done, whole = model.generate([Request(PROMPT, 8, stop_strings=(free[2:4],)), Request(PROMPT, 8)])
    assert (done.text, done.finish_reason, len(done.tokens)) == (free[:2], "stop", 4)
    assert (whole.text, whole.finish_reason) == (free, "length")


def test_the_checkpoints_eos_stops_if_it_is_asked_to(engine: Connection, llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    free = greedy(load(engine, llama), PROMPT, 6)
    idle = next(token for token in range(37) if token not in free)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [idle, free[2]]}))
    model = load(engine, tmp_path)
    done = [one.tokens for one in model.generate([Request(PROMPT, 6), Request(PROMPT, 6, eos=True)])]
    assert done == [free, free[: free.index(free[2]) + 1]]


@pytest.mark.parametrize(
    ("request_", "kind", "words"),
    [
        (Request((1, 37)), Refused, "out of range"),
        (Request(PROMPT, 0), Refused, "must be 1 or more"),
        (Request(PROMPT, temperature=1.0, top_k=37), Refused, "top_k"),
        (Request(PROMPT, temperature=1.0, min_p=1.5), Refused, "min_p"),
        (Request(PROMPT, min_new_tokens=2, stop_ids=(3,)), NotOffered, "min_new_tokens"),
        (Request(PROMPT, stop_strings=("a",)), NotOffered, "no tokenizer"),
    ],
)
def test_requests_that_are_declined(
    engine: Connection, llama: Path, request_: Request, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        load(engine, llama).generate([request_])


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "nonesuch"}, "nonesuch not supported"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"num_key_value_heads": 3}, "4 is not a multiple of num_key_value_heads 3"),
        ({"rope_scaling": {"rope_type": "spiral"}}, "spiral"),
        ({"model_type": "phi3", "head_dim": 16}, "head_dim is 16; mlx-lm's phi3 always takes 8"),
    ],
)
def test_configs_that_are_not_accepted(engine: Connection, llama: Path, change: dict, words: str) -> None:
    config = json.loads((llama / "config.json").read_text())
    assert engine.accepts(config) is None
    changed = {name: value for name, value in {**config, **change}.items() if value is not None}
    assert words in str(engine.accepts(changed))


def test_a_broken_checkpoint_is_refused(engine: Connection, llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-64])
    with pytest.raises(Refused, match="refuses the checkpoint"):
        load(engine, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(Refused, match="No safetensors found"):
        load(engine, tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(Refused, match=r"no readable config.json"):
        load(engine, tmp_path)
    with pytest.raises(Refused, match="'paged' is not known; it may be one of: chunked-prefill"):
        load(engine, llama, "paged")


def test_an_unknown_format_names_the_legal_ones(python: Path) -> None:
    with pytest.raises(StartError, match="float32, float16, bfloat16"):
        Connection.start(EngineSpec("mlx", python=python, options={"dtype": "int8"}))


# --- faults on the way in ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "broken", "kept"),
    [
        ("SwapsKVHeads", ("GQA-1", "GQA-2"), ("PNR-5", "ROPE-2")),
        ("ChangesEps", ("PNR-5",), ("GQA-3", "ROPE-2")),  # weights read to 1e-6 move as well, such as those of GQA-1
        ("DropsTheBase", ("ROPE-2",), ("GQA-1", "PNR-5")),
    ],
)
def test_a_fault_on_the_way_in_is_caught_by_its_mechanism(
    python: Path, fault: str, broken: tuple[str, ...], kept: tuple[str, ...]
) -> None:
    with own_environment.connected(f"{FAULTS}:{fault}", python) as connection:
        records = own_environment.judge(connection, *broken, *kept, doors=("score",))
    failed = {record.requirement for record in records if record.verdict == Verdict.FAIL}
    assert failed == {*broken}, [(one.requirement, one.test, one.verdict, one.reason) for one in records]


def test_without_a_fault_the_same_requirements_pass(engine: Connection) -> None:
    records = own_environment.judge(engine, "GQA-1", "GQA-2", "PNR-5", "ROPE-2", doors=("score",))
    assert {record.verdict for record in records} <= {Verdict.PASS, Verdict.UNSUPPORTED}
    assert {one.requirement for one in records if one.bites} == {"GQA-1", "GQA-2", "PNR-5", "ROPE-2"}

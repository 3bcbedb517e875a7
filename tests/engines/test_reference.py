"""The adapter to refdecoder, by direct calls, against transformers and against itself."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import refdecoder
from lmconform.adapter import Engine, Model, Needs, NotOffered, Precision, Refused, Request, Session, offered
from lmconform.engines.reference import Reference, ReferenceModel, ReferenceSession
from refdecoder import Attention
from refdecoder.fast import StaticCache

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJK"  # of the fixture's tokenizer
PATHS = ["plain", "fast"]
PROMPT, OTHER = tuple(range(3, 20)), (5, 8, 13, 21, 34)
REGIMES = [None, "left-padding", "chunked-prefill", "sdpa"]
WAYS = [*(("plain", one) for one in REGIMES), *(("fast", one) for one in [*REGIMES[:3], "whole-cache"])]
# Logits here have a standard deviation near 2; two orders of float32 operations differ by some 1e-6 of that.
NEAR = {"rtol": 0, "atol": 5e-5}


def load(checkpoint: Path, regime: str | None = None, max_tokens: int = 48, **options: str) -> Any:
    return Reference(**options).load(checkpoint, Needs(max_tokens=max_tokens, regime=regime))


def test_everything_is_offered() -> None:
    assert set(offered(Reference())) >= {"load", "accepts", "regimes"}
    for base, thing in ((Model, ReferenceModel), (Session, ReferenceSession)):
        public = {name for name, value in vars(base).items() if callable(value) and not name.startswith("_")}
        kept = {name for name in public if getattr(thing, name) is getattr(base, name)}
        assert kept <= {"close"}
    assert issubclass(Reference, Engine)
    assert Reference.name == "refdecoder"


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "regime"), WAYS)
def test_scores_are_those_of_transformers(llama: Path, path: str, regime: str | None) -> None:
    theirs = transformers.LlamaForCausalLM.from_pretrained(llama).eval().requires_grad_(False)
    wanted = {ids: theirs(torch.tensor([ids])).logits[0].numpy() for ids in (PROMPT, OTHER, (2,))}
    model = load(llama, regime, path=path)
    assert (model.vocab_size, model.max_length) == (37, 64)
    got = model.score(list(PROMPT))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted[PROMPT], **NEAR)
    for ids, scores in zip(wanted, model.score_batch(list(wanted)), strict=True):
        assert scores.shape == (len(ids), 37)
        np.testing.assert_allclose(scores, wanted[ids], **NEAR)
    assert model.score_batch([]) == []


def test_regimes_are_entered(llama: Path) -> None:
    """Each regime really changes how the decoder is called: padding side, columns a pass, attention form."""
    seen = []
    assert set(Reference().regimes()) == set(REGIMES[1:])
    assert set(Reference(attention="sdpa").regimes()) == {*REGIMES[1:3], "eager"}
    for regime in REGIMES:
        model = load(llama, regime)
        form = model.decoder.layers[0].self_attn.form
        passes: list[torch.Tensor] = []  # positions, [B, T] each
        model.decoder.register_forward_pre_hook(lambda _, inputs, passes=passes: passes.append(inputs[1]))
        model.score_batch([PROMPT, OTHER])
        seen.append((form, [one.shape[1] for one in passes], int(passes[0][1, 0])))
    assert seen == [
        ("eager", [17], 0),
        ("eager", [17], -1),
        ("eager", [5, 5, 5, 2], 0),
        ("sdpa", [17], 0),
    ]
    assert set(Reference(path="fast").regimes()) == {*REGIMES[1:3], "whole-cache"}
    with pytest.raises(Refused, match="'paged' is not known"):
        load(llama, "paged")


def test_the_fast_path_is_entered(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores and sessions come from fused modules, and generation from a generator that is kept for its rows."""
    made: list[refdecoder.FastGenerator] = []
    start = refdecoder.FastGenerator._start
    monkeypatch.setattr(refdecoder.FastGenerator, "_start", lambda self, *rest: made.append(self) or start(self, *rest))
    assert not isinstance(load(llama).open().cache, StaticCache)
    load(llama).generate([Request(OTHER, 3)])
    assert not made
    for regime, whole in ((None, False), ("whole-cache", True)):
        model = load(llama, regime, path="fast", max_tokens=20)
        assert isinstance(model.open().cache, StaticCache)
        for requests in ([Request(OTHER, 3)], [Request(OTHER, 4)] * 2, [Request(PROMPT, 2)], [Request(PROMPT, 40)]):
            model.generate(requests)
        assert [(one.rows, one.cache.capacity) for one in made] == [(1, 20), (2, 20), (1, 20), (1, 57)]
        assert made[0] is made[2]
        assert {one.whole for one in made} == {whole}
        assert not any(one.compile for one in made)
        made.clear()
    model = Reference(path="fast", compile="yes").load(llama, Needs())
    assert model._generator(model._rows(Request(OTHER, 3))).compile


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_dtype_is_what_is_declared(llama: Path, dtype: Any) -> None:
    engine = Reference(dtype=dtype)
    wide = "float64" if dtype == "float64" else "float32"
    assert engine.precision == Precision(dtype, dtype, dtype, dtype, wide)
    model = load(llama, dtype=dtype)
    assert model.decoder.embed_tokens.weight.dtype == getattr(torch, dtype)
    got, wanted = model.score(PROMPT), load(llama, dtype="float64").score(PROMPT)
    assert got.dtype == (np.float64 if dtype == "float64" else np.float32)
    bound = {"float64": 0, "float32": 1e-5, "bfloat16": 0.3, "float16": 0.05}[dtype]
    assert np.abs(got - wanted).max() <= bound * wanted.std()
    if dtype == "bfloat16":  # values that bfloat16 holds: nothing was computed in a wider format after the head
        assert (got == torch.tensor(got).bfloat16().float().numpy()).all()


def test_bad_options_are_value_errors() -> None:
    for option, value in (
        ("dtype", "int8"),
        ("attention", "flash"),
        ("threads", "0"),
        ("device", "nonsense"),
        ("path", "quick"),
        ("compile", "yes"),
    ):
        with pytest.raises(ValueError, match=f"Option {option}={value}"):
            Reference(**{option: value})
    before = torch.get_num_threads()
    try:
        Reference(threads="1")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


# --- sessions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "regime"), WAYS)
def test_a_session_scores_as_one_pass(llama: Path, path: str, regime: str | None) -> None:
    model = load(llama, regime, path=path)
    session = model.open()
    got = np.concatenate([session.extend(PROMPT[:7]), session.extend(PROMPT[7:8]), session.extend(PROMPT[8:])])
    np.testing.assert_allclose(got, model.score(PROMPT), **NEAR)


@pytest.mark.parametrize("path", PATHS)
def test_fork_truncate_close(llama: Path, path: str) -> None:
    model = load(llama, path=path)
    session = model.open()
    session.extend(PROMPT)
    fork = session.fork()
    session.truncate(4)
    np.testing.assert_allclose(session.extend(OTHER), model.score(PROMPT[:4] + OTHER)[4:], **NEAR)
    np.testing.assert_allclose(fork.extend(OTHER), model.score(PROMPT + OTHER)[17:], **NEAR)
    session.close()
    for call in (lambda: session.extend([1]), session.fork, lambda: session.truncate(0), session.cache_bytes):
        with pytest.raises(Refused, match="closed"):
            call()
    np.testing.assert_allclose(fork.extend([1]), model.score((*PROMPT, *OTHER, 1))[22:], **NEAR)
    with pytest.raises(Refused, match="cannot be cut to 24"):
        fork.truncate(24)


@pytest.mark.parametrize("path", PATHS)
def test_cache_bytes_are_allocated_once(llama: Path, path: str) -> None:
    session = load(llama, max_tokens=24, path=path).open()
    # keys and values, 2 layers, 24 slots and a spare one, 2 KV heads of 8 dimensions, 4 bytes
    assert session.cache_bytes() == 2 * 2 * 25 * 2 * 8 * 4
    session.extend(PROMPT)
    assert session.cache_bytes() == 2 * 2 * 25 * 2 * 8 * 4
    assert load(llama, dtype="bfloat16", max_tokens=24, path=path).open().cache_bytes() == 2 * 2 * 25 * 2 * 8 * 2
    assert load(llama, max_tokens=1000, path=path).open().cache_bytes() == 2 * 2 * 65 * 2 * 8 * 4


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "message"), [((), "empty"), ((1, 37), "37"), ((-1,), "-1"), ((1,) * 65, "65"), ((1,) * 64, None)]
)
def test_unusable_tokens_are_refused(llama: Path, tokens: tuple[int, ...], message: str | None) -> None:
    model = load(llama, max_tokens=64)
    calls = [
        lambda: model.score(tokens),
        lambda: model.score_batch([[1, 2], tokens]),
        lambda: model.open().extend(tokens),
        lambda: model.generate([Request((1, 2)), Request(tokens)]),
    ]
    for call in calls:
        if message is None:
            call()
        else:
            with pytest.raises(Refused, match=message):
                call()


@pytest.mark.parametrize("path", PATHS)
def test_a_full_session_refuses_and_stays_usable(llama: Path, path: str) -> None:
    model = load(llama, max_tokens=20, path=path)
    session = model.open()
    session.extend(PROMPT)
    with pytest.raises(Refused, match="22 tokens; the limit is 20"):
        session.extend(OTHER)
    np.testing.assert_allclose(session.extend([1]), model.score((*PROMPT, 1))[17:], **NEAR)


def test_unsound_checkpoints_are_refused(save: Callable[..., Path], llama: Path, tmp_path: Path) -> None:
    engine = Reference()
    config = json.loads((llama / "config.json").read_text())
    assert engine.accepts(config) is None
    reason = engine.accepts(config | {"hidden_act": "mish"})
    assert reason is not None
    assert "mish" in reason
    with pytest.raises(Refused, match=r"config.json cannot be read"):
        engine.load(tmp_path, Needs())
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 40}))
    with pytest.raises(Refused, match=r"embed_tokens.weight is \[37, 32\]"):
        engine.load(tmp_path, Needs())
    assert engine.accepts(json.loads((save(num_key_value_heads=1) / "config.json").read_text())) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": -1.0},
        {"temperature": 1.0, "top_p": 1.5},
        {"temperature": 1.0, "top_k": 0},
        {"temperature": 1.0, "min_p": 2.0},
        {"seed": -1},
        {"n": 0},
        {"max_new_tokens": -1},
        {"stop_sequences": ((),)},
        {"min_new_tokens": -1},
    ],
    ids=lambda changes: next(reversed(changes)),
)
def test_unusable_requests_are_refused(llama: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        load(llama).generate([Request((1, 2), **changes)])


def test_a_fault_of_the_model_is_not_a_refusal(llama: Path) -> None:
    class Broken(Attention):
        def visible(self, positions: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
            raise ValueError("a bug")

    class Faulty(Reference):
        attention_class = Broken

    with pytest.raises(ValueError, match="a bug"):
        Faulty().load(llama, Needs()).score(PROMPT)


# --- generation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "regime"), WAYS)
def test_greedy_continues_its_own_scores(llama: Path, path: str, regime: str | None) -> None:
    model, alone = load(llama, regime, path=path), load(llama)
    for prompt, done in zip(
        (PROMPT, OTHER), model.generate([Request(PROMPT, 12), Request(OTHER, 12, logprobs=4)]), strict=True
    ):
        scores = alone.score(prompt + done.tokens)[len(prompt) - 1 : -1]
        assert done.tokens == tuple(scores.argmax(axis=1))
        assert (done.finish_reason, done.text, done.pieces) == ("length", None, None)
        if prompt == OTHER:
            wanted = torch.tensor(scores).log_softmax(-1)
            assert [len(step) for step in done.logprobs] == [4] * 12
            for row, step in zip(wanted, done.logprobs, strict=True):
                assert set(step) == set(row.topk(4).indices.tolist())
                for token, value in step.items():
                    assert value == pytest.approx(float(row[token]), abs=5e-5)


@pytest.mark.parametrize("path", PATHS)
def test_seeds_and_n(llama: Path, path: str) -> None:
    model = load(llama, path=path)
    request = Request(OTHER, 16, temperature=1.5, seed=3, n=3, top_k=30, top_p=0.99, min_p=0.001)
    first = model.generate([request, Request(OTHER, 16, temperature=1.5, seed=4, top_k=30, top_p=0.99, min_p=0.001)])
    assert len({one.tokens for one in first}) == 4
    again = model.generate([Request(PROMPT, 5), request])
    assert [one.tokens for one in again[1:]] == [one.tokens for one in first[:3]]
    free = model.generate([Request(OTHER, 16, temperature=1.5, n=2)] * 2)
    assert len({one.tokens for one in free}) == 4
    cold = model.generate([Request(OTHER, 6, temperature=0.0, seed=1), Request(OTHER, 6)])
    assert cold[0] == cold[1]


@pytest.mark.parametrize("path", PATHS)
def test_stops_and_pieces(spelled: Path, path: str) -> None:
    model = load(spelled, path=path)
    free = model.generate([Request(OTHER, 12)])[0].tokens
    text = "".join(LETTERS[token] for token in free)
    assert (free.index(free[3]), text.index(text[1:3]), text.index(text[2:5])) == (3, 1, 2)  # cases count on it
    cases = [
        (Request(OTHER, 12, stop_ids=(free[3],)), 4, "stop", text[:3]),
        (Request(OTHER, 12, stop_sequences=(free[1:3],)), 3, "stop", text[:3]),
        (Request(OTHER, 12, stop_strings=("?", text[2:5])), 5, "stop", text[:2]),
        (Request(OTHER, 4), 4, "length", text[:4]),
        (Request(OTHER, 0), 0, "length", ""),
    ]
    for (_, count, reason, wanted), done in zip(cases, model.generate([one for one, *_ in cases]), strict=True):
        assert (done.tokens, done.finish_reason, done.text) == (free[:count], reason, wanted)
    [late] = model.generate([Request(OTHER, 12, stop_ids=(free[1],), min_new_tokens=3)])
    assert free[1] not in late.tokens[:3]
    [streamed] = model.generate([Request(OTHER, 12, stream=True)])
    assert sum(streamed.pieces, ()) == streamed.tokens == free


def test_the_checkpoints_eos_stops_if_it_is_asked_to(save: Callable[..., Path], llama: Path) -> None:
    free = load(llama).generate([Request(OTHER, 12)])[0].tokens
    assert free.index(free[3]) == 3
    model = load(save(eos_token_id=[36, free[3]]))
    requests = [Request(OTHER, 12), Request(OTHER, 12, eos=True), Request(OTHER, 12, eos=True, stop_ids=free[1:2])]
    done = [(one.tokens, one.finish_reason) for one in model.generate(requests)]
    assert done == [(free, "length"), (free[:4], "stop"), (free[:2], "stop")]


def test_stop_strings_need_a_tokenizer(llama: Path) -> None:
    with pytest.raises(NotOffered, match=r"tokenizer.json"):
        load(llama).generate([Request(OTHER, 4, stop_strings=("a",))])


@pytest.mark.parametrize("path", PATHS)
def test_the_context_limit_stops(llama: Path, path: str) -> None:
    done = load(llama, path=path).generate([Request((1,) * 60, 20), Request((1,) * 64, 20)])
    assert [(len(one.tokens), one.finish_reason) for one in done] == [(4, "length"), (0, "length")]
    assert Reference().choices.long_continuation == "stops"


def test_a_prompt_past_the_context_limit_is_refused(llama: Path) -> None:
    with pytest.raises(Refused, match="65 tokens; the limit is 64"):
        load(llama).generate([Request((1,) * 65, 1)])
    assert Reference().choices.long_prompt == "refused"


# --- the hook for faults ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_fault_is_a_few_lines(llama: Path, attention: str) -> None:
    class UpperLeft(Attention):
        """Anchors the mask at the first query of a pass."""

        def visible(self, positions: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
            return super().visible(positions - positions[:, :1], slots)

    class Faulty(Reference):
        attention_class = UpperLeft

    sound, faulty = load(llama), Faulty(attention=attention).load(llama, Needs(max_tokens=48))
    np.testing.assert_allclose(faulty.score(PROMPT), sound.score(PROMPT), **NEAR)
    session = faulty.open()
    session.extend(PROMPT[:9])
    got, wanted = session.extend(PROMPT[9:]), sound.score(PROMPT)[9:]
    assert math.sqrt(np.square(got - wanted).mean()) > 0.1 * wanted.std()

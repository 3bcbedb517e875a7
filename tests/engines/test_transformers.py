"""The adapter to transformers, against direct calls of the library and against itself."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from lmconform.adapter import Model, Needs, NotOffered, Precision, Refused, Request, Session, offered
from lmconform.engines.transformers import Transformers, TransformersModel

PROMPT = tuple(range(3, 20))
OPTIONS = [
    {"cache": cache, "attention": attention} for cache in ("dynamic", "static") for attention in ("sdpa", "eager")
]
# Logits here have a standard deviation near 2; two orders of float32 operations differ by some 1e-6 of that.
NEAR = {"rtol": 0, "atol": 5e-5}


def load(checkpoint: Path, regime: str | None = None, max_tokens: int = 48, **options: str) -> Any:
    return Transformers(**options).load(checkpoint, Needs(max_tokens=max_tokens, regime=regime))


def direct(checkpoint: Path, tokens: tuple[int, ...], **keywords: Any) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, **keywords).eval()
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].float().numpy()


def log_softmax(row: np.ndarray) -> np.ndarray:
    row = row.astype(np.float64)
    return row - row.max() - np.log(np.exp(row - row.max()).sum())


def greedy(model: Model, prompt: tuple[int, ...], steps: int) -> tuple[int, ...]:
    """Greedy decoding from one-pass scores, without a cache and without ``generate``."""
    tokens = list(prompt)
    for _ in range(steps):
        tokens.append(int(model.score(tokens)[-1].argmax()))
    return tuple(tokens[len(prompt) :])


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_score_is_a_direct_call(llama: Path, dtype: str, attention: str) -> None:
    got = load(llama, dtype=dtype, attention=attention).score(PROMPT)
    assert got.dtype == np.float32
    assert got.shape == (len(PROMPT), 37)
    wanted = direct(llama, PROMPT, dtype=getattr(torch, dtype), attn_implementation=attention)
    np.testing.assert_array_equal(got, wanted)


def test_float64_comes_back_as_float64(llama: Path) -> None:
    engine = Transformers(dtype="float64")
    got = engine.load(llama, Needs()).score(PROMPT)
    assert got.dtype == np.float64
    assert (got.astype(np.float32) != got).mean() > 0.9
    np.testing.assert_allclose(got, load(llama).score(PROMPT), **NEAR)
    assert engine.precision == Precision("float64", "float32", "float64", "float64")


@pytest.mark.parametrize("regime", [None, "right-padding"])
def test_a_ragged_batch_scores_each_row_as_if_alone(llama: Path, regime: str | None) -> None:
    rows = [PROMPT, PROMPT[:1], (30, 3, 30, 3, 30), PROMPT[::-1]]
    model = load(llama, regime)
    for row, got in zip(rows, model.score_batch(rows), strict=True):
        np.testing.assert_allclose(got, model.score(row), **NEAR)
    assert model.score_batch([]) == []


@pytest.mark.parametrize(("regime", "places"), [(None, (0, 0, 1)), ("right-padding", (1, 0, 0))])
def test_the_padding_is_on_the_declared_side(llama: Path, regime: str | None, places: tuple[int, ...]) -> None:
    model, seen = load(llama, regime), []
    model.model.register_forward_pre_hook(lambda _, args, keywords: seen.append(keywords), with_kwargs=True)
    model.score_batch([(4, 5, 6), (7,)])
    assert tuple(seen[0]["attention_mask"][1].tolist()) == places
    assert seen[0]["position_ids"][0].tolist() == [0, 1, 2]
    assert seen[0]["position_ids"][1][places.index(1)] == 0


# --- sessions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("chunks", [(17,), (1,) * 17, (5, 1, 8, 3)])
def test_a_session_in_chunks_is_one_pass(llama: Path, options: dict[str, str], chunks: tuple[int, ...]) -> None:
    model = load(llama, **options)
    session, start, parts = model.open(), 0, []
    for chunk in chunks:
        parts.append(session.extend(PROMPT[start : start + chunk]))
        start += chunk
    np.testing.assert_allclose(np.concatenate(parts), model.score(PROMPT), **NEAR)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_fork_shares_nothing(llama: Path, options: dict[str, str]) -> None:
    model = load(llama, **options)
    first = model.open()
    first.extend(PROMPT)
    second = first.fork()
    got_first = first.extend((30, 31))  # the second must not see these, nor count them
    got_second = second.extend((5, 6, 7))
    np.testing.assert_allclose(got_first, model.score((*PROMPT, 30, 31))[-2:], **NEAR)
    np.testing.assert_allclose(got_second, model.score((*PROMPT, 5, 6, 7))[-3:], **NEAR)
    second.close()
    np.testing.assert_allclose(first.extend((9,)), model.score((*PROMPT, 30, 31, 9))[-1:], **NEAR)


@pytest.mark.parametrize("length", [0, 1, 16, 17])
def test_a_truncated_session_has_forgotten(llama: Path, length: int) -> None:
    model = load(llama)
    session = model.open()
    session.extend(PROMPT)
    other = session.fork()
    session.truncate(length)
    np.testing.assert_allclose(session.extend((30, 4)), model.score((*PROMPT[:length], 30, 4))[-2:], **NEAR)
    np.testing.assert_allclose(other.extend((8,)), model.score((*PROMPT, 8))[-1:], **NEAR)


def test_what_a_session_declines(llama: Path) -> None:
    session = load(llama).open()
    session.extend(PROMPT)
    for length in (-1, 18):
        with pytest.raises(Refused, match=f"holds 17 tokens; it cannot be truncated to {length}"):
            session.truncate(length)
    with pytest.raises(Refused, match="empty"):
        session.extend(())
    session.close()
    with pytest.raises(Refused, match="closed"):
        session.extend((1,))

    static = load(llama, cache="static", max_tokens=18).open()
    static.extend(PROMPT)
    with pytest.raises(NotOffered, match="StaticCache cannot be cropped"):
        static.truncate(3)
    with pytest.raises(Refused, match="would hold 19 tokens; the limit is 18"):
        static.extend((1, 2))
    static.extend((1,))


def test_a_sliding_window_that_has_moved_on_cannot_be_truncated(tmp_path: Path) -> None:
    config = transformers.MistralConfig(
        **{"vocab_size": 37, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "sliding_window": 4},
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    transformers.MistralForCausalLM(config).save_pretrained(tmp_path)
    model = load(tmp_path)
    session = model.open()
    got = np.concatenate([session.extend(PROMPT[:6]), session.extend(PROMPT[6:])])
    np.testing.assert_allclose(got, model.score(PROMPT), **NEAR)
    with pytest.raises(NotOffered, match=r"truncate: .*sliding window"):
        session.truncate(10)


def test_cache_bytes_count_what_is_allocated(llama: Path) -> None:
    one_token = 2 * 2 * 2 * 8 * 4  # keys and values, layers, H_kv, D, bytes of a float32
    session = load(llama).open()
    assert session.cache_bytes() == 0
    session.extend(PROMPT)
    assert session.cache_bytes() == 17 * one_token
    session.truncate(3)
    assert session.cache_bytes() == 17 * one_token  # a view: torch has given nothing back yet
    session.extend((1,))
    assert session.cache_bytes() == 4 * one_token
    static = load(llama, cache="static", max_tokens=40).open()
    static.extend((1,))
    assert static.cache_bytes() == 40 * one_token


# --- generate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS)
def test_greedy_generation_and_its_logprobs_follow_the_scores(llama: Path, options: dict[str, str]) -> None:
    model = load(llama, **options)
    prompts, limits = [PROMPT, (4,), (30, 3, 30)], [7, 12, 3]
    requests = [Request(prompt, limit, logprobs=4) for prompt, limit in zip(prompts, limits, strict=True)]
    for request, done in zip(requests, model.generate(requests), strict=True):
        assert done.tokens == greedy(model, request.prompt, request.max_new_tokens)
        assert (done.finish_reason, done.text, done.pieces) == ("length", None, None)
        rows = model.score(request.prompt + done.tokens)[len(request.prompt) - 1 : -1]
        for row, step in zip(rows, done.logprobs or (), strict=True):
            wanted = log_softmax(row)
            assert set(step) == set(np.argsort(-wanted)[:4].tolist())
            assert all(abs(wanted[token] - value) < 1e-4 for token, value in step.items())


def test_nothing_of_the_checkpoints_generation_config_leaks_in(llama: Path, tmp_path: Path) -> None:
    wanted = load(llama).generate([Request(PROMPT, 12), Request(PROMPT, 12, temperature=2.0, seed=1)])
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    hostile = {
        **{"eos_token_id": list(wanted[0].tokens[:2]), "do_sample": True, "temperature": 0.1, "top_k": 1, "top_p": 0.1},
        **{"repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "min_new_tokens": 99, "max_length": 18, "min_p": 0.9},
        **{"suppress_tokens": list(wanted[0].tokens), "num_return_sequences": 3, "bad_words_ids": [[7]]},
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(hostile))
    got = load(tmp_path).generate([Request(PROMPT, 12), Request(PROMPT, 12, temperature=2.0, seed=1)])
    assert got == wanted


def test_mixed_requests_come_back_in_order(llama: Path) -> None:
    model = load(llama)
    requests = [
        Request(PROMPT, 4),
        Request((4,), 3, temperature=1.5, top_k=5, seed=7),
        Request((9, 9), 5),
        Request((4,), 2, temperature=1.5, n=2),
        Request((30, 3), 6, logprobs=1, n=2),
    ]
    done = model.generate(requests)
    alone = [completion for request in requests for completion in model.generate([request])]
    assert [len(completion.tokens) for completion in done] == [4, 3, 5, 2, 2, 6, 6]
    for place in (0, 1, 2, 5, 6):
        assert done[place].tokens == alone[place].tokens
    assert done[5].tokens == done[6].tokens == greedy(model, (30, 3), 6)


@pytest.mark.parametrize(
    "cold", [{"temperature": 1e-3}, {"temperature": 50.0, "top_k": 1}, {"temperature": 50.0, "top_p": 1e-6}]
)
def test_no_request_samples_with_anothers_parameters(llama: Path, cold: dict[str, Any]) -> None:
    model = load(llama)
    hot = Request(PROMPT, 8, temperature=50.0)
    done = model.generate([hot, Request(PROMPT, 8, **cold), hot])
    wanted = greedy(model, PROMPT, 8)
    assert done[1].tokens == wanted
    assert wanted not in (done[0].tokens, done[2].tokens)


def test_filters_leave_only_what_they_should(llama: Path) -> None:
    model = load(llama)
    probabilities = np.exp(log_softmax(model.score(PROMPT)[-1]))
    ranked = np.argsort(-probabilities)
    mass = np.cumsum(probabilities[ranked])
    nucleus = int(np.searchsorted(mass, 0.8)) + 1
    allowed = {"top_k": (3, 3), "top_p": (0.8, nucleus), "min_p": (0.3, int((probabilities >= 0.3 * mass[0]).sum()))}
    for name, (value, count) in allowed.items():
        done = model.generate([Request(PROMPT, 1, temperature=1.0, seed=0, n=400, **{name: value})])
        assert {completion.tokens[0] for completion in done} == set(ranked[:count].tolist()), name
    free = model.generate([Request(PROMPT, 1, temperature=1.0, seed=0, n=400)])
    drawn = np.bincount([completion.tokens[0] for completion in free], minlength=37) / 400
    assert len(set(ranked[:8].tolist()) & set(np.flatnonzero(drawn).tolist())) == 8  # no filter: all probable ids occur
    assert abs(drawn[ranked[0]] - mass[0]) < 5 * np.sqrt(mass[0] * (1 - mass[0]) / 400)


def test_a_seed_fixes_its_own_request_only(llama: Path) -> None:
    model = load(llama)
    seeded = Request(PROMPT, 12, temperature=2.0, seed=5)
    first, free_one = model.generate([seeded, Request(PROMPT, 12, temperature=2.0)])
    second, free_two, other = model.generate(
        [seeded, Request(PROMPT, 12, temperature=2.0), Request(PROMPT, 12, temperature=2.0, seed=6)]
    )
    assert first.tokens == second.tokens != other.tokens
    assert free_one.tokens != free_two.tokens  # torch's generator went on where it was
    many = model.generate([Request(PROMPT, 12, temperature=2.0, seed=5, n=3)])
    assert len({completion.tokens for completion in many}) == 3


def test_equal_scores_take_the_lowest_id(save: Callable[..., Path]) -> None:
    checkpoint = save()
    weights = load_file(checkpoint / "model.safetensors")
    best = load(checkpoint).generate([Request(PROMPT, 1)])[0].tokens[0]
    for low, high in ((0, best), (best, 36)):
        changed = dict(weights)
        changed["lm_head.weight"] = weights["lm_head.weight"].copy()
        changed["lm_head.weight"][[low, high]] = weights["lm_head.weight"][best]
        save_file(changed, checkpoint / "model.safetensors", metadata={"format": "pt"})
        assert load(checkpoint).generate([Request(PROMPT, 1)])[0].tokens == (low,)


# --- stops ------------------------------------------------------------------------------------------------------------


def test_a_stop_id_ends_its_row_and_no_other(llama: Path) -> None:
    model = load(llama)
    free = [greedy(model, prompt, 10) for prompt in (PROMPT, (4,), (30, 3))]
    stop = free[0][3]
    done = model.generate([Request(prompt, 10, stop_ids=(36, stop)) for prompt in (PROMPT, (4,), (30, 3))])
    for row, completion in zip(free, done, strict=True):
        ends = [place + 1 for place, token in enumerate(row) if token in (36, stop)]
        assert completion.tokens == row[: min([10, *ends])]
        assert completion.finish_reason == ("stop" if ends else "length")


@pytest.mark.parametrize(("limits", "criteria"), [([7, 7], 0), ([7, 12], 1)])
def test_a_plain_request_is_the_plain_call(
    llama: Path, monkeypatch: pytest.MonkeyPatch, limits: list[int], criteria: int
) -> None:
    model = load(llama)
    calls = []
    library = model.model.generate
    monkeypatch.setattr(model.model, "generate", lambda **given: calls.append(given) or library(**given))
    rows = model.generate([Request(prompt, limit) for prompt, limit in zip((PROMPT, (4,)), limits, strict=True)])
    [call] = calls
    assert len(call["stopping_criteria"]) == criteria
    assert not call["generation_config"].return_dict_in_generate
    assert [row.tokens for row in rows] == [greedy(model, PROMPT, limits[0]), greedy(model, (4,), limits[1])]
    assert [row.finish_reason for row in rows] == ["length", "length"]


def test_a_stop_id_at_the_limit_is_a_stop(llama: Path) -> None:
    model = load(llama)
    free = greedy(model, PROMPT, 3)
    (done,) = model.generate([Request(PROMPT, free.index(free[2]) + 1, stop_ids=(free[2],))])
    assert done.finish_reason == "stop"


def test_min_new_tokens_masks_the_stop_ids(llama: Path) -> None:
    model = load(llama)
    stop = greedy(model, PROMPT, 1)[0]
    (done,) = model.generate([Request(PROMPT, 8, stop_ids=(stop,), min_new_tokens=5)])
    assert len(done.tokens) >= 5
    assert stop not in done.tokens[:5]
    (short,) = model.generate([Request(PROMPT, 3, stop_ids=(stop,), min_new_tokens=5)])
    assert len(short.tokens) == 3


def test_a_stop_sequence_ends_its_row(llama: Path) -> None:
    model = load(llama)
    free = greedy(model, PROMPT, 8)
    prompts = [PROMPT, (30, 3)]
    done = model.generate([Request(prompt, 8, stop_sequences=((36, 36, 36), free[2:4])) for prompt in prompts])
    assert done[0].tokens == free[:4]
    assert done[0].finish_reason == "stop"
    assert done[1].tokens == greedy(model, (30, 3), 8)
    (due,) = model.generate([Request(PROMPT, 8, stop_sequences=(free[2:4],), min_new_tokens=3)])
    assert due.tokens == free[:4]
    (late,) = model.generate([Request(PROMPT, 8, stop_sequences=(free[2:4],), min_new_tokens=4)])
    assert late.tokens == free
    # A sequence counts new tokens alone: one that only begins in the prompt does not stop.
    (straddle,) = model.generate([Request(PROMPT, 4, stop_sequences=((PROMPT[-1], free[0]),))])
    assert straddle.tokens == free[:4]


def test_a_stop_string_ends_its_row_and_text_is_decoded(spelled: Path) -> None:
    model = load(spelled)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJK"
    free = "".join(letters[token] for token in greedy(model, PROMPT, 8))
    assert free.index(free[2:4]) == 2
    requests = [Request(PROMPT, 8, stop_strings=(free[2:4],)), Request((30, 3), 8, stop_strings=(free[2:4],))]
    done = model.generate(requests)
    assert (done[0].text, done[0].finish_reason) == (free[:4], "stop")
    assert done[1].tokens == greedy(model, (30, 3), 8)
    with pytest.raises(NotOffered, match="cannot match them with this tokenizer"):
        model.generate([Request(PROMPT, 8, stop_strings=("?!",))])


def test_a_stop_string_does_not_begin_in_the_prompt(spelled: Path) -> None:
    """As it may in the library."""
    model = load(spelled)
    free = greedy(model, PROMPT, 4)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJK"
    string = letters[PROMPT[-1]] + letters[free[0]]
    (done,) = model.generate([Request(PROMPT, 4, stop_strings=(string,))])
    assert (done.tokens, done.finish_reason) == (free, "length")
    theirs = transformers.StopStringCriteria(model.tokenizer, [string])
    assert theirs(torch.tensor([[*PROMPT, free[0]]]), None).tolist() == [True]


@pytest.mark.parametrize("files", [("generation_config.json", "config.json"), ("config.json",)])
def test_the_checkpoints_eos_stops_if_it_is_asked_to(
    save: Callable[..., Path], llama: Path, files: tuple[str, ...]
) -> None:
    """config.json counts where there is no generation_config.json."""
    free = greedy(load(llama), PROMPT, 8)
    assert free.index(free[3]) == 3
    other = next(token for token in range(37) if token not in free)
    directory = save(eos_token_id=[other, free[3]])
    for name in {"generation_config.json", "config.json"} - {*files}:
        (directory / name).unlink()
    requests = [Request(PROMPT, 8), Request(PROMPT, 8, eos=True), Request(PROMPT, 8, eos=True, stop_ids=free[1:2])]
    done = [(one.tokens, one.finish_reason) for one in load(directory).generate(requests)]
    assert done == [(free, "length"), (free[:4], "stop"), (free[: free.index(free[1]) + 1], "stop")]


def test_stop_strings_need_a_tokenizer(llama: Path) -> None:
    with pytest.raises(NotOffered, match="no tokenizer"):
        load(llama).generate([Request(PROMPT, 8, stop_strings=("a",))])


def test_a_stream_hands_out_the_tokens_one_by_one(llama: Path) -> None:
    model = load(llama)
    free = greedy(model, PROMPT, 6)
    requests = [
        Request(PROMPT, 6, stop_ids=(free[3],), stream=True),
        Request((4,), 6, stop_ids=(free[3],), stream=True),
    ]
    for done in model.generate(requests):
        assert done.pieces == tuple((token,) for token in done.tokens)
    assert done.tokens != ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": ()}, "empty"),
        ({"prompt": (37,)}, "out of range"),
        ({"max_new_tokens": 0}, "must be 1 or more"),
        ({"n": 0}, "must be 1 or more"),
        ({"temperature": 0.0}, "strictly positive"),
        ({"temperature": 1.0, "top_k": -1}, "top_k"),
        ({"temperature": 1.0, "top_p": -0.5}, "top_p"),
        ({"temperature": 1.0, "min_p": 1.5}, "min_p"),
        ({"stop_ids": (37,)}, "out of range"),
    ],
)
def test_requests_that_are_refused(llama: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words):
        load(llama).generate([Request(**{"prompt": PROMPT, **change})])


# --- checkpoints ------------------------------------------------------------------------------------------------------


def _edit(checkpoint: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    change(weights)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})


BREAKS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (
        lambda d: _edit(d, lambda w: w.pop("model.layers.1.self_attn.k_proj.weight")),
        r"tensors missing: model\.layers\.1\.self_attn\.k_proj\.weight",
    ),
    "extra": (
        lambda d: _edit(d, lambda w: w.update({"model.layers.1.extra.weight": np.ones(3, dtype=np.float32)})),
        r"tensors not expected: model\.layers\.1\.extra\.weight",
    ),
    "misshapen": (
        lambda d: _edit(d, lambda w: w.update({"model.norm.weight": np.ones(31, dtype=np.float32)})),
        r"refuses the checkpoint|of the wrong shape",
    ),
    "cut": (
        lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-64]),
        "refuses the checkpoint",
    ),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "refuses the checkpoint"),
    "pickle": (
        lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"),
        "refuses the checkpoint",
    ),
    "no config": (lambda d: (d / "config.json").unlink(), "no readable config.json"),
    "no JSON": (lambda d: (d / "config.json").write_text("{"), "no readable config.json"),
    "tokenizer": (lambda d: (d / "tokenizer.json").write_text("{"), "refuses the tokenizer"),
}


@pytest.mark.parametrize("kind", BREAKS)
def test_a_broken_checkpoint_is_refused(llama: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    spoil, words = BREAKS[kind]
    load(tmp_path)
    spoil(tmp_path)
    with pytest.raises(Refused, match=words):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_key_value_heads": 3}, "4 is not a multiple of num_key_value_heads 3"),
        ({"num_key_value_heads": 8}, "4 is not a multiple of num_key_value_heads 8"),
        ({"hidden_size": 34, "head_dim": 8}, "not a multiple of the number of attention heads"),
        ({"head_dim": 7}, "even rotary dimension"),
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "does not know 'spiral'"),
        ({"hidden_act": "shrug"}, "does not know 'shrug'"),
        ({"model_type": "nonesuch"}, "no model_type 'nonesuch'"),
    ],
)
def test_shapes_that_are_not_accepted(llama: Path, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    config = json.loads((llama / "config.json").read_text())
    assert Transformers().accepts(config) is None
    changed = {**config, **change}
    assert words in str(Transformers().accepts(changed))
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps(changed))
    with pytest.raises(Refused, match=words):
        load(tmp_path)


def test_accepts_leaves_the_config_as_it_is(llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    config["rope_parameters"] = {"rope_theta": 1e4}  # transformers completes this dictionary in place
    assert Transformers().accepts(config) is None
    assert config["rope_parameters"] == {"rope_theta": 1e4}


def test_learned_positions_have_a_limit(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=37, n_positions=20, n_embd=32, n_layer=2, n_head=4)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    model = load(tmp_path)
    assert model.max_length == 20
    session = model.open()
    got = np.concatenate([session.extend(PROMPT[:4]), session.extend(PROMPT[4:])])
    np.testing.assert_allclose(got, model.score(PROMPT), **NEAR)
    np.testing.assert_allclose(model.score_batch([PROMPT, (4, 5)])[1], model.score((4, 5)), **NEAR)
    assert len(model.generate([Request(PROMPT, 3)])[0].tokens) == 3
    for refused in (
        lambda: model.score([1] * 21),
        lambda: session.extend([1] * 4),
        lambda: model.generate([Request(PROMPT, 4)]),
    ):
        with pytest.raises(Refused, match="would hold 21 tokens; the limit is 20"):
            refused()


# --- the engine -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("dtype", "fp8", "float32, float64, bfloat16, float16"),
        ("attention", "flash", "sdpa, eager"),
        ("cache", "paged", "dynamic, static"),
        ("compile", "maybe", "no, yes"),
        ("compile", "yes", "cache=static and device=cuda"),
        ("device", "abacus", "cpu"),
        ("threads", "none", "whole number"),
    ],
)
def test_a_bad_option_lists_the_legal_ones(option: str, value: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"{option}={value}.*{words}"):
        Transformers(**{option: value})


def test_threads_are_set_only_if_asked() -> None:
    before = torch.get_num_threads()
    try:
        Transformers()
        assert torch.get_num_threads() == before
        Transformers(threads=str(before + 1))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("options", OPTIONS)
def test_every_regime_is_entered_and_agrees(llama: Path, options: dict[str, str]) -> None:
    default = load(llama, **options)
    regimes = Transformers(**options).regimes()
    assert len(regimes) == 4
    for name, changes in regimes.items():
        model = load(llama, name, **options)
        for key, value in changes.items():
            assert getattr(model.settings, key) == value != getattr(default.settings, key)
        assert model.model.config._attn_implementation == model.settings.attention
        requests = [Request(PROMPT, 5), Request((4, 5), 5), Request(PROMPT[:9], 5)]
        assert [done.tokens for done in model.generate(requests)] == [
            done.tokens for done in default.generate(requests)
        ]
        for got, wanted in zip(model.score_batch([PROMPT, (4,)]), default.score_batch([PROMPT, (4,)]), strict=True):
            np.testing.assert_allclose(got, wanted, **NEAR)
    with pytest.raises(Refused, match="'warp' is not known; it may be one of: right-padding"):
        load(llama, "warp", **options)


@pytest.mark.parametrize(("regime", "chunks"), [(None, [17, 1, 1]), ("chunked-prefill", [4, 4, 4, 4, 1, 1, 1])])
def test_generate_prefills_in_the_declared_chunks(llama: Path, regime: str | None, chunks: list[int]) -> None:
    model, seen = load(llama, regime), []
    model.model.model.embed_tokens.register_forward_hook(lambda _, args, out: seen.append(args[0].shape[1]))
    model.generate([Request(PROMPT, 3)])
    assert seen == chunks


@pytest.mark.parametrize(("cache", "kind"), [("dynamic", "DynamicCache"), ("static", "StaticCache")])
def test_generate_runs_over_the_declared_cache(llama: Path, cache: str, kind: str) -> None:
    model, seen = load(llama, cache=cache), set()
    model.model.register_forward_pre_hook(
        lambda _, args, keywords: seen.add(type(keywords["past_key_values"]).__name__), with_kwargs=True
    )
    model.generate([Request(PROMPT, 3)])
    assert seen == {kind}


def test_the_adapter_offers_everything(llama: Path) -> None:
    model = load(llama)
    assert isinstance(model, TransformersModel)
    assert set(offered(model)) == {"score", "score_batch", "open", "generate", "close"}
    session: Session = model.open()
    assert set(offered(session)) == {"extend", "fork", "truncate", "cache_bytes", "close"}
    assert {"accepts", "regimes", "load"} <= set(offered(Transformers()))
    model.close()
    assert model.model is None


def test_nothing_is_printed(spelled: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    model = load(spelled)
    requests = [Request(PROMPT, 3, stop_ids=(5,)), Request((4,), 2, stop_ids=(5,), min_new_tokens=9, logprobs=1)]
    model.generate([*requests, Request((4,), 2, temperature=0.5, top_k=3, seed=1)])
    assert capfd.readouterr() == ("", "")

"""What ends a row, what text is handed out when, and the log-probabilities of each step."""

from collections.abc import Sequence
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel

from refdecoder import Decoder, InputError, Request, Sampler, Stops, generate, load, score, stream
from refdecoder.stopping import Detokenizer, Watch

WORDS = ["a", "b", "E", "EN", "ND", "END", "D.", " "]


def spell(ids: Sequence[int]) -> str:
    return "".join(WORDS[i] for i in ids)


def run(stops: Stops, ids: Sequence[int]) -> tuple[int, str, list[str], str]:
    """Feed ``ids`` as far as the stops allow: how many, why it ended, the pieces of text, and all text."""
    watch, pieces = Watch(stops, Detokenizer(spell)), []
    for n, token in enumerate(ids, start=1):
        piece, stopped = watch.push(token, last=n == len(ids))
        pieces.append(piece)
        if stopped:
            return n, "stop", pieces, watch.text
    return len(ids), "length", pieces, watch.text


@pytest.mark.parametrize(
    ("stops", "ids", "wanted"),
    [
        (Stops(ids=(5,)), [0, 1, 5, 0], (3, "stop", "ab")),
        (Stops(ids=(5, 1)), [0, 1, 5, 0], (2, "stop", "a")),
        (Stops(sequences=((0, 1),)), [0, 0, 1, 0], (3, "stop", "aab")),
        (Stops(sequences=((0, 1), (0,))), [2, 0, 1], (2, "stop", "Ea")),
        (Stops(strings=("END",)), [0, 3, 6, 1], (3, "stop", "a")),
        (Stops(strings=("END",)), [0, 2, 4, 1], (3, "stop", "a")),
        (Stops(strings=("END",)), [0, 3, 1, 1], (4, "length", "aENbb")),
        (Stops(strings=("ND", "END")), [0, 5, 1], (2, "stop", "a")),  # earliest in the text, not first in the list
        (Stops(strings=("D.",)), [0, 3, 6, 1], (3, "stop", "aEN")),
        (Stops(ids=(1,), min_new_tokens=2), [1, 1, 1, 1], (3, "stop", "bb")),
        (Stops(strings=("a",), min_new_tokens=2), [0, 0, 0, 0], (3, "stop", "aa")),
        (Stops(sequences=((0,),), min_new_tokens=2), [0, 0, 0, 0], (3, "stop", "aaa")),
        (Stops(strings=("b",)), [0, 0, 1], (3, "stop", "aa")),  # with the last token that is allowed: still a stop
        (Stops(ids=(7,)), [], (0, "length", "")),
    ],
)
def test_cases(stops: Stops, ids: list[int], wanted: tuple[int, str, str]) -> None:
    count, reason, pieces, text = run(stops, ids)
    assert (count, reason, text) == wanted
    assert "".join(pieces) == text


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(
    ids=st.lists(st.integers(0, 7), max_size=12),
    strings=st.lists(st.sampled_from(["END", "ND", "D.", "a b", "ENEND", "bb"]), max_size=3),
)
def test_strings_against_the_whole_text(ids: list[int], strings: list[str]) -> None:
    """The text is cut at the earliest string, and not a character that a stop takes back was handed out."""
    count, reason, pieces, text = run(Stops(strings=tuple(strings)), ids)
    ends = [n for n in range(len(ids) + 1) if any(one in spell(ids[:n]) for one in strings)]
    assert (count, reason) == ((ends[0], "stop") if ends else (len(ids), "length"))
    whole = spell(ids[:count])
    assert text == whole[: min((whole.find(one) for one in strings if one in whole), default=len(whole))]
    for n in range(len(pieces)):
        assert text.startswith("".join(pieces[: n + 1]))
    assert "".join(pieces) == text


def test_text_is_not_held_without_need() -> None:
    _, _, pieces, _ = run(Stops(strings=("END",)), [0, 2, 2, 4, 1, 1])
    assert pieces == ["a", "", "E", ""]
    _, _, pieces, _ = run(Stops(strings=("END",)), [0, 3, 1, 1])
    assert pieces == ["a", "", "ENb", "b"]


def byte_level() -> Tokenizer:
    """One id a byte, as byte-level BPE without merges."""
    vocab = {character: i for i, character in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return tokenizer


def test_a_character_split_over_ids_comes_at_once() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("aé€b").ids
    assert len(ids) == 7
    text = Detokenizer(lambda ids: tokenizer.decode(list(ids)))
    assert [text.push(token) for token in ids] == ["a", "", "é", "", "", "€", "b"]
    assert text.flush() == ""
    text.push(ids[1])
    assert text.flush() == "\N{REPLACEMENT CHARACTER}"


def test_a_character_is_not_held_back_for_the_next_one() -> None:
    """Bytes of one id end a character and begin another."""
    pieces = [b"x\xe2", b"\x82\xac\xc3", b"\xa9y\xf0", b"\x9f", b"z\xc3", b"\xff"]
    text = Detokenizer(lambda ids: b"".join(pieces[one] for one in ids).decode(errors="replace"))
    assert [text.push(token) for token in range(5)] == ["x", "€", "éy", "", "\ufffdz"]
    assert text.flush() == "\ufffd"
    assert [text.push(token) for token in (0, 1, 2, 5)] == ["x", "€", "éy", ""]
    assert text.flush() == "\ufffd\ufffd"
    watch = Watch(
        Stops(strings=("x",)), Detokenizer(lambda ids: b"".join(pieces[one] for one in ids).decode("utf-8", "replace"))
    )
    assert watch.push(0) == ("", True)


@pytest.mark.parametrize("last", [True, False], ids=["length", "stop"])
def test_an_incomplete_character_comes_at_the_end(last: bool) -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("aé").ids
    watch = Watch(Stops(sequences=() if last else ((ids[1],),)), Detokenizer(lambda ids: tokenizer.decode(list(ids))))
    assert watch.push(ids[0]) == ("a", False)
    assert watch.push(ids[1], last) == ("\N{REPLACEMENT CHARACTER}", not last)


def test_a_space_after_the_prompt_is_kept() -> None:
    vocab = {"▁one": 0, "▁two": 1, "s": 2}
    tokenizer = Tokenizer(models.BPE(vocab, merges=[]))
    tokenizer.decoder = decoders.Metaspace()
    assert tokenizer.decode([1]) == "two"
    text = Detokenizer(lambda ids: tokenizer.decode(list(ids)), prompt=[0])
    assert [text.push(token) for token in (1, 2, 0)] == [" two", "s", " one"]


# --- in a generation --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(llama: Path) -> Decoder:
    return load(llama, torch.float64)


def test_events_add_up_to_the_completion(model: Decoder) -> None:
    requests = [Request([1, 2], 7, Sampler(1.0), seed=s, logprobs=s) for s in (1, 2)]
    events = list(stream(model, requests, decode=lambda ids: "".join(f"<{i}>" for i in ids)))
    done = generate(model, requests, decode=lambda ids: "".join(f"<{i}>" for i in ids))
    for row, one in enumerate(done):
        mine = [event for event in events if event.row == row]
        assert one.tokens == [event.token for event in mine]
        assert one.text == "".join(event.text for event in mine) == "".join(f"<{i}>" for i in one.tokens)
        assert one.logprobs == [event.logprobs for event in mine]
        assert [event.reason for event in mine] == [None] * 6 + ["length"]


def test_a_stream_comes_token_by_token(model: Decoder) -> None:
    """The first event is there before the second token is computed."""
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    events = stream(model, [Request([1, 2, 3], 5)], chunk=2)
    assert len(calls) == 0
    next(events)
    assert len(calls) == 2
    next(events)
    assert len(calls) == 3


@pytest.mark.parametrize("n", [0, 1, 5, 100])
def test_logprobs_are_raw(model: Decoder, n: int) -> None:
    """Neither temperature nor filters nor masked stop ids touch them."""
    sampler, stops = Sampler(3.0, top_k=9), Stops(ids=tuple(range(20)), min_new_tokens=6)
    [done] = generate(model, [Request([1, 2], 6, sampler, stops, seed=1, logprobs=n)])
    [logits] = score(model, [[1, 2, *done.tokens]])
    assert done.logprobs is not None
    assert len(done.logprobs) == len(done.tokens) == 6
    for step, (token, found) in enumerate(zip(done.tokens, done.logprobs, strict=True)):
        wanted = logits[step + 1].log_softmax(0)
        best = wanted.argsort(descending=True)[:n].tolist()
        assert set(found) == {*best, token}
        for i, value in found.items():
            assert value == pytest.approx(float(wanted[i]), abs=1e-9)


def test_masked_stop_ids_are_not_drawn_before_the_minimum(model: Decoder) -> None:
    free = generate(model, [Request([1, 2], 10)])[0].tokens
    stops = Stops(ids=tuple(free[:4]), min_new_tokens=3)
    [done] = generate(model, [Request([1, 2], 30, stops=stops)])
    assert not set(done.tokens[:3]) & set(free[:4])
    everything = Stops(ids=tuple(range(37)), min_new_tokens=3)
    with pytest.raises(InputError, match="All 37 ids are stop ids"):
        generate(model, [Request([1, 2], 5, stops=everything)])
    [done] = generate(model, [Request([1, 2], 5, stops=Stops(ids=tuple(range(50))))])
    assert (done.tokens, done.reason) == (free[:1], "stop")


def test_the_prompt_does_not_stop(model: Decoder) -> None:
    """An id and a string of the prompt, and a sequence that only prompt and new tokens together complete."""
    prompt = [1, 2, 3]
    free = generate(model, [Request(prompt, 6)])[0].tokens
    assert not {1, 3} & set(free)  # or else this test would need another prompt
    stops = Stops(ids=(1,), sequences=((3, free[0]),), strings=("<3>", f"<3><{free[0]}>"))
    [done] = generate(model, [Request(prompt, 6, stops=stops)], decode=lambda ids: "".join(f"<{i}>" for i in ids))
    assert (done.tokens, done.reason) == (free, "length")


def test_the_context_limit_ends_a_row(model: Decoder) -> None:
    done = generate(model, [Request([1] * 60, 10), Request([1] * 64, 10), Request([1], 100)])
    assert [len(one.tokens) for one in done] == [4, 0, 63]
    assert {one.reason for one in done} == {"length"}


def test_a_stop_with_the_last_token_is_a_stop(model: Decoder) -> None:
    free = generate(model, [Request([1, 2], 6)])[0].tokens
    count = free.index(free[3]) + 1
    [done] = generate(model, [Request([1, 2], count, stops=Stops(ids=(free[3],)))])
    assert (done.tokens, done.reason) == (free[:count], "stop")


def test_text_continues_the_prompt(model: Decoder) -> None:
    """With a decoder that puts spaces between words, the new text begins with one."""
    [done] = generate(model, [Request([1, 2], 3)], decode=lambda ids: " ".join(map(str, ids)))
    assert done.text == "".join(f" {token}" for token in done.tokens)


def test_stop_strings_need_a_decoder(model: Decoder) -> None:
    with pytest.raises(InputError, match="pass decode"):
        generate(model, [Request([1], 5, stops=Stops(strings=("a",)))])


def test_no_requests(model: Decoder) -> None:
    assert generate(model, []) == []


@pytest.mark.parametrize("stops", [{"strings": ("",)}, {"sequences": ((),)}, {"min_new_tokens": -1}])
def test_unusable_stops_are_refused(stops: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"empty|must be 0 or more"):
        Stops(**stops)  # type: ignore[arg-type]

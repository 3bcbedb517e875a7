"""The HTTP door before a server that truly serves the reference, in the words of three kinds of servers."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import http_server
import numpy as np
import pytest
from tokenizers import Tokenizer

from lmconform.adapter import Choices, Needs, NotOffered, Precision, Refused, Request, offered
from lmconform.checkpoints.layout import Shape
from lmconform.checkpoints.random import random_checkpoint
from lmconform.checkpoints.split_tape import split_tape
from lmconform.checkpoints.tape import StopTape, stop_tape
from lmconform.engines._openai_http_offer import ABILITIES, Offer, overridden
from lmconform.engines._openai_http_spelling import Spelling, Unspelled, splitting
from lmconform.engines.openai_http import HTTPModel, OpenAIHTTP, ScoringModel
from lmconform.engines.reference import Reference

SERVER = Path(http_server.__file__)
KINDS = ("vllm", "openai", "transformers")
SAMPLER = {"sampling", "top_k", "top_p", "min_p", "seed"}
OFFERED = {
    "vllm": {*SAMPLER, "n", "stream", "stop_strings", "stop_ids", "eos_off", "eos_beside_ids", "min_tokens"},
    "openai": {"sampling", "top_p", "seed", "n", "stream", "stop_strings"},
    "transformers": {*SAMPLER, "stream", "stop_strings", "stop_ids", "eos_off", "min_tokens"},
}


def command(speaks: str, *words: str, engine: str = "lmconform.engines.reference:Reference") -> str:
    """A template that starts a server of one kind, for the checkpoint in ``words`` or for all that requests name."""
    return shlex.join([sys.executable, str(SERVER), *words, "--port", "{port}", "--speaks", speaks, "--engine", engine])


@cache
def door(speaks: str) -> OpenAIHTTP:
    """The engine, whose one server loads what its requests name."""
    return OpenAIHTTP(command=command(speaks), model="{checkpoint}", ready="/health")


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    for speaks in KINDS:
        door(speaks).close()
    door.cache_clear()


@pytest.fixture(scope="module")
def tape(tmp_path_factory: pytest.TempPathFactory) -> tuple[StopTape, Path]:
    tape = stop_tape()
    return tape, tape.checkpoint.write(tmp_path_factory.mktemp("http") / "stop-tape")


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(Shape(), "loud", 3).write(tmp_path_factory.mktemp("http") / "random")


@pytest.mark.parametrize("speaks", KINDS)
def test_what_a_server_offers_is_found_out(speaks: str) -> None:
    engine = door(speaks)
    offer = engine.offer
    assert offer.abilities == OFFERED[speaks]
    assert (offer.prompt, offer.form) == {
        "vllm": ("ids", "fields"),
        "openai": ("ids", "plain"),
        "transformers": ("text", "generation_config"),
    }[speaks]
    assert (offer.ids, offer.score, bool(offer.logprobs)) == {
        "vllm": ("token_ids", "prompt_logprobs", True),
        "openai": ("logprobs", "echo", True),
        "transformers": ("chunks", None, False),
    }[speaks]
    assert set(ABILITIES) - offer.abilities - {"eos_beside_ids"} <= set(offer.missing)
    assert any(line.startswith("not offered: ") for line in offer.lines()) == (speaks != "vllm")


def test_what_a_server_chooses_is_found_out() -> None:
    """As the reference behind it declares, and as the server itself does with no tokens and with long prompts."""
    assert door("vllm").choices == Choices(
        scores="log-probabilities",
        logprobs="raw",
        stop_token="returned",
        stop_text="dropped",
        eos_files=("generation_config.json",),
        zero_tokens="refused",
        min_tokens="mask",
        long_prompt="refused",
        long_continuation="refused",
    )


@pytest.mark.parametrize("speaks", ["vllm", "openai"])
def test_scores_are_the_references(random: Path, speaks: str) -> None:
    model = door(speaks).load(random, Needs())
    assert isinstance(model, ScoringModel)
    rows = [(3, 1, 4, 1, 5), (9,), (2, 6, 5)]
    for got, row in zip(model.score_batch(rows), rows, strict=True):
        logits = Reference().load(random, Needs()).score(row).astype(np.float64)
        wanted = logits - logits.max(1, keepdims=True)
        wanted -= np.log(np.exp(wanted).sum(1, keepdims=True))
        assert got.shape == (len(row), 97)
        np.testing.assert_allclose(got, wanted, atol=2e-5, rtol=0)
    np.testing.assert_array_equal(model.score(rows[0]), model.score_batch(rows)[0])
    with pytest.raises(Refused):
        model.score(())


@pytest.mark.parametrize("speaks", KINDS)
def test_completions_are_the_tapes(tape: tuple[StopTape, Path], speaks: str) -> None:
    played, checkpoint = tape
    model = door(speaks).load(checkpoint, Needs())
    lasts = (60, 7, 30)
    done = model.generate([Request((5, 40, last), 4) for last in lasts])
    for one, last in zip(done, lasts, strict=True):
        assert one.tokens == played.play(last, 4)
        assert one.text == "".join(played.text(one.tokens))
        assert one.finish_reason == "length"
    assert isinstance(model, HTTPModel)
    assert ("score" in offered(model)) == (speaks != "transformers")


@pytest.mark.parametrize("speaks", KINDS)
def test_a_stream_comes_in_pieces(tape: tuple[StopTape, Path], speaks: str) -> None:
    played, checkpoint = tape
    (done,) = door(speaks).load(checkpoint, Needs()).generate([Request((60,), 5, stream=True)])
    assert done.pieces == tuple((token,) for token in played.play(60, 5))


def test_pieces_of_bytes_are_sent_as_text_and_found_again(tmp_path: Path) -> None:
    """Characters of the split tape lie over several ids, none of which is text alone."""
    tape = split_tape()
    checkpoint = tape.checkpoint.write(tmp_path / "tape")
    spelling = Spelling.of(checkpoint)
    assert spelling is not None
    ids = tuple(range(len(tape.pieces)))
    assert tuple(spelling.id_of(tape.pieces[token]) for token in ids) == ids
    copy = splitting(checkpoint, tmp_path / "copies")
    tokenizer = Tokenizer.from_file(str(copy / "tokenizer.json"))
    assert tuple(tokenizer.encode(spelling.prompt(ids[::-1])).ids) == ids[::-1]
    assert (copy / "model.safetensors").resolve() == (checkpoint / "model.safetensors").resolve()
    with pytest.raises(Unspelled, match="no token has"):
        spelling.id_of(b"nowhere")


def test_log_probabilities_come_by_id(random: Path) -> None:
    reference = Reference().load(random, Needs())
    request = Request((3, 1, 4), 3, logprobs=97)
    (wanted,) = reference.generate([request])
    for speaks in ("vllm", "openai"):
        (got,) = door(speaks).load(random, Needs()).generate([request])
        assert got.tokens == wanted.tokens
        for one, other in zip(got.logprobs or (), wanted.logprobs or (), strict=True):
            assert one == pytest.approx(dict(other), abs=1e-9)
    with pytest.raises(NotOffered, match="97 log-probabilities a step: the server gives none"):
        door("transformers").load(random, Needs()).generate([request])


def test_options_override_what_was_found(tape: tuple[StopTape, Path]) -> None:
    engine = OpenAIHTTP(
        command=command("openai"),
        model="{checkpoint}",
        ready="/health",
        offers="-seed,logprobs:5,score:none,+top_k",
        choices="stop_text:returned,sampler_order:temperature>top_p,batch_invariant:true",
        version="of mine",
        dtype="bfloat16",
        kv_cache="float16",
        families="llama",
        head_dims="32,64",
        concurrency="1",
    )
    try:
        assert (engine.offer.logprobs, engine.offer.score, engine.version) == (5, None, "of mine")
        assert "seed" not in engine.offer
        assert "top_k" in engine.offer
        assert engine.choices.stop_text == "returned"
        assert engine.choices.sampler_order == ("temperature", "top_p")
        assert engine.choices.batch_invariant
        assert engine.precision == Precision("bfloat16", "bfloat16", "float16", "bfloat16")
        assert set(engine.regimes()) == {"streamed"}
        assert "head_dim is 16" in str(engine.accepts(Shape().config()))
        assert "model_type is 'gpt2'" in str(engine.accepts({"model_type": "gpt2"}))
        assert engine.accepts(Shape(head_dim=32).config()) is None
        model = engine.load(tape[1], Needs())
        assert "score" not in offered(model)
        with pytest.raises(NotOffered, match="seed: an option says"):
            model.generate([Request((1,), seed=1)])
    finally:
        engine.close()


@pytest.mark.parametrize("words", ["seed", "+speed", "ids:nowhere", "logprobs:many"])
def test_an_override_that_is_not_known(words: str) -> None:
    with pytest.raises(ValueError, match="is not known"):
        overridden(Offer(), words, None)
    with pytest.raises(ValueError, match="may be"):
        overridden(Offer(), None, words)


def test_a_server_is_started_for_each_checkpoint_and_again_when_it_is_gone(
    tape: tuple[StopTape, Path], random: Path, tmp_path: Path
) -> None:
    """One server at a time; that of the tape has to make room, and is started again when it is asked next."""
    engine = OpenAIHTTP(command=command("vllm", "{checkpoint}"), command_again=command("vllm", "{checkpoint}"))
    try:
        model = engine.load(tape[0 + 1], Needs())
        other = engine.load(random, Needs(regime="one-at-a-time"))
        assert len(engine._servers) == 1
        assert other.generate([Request((1,), 2)])[0].finish_reason == "length"
        assert model.generate([Request((60,), 3)])[0].tokens == tape[0].play(60, 3)
        (server,) = engine._servers.values()
        server.stop()
        assert model.generate([Request((60,), 3)])[0].tokens == tape[0].play(60, 3)
        assert set(engine.regimes()) == {"one-at-a-time", "streamed", "again"}
        (tmp_path / "config.json").write_text('{"vocab_size": 7}')
        with pytest.raises(Refused, match="ended with exit code 1"):
            engine.load(tmp_path, Needs())
        with pytest.raises(Refused, match="Regime 'x' is not known"):
            engine.load(random, Needs(regime="x"))
    finally:
        engine.close()
    assert not engine._servers


# --- judged by the suite ----------------------------------------------------------------------------------------------

SELECTION = (
    "CM-1,SDP-2,GQA-2,ROPE-3,PNR-1,CAT-1,CAT-2,CAT-4,CAT-7,CAT-16,STOP-1,STOP-6,STOP-9,STOP-16,STOP-19,KV-2,DEC-1"
)


def check(folder: Path, speaks: str, only: str, engine: str, *more: str) -> dict[str, str]:
    """Verdicts of the quick profile, by requirement."""
    words = [sys.executable, "-m", "lmconform", "check", "openai-http", "--no-controls", "--only", only, *more]
    options = {"command": command(speaks, engine=engine), "model": "{checkpoint}", "ready": "/health"}
    words += [word for name, value in options.items() for word in ("--option", f"{name}={value}")]
    environment = {**os.environ, "COLUMNS": "400", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [*words, "--report", str(folder)], capture_output=True, text=True, env=environment, check=False
    )
    assert (folder / "report.json").is_file(), done.stdout + done.stderr
    report = json.loads((folder / "report.json").read_text())
    return {one["id"]: one["verdict"] for one in report["requirements"] if one["verdict"] != "not-asked"}


def test_the_reference_conforms_through_the_door(tmp_path: Path) -> None:
    verdicts = check(tmp_path, "vllm", SELECTION, "lmconform.engines.reference:Reference")
    assert {name: verdicts[name] for name in SELECTION.split(",")} == dict.fromkeys(SELECTION.split(","), "pass")


@pytest.mark.parametrize("speaks", ["openai", "transformers"])
def test_the_reference_conforms_where_the_server_says_less(tmp_path: Path, speaks: str) -> None:
    only = "CAT-4,CAT-8,STOP-9,STOP-19"
    verdicts = check(tmp_path, speaks, only, "lmconform.engines.reference:Reference")
    assert {verdicts[name] for name in only.split(",")} == {"pass"}


@pytest.mark.parametrize(
    ("fault", "requirement"),
    [
        ("sampling_temperature:TemperatureTenPercentHigh", "CAT-4"),
        ("stop_strings:LooksAtTheEndOfTheText", "STOP-9"),
        ("grouped_query_attention:ReadsKVHeadsInTurn", "GQA-3"),
        ("rope:TakesBase10000", "ROPE-2"),
    ],
)
def test_a_planted_fault_is_caught_through_the_door(tmp_path: Path, fault: str, requirement: str) -> None:
    verdicts = check(tmp_path, "vllm", requirement, f"lmconform.faults.{fault}")
    assert verdicts[requirement] == "fail"

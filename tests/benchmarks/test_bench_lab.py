"""Engines, checkpoints, questions and calibration of a run."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from bench_common import SLOW, STREAM_BYTES, TINY, lab
from safetensors import safe_open

import refdecoder
from benchmarks import waits, weights
from benchmarks.asking import cache_bytes, generation, prompts, step_products, uncached
from benchmarks.calibrate import Calibration
from benchmarks.counting import kv_bytes
from benchmarks.lab import Impossible, baseline
from benchmarks.machine import machine
from benchmarks.trials import decode, first_token, steps_of
from benchmarks.waits import BLOCKING, FEW, MANY, READ, events, waits_of_a_step
from lmconform.adapter import NotOffered, Request
from lmconform.engines.reference import Reference, ReferenceModel
from lmconform.transport.client import EngineSpec, StartError


class Mute(Reference):
    """Scores, and generates nothing."""

    class MuteModel(ReferenceModel):
        def generate(self, requests):
            raise NotOffered("generate")

        def open(self):
            raise NotOffered("open")

    model_class = MuteModel


class Picky(Reference):
    """Takes no model of this shape."""

    def accepts(self, config):
        return "head_dim 16 is no multiple of 64"


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_loads_and_is_the_same_each_time(tmp_path: Path, dtype: str) -> None:
    paths = [weights.write_checkpoint(TINY.shape, tmp_path / name, dtype) for name in "ab"]
    assert (paths[0] / "model.safetensors").read_bytes() == (paths[1] / "model.safetensors").read_bytes()
    model = refdecoder.load(paths[0])
    [logits] = refdecoder.score(model, [[1, 2, 3]])
    assert 0.3 < logits.std() < 30  # neither dead nor exploding
    assert not (paths[0] / "tokenizer.json").exists()
    assert json.loads((paths[0] / "config.json").read_text())["dtype"] == dtype
    with safe_open(paths[0] / "model.safetensors", framework="pt") as file:
        assert file.get_tensor("model.norm.weight").dtype == getattr(torch, dtype)


def test_a_large_checkpoint_is_written_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = refdecoder.load(weights.write_checkpoint(TINY.shape, tmp_path / "whole"))
    monkeypatch.setattr(weights, "SHARD_BYTES", 100_000)
    path = weights.write_checkpoint(TINY.shape, tmp_path / "shards")
    files = sorted(path.glob("*.safetensors"))
    assert len(files) > 3
    assert all(file.stat().st_size < 110_000 for file in files)
    for (name, one), (_, other) in zip(whole.named_parameters(), refdecoder.load(path).named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_gguf_holds_the_same_numbers(tmp_path: Path) -> None:
    import gguf

    path = weights.write_gguf_checkpoint(TINY.shape, tmp_path / "gguf")
    wanted = refdecoder.load(weights.write_checkpoint(TINY.shape, tmp_path / "hf"))
    tensors = {one.name: one.data for one in gguf.GGUFReader(path).tensors}
    assert torch.equal(torch.from_numpy(tensors["token_embd.weight"].copy()), wanted.embed_tokens.weight)


# --- engines ----------------------------------------------------------------------------------------------------------


def test_a_baseline_inherits_format_device_and_threads() -> None:
    options = {"dtype": "bfloat16", "device": "cpu", "attention": "sdpa"}
    found = baseline("transformers,cache=static", EngineSpec("reference", options=options))
    assert found.options == {"dtype": "bfloat16", "device": "cpu", "cache": "static"}
    own = baseline("transformers,dtype=float32", EngineSpec("reference", options=options))
    assert own.options["dtype"] == "float32"
    kernels = baseline("torch-kernels", EngineSpec("reference", options={"threads": "1"}))
    assert "threads" not in kernels.options


@pytest.mark.parametrize(
    ("words", "told"), [("transformer", "Did you mean 'transformers'"), ("transformers,static", "KEY=VALUE")]
)
def test_words_that_name_no_baseline_say_so(words: str, told: str) -> None:
    with pytest.raises((StartError, ValueError), match=told):
        baseline(words, EngineSpec("reference"))


def test_an_engine_that_cannot_is_left_out_with_its_reason() -> None:
    for name, told in (("Picky", "head_dim 16 is no multiple of 64"), ("Mute", "declines generate: generate")):
        made = lab(f"{Path(__file__)}:{name}")
        with pytest.raises(Impossible, match=told):
            decode(made, TINY, 16).subject()
        made.close()


def test_a_baseline_that_cannot_is_left_away_and_told() -> None:
    made = lab(baselines=[f"{Path(__file__)}:Picky"])
    trial = decode(made, TINY, 16)
    assert set(trial.others) == {"subject first", "stream"}
    assert "head_dim 16 is no multiple of 64" in trial.notes[0]
    made.close()


def test_an_engine_that_stops_early_is_not_timed() -> None:
    made = lab(f"{SLOW}:StopsEarly")
    with pytest.raises(Impossible, match=r"8 new tokens were asked of .* and a row has 7"):
        generation(made.model(made.subject, TINY), 16, 8)()
    made.close()


def test_an_engine_in_a_process_of_its_own_is_timed_and_not_counted() -> None:
    made = lab()
    made.subject.connection.close()
    made.subject.spec = EngineSpec("reference")
    made.subject.connection = made.subject.connection.start(made.subject.spec)
    model = made.model(made.subject, TINY)
    generation(model, 16, 2)()
    assert step_products(made.subject, model, 16) is None
    made.close()


# --- questions --------------------------------------------------------------------------------------------------------


def test_prompts_are_the_same_each_time_and_share_no_beginning() -> None:
    rows = prompts(256, 16, 4)
    assert rows == prompts(256, 16, 4)
    assert len({tuple(row[:4]) for row in rows}) == 4
    assert all(len(row) == 16 and all(0 <= token < 256 for token in row) for row in rows)


def test_without_the_cache_the_tokens_are_the_same_and_each_is_timed() -> None:
    made = lab(attention="sdpa")
    model = made.model(made.subject, TINY)
    asked: list[Request] = []
    generate = model.generate
    model.generate = lambda requests: asked.extend(requests) or generate(requests)  # type: ignore[method-assign]
    seconds = uncached(model, 16, 4)()
    assert len(seconds) == 4
    assert [len(one.prompt) for one in asked] == [16, 17, 18, 19]
    [whole] = generate([Request(asked[0].prompt, max_new_tokens=4)])
    assert asked[-1].prompt[16:] == whole.tokens[:3]
    made.close()


def test_the_cache_is_asked_for_its_bytes() -> None:
    made = lab()
    room = TINY.longest + 1  # the reference has one spare slot
    assert cache_bytes(made.model(made.subject, TINY), 16) == kv_bytes(TINY.shape, room, 4)
    made.close()
    made = lab(f"{Path(__file__)}:Mute")
    with pytest.raises(Impossible, match="tells no size of its cache: open"):
        cache_bytes(made.model(made.subject, TINY), 16)
    made.close()


def test_steps_are_what_the_first_token_leaves() -> None:
    times = {"x": [1.1, 2.1, 0.2], "x first": [0.1, 0.1, 0.3]}
    assert steps_of(times, "x", 10) == pytest.approx([0.1, 0.2, 0.02])  # the last: noise; at most the whole call


def test_a_prefill_is_held_against_the_product_of_its_own_round() -> None:
    made = lab(attention="sdpa")
    trial = first_token(made, TINY, 16)
    amount = made.calibration.product.amount
    record = trial.record({"subject": [0.2] * 9, "product": [amount / 1e9] * 9})
    share = record.ratios["share of the matmul rate"]
    assert share.median == pytest.approx(record.figures["operations it must do"] / 0.2 / 1e9)
    assert record.roofline is not None
    assert record.roofline["flops_per_second"] == pytest.approx(1e9)
    made.close()


def test_a_step_is_held_against_the_stream_of_its_own_round() -> None:
    made = lab(baselines=["reference,attention=sdpa"])
    trial = decode(made, TINY, 16)
    amount, label = made.calibration.stream.amount, "reference,attention=sdpa"
    times = {"subject": [0.8] * 9, "subject first": [0.1] * 9, label: [1.6] * 9, f"{label} first": [0.2] * 9}
    record = trial.record({**times, "stream": [amount / 1e9] * 9})
    assert record.ratios[f"speed against {label}"].median == pytest.approx(2)
    bytes_read = record.figures["bytes a step must read"]
    assert record.ratios["share of the memory bandwidth"].median == pytest.approx(bytes_read / 0.1 / 1e9)
    assert record.roofline is not None
    assert record.roofline["measured"] == pytest.approx(0.1)
    made.close()


# --- the machine ------------------------------------------------------------------------------------------------------


def test_the_calibration_does_what_it_says() -> None:
    made = Calibration(torch.device("cpu"), torch.float32, STREAM_BYTES)
    assert made.stream.amount == STREAM_BYTES
    size = int(made.product.name.split()[0])
    assert made.product.amount == 2 * size**3
    told = made.record()
    assert told["flops_per_byte"] == pytest.approx(made.rates.products / made.rates.bandwidth)
    assert min(made.rates.products, made.rates.bandwidth) > 0


def test_the_machine_is_named() -> None:
    found = machine(torch.device("cpu"))
    assert found["device"] == "cpu"
    assert found["processor"]
    assert found["versions"]["torch"] == torch.__version__
    assert found["commit"] is None or len(found["commit"]) == 40


def test_the_profiler_counts_what_is_read_from_a_tensor() -> None:
    x = torch.arange(5)
    assert events(lambda: [x[i].item() for i in range(5)], torch.device("cpu"))[READ] == 5


def test_waits_are_those_of_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(waits, "generation", lambda model, length, new: lambda: asked.append(new))

    def events(call, device):
        """Three waits of the call itself, and two in every step."""
        assert sorted(asked) == [FEW, MANY] or len(asked) == 3  # each ran once before it is watched
        call()
        return Counter({BLOCKING[0]: 3 + asked[-1], BLOCKING[3]: asked[-1], "x": 9})

    monkeypatch.setattr(waits, "events", events)
    assert waits_of_a_step(None, 16, torch.device("cpu")) == 2  # type: ignore[arg-type]

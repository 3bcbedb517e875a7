"""Every call with every field, through a process and in this one; real traffic against the schema."""

import json
import subprocess
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from transport_fakes import V, toy_scores

import lmconform.transport.protocol
from lmconform.adapter import Completion, Needs, NotOffered, Refused, Request
from lmconform.transport.client import BadResult
from lmconform.transport.links import Process

NEEDS = Needs(max_tokens=33, max_rows=2, max_sessions=5, top_n=4, regime="chunked")
REQUEST = Request(
    prompt=(1, 2, 10**12, -1),
    max_new_tokens=9,
    min_new_tokens=2,
    temperature=0.7,
    top_k=5,
    top_p=0.9,
    min_p=0.05,
    seed=2**63,
    stop_ids=(3, 4),
    eos=True,
    stop_strings=("end\n", "\u2028ö\x00", '"'),
    stop_sequences=((5, 6), (7,)),
    n=2,
    logprobs=3,
    stream=True,
)


def test_hello_describes_the_engine(start_both):
    described = start_both("Toy").description
    assert (described.name, described.version, described.format) == ("toy", "1.2", "hf")
    assert described.precision.weights == "bfloat16"
    assert described.precision.kv_cache == "fp8_e4m3"
    assert described.choices.sampler_order == ("temperature", "top_k")
    assert described.choices.ties == "first"
    assert described.choices.batch_invariant is True
    assert described.regimes == {"chunked": {"chunk": 16, "ratio": "inf"}}
    assert described.offers == ("accepts", "regimes", "load")


def test_accepts_gets_the_config_and_gives_the_reason(start_both):
    engine = start_both("Toy", device="cuda:3")
    assert engine.accepts({"hidden_size": 64}) is None
    assert engine.accepts({"question": "device"}) == "cuda:3"


def test_load_tells_sizes_and_offers(start_both, tmp_path):
    model = start_both("Toy").load(tmp_path, NEEDS)
    assert (model.vocab_size, model.max_length, model.slots) == (V, 4096, 3)
    assert model.offers == ("score", "score_batch", "open", "generate")


def test_score_and_its_slices(start_both, tmp_path):
    model = start_both("Toy").load(tmp_path)
    tokens = [3, 1, 4, 1, 5]
    whole = toy_scores(tokens)
    np.testing.assert_array_equal(model.score(tokens), whole)
    np.testing.assert_array_equal(model.score(np.array(tokens), rows=[-1, 0]), whole[[4, 0]])
    np.testing.assert_array_equal(model.score(tokens, columns=[10, 2]), whole[:, [10, 2]])
    np.testing.assert_array_equal(model.score(tokens, rows=[2], columns=[-1, 0, 0]), whole[[2]][:, [10, 0, 0]])
    assert model.score(tokens, rows=[]).shape == (0, V)
    assert model.score([]).shape == (0, V)
    with pytest.raises(IndexError, match="index 5 of 5"):
        model.score(tokens, rows=[5])


def test_score_batch_is_ragged(start_both, tmp_path):
    model = start_both("Toy").load(tmp_path)
    batch = [[1, 2, 3], [4], [5, 6]]
    for array, tokens in zip(model.score_batch(batch), batch, strict=True):
        np.testing.assert_array_equal(array, toy_scores(tokens))
    parts = model.score_batch(batch, rows=[[0, 2], [-1], []], columns=[7])
    assert [part.tolist() for part in parts] == [
        toy_scores([1, 2, 3])[[0, 2]][:, [7]].tolist(),
        toy_scores([4])[:, [7]].tolist(),
        [],
    ]
    assert model.score_batch([]) == []
    with pytest.raises(ValueError, match="2 lists of rows for 3 sequences"):
        model.score_batch(batch, rows=[[0], [0]])


def test_session(start_both, tmp_path):
    with start_both("Toy").load(tmp_path) as model, model.open() as session:
        assert session.offers == ("extend", "fork", "truncate", "cache_bytes", "close")
        np.testing.assert_array_equal(session.extend([1, 2, 3]), toy_scores([1, 2, 3]))
        copy = session.fork()
        session.truncate(1)
        np.testing.assert_array_equal(session.extend([9]), toy_scores([9], start=1))
        np.testing.assert_array_equal(copy.extend([9, 8], rows=[1], columns=[4]), toy_scores([8], start=4)[:, [4]])
        assert (session.cache_bytes(), copy.cache_bytes()) == (16, 40)
        with pytest.raises(Refused, match="cannot truncate 2 tokens to 7"):
            session.truncate(7)
        copy.close()
        with pytest.raises(RuntimeError, match="closed"):
            copy.extend([1])
    with pytest.raises(RuntimeError, match="closed"):
        session.extend([1])
    with pytest.raises(RuntimeError, match="closed"):
        model.score([1])


def test_generate_carries_every_field(start_both, tmp_path):
    model = start_both("Toy").load(tmp_path, NEEDS)
    plain = Request((1,), temperature=float("inf"))
    completions = model.generate([REQUEST, plain])
    assert [one.tokens for one in completions] == [(0, 1, 2), (1, 2, 3), (0, 1, 2)]
    assert completions[1] == Completion(
        tokens=(1, 2, 3),
        finish_reason="length",
        text=f"{REQUEST!r} {NEEDS!r} {tmp_path}",
        logprobs=({1: -0.5, 2: float("-inf")}, {3: 0.0}, {4: -1e-300}),
        pieces=((1, 2), (3,)),
        cached_tokens=2,
    )
    assert completions[2].text == f"{plain!r} {NEEDS!r} {tmp_path}"


def test_a_relative_checkpoint_becomes_absolute(start, tmp_path, monkeypatch):
    engine = start("Toy")
    monkeypatch.chdir(tmp_path)
    assert engine.load("here").generate([Request((1,), stop_ids=())])[0].text.endswith(str(tmp_path / "here"))


def test_what_is_not_overridden_is_not_offered(start_both, tmp_path):
    model = start_both("Bare").load(tmp_path)
    assert model.offers == ()
    for ask in (lambda: model.score([1]), lambda: model.score_batch([[1]]), model.open, lambda: model.generate([])):
        with pytest.raises(NotOffered):
            ask()


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("width", [3, 3000])
def test_dtypes_small_and_large(start, tmp_path, dtype, width):
    import ml_dtypes

    scores = start("Wide", width=str(width), dtype=dtype).load(tmp_path).score([0] * 5)
    drawn = np.random.default_rng(5).normal(size=(5, width))
    expected = drawn.astype(ml_dtypes.bfloat16).astype(np.float32) if dtype == "bfloat16" else drawn.astype(dtype)
    np.testing.assert_array_equal(scores, expected, strict=True)


def test_fifty_megabytes(start, tmp_path):
    engine = start("Wide", width="50000")
    model = engine.load(tmp_path)
    scores = model.score([0] * 250)
    np.testing.assert_array_equal(scores, np.random.default_rng(250).normal(size=(250, 50000)).astype(np.float32))
    assert engine.counts.bytes_received > 50_000_000
    before = engine.counts.bytes_received
    assert model.score([0] * 250, rows=[249], columns=[1, 2]).shape == (1, 2)
    assert engine.counts.bytes_received - before < 1000, "slices are taken before the wire"


def test_a_long_request(start, tmp_path):
    """Longer than a pipe holds, so that the write has to wait for the reader."""
    tokens = [5] * 200_000
    assert start("Toy").load(tmp_path).score(tokens, rows=[1000], columns=[0]).item() == 100_005


def test_counts(start, tmp_path):
    engine = start("Toy")
    model = engine.load(tmp_path)
    model.score([1])
    model.score([2])
    assert engine.counts.calls == {"hello": 1, "load": 1, "score": 2}
    assert engine.counts.loads == 1
    assert engine.counts.restarts == 0
    assert engine.counts.bytes_sent > 100
    assert set(engine.counts.seconds) == set(engine.counts.calls)
    assert all(seconds > 0 for seconds in engine.counts.seconds.values())


def test_traffic_follows_the_schema(start, tmp_path, monkeypatch):
    schema = json.loads(Path(lmconform.transport.protocol.__file__).with_name("schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    sent, received = [], []
    write, read_line = Process.send, Process.read_line
    monkeypatch.setattr(Process, "send", lambda self, data, deadline: (sent.append(data), write(self, data, deadline)))

    def reading(self, deadline):
        received.append(read_line(self, deadline))
        return received[-1]

    monkeypatch.setattr(Process, "read_line", reading)
    with start("Toy") as engine:
        engine.accepts({"hidden_size": 8})
        with engine.load(tmp_path, NEEDS) as model:
            model.score([1, 2], rows=[0], columns=[1])
            model.score([1] * 500)
            model.score_batch([[1] * 400, [2]], rows=[[0], [0]])
            model.score_batch([[1] * 400, [2] * 300])
            session = model.open()
            session.extend([1])
            session.fork().close()
            session.truncate(0)
            session.cache_bytes()
            with pytest.raises(Refused):
                session.truncate(9)
            model.generate([REQUEST])
    with start("Kernels") as engine:
        x = np.ones((1, 2, 4), np.float32)
        kernels = engine.operators()
        kernels["flash"].run(x, np.ones((1, 200, 4), np.float32), x, False, np.ones((2, 2), bool))
        kernels["turn"].run(x, np.array([0, 5]), 10.0)
        kernels["norm"].run(np.ones((2, 300), np.float32), np.ones(300, np.float32), 0.5)
    with start("WrongReturns") as engine, pytest.raises(BadResult):
        engine.accepts({})
    calls = set()
    lines = [message.partition(b"\n")[0] for message in sent]
    for request, reply in zip(map(json.loads, lines), map(json.loads, received), strict=True):
        for message in (request, reply):
            jsonschema.Draft202012Validator(schema).validate(message)
        calls.add(request["call"])
        if "result" in reply:
            part = {**schema, "oneOf": [{"$ref": f"#/$defs/result.{request['call']}"}]}
            jsonschema.Draft202012Validator(part).validate(reply["result"])
    assert calls == set(lmconform.transport.protocol.ARGUMENTS)
    assert any("bytes" in json.loads(line) for line in received)
    assert any("bytes" in json.loads(line) for line in lines)


def test_engine_sees_no_stdin_of_ours_and_a_session_of_its_own(start):
    pid = int(start("Toy").accepts({"question": "pid"}))
    session = subprocess.run(["ps", "-o", "sess=", "-p", str(pid)], capture_output=True, text=True, check=True).stdout
    assert int(session) == pid


def test_what_cannot_be_written_ends_no_engine(start_both, tmp_path):
    engine = start_both("Toy")
    with pytest.raises(TypeError):
        engine.accepts({"hidden_size": object()})
    assert engine.accepts({"hidden_size": 64}) is None

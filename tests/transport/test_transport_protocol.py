"""Messages: the Python tables and schema.json say the same, and malformed lines break nothing."""

import copy
import json
import random
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import transport_fakes as fakes
from hypothesis import given, settings
from hypothesis import strategies as st

from lmconform.transport import arrays, protocol
from lmconform.transport.dispatch import Dispatcher
from lmconform.transport.fields import Violation

SCHEMA = json.loads(Path(protocol.__file__).with_name("schema.json").read_text())


def validator(name):
    return jsonschema.Draft202012Validator({**SCHEMA, "oneOf": [{"$ref": f"#/$defs/{name}"}]})


GENERATION = {
    "prompt": [1, 2],
    "max_new_tokens": 3,
    "min_new_tokens": 0,
    "temperature": 0.5,
    "top_k": None,
    "top_p": "inf",
    "min_p": None,
    "seed": 7,
    "stop_ids": [1],
    "eos": True,
    "stop_strings": ["x"],
    "stop_sequences": [[1, 2]],
    "n": 1,
    "logprobs": 2,
    "stream": False,
}
COMPLETION = {
    "tokens": [1],
    "finish_reason": "stop",
    "text": None,
    "logprobs": [[[1, -0.5], [2, "-inf"]]],
    "pieces": [[1]],
    "cached_tokens": 0,
}
SMALL = {"dtype": "float32", "shape": [1, 1], "base64": "AAAAAA=="}
LARGE = {"dtype": "bfloat16", "shape": [3, 1], "offset": 0}
MASK = {"dtype": "bool", "shape": [1, 2], "base64": "AQA="}
OPERATORS = {
    "flash": {"kind": "attention", "masks": ["none", "given"], "grouped": True, "head_dims": [64], "max_queries": None},
    "turn": {"kind": "rope", "layout": "interleaved", "head_dims": None},
    "norm": {"kind": "rms_norm", "hidden_sizes": [64]},
}
NEEDS = {"max_tokens": 1, "max_rows": 1, "max_sessions": 0, "top_n": 2, "regime": None}
CHOICES = {
    "scores": "logits",
    "logprobs": "raw",
    "ties": "first",
    "sampler_order": ["top_k"],
    "temperature_zero": "greedy",
    "stop_token": "dropped",
    "stop_text": "dropped",
    "eos_files": ["config.json"],
    "zero_tokens": "empty",
    "min_tokens": "mask",
    "long_prompt": "empty",
    "long_continuation": "stops",
    "empty_prompt": "empty",
    "batch_invariant": True,
}
HELLO = {
    "protocol": 1,
    "name": "x",
    "version": "1",
    "format": "gguf",
    "precision": {"weights": "q8_0", "compute": "tf32", "kv_cache": "float16", "scores": "float32"},
    "choices": CHOICES,
    "regimes": {"paged": {"block": 16}},
    "offers": ["load"],
}
VALID = {
    "arguments.hello": {"protocol": 1},
    "result.hello": HELLO,
    "arguments.accepts": {"config": {"a": [1, {"b": None}]}},
    "result.accepts": {"reason": "because"},
    "arguments.load": {"checkpoint": "/x", "needs": NEEDS},
    "result.load": {"model": 1, "vocab_size": 2, "max_length": None, "slots": 1, "offers": ["score"]},
    "arguments.score": {"model": 1, "tokens": [1, -5], "rows": [0], "columns": [1]},
    "result.score": {"scores": SMALL},
    "arguments.score_batch": {"model": 1, "sequences": [[1], []], "rows": [[0], []], "columns": [1]},
    "result.score_batch": {"scores": [LARGE]},
    "arguments.open": {"model": 1},
    "result.open": {"session": 1, "offers": ["extend"]},
    "arguments.extend": {"session": 1, "tokens": [1], "rows": [0], "columns": [1]},
    "result.extend": {"scores": LARGE},
    "arguments.fork": {"session": 1},
    "result.fork": {"session": 1, "offers": []},
    "arguments.truncate": {"session": 1, "length": 0},
    "result.truncate": {},
    "arguments.cache_bytes": {"session": 1},
    "result.cache_bytes": {"cache_bytes": 0},
    "arguments.generate": {"model": 1, "requests": [GENERATION, {"prompt": []}]},
    "result.generate": {"completions": [COMPLETION, {"tokens": []}]},
    "arguments.operators": {},
    "result.operators": {"operators": OPERATORS},
    "arguments.attention": {"operator": "x", "q": SMALL, "k": LARGE, "v": SMALL, "causal": True, "visible": MASK},
    "result.attention": {"output": SMALL},
    "arguments.rope": {"operator": "x", "x": SMALL, "positions": [0, 131072], "base": 10000.0},
    "result.rope": {"output": LARGE},
    "arguments.rms_norm": {"operator": "x", "x": SMALL, "weight": SMALL, "eps": 1e-5},
    "result.rms_norm": {"output": SMALL},
    "arguments.close": {"model": 1},
    "result.close": {},
    "arguments.bye": {},
    "result.bye": {},
}


def parses(name, value):
    side, _, call = name.partition(".")
    try:
        (protocol.ARGUMENTS if side == "arguments" else protocol.RESULTS)[call](value, side)
    except Violation:
        return False
    return True


def test_every_call_has_an_example_in_both_tables_and_the_schema():
    calls = set(SCHEMA["$defs"]["request"]["properties"]["call"]["enum"])
    assert calls == set(protocol.ARGUMENTS) == set(protocol.RESULTS)
    assert set(VALID) == {f"{side}.{call}" for side in ("arguments", "result") for call in calls}
    for name, value in VALID.items():
        validator(name).validate(value)
        assert parses(name, value), name


@pytest.mark.parametrize(
    ("name", "field", "least"),
    [("arguments.open", "model", 1), ("result.load", "vocab_size", 1), ("result.cache_bytes", "cache_bytes", 0)],
)
def test_least_values(name, field, least):
    for value, legal in ((least - 1, False), (least, True)):
        message = {**VALID[name], field: value}
        assert parses(name, message) == validator(name).is_valid(message) == legal


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([0.5, 1.0, -2.0, "", "nan", "-inf", "float32", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["model", "dtype", "z"]), inner, max_size=2)
    ),
    max_leaves=4,
)


def places(value, path=()):
    """Paths to all nodes of a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def mutated(value, path, change, new):
    """A copy of ``value`` whose node at ``path`` is replaced, deleted, or has a neighbour."""
    if not path:
        return new
    value = copy.deepcopy(value)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    if change == "replace":
        parent[path[-1]] = new
    elif change == "delete":
        del parent[path[-1]]
    elif isinstance(parent, dict):
        parent["neighbour"] = new
    else:
        parent.insert(path[-1], new)
    return value


@given(data=st.data())
@settings(max_examples=1500, deadline=None, derandomize=True, database=None)
def test_tables_and_schema_accept_the_same(data):
    name = data.draw(st.sampled_from(sorted(VALID)))
    path = data.draw(st.sampled_from(list(places(VALID[name]))))
    value = mutated(VALID[name], path, data.draw(st.sampled_from(["replace", "delete", "add"])), data.draw(JSON))
    legal = validator(name).is_valid(value)
    if legal and "shape" in path:
        return  # that the bytes fit the shape is beyond a JSON Schema; see below
    if legal and path and path[-1] == "dtype":
        return
    if legal and path and path[-1] == "base64":
        return
    assert parses(name, value) == legal, value


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("size", [4, 4000])
def test_arrays_keep_their_bits(dtype, size):
    array = np.random.default_rng(0).normal(size=(size, 3)).astype(dtype)
    array[0] = [np.nan, np.inf, -np.inf]
    array[1] = [-0.0, np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max]
    for given_array in (
        array,
        np.asfortranarray(array),
        array.astype(array.dtype.newbyteorder(">")),
        array[::-1][::-1],
    ):
        payload = []
        tag = json.loads(json.dumps(arrays.encode(given_array, payload)))
        assert ("base64" in tag) == (size == 4)
        decoded = arrays.tag(tag, "array").decode(b"".join(payload))
        assert decoded.dtype == np.dtype(dtype)
        assert decoded.tobytes() == array.tobytes()


def test_bfloat16_is_decoded_without_a_library():
    tag = arrays.tag({"dtype": "bfloat16", "shape": [5], "base64": "gD8AwIB/wH8BAA=="}, "array")
    # 3f80 = 1, c000 = -2, 7f80 = inf, 7fc0 = NaN, 0001 = the least subnormal, 2^-133
    np.testing.assert_array_equal(
        tag.decode(b""), np.array([1, -2, np.inf, np.nan, 2.0**-133], np.float32), strict=True
    )


@pytest.mark.parametrize(
    ("tag", "why"),
    [
        ({**SMALL, "shape": [2, 1]}, "holds 4 bytes; float32 of shape .2, 1. takes 8"),
        ({**SMALL, "dtype": "int32"}, "dtype is 'int32'; it may be one of: float64"),
        ({**SMALL, "offset": 0}, "either offset or base64"),
        ({**SMALL, "base64": "AAAA AA="}, "not base64"),
        ({**SMALL, "base64": "é"}, "not base64"),
    ],
)
def test_bad_tags(tag, why):
    with pytest.raises(Violation, match=why):
        arrays.tag(tag, "scores")


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ({"id": 1, "result": {"scores": LARGE}}, "announces 0 bytes after it; its arrays take 6"),
        ({"id": 1, "result": {"scores": {**LARGE, "offset": 2}}, "bytes": 8}, "starts at byte 2; .* ends at 0"),
        ({"id": 1, "result": {"scores": SMALL}, "bytes": 10**18}, "announces 1000000000000000000 bytes"),
        ({"id": 1}, "either result or error"),
        ({"id": 1, "result": {}, "error": {"kind": "raised", "message": ""}}, "either result or error"),
        ({"id": 1, "result": {}}, "result lacks scores"),
        ({"id": 2, "result": {"scores": SMALL}}, "has id 2; the request under way is 1"),
        ({"id": None, "result": {"scores": SMALL}}, "has id None"),
        ({"id": 1, "error": {"kind": "odd", "message": ""}}, "error.kind is 'odd'; it may be one of: not-offered"),
        ([], "reply must be an object"),
    ],
)
def test_bad_replies(reply, why):
    with pytest.raises(Violation, match=why):
        protocol.parse_reply(json.dumps(reply).encode(), 1, "score")


def lines():
    """A few hundred malformed requests: noise, broken JSON, legal JSON that is no request, damaged requests."""
    rng = random.Random(0)
    hello = json.dumps({"id": 1, "call": "hello", "arguments": {"protocol": 1}}).encode()
    yield from (
        b"",
        b"null",
        b"[]",
        b"{}",
        b'"x"',
        b"[" * 100_000,
        b"9" * 10_000,
        b"\xff\xfe",
        b'"\xed\xa0\x80"',
        '"utf-16"'.encode("utf-16-le"),
        b'{"id": 1}',
        b"NaN",
    )
    for number in (b"1", b"1e999", b"true", b"-1"):
        yield b'{"id": 1, "call": "close", "arguments": {"model": ' + number + b', "session": 1}}'
    for call, arguments in [("explode", {}), ("__init__", {}), ("hello", []), ("score", {"model": 99, "tokens": [1]})]:
        yield json.dumps({"id": 5, "call": call, "arguments": arguments}).encode()
    for _ in range(200):
        yield bytes(rng.choices([b for b in range(256) if b != 10], k=rng.randrange(1, 60)))
    for cut in range(1, len(hello)):
        yield hello[:cut]
    for _ in range(100):
        damaged = bytearray(hello)
        damaged[rng.randrange(len(damaged))] = rng.choice(b"{}[]:,\"' \x00")
        try:
            protocol.parse_request(protocol.parse_json(bytes(damaged)))
        except Violation:
            yield bytes(damaged)


def test_malformed_lines_get_a_protocol_error_each():
    bad = list(lines())
    assert len(bad) > 300
    hello = b'{"id": 77, "call": "hello", "arguments": {"protocol": 1}}'
    host = [sys.executable, "-m", "lmconform.transport.host", f"{fakes.__file__}:Toy"]
    run = subprocess.run(host, input=b"\n".join([hello, *bad, hello, b""]), capture_output=True, timeout=60, check=True)
    first, *replies, last = map(json.loads, run.stdout.splitlines())
    assert first["result"]["name"] == last["result"]["name"] == "toy"
    assert len(replies) == len(bad)
    for line, reply in zip(bad, replies, strict=True):
        validator("reply").validate(reply)
        assert reply["error"]["kind"] == "protocol", (line, reply)


@given(data=st.data())
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_damaged_requests_get_a_legal_reply(data):
    """Whatever comes, the dispatcher raises nothing and answers by the schema."""
    dispatcher = Dispatcher(fakes.Toy)
    for call in ("hello", "load", "open"):
        arguments = VALID[f"arguments.{call}"]
        dispatcher.answer(json.dumps({"id": 1, "call": call, "arguments": arguments}).encode())
    call = data.draw(st.sampled_from(sorted(set(protocol.ARGUMENTS) - {"accepts"})))
    message = {"id": 4, "call": call, "arguments": VALID[f"arguments.{call}"]}
    path = data.draw(st.sampled_from(list(places(message))))
    message = mutated(message, path, data.draw(st.sampled_from(["replace", "delete", "add"])), data.draw(JSON))
    line, *_ = dispatcher.answer(json.dumps(message).encode())
    validator("reply").validate(json.loads(line))


def test_calls_before_hello_are_turned_down():
    (line,) = Dispatcher(fakes.Toy).answer(b'{"id": 1, "call": "accepts", "arguments": {"config": {}}}')
    assert json.loads(line)["error"] == {
        "kind": "protocol",
        "message": "accepts came before hello",
        "type": "",
        "traceback": "",
    }


def test_the_end_of_the_input_closes_the_engine(tmp_path):
    adapter = tmp_path / "closing.py"
    adapter.write_text(
        "from lmconform.adapter import Engine, Model, Session\n"
        "class S(Session):\n    def close(self):\n        print('session closed')\n"
        "class M(Model):\n    vocab_size = 3\n    def open(self):\n        return S()\n"
        "    def close(self):\n        print('model closed')\n"
        "class E(Engine):\n    name = 'e'\n    def load(self, checkpoint, needs):\n        return M()\n"
        "    def close(self):\n        print('engine closed')\n"
    )
    calls = [("hello", {"protocol": 1}), ("load", {"checkpoint": "/", "needs": {}}), ("open", {"model": 1})]
    text = "".join(json.dumps({"id": 1, "call": call, "arguments": arguments}) + "\n" for call, arguments in calls)
    host = [sys.executable, "-m", "lmconform.transport.host", f"{adapter}:E"]
    run = subprocess.run(host, input=text, capture_output=True, text=True, timeout=60, check=True)
    assert run.stderr.splitlines() == ["session closed", "model closed", "engine closed"]
    assert len(run.stdout.splitlines()) == 3

"""Single operators over the wire: what they declare, arrays in requests, and what kernels may not return."""

import json
import subprocess
import sys

import numpy as np
import pytest
import transport_fakes as fakes

from lmconform.adapter import AttentionOperator, Engine, NotOffered, Refused, offered
from lmconform.transport import arrays, protocol
from lmconform.transport.client import BadResult, EngineRaised, ProtocolError

X = np.arange(8, dtype=np.float32).reshape(1, 2, 4)


def keys(m: int) -> np.ndarray:
    return np.random.default_rng(m).integers(-8, 8, (1, m, 4)).astype(np.float32)


def test_operators_and_their_limits_arrive(start_both):
    engine = start_both("Kernels")
    assert engine.description.offers == ("operators",)
    found = engine.operators()
    assert {name: one.kind for name, one in found.items()} == {"flash": "attention", "turn": "rope", "norm": "rms_norm"}
    flash = found["flash"]
    assert (flash.masks, flash.grouped, flash.head_dims, flash.max_queries) == (("none", "given"), True, (4,), 9)
    assert (found["turn"].layout, found["turn"].head_dims) == ("interleaved", None)
    assert found["norm"].hidden_sizes == (4, 300)


@pytest.mark.parametrize("m", [2, 500])
def test_arrays_travel_in_requests(start_both, m):
    """Small ones inside the line, large ones after it, a mask among them."""
    flash = start_both("Kernels").operators()["flash"]
    k, v, visible = keys(m), keys(m + 1)[:, :m], np.arange(2 * m).reshape(2, m) % 3 == 0
    expected = X + k.sum() + 2 * v.sum()
    np.testing.assert_array_equal(flash.run(X, k, v, False, None), expected)
    np.testing.assert_array_equal(flash.run(X, k, v, True, None), expected + 100)
    np.testing.assert_array_equal(flash.run(X, k, v, False, visible), expected + 1000 * visible.sum())


def test_the_other_kinds(start_both):
    kernels = start_both("Kernels").operators()
    turned = kernels["turn"].run(X, np.array([3, 131072]), 0.5)
    np.testing.assert_array_equal(turned, X + np.array([3, 131072])[None, :, None] + np.float32(0.5))
    x, weight = np.full((3, 300), 2, np.float32), np.arange(300, dtype=np.float32)
    np.testing.assert_array_equal(kernels["norm"].run(x, weight, 1e-5), x * weight + np.float32(1e-5))


def test_a_kernel_refuses(start_both):
    flash = start_both("Kernels").operators()["flash"]
    with pytest.raises(Refused, match="3 keys"):
        flash.run(X, keys(3), keys(3), False, None)
    assert flash.run(X, keys(4), keys(4), False, None).shape == X.shape


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("shape", r"shape \[2, 4\]; \[1, 2, 4\] was expected. The output of an operator has the shape of its first"),
        ("integers", "dtype int64; one of float64, .* was expected. Outputs are floating-point numbers"),
    ],
)
def test_what_a_kernel_may_not_return(start_both, fault, words):
    flash = start_both("Kernels", fault=fault).operators()["flash"]
    with pytest.raises(BadResult, match=words):
        flash.run(X, keys(2), keys(2), False, None)


@pytest.mark.parametrize(
    ("fault", "words"),
    [("list", "a list; a mapping of names"), ("callable", r"operators\['attention'\] is a .*method; one of Attention")],
)
def test_what_operators_may_not_return(start_both, fault, words):
    with pytest.raises(BadResult, match=words):
        start_both("Kernels", fault=fault).operators()


def test_an_engine_without_operators(start_both):
    engine = start_both("Toy")
    with pytest.raises(NotOffered):
        engine.operators()
    with pytest.raises(ProtocolError, match="no rope operator 'norm'"):
        start_both("Kernels").call("rope", {"operator": "norm", "x": X, "positions": [0, 0], "base": 1.0})


def test_an_engine_that_died_is_started_again(start):
    engine = start("Kernels")
    norm = engine.operators()["norm"]
    with pytest.raises(EngineRaised):
        norm.run(X, np.ones(3, np.float32), 0.0)
    engine._link.end()
    assert norm.run(X, np.ones(4, np.float32), 0.0).tolist() == X.tolist()
    assert engine.counts.restarts == 1


def test_a_bad_line_with_bytes_leaves_the_next_one_readable():
    """The host reads what a line announces, whatever is wrong with the line."""
    hello = b'{"id": 1, "call": "hello", "arguments": {"protocol": 1}}\n'
    payload = []
    tag = arrays.encode(keys(500), payload)
    raw = b"".join(payload)
    size = len(raw)
    bad = {"id": 2, "call": "explode", "arguments": {}, "bytes": size}
    short = {"id": 3, "call": "rms_norm", "arguments": {"operator": "norm", "x": tag, "weight": tag, "eps": 0.0}}
    lines = hello + b"".join(
        json.dumps(one).encode() + b"\n" + raw for one in (bad, {**short, "bytes": size}, {**bad, "bytes": size + 9})
    )
    host = [sys.executable, "-m", "lmconform.transport.host", f"{fakes.__file__}:Kernels"]
    run = subprocess.run(host, input=lines, capture_output=True, timeout=60, check=True)
    _, *replies = map(json.loads, run.stdout.splitlines())
    told = [reply["error"]["message"] for reply in replies]
    assert "there is no call 'explode'" in told[0]
    assert f"an array starts at byte 0; the array before it ends at {size}" in told[1]
    assert f"announces {size + 9} bytes after it; {size} came" in told[2]


def test_limits_of_the_wrong_kind_are_turned_down():
    with pytest.raises(ValueError, match=r"masks holds .'sliding'."):
        AttentionOperator(print, masks=("sliding",))
    with pytest.raises(protocol.Violation, match="unknown fields: layout"):
        protocol.operator({"kind": "attention", "layout": "interleaved"}, "operators.x")
    with pytest.raises(protocol.Violation, match="must be one of attention, rope, rms_norm; got 'sample'"):
        protocol.operator({"kind": "sample"}, "operators.x")
    assert "operators" not in offered(Engine())

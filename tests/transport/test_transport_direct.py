"""What an engine in this process answers without the wire is what the wire would bring."""

import io

import ml_dtypes
import numpy as np
import pytest
import transport_fakes as fakes

from lmconform.adapter import Engine, Model, Needs, Request
from lmconform.transport import protocol
from lmconform.transport.dispatch import Dispatcher
from lmconform.transport.links import FREQUENT

ASKED = {
    "score": {"model": 1, "tokens": [1, 2, 3], "rows": [2, 0]},
    "score_batch": {"model": 1, "sequences": [[1], [2, 3]], "columns": [1]},
    "extend": {"session": 2, "tokens": [4, 5]},
    "generate": {"model": 1, "requests": [Request((1, 2), max_new_tokens=3, logprobs=2, stream=True)]},
}


def over_the_wire(dispatcher, call, arguments):
    wire = io.BytesIO(protocol.request_bytes(1, call, arguments))
    first, *payload = dispatcher.answer(wire.readline(), wire.read)
    reply = protocol.parse_reply(bytes(first), 1, call)
    return reply.error, reply.decoded(b"".join(payload))


def opened(engine):
    dispatcher = Dispatcher(engine)
    for call, arguments in (
        ("hello", {"protocol": 1}),
        ("load", {"checkpoint": "/", "needs": Needs()}),
        ("open", {"model": 1}),
    ):
        assert over_the_wire(dispatcher, call, arguments)[0] is None
    return dispatcher


def same(one, other):
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other) and one.flags.owndata
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("call", FREQUENT)
def test_answers_are_equal(call) -> None:
    direct = opened(fakes.Toy).reply(call, ASKED[call]).decoded(b"")
    error, wired = over_the_wire(opened(fakes.Toy), call, ASKED[call])
    assert error is None
    assert direct.keys() == wired.keys()
    assert all(same(direct[name], wired[name]) for name in direct)


@pytest.mark.parametrize("call", FREQUENT)
@pytest.mark.parametrize("fault", ["raise", "refuse", "lack", "rows", "integers", "nothing"])
def test_errors_are_equal(call, fault) -> None:
    direct, wired = (opened(lambda: fakes.Faulty(fault, call)) for _ in range(2))
    error, _ = over_the_wire(wired, call, ASKED[call])
    again = direct.reply(call, ASKED[call]).error
    assert (again is None) == (error is None)
    if error is not None:
        assert (again.kind, again.message, again.type) == (error.kind, error.message, error.type)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16, np.dtype(">f4")])
def test_arrays_are_copies_in_the_formats_of_the_wire(dtype) -> None:
    kept = np.arange(12, dtype=np.float32).reshape(3, 4).astype(dtype)

    class Keeps(Model):
        vocab_size = 4

        def score(self, tokens):
            return kept

    class Narrow(Engine):
        name = "narrow"

        def load(self, checkpoint, needs):
            return Keeps()

    dispatcher = Dispatcher(Narrow)
    for call, arguments in (("hello", {"protocol": 1}), ("load", {"checkpoint": "/", "needs": Needs()})):
        over_the_wire(dispatcher, call, arguments)
    asked = {"model": 1, "tokens": [1, 2, 3]}
    direct = dispatcher.reply("score", asked).decoded(b"")["scores"]
    assert same(direct, over_the_wire(dispatcher, "score", asked)[1]["scores"])
    assert not np.shares_memory(direct, kept)

"""The C engine under its sanitizers: fuzzed messages, and checkpoints that are not sound."""

import json
import random
import subprocess

import numpy as np
import pytest
from fuzz_messages import framed, fuzzed, requests
from language_common import parsed_replies, tiny

from lmconform.adapter import Refused
from lmconform.transport import protocol
from lmconform.transport.client import NotFinite

COUNT = 11_500


def exchange(program, *lines, rest=b""):
    """What the engine answers to these lines, after which its input ends."""
    run = subprocess.run([program], input=b"".join(lines) + rest, capture_output=True, timeout=120)
    assert run.returncode == 0, run.stderr.decode()[-4000:]
    assert run.stderr == b""
    return parsed_replies(run.stdout)


def asked(call, **arguments):
    return protocol.request_bytes(5, call, arguments)


HELLO = asked("hello", protocol=1)


def test_fuzzed_messages(sanitized, tmp_path):
    checkpoint = str(tiny(tmp_path))
    setup = [HELLO, asked("load", checkpoint=checkpoint, needs={}), asked("open", model=1)]
    messages = [line + rest for line, rest in framed(fuzzed(requests(checkpoint), COUNT, seed=0))]
    assert len(messages) > 10_000
    hello, load, session, *answers, last = exchange(sanitized, *setup, *messages, HELLO)
    assert hello == last
    assert (load["result"]["model"], session["result"]["session"]) == (1, 2)
    assert len(answers) == len(messages)
    counted = [one["error"]["kind"] if "error" in one else "result" for one in answers]
    assert counted.count("raised") == 0
    assert counted.count("result") > COUNT / 20
    assert counted.count("refused") > COUNT / 500


def test_half_a_message_at_the_end(sanitized):
    _, half = exchange(sanitized, HELLO, HELLO[:20])
    assert (half["id"], half["error"]["kind"]) == (None, "protocol")
    _, short = exchange(sanitized, HELLO, b'{"id":1,"call":"operators","arguments":{},"bytes":9}\n1234')
    assert "announces 9 bytes" in short["error"]["message"]


def test_a_line_that_is_too_long(c_engine):
    long, hello = exchange(c_engine, b"[" + b"1," * (1 << 25) + b"1]\n", HELLO)
    assert "longer than 67108864 bytes" in long["error"]["message"]
    assert hello["result"]["name"] == "c-engine"


def damaged(folder, change):
    """A checkpoint whose safetensors file is changed: its header, and its bytes."""
    path = tiny(folder) / "model.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    found = change(header, data)
    if found is None:
        text = json.dumps(header).encode()
        found = len(text).to_bytes(8, "little") + text + data
    path.write_bytes(found)
    return folder


NORM = "model.norm.weight"
UNSOUND = {
    "no tensor": (lambda header, data: header.pop(NORM) and None, "no tensor model.norm.weight"),
    "another": (lambda header, data: header.update(more=header[NORM]), "and config.json gives a use for 21"),
    "shape": (lambda header, data: header[NORM].update(shape=[2, 4]), "does not have the shape"),
    "rank": (lambda header, data: header[NORM].update(shape=[]), "does not have the shape"),
    "dtype": (lambda header, data: header[NORM].update(dtype="I32"), "is not stored as F32, F16 or BF16"),
    "span": (lambda header, data: header[NORM].update(data_offsets=[0, 31]), "does not lie in the file"),
    "beyond": (lambda header, data: header[NORM].update(data_offsets=[len(data), len(data) + 32]), "does not lie in"),
    "negative": (lambda header, data: header[NORM].update(data_offsets=[-32, 0]), "does not lie in the file"),
    "words": (lambda header, data: header[NORM].update(data_offsets=["0", "32"]), "does not lie in the file"),
    "entry": (lambda header, data: header.update({NORM: 3}), "no tensor model.norm.weight"),
    "empty": (lambda header, data: b"", "shorter than its header says"),
    "long header": (lambda header, data: b"\xff" * 8 + data, "shorter than its header says"),
    "no header": (lambda header, data: (2).to_bytes(8, "little") + b"{]", "is not JSON"),
    "a list": (lambda header, data: (2).to_bytes(8, "little") + b"[]", "is no object"),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_checkpoints_that_are_not_sound(sanitized, tmp_path, name):
    change, why = UNSOUND[name]
    load = asked("load", checkpoint=str(damaged(tmp_path, change)), needs={})
    _, refusal = exchange(sanitized, HELLO, load)
    assert refusal["error"]["kind"] == "refused"
    assert why in refusal["error"]["message"]


CONFIGS = [
    ({"model_type": "phi3"}, "model_type"),
    ({"hidden_size": "8"}, "hidden_size"),
    ({"hidden_size": 8.5}, "hidden_size"),
    ({"num_hidden_layers": 0}, "num_hidden_layers"),
    ({"num_hidden_layers": 2**24}, "no tensor model.layers.2."),
    ({"intermediate_size": 2**60}, "intermediate_size"),
    ({"num_key_value_heads": 3}, "must divide"),
    ({"head_dim": 3}, "must be even"),
    ({"hidden_act": "gelu_new"}, "hidden_act"),
    ({"attention_bias": True}, "attention_bias"),
    ({"sliding_window": 4}, "sliding_window"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps"),
    ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type"),
    ({"rope_parameters": {"rope_type": "linear"}}, "factor"),
    ({"rope_parameters": {"rope_theta": 10000.0, "factor": 2.0}}, "factor"),
    ({"rope_parameters": {"beta": 1}}, "beta"),
    ({"rope_parameters": {"rope_theta": 5.0}}, "two things of rope_theta"),
    ({"rope_parameters": 5}, "no object"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "two things of rope_type"),
    ({"tie_word_embeddings": True}, "gives a use for 20"),
]


@pytest.mark.parametrize(("changes", "why"), CONFIGS)
def test_configs_that_the_engine_cannot_honour(sanitized, tmp_path, changes, why):
    load = asked("load", checkpoint=str(tiny(tmp_path, **changes)), needs={})
    _, refusal = exchange(sanitized, HELLO, load)
    assert refusal["error"]["kind"] == "refused"
    assert why in refusal["error"]["message"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_formats_of_two_bytes_hold_the_same_numbers(sanitized, start, tmp_path, dtype):
    engine = start(sanitized)
    wide, narrow = (engine.load(tiny(tmp_path / one, one)).score([1, 2, 3]) for one in ("float32", dtype))
    np.testing.assert_array_equal(wide, narrow)


def test_halves_of_all_kinds_are_read(sanitized, start, tmp_path):
    """Subnormal, greatest, and signed zeros, as the scores of a head on a stream of ones."""
    numbers = np.array([2.0**-24, 1023 * 2.0**-24, 2.0**-14, 65504, -0.0, 1 + 2.0**-10, -2.5, 0], np.float16)

    def change(header, data):
        head = np.zeros((11, 8), np.float16)
        head[:, 0], header["lm_head.weight"] = np.resize(numbers, 11), {"dtype": "F16", "shape": [11, 8]}
        header["lm_head.weight"]["data_offsets"] = [len(data), len(data) + 11 * 8 * 2]
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data + head.tobytes()

    scores = start(sanitized).load(damaged(tmp_path, change)).score([1])[0].astype(np.float64)
    channel = scores[5] / (1 + 2.0**-10)
    np.testing.assert_allclose(scores, channel * np.resize(numbers, 11).astype(np.float64), rtol=1e-6)


def test_an_option_is_turned_down(c_engine):
    run = subprocess.run([c_engine, "--option", "threads=2"], capture_output=True, text=True, timeout=20)
    assert run.returncode == 2
    assert "takes no options; it was given --option" in run.stderr


def test_damaged_checkpoints(sanitized, start, tmp_path):
    """Bytes of the header, of config.json and of generation_config.json are changed: each is loaded, or refused."""
    rng, engine = random.Random(0), start(sanitized)
    folder, outcomes = tiny(tmp_path), {"loaded": 0, "refused": 0}
    names = ("model.safetensors", "config.json", "generation_config.json")
    sound = {name: (folder / name).read_bytes() for name in names}
    for number in range(400):
        name = names[number % 3]
        content = bytearray(sound[name])
        for _ in range(rng.choice([1, 2, 6])):
            place = rng.randrange(min(len(content), 2500))
            new = rng.choice([b"", b"9", b"-", b"[", b'"', b"}", b"\xff", b"1e400", b"null", rng.randbytes(3)])
            content[place : place + rng.choice([0, 1, len(new)])] = new
        (folder / name).write_bytes(content)
        try:
            with engine.load(folder) as model:
                assert model.score([1, 2], columns=[0]).shape == (2, 1)
            outcomes["loaded"] += 1
        except Refused:
            outcomes["refused"] += 1
        except NotFinite:
            pass  # a weight of the file is no longer finite
        (folder / name).write_bytes(sound[name])
    assert min(outcomes.values()) > 20
    assert engine.counts.restarts == 0

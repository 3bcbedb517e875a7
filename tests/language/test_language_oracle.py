"""The Python example: fuzzed messages, checkpoints that are not sound, and what the C engine has no part of."""

import json
import subprocess
import sys

import numpy as np
import pytest
from fuzz_messages import framed, fuzzed, requests
from language_common import ORACLE, parsed_replies, tiny

from lmconform.adapter import NotOffered, Refused, Request
from lmconform.transport import protocol


def asked(call, **arguments):
    return protocol.request_bytes(5, call, arguments)


def test_it_imports_nothing_of_ours():
    assert "lmconform" not in "".join(
        line for line in ORACLE.read_text().splitlines() if line.startswith(("import", "from"))
    )


def test_fuzzed_messages(tmp_path):
    checkpoint, hello = str(tiny(tmp_path)), asked("hello", protocol=1)
    setup = [hello, asked("load", checkpoint=checkpoint, needs={}), asked("open", model=1)]
    messages = [line + rest for line, rest in framed(fuzzed(requests(checkpoint), 3000, seed=5))]
    run = subprocess.run(
        [sys.executable, str(ORACLE)], input=b"".join([*setup, *messages, hello]), capture_output=True, timeout=60
    )
    assert (run.returncode, run.stderr) == (0, b"")
    first, _, _, *answers, last = parsed_replies(run.stdout)
    assert first == last
    assert len(answers) == len(messages)
    raised = [one["error"] for one in answers if one.get("error", {}).get("kind") == "raised"]
    assert raised == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model_type": "gpt2"}, "model_type = 'gpt2'"),
        ({"hidden_size": None}, "hidden_size = None"),
        ({"sliding_window": 4}, "sliding_window = 4"),
        ({"num_key_value_heads": 3}, "H_kv must divide H_q"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "known are: default, linear, llama3"),
        ({"rope_parameters": {"rope_type": "linear"}}, "needs exactly"),
        ({"rope_scaling": {"rope_type": "linear"}}, "in one place"),
        ({"hidden_act": "tanh"}, "known are: silu, gelu"),
        ({"tie_word_embeddings": True}, "Tensor lm_head.weight is (11, 8); config.json asks for None"),
        ({"intermediate_size": 13}, "Tensor model.layers.0.mlp.down_proj.weight is (8, 12)"),
    ],
)
def test_what_it_cannot_honour_is_refused(start, tmp_path, changes, why):
    engine = start(sys.executable, ORACLE)
    with pytest.raises(Refused) as caught:
        engine.load(tiny(tmp_path, **changes))
    assert why in str(caught.value)
    if "Tensor" not in why:
        config = json.loads((tmp_path / "config.json").read_text())
        assert why in str(engine.accepts(config))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stored_formats_hold_the_same_numbers(start, tmp_path, dtype):
    engine = start(sys.executable, ORACLE)
    wide, narrow = (engine.load(tiny(tmp_path / one, one)).score([1, 2, 3]) for one in ("float32", dtype))
    np.testing.assert_array_equal(wide, narrow)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"{]", b"\x02" + b"\0" * 7 + b"[]"])
def test_a_file_that_is_no_safetensors(start, tmp_path, content):
    (tiny(tmp_path) / "model.safetensors").write_bytes(content)
    with pytest.raises(Refused, match=r"no sound safetensors file|Tensor"):
        start(sys.executable, ORACLE).load(tmp_path)


def test_draws_follow_their_seeds_and_filters(start, tmp_path):
    model = start(sys.executable, ORACLE).load(tiny(tmp_path))
    one, other, again = (
        [row.tokens for row in model.generate([Request((1, 2), 8, temperature=2.0, seed=seed, n=3)])]
        for seed in (1, 2, 1)
    )
    assert one == again != other
    assert len(set(one)) == 3, "completions of one request differ"
    greedy = model.generate([Request((1, 2), 8)])[0].tokens
    for filters in ({"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}, {"temperature": 0.0}):
        assert model.generate([Request((1, 2), 8, **{"temperature": 2.0, "seed": 3, **filters})])[0].tokens == greedy


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("inf")},
        {"temperature": 1.0, "top_k": -1},
        {"temperature": 1.0, "top_p": 1.5},
        {"n": 0},
        {"logprobs": -1},
        {"max_new_tokens": -1},
        {"stop_sequences": ((),)},
        {"seed": -1},
    ],
)
def test_requests_that_mean_nothing_are_refused(start, tmp_path, wrong):
    model = start(sys.executable, ORACLE).load(tiny(tmp_path))
    with pytest.raises(Refused):
        model.generate([Request((1,), **wrong)])


def test_stop_strings_are_not_offered(start, tmp_path):
    with pytest.raises(NotOffered, match="no tokenizer"):
        start(sys.executable, ORACLE).load(tiny(tmp_path)).generate([Request((1,), stop_strings=("a",))])

"""Patches of transformers fail at the requirement of their twins in the reference; transformers itself passes."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from faults_common import judge
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from lmconform.adapter import Model, Needs, Request
from lmconform.engines.transformers import Transformers
from lmconform.faults.over_transformers import PATCHED, attention, blocks, cache, patch, rope, sampling, stops
from lmconform.judging.verdict import Verdict


@pytest.mark.parametrize("patched", PATCHED, ids=lambda patched: patched.fault)
def test_a_patch_fails_at_its_requirement(patched) -> None:
    records = judge(patched.target, patched.requirement)
    assert Verdict.FAIL in {record.verdict for record in records}, [(one.test, one.reason) for one in records]


@pytest.mark.parametrize("requirement", sorted({patched.requirement for patched in PATCHED}))
def test_transformers_passes_the_same_tests(requirement) -> None:
    assert {record.verdict for record in judge("transformers", requirement)} == {Verdict.PASS}


def test_at_least_44_faults_are_written_twice_and_say_what_is_wrong() -> None:
    assert len({patched.twin.engine for patched in PATCHED}) == len(PATCHED) >= 44
    for patched in PATCHED:
        assert vars(patched.engine)["__doc__"].partition("\n")[0] == patched.twin.summary


def test_the_faults_of_the_reference_are_imported_without_transformers() -> None:
    code = "import sys, lmconform.faults; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# What surrounds a patch: with the right thing patched in, nothing changes.


class _Layer(blocks._Layer):
    def forward(self, hidden_states, **named):
        x = hidden_states + self.attended(hidden_states, named)
        return x + self.transformed(x)


RIGHT = {
    "nothing": (patch.Broken, {}),
    "attention": (patch.OtherAttention, {}),
    "mask": (attention._OtherMask, {"mask": lambda self, mask, layer, H_q: mask}),
    "softmax": (attention._OtherSoftmax, {"softmax": lambda self, scores: scores.softmax(dim=-1)}),
    "heads": (attention._OtherHeads, {}),
    "rope": (rope._OtherParameters, {"parameters": lambda self, right: right}),
    "layer": (patch.Rebuilt, {"parts": {LlamaDecoderLayer: _Layer}}),
    "cache": (cache._OtherContents, {"store": lambda self, cache, layer, T: None}),
    "processors": (sampling._OtherProcessors, {}),
    "criteria": (stops._OtherCriteria, {"criterion": lambda self, one: one}),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    sizes = {"vocab_size": 37, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "eos_token_id": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads)).save_pretrained(folder)
    return folder


def answers(model: Model) -> SimpleNamespace:
    """Scores at every door, and tokens that were drawn."""
    rows = [(3, 5, 8, 13, 21, 34), (1, 4, 9), (7,)]
    session = model.open()
    chunks = [session.extend(rows[0][:4]), session.extend(rows[0][4:5])]
    session.truncate(2)
    requests = [Request(row, 6, temperature=0.7, top_k=9, top_p=0.9, seed=row[0], eos=True) for row in rows]
    tokens = [one.tokens for one in model.generate([*requests, *(Request(row, 6, stop_ids=(4,)) for row in rows)])]
    return SimpleNamespace(scores=[*model.score_batch(rows), *chunks, session.extend(rows[1])], tokens=tokens)


@pytest.mark.parametrize("name", RIGHT)
def test_what_surrounds_a_patch_changes_nothing(name, llama) -> None:
    base, members = RIGHT[name]
    right, got = (
        answers(engine.load(llama, Needs(max_tokens=32)))
        for engine in (Transformers(attention="eager"), type("Right", (base,), members)())
    )
    for one, other in zip(right.scores, got.scores, strict=True):
        np.testing.assert_array_equal(one, other)
    assert right.tokens == got.tokens

"""The adapters to ONNX Runtime and to OpenVINO, each hosted by its own interpreter, against the oracle."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import own_environment
import pytest
from own_environment import MECHANISMS, NEAR, OTHER, PROMPT, THROUGH_EPS

from lmconform.adapter import Needs, NotOffered, Refused, Request
from lmconform.checkpoints.layout import Checkpoint
from lmconform.checkpoints.random import SHAPES, random_checkpoint
from lmconform.engines import known, resolve
from lmconform.transport.client import Connection, EngineSpec, RemoteModel
from lmconform.transport.errors import StartError

FAULTS = Path(__file__).with_name("exported_faults.py")
RUNTIMES = {
    "onnx-runtime": ("LMCONFORM_ONNX_RUNTIME_PYTHON", "onnx-runtime.txt", {"empty_past": "graph"}),
    "openvino": ("LMCONFORM_OPENVINO_PYTHON", "openvino.txt", {}),
}
WIDE = random_checkpoint(SHAPES[0], "loud", 0)
"""Its head_dim is not hidden_size / H_q."""


@pytest.fixture(scope="module", params=RUNTIMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def python(name: str) -> Path:
    return own_environment.interpreter(*RUNTIMES[name][:2])


@pytest.fixture(scope="module")
def engine(name: str, python: Path) -> Iterator[Connection]:
    with own_environment.connected(name, python, **RUNTIMES[name][2]) as connection:
        yield connection


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return WIDE.write(tmp_path_factory.mktemp("checkpoints") / "wide")


def load(engine: Connection, path: Path, regime: str | None = None) -> RemoteModel:
    return engine.load(path, Needs(regime=regime))


def oracle(tokens: tuple[int, ...], checkpoint: Checkpoint = WIDE) -> np.ndarray:
    return own_environment.oracle(checkpoint, tokens)


def test_they_are_known_by_their_names() -> None:
    for name in RUNTIMES:
        assert known()[name].target == resolve(name)


def test_scores_are_the_oracles_in_every_regime(engine: Connection, wide: Path) -> None:
    rows = [PROMPT, OTHER, (2,)]
    for regime in (None, *engine.description.regimes):
        model = load(engine, wide, regime)
        assert model.vocab_size == WIDE.vocab_size
        for got, tokens in zip(model.score_batch(rows), rows, strict=True):
            np.testing.assert_allclose(got, oracle(tokens), **NEAR)
        np.testing.assert_allclose(model.score(PROMPT), oracle(PROMPT), **NEAR)
        assert model.score_batch([]) == []
        with pytest.raises(Refused, match="empty"):
            model.score(())


def test_sessions_extend_fork_and_are_cut(engine: Connection, wide: Path) -> None:
    exact, size = oracle(PROMPT), WIDE.config["num_hidden_layers"] * 2 * WIDE.config["num_key_value_heads"] * 16 * 4
    session = load(engine, wide).open()
    np.testing.assert_allclose(session.extend(PROMPT[:5]), exact[:5], **NEAR)
    twin = session.fork()
    np.testing.assert_allclose(session.extend(PROMPT[5:]), exact[5:], **NEAR)
    assert session.cache_bytes() == len(PROMPT) * size
    session.truncate(9)
    np.testing.assert_allclose(session.extend(PROMPT[9:]), exact[9:], **NEAR)
    session.truncate(0)
    np.testing.assert_allclose(session.extend(PROMPT), exact, **NEAR)
    np.testing.assert_allclose(twin.extend(PROMPT[5:8]), exact[5:8], **NEAR)
    with pytest.raises(Refused, match="holds 8 tokens; it cannot be truncated to 9"):
        twin.truncate(9)


def test_a_graph_that_keeps_its_past_has_no_sessions(name: str, engine: Connection, wide: Path) -> None:
    if name == "openvino":
        with pytest.raises(NotOffered, match="keeps one past inside"):
            load(engine, wide, "stateful").open()


def test_completions_follow_the_scores(engine: Connection, wide: Path) -> None:
    for regime in (None, *engine.description.regimes):
        model = load(engine, wide, regime)
        long, short = model.generate([Request(PROMPT, 6, logprobs=5), Request((4, 9), 3)])
        for prompt, done in ((PROMPT, long), ((4, 9), short)):
            rows = oracle(prompt + done.tokens)[len(prompt) - 1 : -1]
            assert done.tokens == tuple(rows.argmax(axis=1).tolist())
        assert (len(long.tokens), len(short.tokens)) == (6, 3)
        assert [max(step, key=step.__getitem__) for step in long.logprobs or ()] == list(long.tokens)


def test_an_unsound_checkpoint_is_refused(engine: Connection, wide: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"no readable config\.json"):
        load(engine, tmp_path)
    cut = WIDE.write(tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((wide / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(Refused, match="transformers refuses the checkpoint"):
        load(engine, cut)
    assert "knows no model_type 'none'" in str(engine.accepts({"model_type": "none"}))


def test_another_empty_past_needs_the_option(name: str, python: Path, wide: Path) -> None:
    if name == "onnx-runtime":
        with own_environment.connected(name, python) as plain:
            words = "head_dim is 16 and hidden_size / num_attention_heads is 8, which optimum takes"
            assert words in str(plain.accepts(WIDE.config))
            with pytest.raises(Refused, match=words):
                load(plain, wide)


@pytest.mark.parametrize(
    ("runtime", "option"),
    [("onnx-runtime", {"empty_past": "none"}), ("openvino", {"precision": "int8"}), ("openvino", {"threads": "0"})],
)
def test_bad_options_are_told(name: str, python: Path, runtime: str, option: dict[str, str]) -> None:
    if name == runtime:
        ((key, value),) = option.items()
        with pytest.raises(StartError, match=f"Option {key}={value}"):
            Connection.start(EngineSpec(name, python=python, options=option))


@pytest.mark.parametrize(
    ("fault", "caught", "also"),
    [
        (None, set(), set()),
        ("SwapsKVHeads", {"GQA-1", "GQA-2"}, set()),
        ("ChangesEps", {"PNR-5"}, THROUGH_EPS),
        ("DropsTheBase", {"ROPE-2"}, set()),
    ],
)
def test_a_fault_in_the_conversion_is_caught_by_its_mechanism(
    name: str, python: Path, fault: str | None, caught: set[str], also: set[str]
) -> None:
    target = name if fault is None else f"{FAULTS}:{fault}"
    with own_environment.connected(target, python, **RUNTIMES[name][2]) as engine:
        failed = own_environment.failing(engine, *MECHANISMS)
    assert caught <= failed <= caught | also

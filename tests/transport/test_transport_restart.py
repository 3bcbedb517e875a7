"""After a death: a new process, models that load themselves again, sessions that cannot."""

import os
import signal

import numpy as np
import pytest
from transport_fakes import toy_scores

from lmconform.adapter import Needs, Request
from lmconform.transport.client import Connection, EngineDied, EngineSpec


def killed(engine):
    """Kill the engine's process and let the connection find out."""
    os.kill(int(engine.accepts({"question": "pid"})), signal.SIGKILL)
    with pytest.raises(EngineDied, match="signal SIGKILL"):
        engine.accepts({})


def test_a_model_loads_itself_again_with_the_same_needs(start, tmp_path):
    engine = start("Toy")
    needs = Needs(max_tokens=77)
    model, other = engine.load(tmp_path, needs), engine.load(tmp_path / "other")
    killed(engine)
    assert not engine.alive
    text = model.generate([Request((1,))])[0].text
    assert text.endswith(f"{needs!r} {tmp_path}")
    assert (engine.counts.restarts, engine.counts.loads) == (1, 3)
    np.testing.assert_array_equal(other.score([5]), toy_scores([5]))
    np.testing.assert_array_equal(model.score([5]), toy_scores([5]))
    assert (engine.counts.restarts, engine.counts.loads) == (1, 4)
    assert engine.alive


def test_a_session_is_lost(start, tmp_path):
    engine = start("Toy")
    model = engine.load(tmp_path)
    session = model.open()
    killed(engine)
    model.score([1])
    with pytest.raises(EngineDied, match=r"toy 1\.2, extend: the session was lost"):
        session.extend([1])
    session.close()
    np.testing.assert_array_equal(model.open().extend([2]), toy_scores([2]))


def test_load_starts_a_new_process(start, tmp_path):
    engine = start("Toy")
    old = engine.accepts({"question": "pid"})
    killed(engine)
    engine.load(tmp_path)
    assert engine.accepts({"question": "pid"}) != old


def test_closing_what_died_is_silent(start, tmp_path):
    engine = start("Toy")
    model = engine.load(tmp_path)
    killed(engine)
    model.close()
    engine.close()
    engine.close()
    assert engine.counts.restarts == 0
    with pytest.raises(RuntimeError, match=r"the connection to toy 1\.2 is closed"):
        engine.load(tmp_path)


def test_starts_that_fail_again_and_again_are_given_up(tmp_path):
    adapter = tmp_path / "mortal.py"
    adapter.write_text(
        "import os\nfrom lmconform.adapter import Engine\n"
        "class Mortal(Engine):\n    name = 'mortal'\n    def load(self, checkpoint, needs):\n        os._exit(1)\n"
    )
    with Connection.start(EngineSpec(f"{adapter}:Mortal"), 20.0, 20.0) as engine:
        with pytest.raises(EngineDied, match="mortal died during load: exit code 1"):
            engine.load(tmp_path)
        adapter.write_text("raise RuntimeError('broken since')")
        for _ in range(3):
            with pytest.raises(EngineDied, match=r"could not be started again.*broken since"):
                engine.load(tmp_path)
        with pytest.raises(EngineDied, match=r"3 times in a row and is not tried any more.*broken since"):
            engine.load(tmp_path)
        assert engine.counts.restarts == 3


def test_an_interrupted_call_leaves_no_stale_reply(start, tmp_path, monkeypatch):
    engine = start("Toy")
    model = engine.load(tmp_path)
    pid = int(engine.accepts({"question": "pid"}))
    os.kill(pid, signal.SIGSTOP)

    def interrupting(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lmconform.transport.links.Process.read_line", interrupting)
        with pytest.raises(KeyboardInterrupt):
            model.score([1])
    np.testing.assert_array_equal(model.score([2]), toy_scores([2]))
    assert engine.counts.restarts == 1


def test_close_ends_the_process(tmp_path, start):
    engine = start("Toy")
    pid = int(engine.accepts({"question": "pid"}))
    engine.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert engine.counts.calls["bye"] == 1

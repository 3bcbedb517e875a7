"""Signals: what was judged is summed up and kept, and no engine stays behind."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_common import CHECK, ENGINES, Ended, start

HELLO = b'{"id": 1, "call": "hello", "arguments": {"protocol": 1}}\n'
HOST = "import lmconform.transport.host as host; host.CLOSING_SECONDS = 0.2; host.main()"


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
    return found


def gone(pid: int) -> bool:
    """Whether the process has ended; one that nobody has waited for yet has."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def interrupted(tmp_path, number, *arguments):
    """A run whose engine hangs in the first test of CM-9, sent a signal there; and the engine's process."""
    once = tmp_path / "once"
    options = ["--option", "fault=hang", "--option", f"once={once}", "--report", "report"]
    run = start([*CHECK, f"{ENGINES}:Faulty", *options, *arguments], tmp_path)
    pid = int(wait_for(lambda: once.exists() and once.read_text()))
    run.send_signal(number)
    out, err = run.communicate(timeout=60)
    return Ended(run.returncode, out, err, tmp_path / "report"), pid


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle(tmp_path, number):
    done, pid = interrupted(tmp_path, number, "--only", "CM-2,CM-9", "--access", "score")
    assert done.code == 1
    assert done.verdicts == {"CM-2": "pass", "CM-9": "not-run"}
    assert [one["requirement"] for one in done.records] == ["CM-2"]
    assert "CM-9 not-run: the run ended before all of its tests" in done.out
    assert "The run was interrupted; what it had judged until then is kept." in done.out
    assert "does not conform (1 not-run, 1 pass)" in done.out
    assert "Traceback" not in done.out + done.err
    wait_for(lambda: gone(pid))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_matrix_judges_an_engine(tmp_path, number):
    once = tmp_path / "once"
    entry = f'[hanging]\nengine = "{ENGINES}:Faulty"\noptions = {{ fault = "hang", once = "{once}" }}\n'
    (tmp_path / "engines.toml").write_text(entry)
    given = ["--engines", "engines.toml", "--profile", "quick", "--report", "report"]
    run = start(["-m", "lmconform", "matrix", *given], tmp_path)
    pid = int(wait_for(lambda: once.exists() and once.read_text(), 60))
    run.send_signal(number)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 2
    assert "Interrupted. report/matrix.md holds the engines that were judged" in err
    assert "Traceback" not in err
    wait_for(lambda: gone(pid))
    assert (tmp_path / "report" / "hanging" / "report.json").exists(), "the check summed up what it had"


def test_an_interrupt_while_the_engine_starts(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import os, pathlib, time\n"
        "from lmconform.adapter import Engine\n"
        "class Slow(Engine):\n"
        "    def __init__(self):\n"
        "        pathlib.Path('pid').write_text(str(os.getpid()))\n"
        "        time.sleep(300)\n"
    )
    run = start([*CHECK, "slow.py:Slow", "--report", "report"], tmp_path)
    pid = int(wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 2, (out, err)
    assert "Interrupted" in err
    assert "Traceback" not in out + err
    wait_for(lambda: gone(pid))


def test_a_hanging_engine_ends_when_the_suite_was_killed(tmp_path):
    """Only its end of the wire tells the host; the call that hangs cannot."""
    (tmp_path / "stuck.py").write_text(
        "import time\n"
        "from lmconform.adapter import Engine\n"
        "class Stuck(Engine):\n"
        "    def __init__(self):\n"
        "        print('hanging', flush=True)\n"
        "        time.sleep(300)\n"
    )
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-c", HOST, "stuck.py:Stuck"]
    with subprocess.Popen(command, **pipes, cwd=tmp_path, start_new_session=True) as host:
        try:
            host.stdin.write(HELLO)
            host.stdin.flush()
            assert host.stderr.readline() == b"hanging\n"
            assert host.poll() is None
            host.stdin.close()
            assert host.wait(20) == -signal.SIGKILL
        finally:
            host.kill()


def test_a_host_that_was_started_by_hand_answers_after_the_end_of_its_input(tmp_path):
    """``echo ... | host``: the input ends at once, and a slow engine still answers."""
    (tmp_path / "slow.py").write_text(
        "import time\n"
        "from lmconform.adapter import Engine\n"
        "class Slow(Engine):\n"
        "    name = 'slow'\n"
        "    def __init__(self):\n"
        "        time.sleep(1)\n"
    )
    command = [sys.executable, "-c", HOST, "slow.py:Slow"]
    done = subprocess.run(command, input=HELLO, capture_output=True, cwd=tmp_path, timeout=60, process_group=0)
    assert done.returncode == 0, done.stderr
    assert b'"name":"slow"' in done.stdout

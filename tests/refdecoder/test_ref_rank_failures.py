"""Whoever fails, no rank is left waiting: the error names the rank that ended, and what it died of."""

import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from ref_ranks import EndsWhoLoadsIt, fail_on_the_second, load_share, spoil_the_first

from refdecoder import score
from refdecoder.ranks import Loader, Ranks
from refdecoder.workers import RankError

HERE = Path(__file__).parent
LIVES = """
import sys, time
from ref_ranks import load_share
from refdecoder import score
from refdecoder.ranks import Ranks

if __name__ == "__main__":
    model = Ranks.start(load_share, 2).load(directory=sys.argv[1])
    score(model, [[1, 2, 3]])
    print("up", flush=True)
    time.sleep(float(sys.argv[2]))
"""
"""A program that never closes its ranks."""


def ended(ranks: Ranks) -> None:
    """All processes are gone, and this one may be of another group."""
    with pytest.raises(RankError, match="The ranks have ended"):
        ranks.tell("end")
    assert [process.is_alive() for process in ranks._workers.processes] == [False]
    ranks.close()


def test_a_rank_that_is_killed(llama: Path) -> None:
    with Ranks.start(load_share, 2) as ranks:
        model = ranks.load(directory=str(llama))
        score(model, [[1, 2, 3]])
        os.kill(ranks._workers.processes[0].pid, signal.SIGKILL)
        with pytest.raises(RankError, match=r"^Rank 1 ended with SIGKILL\.$"):
            score(model, [[1, 2, 3]])
        ended(ranks)


def test_a_rank_that_hangs(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refdecoder.ranks.MEETING", timedelta(seconds=20))  # of this process
    monkeypatch.setattr("refdecoder.workers.DEATH_SECONDS", 0.0)
    with Ranks.start(load_share, 2) as ranks:
        model = ranks.load(directory=str(llama))
        os.kill(ranks._workers.processes[0].pid, signal.SIGSTOP)
        with pytest.raises(RankError, match=r"^Another rank did not come within 20 s\. .*Timed out"):
            score(model, [[1, 2, 3]])
        ended(ranks)


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        (fail_on_the_second, RankError, r"^Rank 1 failed with ValueError: a bug of rank 1$"),
        (spoil_the_first, IndexError, "pop from empty list"),
    ],
)
def test_a_fault_of_one_rank(llama: Path, loader: Loader, error: type[Exception], message: str) -> None:
    with Ranks.start(loader, 2) as ranks:
        model = ranks.load(directory=str(llama))
        with pytest.raises(error, match=message):
            score(model, [[1, 2, 3]])
        ended(ranks)


def test_a_rank_that_does_not_start() -> None:
    with pytest.raises(RankError, match=r"^Rank 1 ended with exit code 3\.$"):
        Ranks.start(EndsWhoLoadsIt(), 2)


@pytest.mark.parametrize(("seconds", "code"), [("0", 0), ("600", -signal.SIGKILL)])
def test_ranks_end_with_rank_0(llama: Path, tmp_path: Path, seconds: str, code: int) -> None:
    program = tmp_path / "lives.py"
    program.write_text(LIVES)
    command, path = [sys.executable, str(program), str(llama), seconds], [str(HERE), *sys.path]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"up\n"
        if code:
            first.kill()
        # The other rank has these pipes too: they end only when it does.
        out, err = first.communicate(timeout=120)
        assert (out, first.returncode) == (b"", code), err
        assert err == b""

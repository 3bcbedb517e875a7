"""Children that crash, hang or answer, each alone."""

import os
import signal
import time

from lmconform.matrix.forked import Ended, each


def work(job):
    kind, number = job
    if kind == "raise":
        raise ValueError(f"no {number}")
    if kind == "exit":
        os._exit(7)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "hang":
        time.sleep(600)
    return number * number


def test_each_job_brings_its_result_or_how_it_ended():
    jobs = [("square", 3), ("raise", 1), ("exit", 2), ("hang", 4), ("kill", 5), ("square", 6)]
    found = dict(each(jobs, work, processes=2, seconds=3.0))
    assert found["square", 3] == 9
    assert found["square", 6] == 36
    assert found["raise", 1].how == "crash"
    assert found["raise", 1].detail.rstrip().endswith("ValueError: no 1")
    assert found["exit", 2] == Ended("crash", "its process ended with exit code 7")
    assert found["kill", 5] == Ended("crash", "its process ended with exit code -9")
    assert found["hang", 4] == Ended("time-out", "it was not done within 3 s")


def test_a_large_result_arrives_whole():
    (found,) = each([1], lambda job: "x" * 3_000_000, processes=1, seconds=60.0)
    assert len(found[1]) == 3_000_000


def test_children_inherit_what_the_parent_has():
    seen = list(range(5))
    assert dict(each([2, 4], lambda job: seen[job], processes=2, seconds=60.0)) == {2: 2, 4: 4}

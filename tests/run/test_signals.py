"""Interrupted by a signal, a merge ends soon, says how to go on, and goes on to the same bytes."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time

import pytest

import eutectic
from eutectic.api import Options
from faults import contents, family, left_in

# The command itself, on a disk that does `{then}` before each write from number `{first}` on. OUT.began has a line for
# each such write: the thread it is of.
SLOW_COMMAND = """
import itertools, sys, threading, time
from eutectic.checkpoint.storage import Storage
from eutectic.run import signals
stops, numbers, write = [], itertools.count(), Storage.write
class Stop(signals.Stop):
    def __init__(self):
        super().__init__()
        stops.append(self)
def slowly(self, fd, data, offset):
    if next(numbers) >= {first}:
        with open(sys.argv[3] + ".began", "a") as began:
            print(threading.current_thread().name, file=began)
        {then}
    write(self, fd, data, offset)
signals.Stop, Storage.write = Stop, slowly
from eutectic.cli import main
main()
"""
# However busy the machine is, the signal comes while a merge is at work, and the merge hears of it before it goes on.
UNTIL_STOPPED = "while not stops[-1].event.is_set(): time.sleep(0.01)"
# Only a process that hangs takes as long.
HANGS = 600


@pytest.fixture
def start():
    """Starts the command; what still runs at the end of a test is killed."""
    runs = []

    def started(out, first=0, then=UNTIL_STOPPED, size="1500"):
        script = SLOW_COMMAND.format(first=first, then=then)
        out.with_name(f"{out.name}.began").unlink(missing_ok=True)
        command = [sys.executable, "-c", script, "merge", str(out.parent / "recipe.yml"), str(out)]
        command += ["--shard-size", size, "--threads", "2"]
        runs.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return runs[-1]

    yield started
    for run in runs:
        run.kill()
        run.communicate()


def wait_for_work(out, run):
    deadline = time.monotonic() + HANGS
    began = out.with_name(f"{out.name}.began")
    while not began.exists():
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def job(tmp_path):
    recipe = family(tmp_path, layers=2)
    (tmp_path / "recipe.yml").write_text(json.dumps(recipe))
    eutectic.merge(tmp_path / "recipe.yml", tmp_path / "expected", options=Options(shard_bytes=1500))
    return tmp_path, contents(tmp_path / "expected")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_work_that_is_resumed(job, start, number):
    home, expected = job
    out, rng = home / "out", random.Random(number)
    for _ in range(3):
        run = start(out, first=rng.randrange(6))
        wait_for_work(out, run)
        run.send_signal(number)
        _, said = run.communicate(timeout=HANGS)
        assert run.returncode == 128 + number, said
        assert "W407" in said and "tensors are kept in" in said and "the same command resumes" in said
        assert "Traceback" not in said
        assert not out.exists()
        # Each worker ends with the block that it has.
        assert (home / "out.began").read_text().count("merge-") <= 2
    run = start(out, first=sys.maxsize)
    run.communicate(timeout=HANGS)
    assert run.returncode == 0
    assert contents(out) == expected
    assert "out.partial" not in left_in(home)


def test_a_second_signal_does_no_harm(job, start):
    home, expected = job
    out = home / "out"
    run = start(out, first=3)
    wait_for_work(out, run)
    for _ in range(5):
        run.send_signal(signal.SIGINT)
        time.sleep(0.01)
    _, said = run.communicate(timeout=HANGS)
    # At its very end Python is killed by a signal, which is the same to a shell; a signal may cut off what W407 tells.
    assert run.returncode in (130, -signal.SIGINT), said
    assert "Traceback" not in said
    run = start(out, first=sys.maxsize)
    run.communicate(timeout=HANGS)
    assert contents(out) == expected


@pytest.mark.slow
def test_killed_at_random_moments_of_a_larger_merge(tmp_path, start):
    recipe = family(tmp_path, hidden=1024, layers=2, heads=8, kv_heads=8, intermediate=4096, vocab=8000, shards=3)
    (tmp_path / "recipe.yml").write_text(json.dumps(recipe))
    options = Options(shard_bytes=20_000_000)
    eutectic.merge(tmp_path / "recipe.yml", tmp_path / "expected", options=options)
    expected = contents(tmp_path / "expected")
    rng, out = random.Random(5), tmp_path / "out"
    kills = 0
    while kills < 24:
        run = start(out, then="time.sleep(0.02)", size="20000000")
        wait_for_work(out, run)
        time.sleep(rng.uniform(0, 2.0))
        run.kill()
        run.communicate(timeout=HANGS)
        kills += run.returncode == -signal.SIGKILL
        if out.exists():
            assert contents(out) == expected
            eutectic.merge(tmp_path / "recipe.yml", out, options=options)
            assert left_in(tmp_path).count("out.partial") == 0
            for path in out.iterdir():
                path.unlink()
            out.rmdir()
    eutectic.merge(tmp_path / "recipe.yml", out, options=options)
    assert contents(out) == expected

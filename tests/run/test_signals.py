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

# The command itself, on a disk so slow that a merge takes about two seconds. OUT.began appears with the first write.
SLOW_COMMAND = """
import sys, time
from eutectic.checkpoint.storage import Storage
write = Storage.write
def slowly(self, fd, data, offset):
    open(sys.argv[3] + ".began", "w").close()
    time.sleep({delay})
    write(self, fd, data, offset)
Storage.write = slowly
from eutectic.cli import main
main()
"""


def start(out, delay=0.1, size="1500"):
    script = SLOW_COMMAND.format(delay=delay)
    out.with_name(f"{out.name}.began").unlink(missing_ok=True)
    command = [sys.executable, "-c", script, "merge", str(out.parent / "recipe.yml"), str(out), "--shard-size", size]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_work(out, run):
    deadline = time.monotonic() + 60
    began = out.with_name(f"{out.name}.began")
    while not began.exists():
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def job(tmp_path):
    recipe = family(tmp_path)
    (tmp_path / "recipe.yml").write_text(json.dumps(recipe))
    eutectic.merge(tmp_path / "recipe.yml", tmp_path / "expected", options=Options(shard_bytes=1500))
    return tmp_path, contents(tmp_path / "expected")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_work_that_is_resumed(job, number):
    home, expected = job
    out, rng = home / "out", random.Random(number)
    for _ in range(3):
        run = start(out)
        wait_for_work(out, run)
        time.sleep(rng.uniform(0, 0.5))
        run.send_signal(number)
        began = time.monotonic()
        _, said = run.communicate(timeout=30)
        assert time.monotonic() - began < 10
        assert run.returncode == 128 + number, said
        assert "W407" in said and "tensors are kept in" in said and "the same command resumes" in said
        assert "Traceback" not in said
        assert not out.exists()
    run = start(out, delay=0)
    run.communicate(timeout=60)
    assert run.returncode == 0
    assert contents(out) == expected
    assert "out.partial" not in left_in(home)


def test_a_second_signal_does_no_harm(job):
    home, expected = job
    out = home / "out"
    run = start(out)
    wait_for_work(out, run)
    for _ in range(5):
        run.send_signal(signal.SIGINT)
        time.sleep(0.01)
    _, said = run.communicate(timeout=30)
    assert run.returncode == 130, said
    assert "Traceback" not in said
    run = start(out, delay=0)
    run.communicate(timeout=60)
    assert contents(out) == expected


@pytest.mark.slow
def test_killed_at_random_moments_of_a_larger_merge(tmp_path):
    recipe = family(tmp_path, hidden=1024, layers=2, heads=8, kv_heads=8, intermediate=4096, vocab=8000, shards=3)
    (tmp_path / "recipe.yml").write_text(json.dumps(recipe))
    options = Options(shard_bytes=20_000_000)
    eutectic.merge(tmp_path / "recipe.yml", tmp_path / "expected", options=options)
    expected = contents(tmp_path / "expected")
    rng, out = random.Random(5), tmp_path / "out"
    kills = 0
    while kills < 24:
        run = start(out, 0.02, "20000000")
        wait_for_work(out, run)
        time.sleep(rng.uniform(0, 2.0))
        run.kill()
        run.communicate(timeout=30)
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

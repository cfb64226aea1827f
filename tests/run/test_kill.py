"""Killed at every file operation, the same command ends with the bytes of an uninterrupted run."""

from __future__ import annotations

import random
import shutil
import signal

import pytest

import eutectic
from eutectic.api import Options
from eutectic.errors import RecipeError
from faults import FaultStorage, an_old_output, contents, die, family, in_child, left_in


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A recipe, a folder for outputs, and what the output must hold."""
    home = tmp_path_factory.mktemp("job")
    recipe = family(home)
    merge(recipe, home / "expected")
    expected = contents(home / "expected")
    assert sum(name.startswith("model-") for name in expected) >= 2
    return recipe, home, expected


def merge(recipe, out, storage=None, **options):
    """One merge by one thread, so that operations have a fixed order, into several files."""
    storage = storage or FaultStorage()
    return eutectic.merge(recipe, out, options=Options(threads=1, shard_bytes=1500, **options), storage=storage)


def operations(recipe, out, **options):
    """Names of the file operations of one undisturbed merge."""
    storage = FaultStorage()
    merge(recipe, out, storage, **options)
    return storage.log


def killed_at(recipe, out, at, **options):
    return in_child(lambda: merge(recipe, out, FaultStorage(at, die), **options)) == -signal.SIGKILL


def test_killed_at_every_operation(job):
    recipe, home, expected = job
    out = home / "out"
    names = operations(recipe, out)
    count, first = len(names), names.index("mkdir") + 1
    shutil.rmtree(out)
    rng, before = random.Random(1), left_in(home)
    for at in range(first):
        assert killed_at(recipe, out, at), f"not reached: operation {at}"
        assert left_in(home) == before
    for at in range(first, count):
        assert killed_at(recipe, out, at), f"not reached: operation {at}"
        assert not out.exists() or contents(out) == expected, f"half an output after operation {at}"
        if at % 3 == 0:
            killed_at(recipe, out, rng.randrange(count))
            assert not out.exists() or contents(out) == expected, f"half an output after operation {at} and a second"
        merge(recipe, out)
        assert contents(out) == expected, f"operation {at}"
        assert "out.partial" not in left_in(home), f"operation {at}"
        shutil.rmtree(out)
    assert not killed_at(recipe, out, count)
    shutil.rmtree(out)


def test_killed_at_every_operation_of_a_replacement(job):
    recipe, home, expected = job
    out = home / "replaced"

    def restore():
        shutil.rmtree(out, ignore_errors=True)
        return an_old_output(out)

    old = restore()
    names = operations(recipe, out, replace=True)
    # The last renames are where the old folder leaves and the new one comes.
    first = [i for i, name in enumerate(names) if name == "rename"][-2] - 2
    for at in range(first, len(names)):
        restore()
        assert killed_at(recipe, out, at, replace=True)
        work = home / "replaced.partial"
        kept = out if out.exists() else work / "old"
        assert contents(kept) in (old, expected), f"the old folder is damaged after operation {at}"
        merge(recipe, out, replace=True)
        assert contents(out) == expected
        assert not work.exists()


def test_an_old_folder_set_aside_comes_back(job):
    recipe, home, expected = job
    out = home / "aside"
    old = an_old_output(out)
    names = operations(recipe, out, replace=True)
    between = [i for i, name in enumerate(names) if name == "rename"][-1]
    shutil.rmtree(out)
    an_old_output(out)
    assert killed_at(recipe, out, between, replace=True)
    assert not out.exists()
    with pytest.raises(RecipeError, match="W401"):
        merge(recipe, out)
    assert contents(out) == old
    done = merge(recipe, out, replace=True)
    assert done.resumed == len(done.plan.jobs)
    assert contents(out) == expected

"""Where an output may go: existing folders, links, inputs, other runs, and what each is told."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import eutectic
from eutectic.api import Options
from eutectic.errors import EutecticError, OutputError, RecipeError
from eutectic.testing import tiny_llama
from faults import FaultStorage, an_old_output, contents, family, in_child, left_in

SLOW = """
import json, sys, time
from eutectic import api, errors
from eutectic.checkpoint.storage import Storage
class Slow(Storage):
    def write(self, fd, data, offset):
        time.sleep(float(sys.argv[3]))
        super().write(fd, data, offset)
try:
    done = api.merge(json.loads(sys.argv[1]), sys.argv[2], options=api.Options(threads=2), storage=Slow())
    print("complete" if done.already_complete else "merged")
except errors.EutecticError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def job(tmp_path):
    recipe = family(tmp_path)
    merge(recipe, tmp_path / "expected")
    return recipe, tmp_path, contents(tmp_path / "expected")


def merge(recipe, out, **options):
    return eutectic.merge(recipe, out, options=Options(**{"threads": 1} | options), storage=FaultStorage())


def start(recipe, out, seconds=0.02):
    """A merge in a process of its own that takes so long for each write."""
    command = [sys.executable, "-c", SLOW, json.dumps(recipe), str(out), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(path, process):
    deadline = time.monotonic() + 600
    while not path.exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("count", [2, 8])
def test_of_several_runs_into_one_folder_one_works(job, count):
    recipe, home, expected = job
    runs = [start(recipe, home / "out") for _ in range(count)]
    said = [(run.communicate(timeout=600)[0].strip(), run.returncode) for run in runs]
    merged = [text for text, _ in said if text == "merged"]
    assert len(merged) == 1
    for text, code in said:
        assert (code == 1 and text.startswith("W402 ")) if text not in ("merged", "complete") else code == 0
    assert contents(home / "out") == expected
    assert "out.partial" not in left_in(home)


def test_the_lock_of_a_killed_run_is_free(job):
    recipe, home, expected = job
    run = start(recipe, home / "out", seconds=3600)
    try:
        wait_for(home / "out.partial" / "journal", run)
        with pytest.raises(OutputError, match="W402"):
            merge(recipe, home / "out")
    finally:
        run.kill()
        run.communicate()
    merge(recipe, home / "out")
    assert contents(home / "out") == expected


def unfinished(recipe, out):
    """Leaves the work of this recipe half done."""

    def die_late(name, args, real):
        os.kill(os.getpid(), signal.SIGKILL)

    counted = FaultStorage(counted=("sync",))
    eutectic.merge(recipe, out, options=Options(threads=1), storage=counted)
    shutil.rmtree(out)
    storage = FaultStorage(len(counted.log) - 2, die_late, counted=("sync",))
    in_child(lambda: eutectic.merge(recipe, out, options=Options(threads=1), storage=storage))
    assert (Path(f"{out}.partial") / "journal").stat().st_size > 0


def test_unfinished_work_of_another_recipe_is_kept_unless_replaced(job):
    recipe, home, expected = job
    other = recipe | {"parameters": {"density": 0.9}}
    unfinished(other, home / "out")
    before = contents(home / "out.partial")
    with pytest.raises(RecipeError, match=r"W403 .*unfinished work of another merge"):
        merge(recipe, home / "out")
    assert contents(home / "out.partial") == before
    merge(recipe, home / "out", replace=True)
    assert contents(home / "out") == expected
    assert "out.partial" not in left_in(home)


def test_unfinished_work_survives_a_refusal_and_another_finished_output(job):
    recipe, home, expected = job
    other = recipe | {"parameters": {"density": 0.9}}
    unfinished(other, home / "out")
    before = contents(home / "out.partial")
    merge(recipe, home / "elsewhere")
    (home / "elsewhere").rename(home / "out")
    assert merge(recipe, home / "out").already_complete
    with pytest.raises(RecipeError, match="W401"):
        merge(recipe | {"parameters": {"density": 0.8}}, home / "out")
    assert contents(home / "out.partial") == before
    done = merge(other, home / "out", replace=True)
    assert done.resumed > 0
    assert contents(home / "out") != expected


def test_an_existing_folder_is_refused_and_with_replace_replaced(job):
    recipe, home, expected = job
    out = home / "out"
    old = an_old_output(out)
    with pytest.raises(RecipeError, match=r"W401 .*exists; .*--replace") as caught:
        merge(recipe, out)
    assert caught.value.exit_code == 2
    assert contents(out) == old
    assert "out.partial" not in left_in(home)
    merge(recipe, out, replace=True)
    assert contents(out) == expected


@pytest.mark.parametrize("kind", ["a project", "a model made elsewhere", "an output with notes beside it"])
def test_what_no_merge_wrote_is_never_replaced(job, kind):
    recipe, home, _ = job
    out = home / "out"
    if kind == "an output with notes beside it":
        an_old_output(out)
        (out / "notes").mkdir()
        (out / "notes" / "letter.txt").write_text("mine")
        named = "notes/letter.txt"
    else:
        out.mkdir()
        named = "letter.txt" if kind == "a project" else "model.safetensors"
        (out / named).write_text("mine")
    before = contents(out)
    with pytest.raises(RecipeError, match=rf"W401 .*holds what no merge wrote \({named}\), so it is never replaced"):
        merge(recipe, out, replace=True)
    assert contents(out) == before
    assert "out.partial" not in left_in(home)


def test_an_empty_folder_is_filled_and_a_file_is_never_replaced(job):
    recipe, home, expected = job
    (home / "empty").mkdir()
    merge(recipe, home / "empty")
    assert contents(home / "empty") == expected
    (home / "file").write_text("mine")
    for replace in (False, True):
        with pytest.raises(RecipeError, match=r"W401 .*is not a folder"):
            merge(recipe, home / "file", replace=replace)
    assert (home / "file").read_text() == "mine"
    assert "file.partial" not in left_in(home)


def test_a_folder_made_during_the_merge_is_not_overwritten(job):
    recipe, home, _ = job
    made = []

    def somebody(name, args, real):
        (home / "out").mkdir()
        (home / "out" / "theirs.txt").write_text("theirs")
        made.append(name)
        return real(*args)

    with pytest.raises(OutputError, match=r"W405 .*not empty"):
        eutectic.merge(recipe, home / "out", storage=FaultStorage(1, somebody, counted=("sync",)))
    assert made
    assert contents(home / "out") == {"theirs.txt": b"theirs"}


@pytest.mark.parametrize("replace", [False, True])
def test_an_output_never_overlaps_an_input(job, replace):
    recipe, home, _ = job
    before = {name: contents(home / name) for name in ("base", "tuned-0", "tuned-1")}
    (home / "link").symlink_to(home / "base")
    (home / "base.safetensors").write_bytes(b"")
    for out in ("base", "base/inside", ".", "link", "link/inside", "base/../tuned-0", "tuned-1/"):
        with pytest.raises(RecipeError, match=r"W406 .*overlaps the input") as caught:
            merge(recipe, f"{home}/{out}", replace=replace)
        assert caught.value.exit_code == 2
    for name, files in before.items():
        assert contents(home / name) == files


def test_an_output_never_overlaps_a_base_that_only_gives_its_files(tmp_path):
    family(tmp_path)
    base = merge({"merge_method": "linear", "models": [str(tmp_path / "base")]}, tmp_path / "made").path
    before = contents(base)
    inner = {"merge_method": "linear", "models": [base]}
    for donor in (base, inner):
        recipe = {"merge_method": "linear", "base_model": donor, "models": [str(tmp_path / "tuned-0")]}
        for out in (base, f"{base}/inside"):
            with pytest.raises(RecipeError, match=r"W406 .*overlaps the input made") as caught:
                merge(recipe, out, replace=True)
            assert len(caught.value.problems) == 1
    assert contents(base) == before


def test_the_folder_of_a_bare_file_is_an_input_too(tmp_path):
    family(tmp_path)
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("base", "tuned-0"):
        tiny_llama(tmp_path / f"one-{name}", hidden=8, layers=1, heads=2, kv_heads=1, intermediate=8, vocab=8)
        (tmp_path / f"one-{name}" / "model.safetensors").rename(bare / f"{name}.safetensors")
    models = [{"model": str(bare / f"{name}.safetensors")} for name in ("base", "tuned-0")]
    recipe = {"merge_method": "linear", "models": models}
    with pytest.raises(RecipeError, match="W406"):
        merge(recipe, bare, replace=True)
    merge(recipe, bare / "merged")
    assert (bare / "base.safetensors").exists()


def test_the_work_folder_is_no_input_either(tmp_path):
    recipe = family(tmp_path)
    (tmp_path / "base").rename(tmp_path / "out.partial")
    recipe["base_model"] = str(tmp_path / "out.partial")
    before = contents(tmp_path / "out.partial")
    with pytest.raises(RecipeError, match="W406"):
        merge(recipe, tmp_path / "out", replace=True)
    assert contents(tmp_path / "out.partial") == before


def test_links_are_followed(job):
    recipe, home, expected = job
    (home / "disk").mkdir()
    (home / "to-empty").symlink_to(home / "disk")
    merge(recipe, home / "to-empty")
    assert (home / "to-empty").is_symlink()
    assert contents(home / "disk") == expected
    (home / "dangling").symlink_to(home / "nowhere")
    merge(recipe, home / "dangling")
    assert contents(home / "nowhere") == expected


@pytest.mark.parametrize("work", ["file", "link", "dangling"])
def test_a_work_folder_that_is_none_is_refused(job, work):
    recipe, home, _ = job
    partial = home / "out.partial"
    if work == "file":
        partial.write_text("mine")
    else:
        partial.symlink_to(home / ("expected" if work == "link" else "nowhere"))
    with pytest.raises(OutputError, match=r"W405 .*this is not a folder"):
        merge(recipe, home / "out")
    assert partial.exists() or partial.is_symlink()


@pytest.mark.parametrize("name", ["thesis.txt", "data/model.safetensors", "old/model.safetensors", "journal"])
@pytest.mark.parametrize("replace", [False, True])
def test_a_work_folder_of_somebody_else_is_refused(job, name, replace):
    recipe, home, _ = job
    mine = home / "out.partial" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(RecipeError, match=r"W401 .*holds what no merge wrote.*move these files away yourself"):
        merge(recipe, home / "out", replace=replace)
    assert {path for path in (home / "out.partial").rglob("*") if path.is_file()} == {mine}
    assert mine.read_text() == "mine" and not (home / "out").exists()


def test_a_missing_parent_is_named(job):
    recipe, home, _ = job
    with pytest.raises(OutputError, match=r"W405 .*no/such/out: the folder .*no/such does not exist; make it first$"):
        merge(recipe, home / "no" / "such" / "out")
    assert "no" not in left_in(home)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_parent_that_may_not_be_written_is_named(job):
    recipe, home, _ = job
    (home / "locked").mkdir(mode=0o555)
    with pytest.raises(OutputError, match=r"W405 .*Permission denied"):
        merge(recipe, home / "locked" / "out")


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(job, mask):
    recipe, home, _ = job
    before = os.umask(mask)
    try:
        merge(recipe, home / "out", shard_bytes=1500)
    finally:
        os.umask(before)
    for path in [home / "out", *(home / "out").rglob("*")]:
        allowed = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == allowed & ~mask, path


def test_nan_leaves_nothing_and_counting_then_works(job):
    _, home, _ = job
    extra = {"extra.weight": torch.tensor([1.0, float("nan"), float("inf")])}
    clean = {"extra.weight": torch.ones(3)}
    sizes = {"hidden": 8, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate": 8, "vocab": 8}
    models = [
        tiny_llama(home / f"n{i}", seed=i, dtype="float32", extra=extra if i == 1 else clean, **sizes) for i in (0, 1)
    ]
    broken = {"merge_method": "linear", "models": [{"model": path} for path in models]}
    with pytest.raises(EutecticError, match=r"N501 extra\.weight: 2 values of n1 are NaN or infinite") as caught:
        merge(broken, home / "out")
    assert caught.value.exit_code == 1
    assert not {"out", "out.partial"} & set(left_in(home))
    assert merge(broken, home / "out", nonfinite="count").nonfinite == 2
    manifest = json.loads((home / "out" / "eutectic.json").read_text())
    assert [one.get("nonfinite", 0) for one in manifest["tensors"]["extra.weight"]["inputs"]] == [0, 2]
    assert not eutectic.verify(home / "out").problems


def test_overflow_is_refused_and_another_dtype_then_works(tmp_path):
    models = [{"model": {"x": torch.full((5,), 60000.0)}} for _ in range(2)]
    recipe = {"merge_method": "linear", "models": models, "parameters": {"normalize": False}, "out_dtype": "float16"}
    with pytest.raises(EutecticError, match="N502 x: 5 values do not fit float16"):
        merge(recipe, tmp_path / "out")
    assert left_in(tmp_path) == []
    merge(recipe | {"out_dtype": "bfloat16"}, tmp_path / "out")


def test_another_model_of_the_same_name_is_another_merge(tmp_path):
    def average(run):
        return {"merge_method": "linear", "models": [str(tmp_path / run / "ckpt"), str(tmp_path / "other")]}

    for number, name in enumerate(("one/ckpt", "two/ckpt", "other")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        tiny_llama(tmp_path / name, seed=number)
    out = tmp_path / "out"
    eutectic.merge(average("one"), out)
    assert eutectic.merge(average("one"), out).already_complete
    with pytest.raises(RecipeError, match=r"W401 .*may have changed since"):
        eutectic.merge(average("two"), out)


def test_an_output_without_its_stamp_says_so(job):
    recipe, home, _ = job
    merge(recipe, home / "out")
    (home / "out" / ".eutectic-stamp").unlink()
    with pytest.raises(RecipeError, match=r"W401 .*exists, and its \.eutectic-stamp is missing, without which"):
        merge(recipe, home / "out")


def test_another_seed_is_the_same_merge_where_nothing_is_random(job):
    recipe, home, _ = job
    done = merge(recipe, home / "out")
    assert not done.plan.method.random
    assert merge(recipe | {"seed": 7}, home / "out").already_complete


def test_an_output_that_lost_weights_is_not_complete(job):
    recipe, home, expected = job
    out = home / "out"
    merge(recipe, out)
    (out / "model-00001-of-00003.safetensors").unlink(missing_ok=True)
    next(out.glob("*.safetensors")).write_bytes(b"cut")
    with pytest.raises(RecipeError, match="W401"):
        merge(recipe, out)
    assert not merge(recipe, out, replace=True).already_complete
    assert contents(out) == expected


def test_an_old_folder_set_aside_is_kept_when_the_output_exists_again(job):
    recipe, home, _ = job
    out, work = home / "out", home / "out.partial"
    for folder in (out, work, work / "old", work / "data"):
        folder.mkdir()
    (out / "config.json").write_text("{}")
    (work / "old" / "model.safetensors").write_text("mine")
    (work / "lock").touch()
    with pytest.raises(OutputError, match=r"W405 .*was being replaced.*exists again; move one of the two away"):
        merge(recipe, out)
    assert (work / "old" / "model.safetensors").read_text() == "mine"

"""Models that are aligned in a recipe: what a plan makes of them, and everything that it refuses."""

from __future__ import annotations

import gc
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from planning import linear

import eutectic
from eutectic.checkpoint import Alignment, MemorySource, Named, read_alignment
from eutectic.checkpoint.symmetry import Factor, Group, Moves, Symmetries, axis, fixed
from eutectic.errors import CheckpointError, NumericError, RecipeError
from eutectic.recipe import load
from eutectic.run.budget import worker_bytes
from eutectic.testing import write_safetensors, write_statistics

UNITS = Factor(4, "units")
TABLE = Symmetries(
    {"units": Group(4, "any")}, {"up": (axis(UNITS), fixed(3)), "down": (fixed(2), axis(UNITS, role="in"))}
)
A = {"up": torch.arange(12.0).reshape(4, 3).bfloat16(), "down": torch.arange(8.0).reshape(2, 4).bfloat16()}
ORDER, SCALE = torch.tensor([2, 0, 3, 1]), torch.tensor([1.0, -2.0, 0.5, 4.0], dtype=torch.float64)
# B's unit `ORDER[u]` is A's unit u, made larger by 1 / SCALE[u].
B = {"up": torch.empty(4, 3), "down": torch.empty(2, 4)}
B["up"][ORDER] = A["up"].float() / SCALE.float()[:, None]
B["down"][:, ORDER] = A["down"].float() * SCALE.float()
B = {name: tensor.bfloat16() for name, tensor in B.items()}


def alignment(**changes: Any) -> Alignment:
    named = [Named(label, {name: MemorySource(label, of).digest(name) for name in of}) for label, of in AB.items()]
    given = {"symmetries": TABLE, "moves": Moves({"units": ORDER}, {"units": SCALE}), "method": "weights", **changes}
    return Alignment(reference=named[0], model=named[1], **given)


AB = {"a": A, "b": B}


def put(folder: Path, state: dict[str, torch.Tensor]) -> None:
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", state)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for label, state in AB.items():
        put(tmp_path / label, state)
    alignment().save(tmp_path / "perm")
    monkeypatch.chdir(tmp_path)
    return tmp_path


RECIPE = {"merge_method": "linear", "models": ["a", {"model": "b", "aligned": "perm"}]}


def test_a_model_merged_with_itself_scrambled_is_itself(folder: Path) -> None:
    eutectic.merge(RECIPE, "out")
    made = eutectic.open("out")
    assert all(torch.equal(made[name], A[name]) for name in A)
    assert eutectic.verify("out").derived == 2
    manifest = json.loads((folder / "out" / "eutectic.json").read_text())
    assert manifest["recipe"]["models"][1] == {"model": "b", "aligned": "perm"}
    said = manifest["inputs"][1]["aligned"]
    assert said["to"] == "a" and len(said["moves"]) == 64
    assert manifest["tensors"]["up"]["inputs"][1]["dtype"] == "float32"


@pytest.mark.parametrize(
    ("aligned", "why"),
    [
        ("perms", r"G110 r.yml:4:23 models\[1\].aligned: 'perms' is a folder of alignments .*; did you mean 'perms/b'"),
        ("perms/bb", r"C200 r.yml:4:23 models\[1\].aligned: 'perms/bb' does not exist; .* did you mean 'perms/b'"),
        ("perms/x@y", r"C200 r.yml:4:23 models\[1\].aligned: 'perms/x@y' does not exist; .* name a folder that"),
        ("empty", r"C201 .*holds no weights"),
    ],
)
def test_what_was_meant_by_a_folder_that_is_no_alignment(
    folder: Path, monkeypatch: pytest.MonkeyPatch, aligned: str, why: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (folder / "perms").mkdir()
    (folder / "empty").mkdir()
    (folder / "perm").rename(folder / "perms" / "b")
    (folder / "r.yml").write_text(
        f"merge_method: linear\nmodels:\n- {{model: a}}\n- {{model: b, aligned: {aligned}}}\n"
    )
    with pytest.raises(CheckpointError, match=why):
        eutectic.plan("r.yml")


def test_the_same_merge_again_is_complete_until_the_model_or_the_moves_change(folder: Path) -> None:
    assert not eutectic.merge(RECIPE, "out").already_complete
    assert eutectic.merge(RECIPE, "out").already_complete
    alignment(moves=Moves({"units": ORDER})).save(folder / "perm", replace=True)
    with pytest.raises(RecipeError, match="W401"):
        eutectic.merge(RECIPE, "out")


def test_a_merge_that_was_stopped_goes_on(folder: Path) -> None:
    eutectic.merge(RECIPE, "whole")

    blocks: list[int] = []

    def stop(nbytes: int) -> None:
        blocks.append(nbytes)
        if len([one for one in blocks if one]) == 2:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        eutectic.merge(RECIPE, "out", options=eutectic.Options(threads=1), progress=stop)
    assert eutectic.merge(RECIPE, "out").resumed == 1
    one, two = (folder / name / "model.safetensors" for name in ("whole", "out"))
    assert one.read_bytes() == two.read_bytes()


def test_a_check_of_the_merge_tells_a_changed_alignment_from_a_changed_model(folder: Path) -> None:
    eutectic.merge(RECIPE, "out")
    alignment(moves=Moves({"units": ORDER})).save(folder / "perm", replace=True)
    said = [problem.message for problem in eutectic.verify("out").problems]
    assert said[0] == "2 of 2 tensors come out with other bytes: the alignment of b changed since the merge"


def test_statistics_are_of_a_recipe_in_the_place_of_an_aligned_model(folder: Path) -> None:
    one = {"merge_method": "passthrough", "models": [{"model": "b", "aligned": "perm"}]}
    for label, state in (("a", A), ("b", dict(eutectic.merged(one)))):
        fisher = {name: torch.ones(tensor.shape) for name, tensor in state.items()}
        write_statistics(folder / f"f{label}", "fisher", fisher, of=state)
    plain = {"model": "a", "statistics": "fa"}
    merged = eutectic.merged({"merge_method": "fisher", "models": [plain, {"model": one, "statistics": "fb"}]})
    assert torch.equal(merged["up"], A["up"])
    beside = {"model": "b", "aligned": "perm", "statistics": "fb"}
    with pytest.raises(NumericError, match=r"N504 .*another model than b.*put a recipe in the model's place"):
        eutectic.merge({"merge_method": "fisher", "models": [plain, beside]}, "out")


def test_bytes_do_not_depend_on_threads(folder: Path) -> None:
    for threads in (1, 2):
        eutectic.merge(RECIPE, f"out{threads}", options=eutectic.Options(threads=threads))
    one, two = (folder / f"out{threads}" / "model.safetensors" for threads in (1, 2))
    assert one.read_bytes() == two.read_bytes()


def test_a_sweep_reads_the_alignment_for_all_of_its_merges(folder: Path) -> None:
    models = [{"model": "a", "parameters": {"weight": {"sweep": [1, 3]}}}, RECIPE["models"][1]]
    swept = {**RECIPE, "models": models, "parameters": {"weight": 1}}
    done = eutectic.sweep(swept, "swept")
    assert len(done.merges) == 2
    for name in done.merges:
        assert torch.equal(eutectic.open(f"swept/{name}")["up"], A["up"])


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files as Linux lists them")
def test_nothing_stays_open(folder: Path) -> None:
    def files() -> int:
        gc.collect()  # what other tests opened and left to the collector
        return len([name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")])

    before = files()
    eutectic.plan(RECIPE).close()
    problems({**RECIPE, "models": ["a", {"model": "b", "aligned": "a"}]})
    assert files() == before


def test_what_reading_takes_is_part_of_the_memory_bound(folder: Path) -> None:
    with eutectic.plan(RECIPE) as aligned, eutectic.plan(linear("a", "b")) as plain:
        assert worker_bytes(aligned) >= worker_bytes(plain) + aligned.inputs[1].source.working_bytes()  # type: ignore[union-attr]


def test_the_output_keeps_the_dtype_that_the_models_are_stored_with(folder: Path) -> None:
    with eutectic.plan(RECIPE) as plan:
        assert {job.spec.dtype for job in plan.jobs} == {"bfloat16"}
        assert plan.inputs[1].specs["up"].dtype == "float32" and plan.inputs[1].aligned == "a"
    with eutectic.plan({**RECIPE, "out_dtype": "float32"}) as plan:
        assert {job.spec.dtype for job in plan.jobs} == {"float32"}


def test_the_moves_decide_the_fingerprint(folder: Path) -> None:
    alignment(moves=Moves({"units": ORDER})).save(folder / "other")
    plans = [eutectic.plan({**RECIPE, "models": ["a", {"model": "b", "aligned": name}]}) for name in ("perm", "other")]
    assert plans[0].fingerprint != plans[1].fingerprint


def test_a_live_alignment_merges_as_its_folder_does(folder: Path) -> None:
    live = {**RECIPE, "models": ["a", {"model": "b", "aligned": alignment()}]}
    assert torch.equal(eutectic.merged(live)["up"], eutectic.merged(RECIPE)["up"])
    assert load(live, methods=eutectic.methods).to_dict()["models"][1]["aligned"] == "b to a"


def test_a_base_is_aligned_by_a_recipe_in_its_place(folder: Path) -> None:
    base = {"merge_method": "passthrough", "models": [{"model": "b", "aligned": "perm"}]}
    change = eutectic.merged({"merge_method": "task_arithmetic", "base_model": base, "models": ["a"]})
    assert torch.equal(change["down"], A["down"])


def test_a_recipe_is_found_again_from_its_text(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "r.yml").write_text(
        "merge_method: linear\nmodels:\n- model: ../a\n- model: ../b\n  aligned: ../perm\n"
    )
    recipe = load("deep/r.yml", methods=eutectic.methods)
    assert recipe.models[1].aligned == "../perm"
    outer = {"merge_method": "passthrough", "models": [recipe]}
    assert torch.equal(eutectic.merged(outer)["up"], A["up"])


def problems(recipe: Any, kind: type[Exception] = CheckpointError) -> list[str]:
    with pytest.raises(kind) as caught:
        eutectic.plan(recipe).close()
    return str(caught.value).splitlines()


def test_what_is_no_alignment_is_refused_where_it_is_named(folder: Path) -> None:
    assert problems("merge_method: linear\nmodels:\n- a\n- model: b\n  aligned: a\n") == [
        "G110 recipe:5:12 models[1].aligned: 'a' has no alignment.json, so it is no alignment; "
        "name a folder that `eutectic align` made"
    ]
    (found,) = problems({**RECIPE, "models": ["a", {"model": "b", "aligned": "prem"}]})
    assert "C200 models[1].aligned: 'prem' does not exist; did you mean 'perm'?" in found
    (found,) = problems({**RECIPE, "models": ["a", {"model": "b", "aligned": 3}]}, RecipeError)
    assert found.startswith("R130 models[1].aligned: must name an alignment, not 3")
    (found,) = problems({**RECIPE, "models": ["a", {"model": "b", "aligned": object()}]})
    assert found.startswith("C200 models[1].aligned: a object is no model")


def test_a_model_of_other_tensors_is_refused_in_one_line_with_all_of_them(folder: Path) -> None:
    put(folder / "c", {"up": torch.ones(4, 5), "bias": torch.ones(4)})
    assert problems(linear("a") | {"models": ["a", {"model": "c", "aligned": "perm"}]}) == [
        "G115 models[1].aligned: the alignment is of b to a, and c is another model: 3 tensors differ in name or "
        "shape: bias, up, down; align this model, with `eutectic align`"
    ]


def test_a_model_that_an_alignment_made_by_hand_does_not_fit_is_refused_with_all_that_is_wrong(folder: Path) -> None:
    put(folder / "c", {"up": torch.ones(4, 5), "bias": torch.ones(4)})
    with eutectic.open("perm") as source:
        by_hand = replace(read_alignment(source), model=Named("b"))
    found = problems(linear("a") | {"models": ["a", {"model": "c", "aligned": by_hand}]})
    assert [line.split(": ")[0] for line in found] == ["G101 bias", "G102 up", "G101 down"]


def test_a_model_of_other_bytes_is_refused_when_it_is_read_and_nothing_is_left(folder: Path) -> None:
    with pytest.raises(NumericError, match=r"G115 (up|down): a is not the model that was aligned.*those of the model"):
        eutectic.merge({**RECIPE, "models": ["b", {"model": "a", "aligned": "perm"}]}, "out")
    assert not any(path.name.startswith("out") for path in folder.iterdir())


def test_too_many_problems_are_counted(folder: Path) -> None:
    put(folder / "c", {f"t{number}": torch.ones(1) for number in range(40)})
    with eutectic.open("perm") as source:
        by_hand = replace(read_alignment(source), model=Named("b"))
    found = problems({**RECIPE, "models": ["a", {"model": "c", "aligned": by_hand}]})
    assert len(found) == 13 and "and 30 more problems of this kind" in found[-1]

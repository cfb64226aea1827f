"""A sweep: several merges in one pass over the inputs, each the one that it would be by itself."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import eutectic
from eutectic import api
from eutectic.api import Options
from eutectic.checkpoint.extents import FileSource
from eutectic.errors import EutecticError, InterruptedMergeError
from eutectic.kernels.task_vectors import TaskVectors
from eutectic.merging import execute
from eutectic.testing import write_safetensors
from faults import contents

SHAPES = {"model.layers.0.a": (1030, 1020), "model.layers.1.b": (64, 40), "c": (), "d": (0, 3), "e": (12,)}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a base and two fine-tunes of it."""
    home, made = tmp_path_factory.mktemp("models"), []
    generator = torch.Generator().manual_seed(3)
    start = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    for label in ("base", "one", "two"):
        step = 0.0 if label == "base" else 0.02
        moved = {name: (t + step * torch.randn(t.shape, generator=generator)).bfloat16() for name, t in start.items()}
        (home / label).mkdir()
        write_safetensors(home / label / "model.safetensors", {**moved, "ids": torch.arange(5)})
        made.append(str(home / label))
    return made


def recipe(models, method, **parameters):
    return {"merge_method": method, "base_model": models[0], "models": models[1:], "parameters": parameters, "seed": 4}


def alone(swept, choices, out):
    """The folder of the merge with these values, made by itself."""
    changes = [f"{path}={json.dumps(value)}" for path, value in choices.items()]
    fixed = json.loads(json.dumps(swept))
    for path in choices:
        del fixed["parameters"][path.removeprefix("parameters.")]
    eutectic.merge(fixed, out, overrides=changes)
    return contents(out)


CASES = [
    ("ties", {"density": {"sweep": [0.2, 0.6, 1.0]}, "weight": 1.0}),
    ("ties", {"lambda": {"sweep": [0.5, 1.0]}, "density": {"sweep": [0.3, 0.7]}, "rescale": True, "weight": 1.0}),
    ("dare_linear", {"density": {"sweep": [0.1, 0.5]}, "weight": {"sweep": [0.3, [0.2, 0.9]]}}),
    ("dare_ties", {"lambda": {"sweep": [0.3, 1.0]}, "density": 0.4, "rescale": "l1", "weight": 1.0}),
    ("della", {"lambda": {"sweep": [0.3, 1.0]}, "epsilon": {"sweep": [0.05, 0.2]}, "rescale": "l1", "weight": 1.0}),
    ("breadcrumbs_ties", {"lambda": {"sweep": [0.3, 1.0]}, "density": 0.4, "weight": 1.0}),
    ("breadcrumbs", {"lambda": {"sweep": [0.3, 1.0]}, "scope": "row", "rescale": True, "weight": 1.0}),
    ("task_arithmetic", {"weight": {"sweep": [-1.0, 0.0, 0.4]}}),
    ("nuslerp", {"weight": {"sweep": [0.3, 2.0]}, "nuslerp_flatten": {"sweep": [True, False]}}),
    ("multislerp", {"weight": {"sweep": [[0.3, 0.5], 1.0]}, "normalize_weights": False}),
    ("pcb", {"lambda": {"sweep": [0.5, 1.2]}, "density": {"sweep": [0.1, 0.5]}}),
    ("tsv_m", {"lambda": {"sweep": [0.5, 1.0]}}),
]


@pytest.mark.parametrize(("method", "parameters"), CASES)
def test_every_folder_is_the_merge_by_itself(models, method, parameters, tmp_path):
    swept = recipe(models, method, **parameters)
    done = eutectic.sweep(swept, tmp_path / "out", options=Options(memory=4 << 30))
    assert json.loads((tmp_path / "out" / "sweep.json").read_text()) == done.choices
    for number, (label, merged) in enumerate(done.merges.items()):
        assert merged.path == str(tmp_path / "out" / label)
        expected = alone(swept, done.choices[label], tmp_path / f"alone{number}")
        found = contents(merged.path)
        assert found["model.safetensors"] == expected["model.safetensors"], label
        assert json.loads(found["eutectic.json"])["fingerprint"] == json.loads(expected["eutectic.json"])["fingerprint"]
        assert not eutectic.verify(merged.path).problems


def test_inputs_are_read_once_and_thresholds_are_found_once(models, tmp_path, monkeypatch):
    read, reduced = [], []
    real_read, real_reduce = FileSource.read_into, TaskVectors.reduce

    def read_into(self, name, start, stop, out):
        read.append((self.label, name, start))
        real_read(self, name, start, stop, out)

    def reduce(self, block):
        reduced.append((id(self), block.index))
        real_reduce(self, block)

    monkeypatch.setattr(FileSource, "read_into", read_into)
    monkeypatch.setattr(TaskVectors, "reduce", reduce)
    eutectic.merge(recipe(models, "ties", density=0.3, weight=1.0), tmp_path / "one")
    once, counted = sorted(read), len(reduced)
    read.clear()
    reduced.clear()
    swept = recipe(models, "ties", density=0.3, weight=1.0, **{"lambda": {"sweep": [0.2, 0.5, 1.0, 1.5]}})
    eutectic.sweep(swept, tmp_path / "four")
    assert sorted(read) == once
    assert len(reduced) == counted


def test_what_is_complete_is_not_made_again_and_a_new_value_is(models, tmp_path):
    swept = recipe(models, "ties", weight=1.0, density={"sweep": [0.2, 0.6]})
    eutectic.sweep(swept, tmp_path / "out")
    before = contents(tmp_path / "out" / "density=0.2")
    swept["parameters"]["density"]["sweep"].append(0.9)
    done = eutectic.sweep(swept, tmp_path / "out")
    assert [merged.already_complete for merged in done.merges.values()] == [True, True, False]
    assert contents(tmp_path / "out" / "density=0.2") == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "density=0.2",
        "density=0.6",
        "density=0.9",
        "sweep.json",
    ]


def test_an_interrupted_sweep_resumes_to_the_same_bytes(models, tmp_path, monkeypatch):
    from eutectic.run import signals

    swept = recipe(models, "ties", weight=1.0, density={"sweep": [0.2, 0.6]})
    expected = eutectic.sweep(swept, tmp_path / "expected")
    stops = []
    real = signals.Stop.__init__

    def remember(self, *args, **keywords):
        real(self, *args, **keywords)
        stops.append(self)

    monkeypatch.setattr(signals.Stop, "__init__", remember)
    seen = []

    def stop_soon(nbytes):
        seen.append(nbytes)
        if len(seen) > 3:
            stops[-1].event.set()

    with pytest.raises(InterruptedMergeError):
        eutectic.sweep(swept, tmp_path / "out", options=Options(threads=1), progress=stop_soon)
    assert not (tmp_path / "out" / "density=0.2").exists()
    resumed = eutectic.sweep(swept, tmp_path / "out")
    assert any(merged.resumed for merged in resumed.merges.values())
    for label, merged in expected.merges.items():
        same, found = contents(merged.path), contents(resumed.merges[label].path)
        assert found["model.safetensors"] == same["model.safetensors"]


def test_plans_of_a_sweep_share_their_inputs(models):
    plans = eutectic.plan_sweep(recipe(models, "ties", weight=1.0, density={"sweep": [0.2, 0.6]}))
    assert list(plans) == ["density=0.2", "density=0.6"]
    first, second = plans.values()
    assert all(a.source is b.source for a, b in zip(first.inputs, second.inputs, strict=True))
    first.close()
    second.close()


def test_links_to_the_files_of_a_sweep_are_followed_once(models, monkeypatch):
    followed, real = [], os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path, **more: followed.append(path) or real(path, **more))
    asked = {}
    for count in (2, 9):
        followed.clear()
        plans = eutectic.plan_sweep(
            recipe(models, "ties", weight=1.0, density={"sweep": [k / 10 for k in range(1, count)]})
        )
        asked[count] = sum(str(path).endswith(".safetensors") for path in followed)
        for plan in plans.values():
            plan.close()
    assert asked[2] == asked[9] > 0


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"density": {"sweep": []}}, "R128 parameters.density: a sweep needs a list of values and nothing else"),
        ({"density": {"sweep": 0.3}}, "R128 parameters.density: a sweep needs a list of values and nothing else"),
        ({"density": {"sweep": [0.3, 0.3]}}, "R128 parameters.density: has 0.3 twice; name each value once"),
        ({"density": {"sweep": [0.3], "filter": "x"}}, "a sweep needs a list of values and nothing else"),
        ({"density": {"sweep": [0.3, 7]}}, "R123 parameters.density: must lie in (0, 1], not 7"),
        ({"scope": {"sweep": ["tensor", "model"]}}, "R128 parameters.scope: cannot be swept"),
        ({"densty": {"sweep": [0.3, 0.4]}}, "R121 parameters.densty: ties has no parameter 'densty'"),
        ({"density": [{"sweep": [0.3]}, 0.4]}, "R128 parameters.density[0]: an anchor of a gradient cannot be swept"),
        (
            {"density": {"sweep": [i / 100 for i in range(1, 40)]}, "lambda": {"sweep": list(range(1, 20))}},
            "sweeps to 741 merges, at most 256",
        ),
        ({}, "R128 the recipe sweeps no parameter"),
    ],
)
def test_broken_sweeps_are_refused(models, parameters, message, tmp_path):
    with pytest.raises(EutecticError) as caught:
        eutectic.sweep(recipe(models, "ties", **parameters), tmp_path / "out")
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_takes_one_merge_says_that_this_is_several(models, tmp_path):
    swept = recipe(models, "ties", density={"sweep": [0.2, 0.6]})
    for door in (eutectic.plan, eutectic.merged, lambda r: eutectic.merge(r, tmp_path / "out")):
        with pytest.raises(EutecticError, match=r"R128 parameters.density: is swept"):
            door(swept)
    nested = {"merge_method": "linear", "models": [swept, models[1]], "parameters": {"weight": 1.0}}
    with pytest.raises(EutecticError, match="R128"):
        eutectic.sweep(nested, tmp_path / "out")


def test_labels_are_folder_names(models, tmp_path):
    swept = recipe(models, "task_arithmetic")
    entry = {"model": models[1], "parameters": {"weight": {"sweep": [1, -0.5]}}}
    swept["models"] = [entry, {"model": models[2], "parameters": {"weight": {"sweep": [0.25, [0.0, 1.0]]}}}]
    done = eutectic.sweep(swept, tmp_path / "out")
    first, second = "models[0].parameters.weight", "models[1].parameters.weight"
    assert list(done.merges) == [f"{first}={a},{second}={b}" for a in ("1", "-0.5") for b in ("0.25", "#2")]
    assert all(Path(merged.path).is_dir() for merged in done.merges.values())


def test_a_sweep_goes_only_where_a_sweep_or_nothing_is(models, tmp_path):
    swept = recipe(models, "ties", weight=1.0, density={"sweep": [0.2, 0.6]})
    eutectic.merge(recipe(models, "ties", weight=1.0), tmp_path / "merge")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, message in (
        ("merge", "no folder of a sweep"),
        ("mine", "no folder of a sweep"),
        ("file", "not a folder"),
    ):
        with pytest.raises(EutecticError, match=rf"W401 .*{message}"):
            eutectic.sweep(swept, tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert not eutectic.sweep(swept, tmp_path / "empty").notes
    with pytest.raises(EutecticError, match=r"W401 .*holds a sweep"):
        eutectic.merge(recipe(models, "ties", weight=1.0), tmp_path / "empty", options=Options(replace=True))


def test_a_smaller_sweep_says_what_stays(models, tmp_path):
    swept = recipe(models, "ties", weight=1.0, density={"sweep": [0.2, 0.6]})
    eutectic.sweep(swept, tmp_path / "out")
    swept["parameters"]["density"]["sweep"] = [0.6, 0.9]
    done = eutectic.sweep(swept, tmp_path / "out")
    assert done.notes == (f"{tmp_path / 'out'} keeps density=0.2 of an earlier sweep",)
    listed = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert sorted(listed) == ["density=0.2", "density=0.6", "density=0.9"]


def test_a_sweep_that_fails_at_once_leaves_nothing(models, tmp_path):
    generator = torch.Generator().manual_seed(1)
    broken = {name: torch.randn(shape, generator=generator) / 0 for name, shape in SHAPES.items()}
    swept = recipe([models[0], {**broken, "ids": torch.arange(5)}], "ties", weight=1.0, density={"sweep": [0.2, 0.6]})
    with pytest.raises(EutecticError, match="N501"):
        eutectic.sweep(swept, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_merges_that_are_made_in_other_pieces_keep_their_sums(tmp_path):
    """Inner products are added block by block; a neighbour that needs whole tensors must not change that."""
    generator = torch.Generator().manual_seed(8)
    start = torch.randn(1500, 1100, generator=generator, dtype=torch.float64)
    made = [
        start,
        *(start + 0.1 * torch.randn(start.shape, generator=generator, dtype=torch.float64) for _ in range(3)),
    ]
    folders = []
    for number, tensor in enumerate(made):
        (tmp_path / f"m{number}").mkdir()
        write_safetensors(tmp_path / f"m{number}" / "model.safetensors", {"w": tensor})
        folders.append(str(tmp_path / f"m{number}"))
    swept = recipe(folders, "model_stock", filter_wise={"sweep": [False, True]})
    done = eutectic.sweep(swept, tmp_path / "out", options=Options(memory=4 << 30))
    for label, merged in done.merges.items():
        expected = alone(swept, done.choices[label], tmp_path / f"alone {label}")
        assert contents(merged.path)["model.safetensors"] == expected["model.safetensors"]
        assert not eutectic.verify(merged.path).problems


def test_a_refused_sweep_leaves_the_table_as_it_was(models, tmp_path):
    eutectic.sweep(recipe(models, "ties", weight=1.0, density={"sweep": [0.2, 0.5]}), tmp_path / "out")
    before = (tmp_path / "out" / "sweep.json").read_bytes()
    other = recipe(models, "ties", weight=1.0, density={"sweep": [0.5, 0.7]}, **{"lambda": 0.5})
    with pytest.raises(EutecticError, match="W401"):
        eutectic.sweep(other, tmp_path / "out")
    assert (tmp_path / "out" / "sweep.json").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["density=0.2", "density=0.5", "sweep.json"]
    with pytest.raises(EutecticError, match="this folder holds a sweep; verify each"):
        eutectic.verify(tmp_path / "out")


def test_all_refused_merges_are_named_and_so_are_names_that_are_too_long(models, tmp_path):
    swept = recipe(models, "consensus_ta", k={"sweep": [1, 3, 4]})
    with pytest.raises(EutecticError) as caught:
        eutectic.sweep(swept, tmp_path / "out")
    assert "3 of 2 models" in str(caught.value) and "4 of 2 models" in str(caught.value)
    entries = [{"model": f"m{i}", "parameters": {"weight": {"sweep": [0.5]}}} for i in range(9)]
    with pytest.raises(EutecticError, match=r"R128 .*names would be too long"):
        eutectic.plan_sweep({**recipe(models, "task_arithmetic"), "models": entries})


def test_the_plan_of_a_sweep_needs_what_its_largest_merge_needs(models):
    swept = recipe(models, "nuslerp", nuslerp_flatten={"sweep": [True, False]})
    plans = eutectic.plan_sweep(swept)
    budgets = [api.budget_for(planned, Options(), 2) for planned in plans.values()]
    assert budgets[1].least_bytes > budgets[0].least_bytes
    assert api.largest(budgets) is budgets[1]
    for planned in plans.values():
        planned.close()


def test_every_merge_has_its_tokenizer_and_what_lies_beside_is_held_once(models, tmp_path, monkeypatch):
    models = [shutil.copytree(model, tmp_path / Path(model).name) for model in models]
    for number, model in enumerate(models):
        Path(model, "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}}, indent=number))
    swept = recipe([str(model) for model in models], "ties", density={"sweep": [0.2, 0.6, 1.0]})
    swept |= {"tokenizer_source": "union", "chat_template": "{{ 'x' }}"}
    held = []
    monkeypatch.setattr(api, "execute", lambda runs, *more: held.extend(runs) or execute(runs, *more))
    done = eutectic.sweep(swept, tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert len({id(run.beside.files[name]) for run in held}) == 1
    for label in done.merges:
        found = contents(tmp_path / "out" / label)
        assert json.loads(found["tokenizer_config.json"]) == {"chat_template": "{{ 'x' }}"}
        assert found["tokenizer.json"] == Path(models[0], "tokenizer.json").read_bytes()
        assert eutectic.verify(tmp_path / "out" / label).problems == []

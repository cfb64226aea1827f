"""Averages of checkpoints after training: which count, how much, in what order, and what is refused."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import eutectic
from eutectic.averaging import Window, average_recipe, statistics_note
from eutectic.averaging.checkpoints import step_of
from eutectic.errors import CheckpointError, EutecticError, RecipeError
from eutectic.testing import write_safetensors

STEPS = (100, 200, 400, 1000)


def tensors(seed, **extra):
    generator = torch.Generator().manual_seed(seed)
    made = {
        name: torch.randn(shape, generator=generator) for name, shape in (("a", (5, 3)), ("b.weight", (4,)), ("c", ()))
    }
    return {**made, **extra}


def batch_norm(seed):
    return {
        "n.running_mean": torch.full((2,), float(seed)),
        "n.running_var": torch.ones(2) + seed,
        "n.num_batches_tracked": torch.tensor(seed),
    }


@pytest.fixture
def run(tmp_path):
    """A Trainer's output folder: checkpoints in folders with everything that lies in them."""
    for step in STEPS:
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        write_safetensors(folder / "model.safetensors", tensors(step, **batch_norm(step)))
        write_safetensors(folder / "weight_average.safetensors", {"a": torch.full((5, 3), torch.nan)})
        (folder / "optimizer.pt").write_bytes(b"not read")
        (folder / "trainer_state.json").write_text("{}")
        (folder / "config.json").write_text(json.dumps({"made_at": step}))
    return tmp_path / "run"


def loaded(path):
    with eutectic.open(path) as source:
        return dict(source)


def mean_of(weights):
    """The oracle: a weighted mean in float64, rounded once."""
    total = sum(weights.values())
    made = [(tensors(step), weight) for step, weight in weights.items()]
    return {name: sum(m[name].double() * w for m, w in made).div(total).float() for name in made[0][0]}


def matches(out, weights):
    found, wanted = loaded(out), mean_of(weights)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-7, atol=1e-8)
    return found


@pytest.mark.parametrize(
    ("asked", "weights"),
    [
        ({}, dict.fromkeys(STEPS, 1)),
        ({"last": 2}, {400: 1, 1000: 1}),
        ({"last": 9}, dict.fromkeys(STEPS, 1)),
        ({"last": 2, "until": 400}, {200: 1, 400: 1}),
        ({"until": 999}, {100: 1, 200: 1, 400: 1}),
        ({"window": "exponential", "decay": 0.5}, {100: 1, 200: 2, 400: 4, 1000: 8}),
        ({"window": "exponential", "decay": 0.5, "last": 2}, {400: 1, 1000: 2}),
        (
            {"window": "ema", "decay": 0.5 ** (1 / 200), "until": 400},
            {100: 0.5**1.5, 200: (1 - 0.5**0.5) / 2, 400: 0.5},
        ),
    ],
)
def test_windows(run, tmp_path, asked, weights):
    done = eutectic.average(f"{run}/checkpoint-*", tmp_path / "out", **asked)
    found = matches(done.path, weights)
    assert found["n.num_batches_tracked"] == max(weights)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"made_at": max(weights)}
    assert not eutectic.verify(done.path).problems


def test_an_ema_by_steps_is_the_recursion():
    steps, decay = [3, 10, 11, 50], 0.97
    value = np.eye(4)[0]
    for before, after, one in zip(steps, steps[1:], np.eye(4)[1:], strict=False):
        value = decay ** (after - before) * value + (1 - decay ** (after - before)) * one
    np.testing.assert_allclose(Window("ema", decay).weights(steps), value, rtol=1e-12)


@given(
    st.lists(st.integers(0, 10**7), min_size=2, max_size=20, unique=True).map(sorted),
    st.floats(1e-6, 1 - 1e-9),
)
def test_weights_of_any_run(steps, decay):
    ema, by_place = Window("ema", decay).weights(steps), Window("exponential", decay).weights(steps)
    assert sum(ema) == pytest.approx(1) and min(ema) >= 0
    assert by_place == sorted(by_place) and by_place[-1] == 1


def test_a_pattern_a_list_and_any_order_give_the_same_bytes(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run.parent)
    listed = [f"run/checkpoint-{step}" for step in (1000, 100, 400, 200)]
    asked = {"window": "exponential", "decay": 0.7}
    for number, checkpoints in enumerate((["run/checkpoint-*"], listed, [*listed, "run/./checkpoint-100", "run/c*"])):
        eutectic.average(checkpoints, f"out{number}", **asked)
    made = [(tmp_path / f"out{number}" / "model.safetensors").read_bytes() for number in range(3)]
    assert made[0] == made[1] == made[2]


def test_steps_are_numbers_not_text(run):
    recipe = average_recipe(f"{run}/checkpoint-*", Window(last=2))
    assert [os.path.basename(entry["model"]) for entry in recipe["models"]] == ["checkpoint-1000", "checkpoint-400"]


@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("run/checkpoint-500", 500),
        ("run/checkpoint-500/", 500),
        ("run/checkpoint-500/model.safetensors", 500),
        ("model_step_20.pt", 20),
        ("step=7-v2.bin", 7),
        ("epoch=3-step=120.safetensors", 120),
        ("run7/final", 7),
        ("run/final", None),
        ("checkpoint-00100", 100),
        ("llama2-300", 300),
        ("step1-of-step20", 20),
    ],
)
def test_the_step_in_a_name(path, step):
    assert step_of(path) == step


def test_half_precision_is_averaged_wide_and_rounded_once(tmp_path):
    rows = [torch.randn(1000, generator=torch.Generator().manual_seed(seed)).bfloat16() for seed in range(7)]
    for step, row in enumerate(rows):
        write_safetensors(tmp_path / f"step{step}.safetensors", {"w": row})
    done = eutectic.average(f"{tmp_path}/step*.safetensors", tmp_path / "out")
    assert torch.equal(loaded(done.path)["w"], torch.stack(rows).double().mean(0).bfloat16())
    wide = eutectic.average(f"{tmp_path}/step*.safetensors", tmp_path / "wide", dtype="float32")
    assert torch.equal(loaded(wide.path)["w"], torch.stack(rows).double().mean(0).float())


def test_many_checkpoints(tmp_path):
    for step in range(40):
        write_safetensors(tmp_path / f"step{step}.safetensors", {"w": torch.tensor([float(step)])})
    assert float(loaded(eutectic.average(f"{tmp_path}/step*", tmp_path / "out").path)["w"]) == 19.5


def test_models_in_memory_count_in_their_order(tmp_path):
    models = [tensors(1, **batch_norm(1)), tensors(2, **batch_norm(2)), tensors(3, **batch_norm(3))]
    done = eutectic.average(models, tmp_path / "out", last=2)
    found = matches(done.path, {2: 1, 3: 1})
    assert found["n.num_batches_tracked"] == 3


def test_a_lazy_average(run):
    lazy = eutectic.merged(average_recipe(f"{run}/checkpoint-*"))
    torch.testing.assert_close(lazy["a"], mean_of(dict.fromkeys(STEPS, 1))["a"])


def test_the_same_command_again_and_resumed(run):
    """The output may stand among the checkpoints: a pattern does not take it, nor what a broken run left, for one."""
    out = run / "checkpoint-average"
    first = eutectic.average(f"{run}/checkpoint-*", out)
    assert not first.already_complete
    (run / "checkpoint-average.partial").mkdir()
    again = eutectic.average(f"{run}/checkpoint-*", out)
    assert again.already_complete and len(again.plan.inputs) == len(STEPS)


def test_batch_normalisation_is_told_of(run, tmp_path):
    seen = []
    done = eutectic.average(
        f"{run}/checkpoint-*", tmp_path / "out", on_plan=lambda plan, budget, notes: seen.extend(notes)
    )
    note = next(note for note in done.notes if "batch normalisation" in note)
    assert note in seen and note in json.loads((tmp_path / "out" / "eutectic.json").read_text())["notes"]
    assert "of n were averaged" in note and "update_bn" in note
    assert statistics_note(["a", "b.running_mean", "running_mean.weight"]) is None


# What is refused


def refused(checkpoints, out, code, **asked):
    with pytest.raises(EutecticError) as found:
        eutectic.average(checkpoints, out, **asked)
    assert {problem.code for problem in found.value.problems} == {code}
    assert not os.path.exists(out)
    return str(found.value)


def test_too_few(run, tmp_path):
    out = tmp_path / "out"
    assert "no checkpoint was named" in refused([], out, "T711")
    assert "only one checkpoint" in refused(f"{run}/checkpoint-100", out, "T711")
    assert "only one checkpoint" in refused([run / "checkpoint-100", f"{run}/./checkpoint-100"], out, "T711")
    assert re.search(r"holds 4 checkpoints: name them as '.*run/checkpoint-\*'", refused(run, out, "T711"))
    assert "1 of 4 checkpoints are of step 150 or before it" in refused(f"{run}/c*", out, "T711", until=150)
    for one in ({"a": 1}, torch.nn.Sequential(torch.nn.Linear(1, 1)), 7):
        assert "put it in brackets" in refused(one, out, "T711")


def test_patterns_that_match_nothing(run, tmp_path):
    out = tmp_path / "out"
    assert "matches nothing" in refused(f"{run}/step-*", out, "T711")
    assert "checkpoint-100, checkpoint-1000" in refused(f"{run}/step-*", out, "T711")
    assert "there is no folder" in refused(f"{tmp_path}/rn/checkpoint-*", out, "T711")
    assert refused([f"{run}/x*", f"{run}/y*"], out, "T711").count("matches nothing") == 2


def test_an_order_that_is_not_known(run, tmp_path):
    os.rename(run / "checkpoint-400", run / "checkpoint-best")
    out = tmp_path / "out"
    said = refused(f"{run}/checkpoint-*", out, "T712", last=2)
    assert "last needs an order" in said and "checkpoint-best" in said
    refused(f"{run}/checkpoint-*", out, "T712", window="ema", decay=0.9)
    os.rename(run / "checkpoint-best", run / "checkpoint-0100")
    said = refused(f"{run}/checkpoint-*", out, "T712", until=500)
    assert "until needs an order" in said and "both of step 100" in said
    # All alike need no order, but integers must not be anybody's choice then.
    assert "n.num_batches_tracked" in refused(f"{run}/checkpoint-*", out, "N503")


@pytest.mark.parametrize(
    ("asked", "places"),
    [
        ({"window": "linear"}, ["window"]),
        ({"window": "ema"}, ["decay"]),
        ({"decay": 0.9}, ["decay"]),
        ({"window": "exponential", "decay": 1}, ["decay"]),
        ({"window": "ema", "decay": "0.9"}, ["decay"]),
        ({"window": "ema", "decay": float("nan"), "last": 1, "until": -1}, ["decay", "last", "until"]),
        ({"last": True}, ["last"]),
        ({"last": 2.0}, ["last"]),
    ],
)
def test_windows_that_cannot_be(run, tmp_path, asked, places):
    with pytest.raises(RecipeError) as found:
        eutectic.average(f"{run}/checkpoint-*", tmp_path / "out", **asked)
    assert [(problem.code, problem.where) for problem in found.value.problems] == [("T713", place) for place in places]


def test_checkpoints_that_do_not_match(run, tmp_path):
    write_safetensors(
        run / "checkpoint-200" / "model.safetensors", {**tensors(1, **batch_norm(1)), "a": torch.ones(2, 3)}
    )
    assert "differs between the models" in refused(f"{run}/checkpoint-*", tmp_path / "out", "P301")


def test_a_checkpoint_that_was_cut_short(run, tmp_path):
    os.remove(run / "checkpoint-200" / "model.safetensors")
    os.remove(run / "checkpoint-200" / "weight_average.safetensors")
    with pytest.raises(CheckpointError, match="'checkpoint-200' holds no weights"):
        eutectic.average(f"{run}/checkpoint-*", tmp_path / "out")

"""Which answer a comparison gives, and which base it finds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import eutectic
from eutectic.adviser.one_run import of_one_run
from eutectic.errors import CheckpointError, Problem, RecipeError
from eutectic.testing import tiny_llama
from eutectic.testing.checkpoints import write_safetensors

Llama = Callable[..., str]


@pytest.fixture
def llama(tmp_path: Path) -> Llama:
    """Writes a tiny llama under a name; `base` is such a name."""

    def write(name: str, base: str | None = None, **options: Any) -> str:
        return tiny_llama(tmp_path / name, base=None if base is None else tmp_path / base, **options)

    return write


def edit(model: str, **changes: Any) -> None:
    path = Path(model) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_fine_tunes_of_one_base(llama: Llama) -> None:
    base, a, b = llama("base", seed=1), llama("a", "base", seed=2, noise=5e-4), llama("b", "base", seed=3, noise=5e-4)
    found = eutectic.compare([a, b], base=base)
    assert found.verdict.answer == "merge directly"
    assert found.models == ("a", "b")
    assert (found.base.label, found.base.given) == ("base", True)
    assert found.structure.vocabulary is True
    names = [name for name, _ in found.verdict.methods]
    assert names[0] == "task_arithmetic"
    assert "dare_linear" in names and "slerp" not in names
    assert "evaluate" in found.verdict.cautions[-1]
    assert repr(found) == "<Comparison of a, b against base: merge directly; 21 tensors, see .verdict>"


def test_heavy_fine_tunes(llama: Llama) -> None:
    base, a, b = llama("base", seed=1), llama("a", "base", seed=2, noise=4e-3), llama("b", "base", seed=3, noise=4e-3)
    found = eutectic.compare([a, b], base=base)
    assert found.verdict.answer == "merge directly"
    names = [name for name, _ in found.verdict.methods]
    assert "model_stock" in names and "dare_linear" not in names
    assert any("a, b moved far" in line for line in found.verdict.cautions)


def test_checkpoints_of_one_run_are_averaged(llama: Llama) -> None:
    base, run = llama("base", seed=1), llama("run", "base", seed=2, noise=2e-3, dtype="float32")
    a, b = llama("a", "run", seed=3, noise=2e-4), llama("b", "run", seed=4, noise=2e-4)
    found = eutectic.compare([a, b], base=base)
    assert found.verdict.methods[0][0] == "linear"
    assert Path(run).exists()


def test_colliding_changes() -> None:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(100, 100, generator=generator)
    where = torch.rand(100, 100, generator=generator) < 0.01
    signs = [torch.where(torch.rand(100, 100, generator=generator) < 0.5, 1.0, -1.0) for _ in range(2)]
    found = eutectic.compare([{"w": base + 0.1 * where * sign} for sign in signs], base={"w": base})
    assert "ties" in [name for name, _ in found.verdict.methods]


def test_many_specialists_of_low_rank() -> None:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(100, 100, generator=generator)

    def specialist() -> dict[str, Tensor]:
        return {"w": base + 1e-3 * torch.outer(*torch.randn(2, 100, generator=generator))}

    found = eutectic.compare([specialist() for _ in range(4)], base={"w": base})
    assert {"tsv_m", "iso_c"} <= {name for name, _ in found.verdict.methods}


def test_one_fine_tune_and_its_base(llama: Llama) -> None:
    base, a = llama("base", seed=1), llama("a", "base", seed=2, noise=1e-3)
    found = eutectic.compare([a, base], base=base)
    assert found.models == ("a",)
    assert [name for name, _ in found.verdict.methods] == ["wise_ft", "task_arithmetic"]


def test_two_models_without_a_base(llama: Llama) -> None:
    llama("base", seed=1)
    found = eutectic.compare([llama("a", "base", seed=2, noise=1e-3), llama("b", "base", seed=3, noise=1e-3)])
    assert found.verdict.answer == "merge directly"
    assert found.base.label is None
    assert [name for name, _ in found.verdict.methods] == ["linear", "slerp"]
    assert found.as_json()["whole"].keys() == {"tensors", "entries", "distance"}


def test_independent_trainings(llama: Llama) -> None:
    found = eutectic.compare([llama("a", seed=1), llama("b", seed=2)])
    assert found.verdict.answer == "align first"
    assert "not related: a and b (1.4" in found.verdict.reasons[0]
    assert not found.verdict.methods


def test_one_stranger_among_relatives(llama: Llama) -> None:
    base = llama("base", seed=1)
    tuned = [llama(name, "base", seed=seed, noise=1e-3) for seed, name in ((2, "a"), (3, "b"))]
    found = eutectic.compare([base, *tuned, llama("stranger", seed=9)])
    assert found.verdict.answer == "align first"
    assert "stranger" in found.verdict.reasons[0] and "a and b" not in found.verdict.reasons[0]
    wrong = eutectic.compare(tuned, base=llama("other", seed=8))
    assert wrong.verdict.answer == "not mergeable"
    assert "other is not the base of a, b" in wrong.verdict.reasons[0]


# The base


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("noises", [(1e-3, 1e-3, 1e-3), (5e-4, 2e-3, 4e-3)])
def test_the_base_is_found_wherever_it_stands(llama: Llama, place: int, noises: tuple[float, ...]) -> None:
    base = llama("base", seed=1, dtype="float32")
    names = zip("abc", noises, strict=True)
    models = [llama(name, "base", seed=5 + i, noise=n, dtype="float32") for i, (name, n) in enumerate(names)]
    found = eutectic.compare([*models[:place], base, *models[place:]])
    assert (found.base.label, found.base.given) == ("base", False)
    assert found.models == ("a", "b", "c")
    # It is the same comparison as with the base named.
    named = eutectic.compare(models, base=base)
    assert found.as_json()["cells"] == named.as_json()["cells"]


@pytest.mark.parametrize("count", [3, 4])
def test_siblings_have_no_base_among_them(llama: Llama, count: int) -> None:
    llama("base", seed=1)
    found = eutectic.compare([llama(f"m{i}", "base", seed=i + 2, noise=2e-3) for i in range(count)])
    assert found.base.label is None
    assert "no model stands in the middle" in found.base.reason
    assert found.verdict.answer == "merge directly"


def test_an_average_is_no_base() -> None:
    generator = torch.Generator().manual_seed(2)
    base = torch.randn(50, 50, generator=generator)
    tuned = [base + 0.05 * torch.randn(50, 50, generator=generator) for _ in range(3)]
    found = eutectic.compare([{"w": one} for one in (*tuned, sum(tuned) / 3)])  # type: ignore[operator]
    assert found.base.label is None
    assert "looks like an average" in found.base.reason


def test_a_model_of_zeros_is_no_base() -> None:
    generator = torch.Generator().manual_seed(2)
    models = [{"w": torch.randn(30, 30, generator=generator)} for _ in range(2)]
    found = eutectic.compare([*models, {"w": torch.zeros(30, 30)}])
    assert found.base.label is None
    assert found.verdict.answer == "align first"


def test_equal_models() -> None:
    same = torch.randn(20, 20, generator=torch.Generator().manual_seed(3))
    found = eutectic.compare([{"w": same.clone()} for _ in range(3)])
    assert found.base.reason == "the models are equal"
    based = eutectic.compare([{"w": same.clone()}, {"w": same + 1e-3}], base={"w": same})
    assert any("adds nothing" in line for line in based.verdict.cautions)
    assert [len(names) for names in based.untouched.values()] == [1]
    zeros = eutectic.compare([{"w": torch.zeros(3)}, {"w": torch.zeros(3)}])
    assert zeros.verdict.reasons == ("nothing tells the models apart",)


@pytest.mark.parametrize("base", [None, 1.0])
def test_models_that_are_one_have_nothing_to_merge(base: float | None) -> None:
    given = None if base is None else {"w": torch.full((4, 4), base), "b": torch.ones(4)}
    verdict = eutectic.compare([{"w": torch.ones(4, 4), "b": torch.ones(4)} for _ in range(2)], base=given).verdict
    assert verdict.reasons == ("nothing tells the models apart",)
    assert (verdict.methods, verdict.cautions) == ((), ("they are one model: a merge of them is that model",))


def test_opposite_changes_cancel() -> None:
    base, change = (torch.randn(30, 30, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    tuned = [{"w": base + by * change} for by in (0.01, -0.02, 0.03)]
    verdict = eutectic.compare(tuned, base={"w": base}).verdict
    told = "dict and dict#2, dict#2 and dict#3 changed in opposite directions: added up they cancel"
    assert any(line.startswith(told) for line in verdict.cautions)


def test_what_is_not_defined_is_not_told() -> None:
    """Models whose matrices stayed those of the base have changes without a direction."""
    base = {"w": torch.ones(4, 4), "b": torch.ones(4)}
    tuned = [base | {"b": torch.ones(4) + by} for by in (0.1, 0.2)]
    verdict = eutectic.compare(tuned, base=base).verdict
    assert not any("not defined" in line for line in verdict.reasons)
    assert "dict, dict#2 equal the base in every matrix: they add nothing" in verdict.cautions


# Structure


def test_shapes_that_differ_are_all_told(llama: Llama) -> None:
    found = eutectic.compare([llama("a", seed=1), llama("b", seed=2, intermediate=48, layers=3)])
    assert found.verdict.answer == "not mergeable"
    said = "\n".join(found.verdict.reasons)
    assert "model.layers.*.mlp.gate_proj.weight (2 tensors): a [64, 32], b [48, 32]" in said
    assert "model.layers.*.mlp.down_proj.weight (2 tensors): a [32, 64], b [32, 48]" in said
    assert "the numbers of layers differ: model.layers: a 2, b 3" in said
    assert any("num_hidden_layers: a 2, b 3" in line for line in found.verdict.cautions)
    assert found.whole is None


def test_models_of_different_depths_are_no_relatives(llama: Llama, tmp_path: Path) -> None:
    """Most tensors are common and near; the layers that one lacks are told in a line, not one by one."""
    deep = llama("deep", seed=1, layers=4)
    cut = {name: tensor for name, tensor in eutectic.open(deep).items() if ".layers.3." not in name}
    (tmp_path / "cut").mkdir()
    write_safetensors(tmp_path / "cut" / "model.safetensors", cut)
    verdict = eutectic.compare([deep, tmp_path / "cut"]).verdict
    assert verdict.answer == "not mergeable"
    assert verdict.reasons == ("the numbers of layers differ: model.layers: deep 4, cut 3",)
    assert not any("missing" in line for line in verdict.cautions)


def test_a_head_of_several_layers_may_be_missing() -> None:
    body = {f"encoder.{n}.w": torch.randn(8, 8, generator=torch.Generator().manual_seed(n)) for n in range(3)}
    head = {f"classifier.{n}.w": torch.ones(2, 2) for n in (0, 2)}
    verdict = eutectic.compare([body | head, {name: t + 0.01 for name, t in body.items()}]).verdict
    assert verdict.answer == "merge directly"
    told = "missing from dict#2: classifier.*.w (2 tensors) (`missing: copy` in a recipe copies them)"
    assert told in verdict.cautions


def test_heads_cut_another_way(llama: Llama) -> None:
    a, b = llama("a", seed=1), llama("b", "a", seed=2, noise=1e-3)
    edit(b, num_attention_heads=8, rope_theta=5.0)
    edit(a, rope_theta=4.0, _name_or_path="x")
    found = eutectic.compare([a, b])
    assert found.verdict.answer == "not mergeable"
    assert found.verdict.reasons == ("config.json says num_attention_heads: a 4, b 8",)
    assert found.verdict.cautions == ("config.json says rope_theta: a 4.0, b 5.0",)


def test_checkpoints_of_one_run_are_known_by_their_names(llama: Llama, tmp_path: Path) -> None:
    """A base of three checkpoints would be the one in the middle: their changes go one way, then another."""
    start = llama("start", seed=1)
    steps = [llama(f"run/checkpoint-{n}", "start", seed=n, noise=2e-3) for n in (5, 10, 15)]
    apart = eutectic.compare([start, *steps])
    assert apart.base.label == "start" and not apart.one_run
    found = eutectic.compare(steps)
    assert found.one_run and found.base.label is None
    assert [name for name, _ in found.verdict.methods] == ["linear"]
    assert "`eutectic average`" in found.verdict.methods[0][1]
    assert found.verdict.cautions[0].startswith("base: checkpoints of one run have no base among them")
    based = eutectic.compare(steps, base=start)
    assert (based.base.label, based.verdict.methods[0][0]) == ("start", "linear")


@pytest.mark.parametrize(
    ("paths", "one"),
    [
        (["/r/checkpoint-5", "/r/checkpoint-10"], True),
        (["/r/epoch=1-step=20.ckpt", "/r/epoch=2-step=40.ckpt"], True),
        (["/r/global_step7.safetensors", "/r/global_step8.safetensors"], True),
        (["/a/checkpoint-5", "/b/checkpoint-10"], False),
        (["/r/checkpoint-5", "/r/final"], False),
        (["/r/model-1", "/r/model-2"], False),
        (["/r/checkpoint-5"], False),
        (["", ""], False),
    ],
)
def test_what_is_a_run(paths: list[str], one: bool) -> None:
    assert of_one_run(paths) is one


def test_names_that_begin_otherwise_are_told_of(llama: Llama, tmp_path: Path) -> None:
    a = llama("a", seed=1)
    write_safetensors(tmp_path / "b.safetensors", {f"module.{k}": v for k, v in eutectic.open(a).items()})
    found = eutectic.compare([a, tmp_path / "b.safetensors"])
    assert found.verdict.answer == "not mergeable"
    said = "the names of b.safetensors begin with 'module.' (DataParallel), and those of a do not"
    assert said in found.verdict.cautions


def test_a_shard_is_told_of(llama: Llama) -> None:
    a, b = llama("a", seed=1), llama("b", "a", seed=2, shards=2)
    found = eutectic.compare([a, Path(b) / "model-00001-of-00002.safetensors"])
    said = "model-00001-of-00002.safetensors is one shard of 2: name its folder, or its index"
    assert said in found.verdict.cautions


def renumber(model: str, change: Callable[[dict[str, int]], dict[str, int]]) -> None:
    path = Path(model) / "tokenizer.json"
    data = json.loads(path.read_text())
    data["model"]["vocab"] = change(data["model"]["vocab"])
    path.write_text(json.dumps(data))


def test_vocabularies(llama: Llama) -> None:
    a, b = llama("a", seed=1), llama("b", "a", seed=2, noise=1e-3)
    assert eutectic.compare([a, b]).structure.vocabulary is True
    path = Path(b) / "tokenizer_config.json"
    path.write_text(path.read_text() + "\n")
    found = eutectic.compare([a, b])
    assert found.structure.vocabulary is True
    assert any("tokenizer_config.json (settings, not tokens)" in line for line in found.verdict.cautions)
    renumber(b, lambda vocab: vocab | {"new": 96})
    found = eutectic.compare([a, b])
    assert (found.verdict.answer, found.structure.vocabulary) == ("merge directly", False)
    assert any("nearly the same: 1 token is in one only ('new')" in t for t in found.verdict.cautions)
    renumber(b, lambda vocab: {token: (at if at < 3 else 98 - at) for token, at in vocab.items()})
    found = eutectic.compare([a, b])
    assert found.verdict.answer == "not mergeable"
    assert "rows of the embeddings mean different tokens" in found.verdict.reasons[0]


def test_vocabularies_with_hardly_a_token_in_common(llama: Llama) -> None:
    a, b = llama("a", seed=1), llama("b", "a", seed=2, noise=1e-3)
    renumber(b, lambda vocab: {(token if at < 3 else f"word{at}"): at for token, at in vocab.items()})
    found = eutectic.compare([a, b])
    assert found.verdict.answer == "not mergeable"
    assert "the vocabularies of a and b differ: only 3 of 96 tokens are in both" in found.verdict.reasons[0]


def test_two_tokens_that_were_swapped_are_named(llama: Llama) -> None:
    a, b = llama("a", seed=1, vocab=300), llama("b", "a", seed=2, noise=1e-3)
    renumber(b, lambda vocab: vocab | {"w5": vocab["w6"], "w6": vocab["w5"]})
    (said,) = (line for line in eutectic.compare([a, b]).verdict.cautions if "vocabularies" in line)
    assert "nearly the same: 2 tokens have other numbers ('w5' " in said


def test_broken_files_beside_say_nothing(llama: Llama) -> None:
    a, b = llama("a", seed=1), llama("b", "a", seed=2, noise=1e-3)
    for name in ("config.json", "tokenizer.json"):
        (Path(b) / name).write_text("{")
    found = eutectic.compare([a, b])
    assert (found.verdict.answer, found.structure.vocabulary) == ("merge directly", False)


def test_a_link_out_of_the_folder_is_refused(llama: Llama, tmp_path: Path) -> None:
    a, b = llama("a", seed=1), llama("b", "a", seed=2, noise=1e-3)
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (Path(b) / "vocab.json").symlink_to(secret)
    with pytest.raises(CheckpointError, match="C208"):
        eutectic.compare([a, b])


def test_tied_heads_and_missing_tensors(llama: Llama) -> None:
    base = llama("base", seed=1, tied=True)
    a = llama("a", "base", seed=2, noise=1e-3)
    b = llama("b", "base", seed=3, noise=1e-3, extra={"score.weight": torch.ones(2, 32)})
    found = eutectic.compare([a, b], base=base)
    assert found.verdict.answer == "merge directly"
    assert any(
        line.startswith("missing from a, base: score.weight (`missing: copy`") for line in found.verdict.cautions
    )
    names = [tensor.name for tensor in found.structure.matched]
    assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names


def test_most_of_a_model_is_missing() -> None:
    small, large = {"a": torch.ones(2, 2)}, {"a": torch.ones(2, 2), "b": torch.ones(9, 9)}
    found = eutectic.compare([small, large])
    assert found.verdict.answer == "not mergeable"
    assert "most of the weights are not in every model; missing from dict: b" in found.verdict.reasons
    nothing = eutectic.compare([{"a": torch.ones(2)}, {"b": torch.ones(2)}])
    assert nothing.verdict.answer == "not mergeable"


def test_integers_and_fp8(tmp_path: Path) -> None:
    floats = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    buffers = eutectic.compare([{"w": floats, "n": torch.arange(3)}, {"w": floats + 0.01, "n": torch.arange(3)}])
    assert buffers.verdict.answer == "merge directly"
    quantised = {"w": torch.zeros(8, 8, dtype=torch.int8), "scale": torch.ones(8)}
    found = eutectic.compare([quantised, {name: t.clone() for name, t in quantised.items()}])
    assert found.verdict.reasons == ("most entries are integers: the models are quantised; dequantise them first",)
    mixed = eutectic.compare([{"w": floats}, {"w": torch.zeros(8, 8, dtype=torch.int8)}])
    assert "floats in some models only: w: dict float32, dict#2 int8" in mixed.verdict.reasons
    write_safetensors(tmp_path / "f8.safetensors", {"w": floats.to(torch.float8_e4m3fn)})
    write_safetensors(tmp_path / "f32.safetensors", {"w": floats})
    eight = eutectic.compare([tmp_path / "f8.safetensors", tmp_path / "f32.safetensors"])
    assert eight.verdict.answer == "not mergeable"
    assert "f8.safetensors float8_e4m3fn, f32.safetensors float32" in eight.verdict.reasons[0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("row", [0, 1, 2])
def test_values_that_are_not_finite(bad: float, row: int) -> None:
    base = torch.randn(20, 20, generator=torch.Generator().manual_seed(1))
    models = [{"w": base + 0.01 * k, "v": base - 0.01 * k} for k in range(3)]
    models[row]["w"][3, 4] = bad
    for found in (eutectic.compare(models[1:], base=models[0]), eutectic.compare(models)):
        assert found.verdict.answer == "not mergeable"
        label = ("dict", "dict#2", "dict#3")[row]
        if found.base.given:
            label = ("dict#3", "dict", "dict#2")[row]
        assert found.verdict.reasons == (f"{label} has NaN, infinity or values too large to square in w",)
        json.dumps(found.as_json(), allow_nan=False)


# Requests


def test_requests_that_cannot_be(llama: Llama) -> None:
    a = llama("a", seed=1)
    for models in ([a], [], [a, a], [a, f"{a}/"]):
        with pytest.raises(RecipeError, match="A801 models: there is only one model"):
            eutectic.compare(models)
    with pytest.raises(RecipeError, match="another base"):
        eutectic.compare([a], base=a)
    for wrong in (a, {"w": torch.ones(1)}, 7, Path(a)):
        with pytest.raises(RecipeError, match="A801 models: models must be a list"):
            eutectic.compare(wrong)  # type: ignore[arg-type]
    for threads in (0, -1, True, 1.5):
        with pytest.raises(RecipeError, match="M603 threads"):
            eutectic.compare([a, a], threads=threads)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError) as error:
        eutectic.compare([f"{a}x", a], base="./nowhere")
    assert [problem.code for problem in error.value.problems] == ["C200", "C200"]


def test_sources_given_stay_open(llama: Llama) -> None:
    with eutectic.open(llama("a", seed=1)) as a, eutectic.open(llama("b", "a", seed=2)) as b:
        eutectic.compare([a, b])
        assert a["model.norm.weight"].numel() == b["model.norm.weight"].numel()


def test_models_are_modules_too() -> None:
    torch.manual_seed(0)
    base = torch.nn.Linear(16, 16)
    other = torch.nn.Linear(16, 16)
    other.load_state_dict({name: tensor + 0.01 for name, tensor in base.state_dict().items()})
    found = eutectic.compare([other], base=base)
    assert found.verdict.answer == "merge directly"


def test_a_file_that_changes_while_it_is_read(llama: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    from eutectic.checkpoint.extents import FileSource

    a, b = llama("a", seed=1), llama("b", "a", seed=2, noise=1e-3)

    def broken(self: FileSource, name: str, start: int, stop: int, out: memoryview) -> None:
        raise CheckpointError(Problem("C220", "changed", name))

    monkeypatch.setattr(FileSource, "read_into", broken)
    with pytest.raises(CheckpointError, match="C220"):
        eutectic.compare([a, b], threads=2)

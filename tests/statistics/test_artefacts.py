"""Folders of statistics: several passes, interruption, parts, and the command."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from collected_nets import Experts, cnn, mlp
from torch import Tensor, nn

import eutectic
from eutectic import statistics
from eutectic.checkpoint.statistics import read_about
from eutectic.errors import EutecticError, InterruptedMergeError
from eutectic.statistics import Options, collect
from eutectic.statistics.text import Text, batches_of

pytest.importorskip("transformers")
Run = Callable[..., Result]
KINDS = ("fisher", "gram", "activations")


def weights(folder: str) -> bytes:
    return Path(folder, "model.safetensors").read_bytes()


def about(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(folder, "statistics.json").read_text())
    return found


def the_same(a: str, b: str, tolerance: float = 1e-5) -> None:
    """Equal but for rounding."""
    with eutectic.open(a) as first, eutectic.open(b) as second:
        assert dict(first.specs) == dict(second.specs)
        for name in first:
            scale = float(second[name].abs().max())
            assert float((first[name] - second[name]).abs().max()) <= tolerance * scale, name


@pytest.mark.parametrize("kind", KINDS)
def test_from_text_to_a_folder(run: Run, kind: str) -> None:
    result = run(kind, "model", "out", "--data", "text.jsonl", "--length", "16", "--dtype", "float32")
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"{kind} of model" in result.stdout and "collected " in result.stdout
    with eutectic.open("out") as source, eutectic.open("model") as model:
        said = read_about(source)
        assert said.kind == kind and said.samples == about("out")["samples"] > 8
        assert said.digests.keys() == set(model)
        assert all(torch.isfinite(tensor).all() for tensor in source.values())
        assert said.norm == pytest.approx(sum(float((t.double() ** 2).sum()) for t in source.values()) ** 0.5)
        if kind == "fisher":
            assert {name: spec.shape for name, spec in source.specs.items()} == {
                name: spec.shape for name, spec in model.specs.items()
            }
    assert about("out")["tokens"] == sum(4 + 3 * i for i in range(8)), "each token is an input once, but the last"
    again = run(kind, "model", "out", "--data", "text.jsonl", "--length", "16", "--dtype", "float32")
    assert again.exit_code == 0 and "nothing to do" in again.stdout
    two = run(kind, "model", "out", "--data", "text.jsonl", "--data", "text.jsonl")
    assert two.exit_code == 2
    assert "M603 --data: takes one file, not 2" in two.stderr
    other = run(kind, "model", "out", "--data", "text.jsonl", "--length", "8")
    assert other.exit_code == 2 and "W401" in other.stderr
    assert run(kind, "model", "out", "--data", "text.jsonl", "--length", "8", "--replace", "-q").output == ""


def test_the_folder_holds_what_the_function_gives(run: Run) -> None:
    from eutectic.evaluate.language import Language
    from eutectic.evaluate.loading import Loader
    from eutectic.evaluate.model import Settings

    run("gram", "model", "out", "--data", "text.jsonl", "--dtype", "float32")
    loader = Loader()
    with eutectic.open("model") as source, loader.module(source, "causal", dtype="float32") as module:
        rows = Text("text.jsonl").sequences(Language(source, Settings(loader=loader)))
        found = statistics.gram(module, list(batches_of(rows, 8)))
    found.save("saved")
    assert weights("saved") == weights("out")
    assert repr(found) == f"<Statistics gram: {len(found.tensors)} tensors over 8 samples; see .tensors>"
    found.save("saved")
    with pytest.raises(EutecticError, match="W401"):
        statistics.activations(mlp(), [torch.randn(2, 7)]).save("saved")


@pytest.mark.parametrize("kind", KINDS)
def test_several_passes_give_the_same_bytes(run: Run, kind: str) -> None:
    arguments = (kind, "model", "--data", "text.jsonl", "--dtype", "float32")
    whole = json.loads(run(*arguments, "one", "--json").stdout)
    with eutectic.open("model") as model:
        held = sum(2 * spec.nbytes for spec in model.specs.values())
    room = held + (17_000 if kind != "activations" else 600)
    shown = run(*arguments, "several", "--memory", room)
    assert whole["passes"] == 1 and "in each of" in shown.stdout and "gone through" in shown.stdout
    assert weights("one") == weights("several")
    refused = run(*arguments, "none", "--memory", held + 100)
    assert refused.exit_code == 1 and "F105" in refused.stderr
    (least,) = re.findall(r"give at least (\d+kB)", refused.stderr)
    assert run(*arguments, "least", "--memory", least).exit_code == 0
    assert not os.path.exists("none") and not os.path.exists("none.partial")


@pytest.mark.parametrize(
    ("kind", "stopped_after"),
    [("fisher", 1), ("fisher", 5), ("gram", 3), ("gram", 5), ("activations", 1), ("activations", 4)],
)
def test_an_interrupted_collection_goes_on(here: Path, kind: Any, stopped_after: int) -> None:
    torch.manual_seed(0)
    module, loader = mlp(), [torch.randn(3, 7) for _ in range(4)]
    held = sum(4 * p.numel() for p in module.parameters())
    options = Options(memory=held + 4 * 100)
    collect(kind, module, loader, "whole", options=options)
    seen = 0

    def stop(samples: int) -> None:
        nonlocal seen
        seen += bool(samples)
        if seen == stopped_after:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(InterruptedMergeError, match="W407"):
        collect(kind, module, loader, "out", options=options, progress=stop)
    assert not os.path.exists("out") and os.path.exists("out.partial")
    with pytest.raises(EutecticError, match="W403"):
        collect(kind, module, loader, "out", options=Options(memory=held + 4 * 100, samples=5))
    counted: list[int] = []
    done = collect(kind, module, loader, "out", options=options, progress=counted.append)
    passes = len(done.planned.passes.units)
    assert sum(counted) <= 12 * passes and sum(map(bool, counted)) < 4 * passes + 1
    assert weights("out") == weights("whole") and about("out") == about("whole")
    assert not os.path.exists("out.partial")


@pytest.mark.parametrize("kind", KINDS)
def test_parts_make_the_whole(run: Run, kind: str) -> None:
    more = ("--labels", "data") if kind == "fisher" else ()
    for name in ("text", "first", "rest"):
        arguments = (kind, "model", f"{name}-out", "--data", f"{name}.jsonl", "--dtype", "float32", *more)
        assert run(*arguments).exit_code == 0
    result = run("merge", "first-out", "rest-out", "out")
    assert result.exit_code == 0 and "merged 2 parts" in result.stdout
    the_same("out", "text-out")
    merged, whole = about("out"), about("text-out")
    for key in ("kind", "samples", "tokens", "counts", "shared", "digests", "model"):
        assert merged[key] == whole[key], key
    assert [part["label"] for part in merged["parts"]] == ["first-out", "rest-out"]
    assert "nothing to do" in run("merge", "first-out", "rest-out", "out").stdout
    assert json.loads(run("merge", "first-out", "rest-out", "again", "--json").stdout)["samples"] == whole["samples"]


def test_parts_weigh_by_what_each_layer_saw(here: Path) -> None:
    torch.manual_seed(0)
    module, parts = Experts(), [torch.randn(4, 6, 5), torch.randn(1, 6, 5)]
    for number, part in enumerate(parts):
        statistics.gram(module, [part]).save(f"part{number}")
    statistics.gram(module, parts).save("whole")
    statistics.merge(["part0", "part1"], "out")
    the_same("out", "whole")
    assert about("out")["counts"] == about("whole")["counts"]
    assert about("out")["counts"]["experts.2.weight"] == 0


class Gated(nn.Module):
    """Two experts of two layers each; the sign of a sample's first entry chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            nn.ModuleDict({"gate": nn.Linear(4, 3, False), "up": nn.Linear(4, 3, False)}) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(len(x), 3)
        for number, expert in enumerate(self.experts):
            rows = ((x[:, 0] > 0) == bool(number)).nonzero()[:, 0]
            if len(rows):
                chosen = x[rows]
                out = out.index_add(0, rows, expert["gate"](chosen) * expert["up"](chosen))
        return out


def test_parts_whose_first_samples_reached_other_experts(here: Path) -> None:
    torch.manual_seed(0)
    module, x = Gated(), torch.randn(8, 4)
    x[:, 0] = torch.linspace(-1, 1, 8)
    parts = [x[:5], x.flip(0)]
    for number, part in enumerate(parts):
        statistics.gram(module, [part]).save(f"part{number}")
    assert about("part0")["shared"] != about("part1")["shared"]
    statistics.gram(module, [torch.cat(parts)]).save("whole")
    statistics.merge(["part0", "part1"], "out")
    with eutectic.open("out") as out, eutectic.open("whole") as whole:
        shared = about("whole")["shared"]
        assert out.specs.keys() == {f"experts.{i}.{part}.weight" for i in range(2) for part in ("gate", "up")}
        for name in out:
            torch.testing.assert_close(out[name], whole[shared.get(name, name)])
            assert about("out")["counts"][name] == about("whole")["counts"][shared.get(name, name)]
    assert about("out")["shared"] == {}


def test_parts_that_do_not_belong_together(run: Run) -> None:
    for name, model, kind in (("a", "model", "gram"), ("b", "other", "gram"), ("c", "model", "activations")):
        assert run(kind, model, name, "--data", "text.jsonl").exit_code == 0
    for parts, words in (
        (("a", "b"), ["'b' and 'a' differ in the weights of the model"]),
        (("a", "c"), ["'c' and 'a' differ in the kind of statistics", "differ in tensors (lm_head."]),
        (("a", "a"), ["'a' is 'a' once more"]),
        (("a",), ["two parts or more"]),
        (("a", "model"), ["C260"]),
    ):
        result = run("merge", *parts, "out")
        assert result.exit_code in (1, 2) and all(word in result.stderr for word in words), result.stderr
        assert not os.path.exists("out")


def test_samples_and_packing(run: Run) -> None:
    common = ("gram", "model", "--data", "text.jsonl", "--length", "8", "--json")
    whole = json.loads(run(*common, "whole").stdout)["samples"]
    assert json.loads(run(*common, "few", "--samples", "5").stdout)["samples"] == 5
    run(*common, "others", "--samples", "5", "--seed", "1")
    assert weights("few") != weights("others")
    packed = json.loads(run(*common, "packed", "--pack").stdout)["samples"]
    # One document for all, of 8 x (4 + 3 i) words and 8 openings, and the last token predicts nothing.
    assert packed == -(-(sum(4 + 3 * i for i in range(8)) + 7) // 8) < whole


def test_a_module_of_ones_own_over_a_loader(here: Path) -> None:
    torch.manual_seed(0)
    module, loader = cnn(), [torch.randn(3, 3, 12, 12), torch.randn(2, 3, 12, 12)]
    torch.save(module.state_dict(), "net.pt")
    collect("fisher", "net.pt", loader, "stored", module=cnn)
    collect("fisher", module, loader, "live")
    assert weights("stored") == weights("live")
    assert about("stored")["digests"] == about("live")["digests"]
    statistics.fisher(module, loader).save("memory")
    the_same("memory", "live", 0)


def test_another_loader_or_loss_is_not_taken_for_the_same_collection(here: Path) -> None:
    torch.manual_seed(0)
    module, loader = mlp(), [torch.randn(3, 7), torch.randn(2, 7)]
    collect("fisher", module, loader, "out")
    assert collect("fisher", module, [batch.clone() for batch in loader], "out").already_complete
    with pytest.raises(EutecticError, match="W401"):
        collect("fisher", module, loader[::-1], "out")
    with pytest.raises(EutecticError, match="W401"):
        collect("fisher", module, loader, "out", loss=lambda output, batch: output.sum(1))
    collect("fisher", module, loader, "summed", loss=lambda output, batch: output.sum(1))
    assert about("out")["labels"] == "model" and about("summed")["labels"] == "data"


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("C200", ("gram", "modle", "out", "--data", "text.jsonl")),
        ("E903", ("gram", "model", "out", "--data", "no.jsonl")),
        ("E904", ("gram", "model", "out", "--data", "fields.jsonl")),
        ("E904", ("gram", "model", "out", "--data", "empty.txt")),
        ("E907", ("gram", "model", "out", "--data", "text.jsonl", "--length", "4096")),
        ("F108", ("gram", "model", "out", "--data", "text.jsonl", "--dtype", "flaot32")),
        ("M602", ("gram", "model", "out", "--data", "text.jsonl", "--device", "tpu")),
        ("M603", ("gram", "model", "out", "--data", "text.jsonl", "--memory", "much")),
        ("W405", ("gram", "model", "no/such/out", "--data", "text.jsonl")),
        ("W406", ("gram", "model", "model", "--data", "text.jsonl")),
        ("W406", ("gram", "model", "model/out", "--data", "text.jsonl")),
        ("E906", ("gram", "bare", "out", "--data", "text.jsonl")),
    ],
)
def test_mistakes(run: Run, here: Path, code: str, arguments: tuple[str, ...]) -> None:
    (here / "bare").mkdir()
    for name in ("model.safetensors", "config.json"):
        (here / "bare" / name).write_bytes((here / "model" / name).read_bytes())
    result = run(*arguments)
    assert result.exit_code in (1, 2) and code in result.stderr, result.stderr
    assert not (here / "out").exists() and not (here / "out.partial").exists()
    if "F108" in code:
        assert "did you mean 'float32'" in result.stderr


@pytest.mark.parametrize(
    ("code", "kind", "data", "options"),
    [
        ("F108", "grams", [torch.randn(2, 7)], {}),
        ("F108", "gram", iter([torch.randn(2, 7)]), {}),
        ("F108", "gram", torch.randn(2, 7), {}),
        ("F108", "gram", {"input": torch.randn(2, 7)}, {}),
        ("F108", "gram", [torch.randn(2, 7)], {"batch": 0}),
        ("F108", "fisher", [torch.randn(2, 7)], {"labels": "none"}),
        ("F101", "gram", [], {}),
    ],
)
def test_mistakes_in_python(here: Path, code: str, kind: Any, data: Any, options: dict[str, Any]) -> None:
    with pytest.raises(EutecticError, match=code):
        collect(kind, mlp(), data, "out", options=Options(**options))
    with pytest.raises(EutecticError, match="E905"):
        collect("gram", {"weight": nn.Linear(2, 2).weight}, [torch.randn(2, 2)], "out")

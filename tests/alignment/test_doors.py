"""Two models as users name them, and the alignment that comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eutectic
from eutectic.alignment import (
    Aligned,
    Factor,
    Group,
    Moves,
    Symmetries,
    align,
    axis,
    fixed,
    prove,
    random_moves,
    symmetries_of,
)
from eutectic.checkpoint import Alignment, MemorySource, open_source, read_alignment
from eutectic.errors import CheckpointError, EutecticError, RecipeError
from eutectic.evaluate import Loader
from eutectic.testing import tiny_llama, write_safetensors

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("aligned")
    sizes: dict[str, Any] = {"layers": 1, "hidden": 16, "intermediate": 24}
    tiny_llama(home / "a", seed=1, **sizes)
    tiny_llama(home / "tuned", seed=2, base=home / "a")
    tiny_llama(home / "apart", seed=3, **sizes)
    tiny_llama(home / "wide", seed=4, **sizes | {"intermediate": 32})
    (home / "text.jsonl").write_text(
        "".join(json.dumps({"text": f"w{3 + k} w{9 + k} w5 w{20 + k}"}) + "\n" for k in range(9))
    )
    return home


@pytest.fixture
def here(models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(models)
    return tmp_path


def scrambled(model: str, seed: int = 0) -> tuple[MemorySource, Moves]:
    """A model as a random element of its group makes it, in float32."""
    with eutectic.open(model) as source:
        table = symmetries_of(source)
        moves = random_moves(table, seed)
        return MemorySource("scrambled", dict(Aligned(source, table, moves))), moves


def test_what_was_scrambled_is_found_and_its_merge_is_the_original(here: Path) -> None:
    other, _ = scrambled("a")
    # The scrambled model has no config, which the first one has.
    found = align("a", other, out=here / "perm")
    assert found.gain > 1 - 1e-9 and found.reference.label == "a" and found.model.label == "scrambled"
    assert found.objective[0] < found.objective[-1] and list(found.objective[1:]) == sorted(found.objective[1:])
    merged = eutectic.merged(
        {"merge_method": "linear", "models": ["a", {"model": other, "aligned": str(here / "perm")}], "dtype": "float32"}
    )
    with eutectic.open("a") as original:
        for name in merged:
            torch.testing.assert_close(merged[name], original[name].float(), rtol=1e-6, atol=1e-6)


def test_fine_tunes_stand_alike_already_and_that_is_said(here: Path) -> None:
    found = align("a", "tuned")
    assert found.moves == Moves() and found.gain == 0
    assert found.notes[-1] == "nothing moves: the models stand alike already, as fine-tunes of one base do"


def test_the_same_seed_gives_the_same_alignment_and_a_folder_that_has_it_is_kept(here: Path) -> None:
    said: list[str] = []
    first = align("a", "apart", out=here / "perm", tell=said.append)
    written = (here / "perm" / "alignment.json").stat().st_mtime_ns
    assert said and said[0].startswith("sweep ")
    said.clear()
    again = align("a", "apart", out=here / "perm", tell=said.append)
    assert not said and (here / "perm" / "alignment.json").stat().st_mtime_ns == written
    assert again.as_json() == first.as_json() == align("a", "apart").as_json()
    with pytest.raises(RecipeError, match="W401"):
        align("a", "apart", seed=1, out=here / "perm", tell=said.append)
    assert not said, "refused before any work"
    assert align("a", "apart", seed=1, out=here / "perm", replace=True).settings["seed"] == 1
    with open_source(here / "perm") as source:
        assert read_alignment(source).settings["seed"] == 1


def test_activations_match_over_text(here: Path) -> None:
    found = align("a", "apart", method="activations", data="text.jsonl", seed=3)
    assert found.method == "activations" and found.settings["data"]["samples"] is None
    other, _ = scrambled("a", 4)
    write = here / "scrambled"
    write.mkdir()
    write_safetensors(write / "model.safetensors", dict(other))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if Path("a", name).exists():
            (write / name).write_bytes(Path("a", name).read_bytes())
    assert align("a", write, method="activations", data="text.jsonl").gain > 0.99


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.down(torch.tanh(self.up(x)))
        return made


def nets() -> Iterator[Net]:
    for seed in (0, 1):
        torch.manual_seed(seed)
        yield Net()


def shuffled(net: Net, order: Tensor) -> Net:
    other = Net()
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        other.up.weight.copy_(net.up.weight[order])
        other.up.bias.copy_(net.up.bias[order])
        other.down.weight.copy_(net.down.weight[:, order])
    return other


def batches() -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(16, 3, generator=draw) for _ in range(4)]


@pytest.mark.parametrize("how", [{}, {"method": "activations", "data": batches()}])
def test_live_modules_are_traced_and_aligned(how: dict[str, Any]) -> None:
    net, _ = nets()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    other = shuffled(net, order)
    inputs = {} if how else {"inputs": torch.zeros(1, 3)}
    found = align(net, other, **how, **inputs)
    assert found.gain == pytest.approx(1)
    view = found.source(other)
    assert all(torch.equal(view[name], net.state_dict()[name]) for name in view)
    assert [name for name in net.state_dict() if not torch.equal(other.state_dict()[name], net.state_dict()[name])]


@pytest.mark.parametrize("method", ["straight_through", "sinkhorn"])
def test_methods_by_the_loss_are_reached(method: Any) -> None:
    net, apart = nets()
    found = align(
        net,
        apart,
        method=method,
        data=batches(),
        loss=lambda out, batch: (out - net(batch)).square().mean(dim=1),
        steps=4,
    )
    assert found.method == method and found.settings["steps"] == 4


def refused(kind: type[EutecticError] = RecipeError, *models: Any, **keys: Any) -> list[str]:
    with pytest.raises(kind) as caught:
        align(*(models or ("a", "apart")), **keys)
    return [str(problem) for problem in caught.value.problems]


def test_what_a_method_lacks_or_has_no_use_for(here: Path) -> None:
    assert refused(method="activation") == [
        "G116 method: 'activation' is no way to match units; did you mean 'activations'?"
    ]
    assert refused(method="activations") == ["G116 data: activations needs data; give a file of text, or batches"]
    assert refused(data="text.jsonl", steps=3) == [
        "G116 data: weights uses no data; leave it out",
        "G116 steps: weights uses no steps; leave it out",
    ]
    assert [one.split(" needs")[0] for one in refused(method="straight_through")] == [
        "G116 data: straight_through",
        "G116 loss: straight_through",
        "G116 steps: straight_through",
    ]


def test_models_of_other_shapes_are_refused(here: Path) -> None:
    (found,) = refused(RecipeError, "a", "wide", out=here / "perm")
    assert found.startswith("G170 3 of 12 tensors have other shapes in 'a' and 'wide': model.layers.0.mlp.")
    assert not (here / "perm").exists()


def test_what_is_told_by_names_alone_is_noted_and_twins_are_told_apart() -> None:
    first, second = (nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2))
    assert "by names and shapes alone" in align(first, second).notes[0]
    assert align(first, second, inputs=torch.randn(2, 3)).notes == ()
    wide = nn.Sequential(nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 2))
    assert "in 'Sequential' and 'Sequential#2': 0.weight is [8, 3] and [9, 3]" in refused(RecipeError, first, wide)[0]


def test_a_model_in_which_no_unit_may_move_is_no_fine_tune() -> None:
    first, second = (nn.Sequential(nn.Linear(3, 8), nn.Softsign(), nn.Flatten(0)) for _ in range(2))
    assert align(first, second, inputs=torch.randn(2, 3)).notes[-1].startswith("nothing can move")


def test_a_model_of_another_kind_is_refused_before_it_is_traced() -> None:
    other = nn.Conv2d(3, 4, 1)
    found = refused(RecipeError, nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), other)
    assert found[0].startswith("G171 'Sequential' has 4 of its 4 tensors, which 'Conv2d' has not: 0.weight")


def test_matrices_of_integers_have_no_say_and_are_refused(here: Path) -> None:
    tensors = dict(eutectic.open("apart"))
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = (tensors[name].float() * 100).to(torch.int8)
    (line,) = refused(RecipeError, "a", MemorySource("small", tensors))
    assert line.startswith(f"G114 {name}: is int8 in 'small', which is not compared; align models before")


def test_arguments_of_other_kinds_are_refused() -> None:
    net, apart = nets()
    found = refused(RecipeError, net, apart, method="activations", data=torch.zeros(4, 3), symmetries="mlp")
    assert [line.split(":")[0] for line in found] == ["G116 data", "G116 symmetries"]


def test_a_network_of_no_known_family_needs_a_module(here: Path) -> None:
    odd = {"mystery": torch.ones(3, 4)}
    found = refused(RecipeError, odd, odd | {"mystery": torch.zeros(3, 4)})
    assert found[0].startswith("G160")


def test_models_that_are_not_there_are_refused(here: Path) -> None:
    assert "C200" in refused(CheckpointError, "a", "gone")[0]


def test_another_thing_where_the_folder_should_be_is_kept(here: Path) -> None:
    (here / "notes.txt").write_text("mine")
    assert refused(out=here, replace=True)[0].startswith("W401")
    assert (here / "notes.txt").read_text() == "mine"


def test_an_alignment_that_cannot_be_read_is_replaced_if_that_is_asked_for(here: Path) -> None:
    align("a", "apart", out=here / "perm")
    about = here / "perm" / "alignment.json"
    about.write_text(about.read_text().replace('"seed": 0', '"seed": 7'))
    assert "W401" in refused(out=here / "perm")[0] and "no alignment that can be read" in refused(out=here / "perm")[0]
    align("a", "apart", out=here / "perm", replace=True)
    with open_source(here / "perm") as source:
        assert read_alignment(source).settings["seed"] == 0


@pytest.mark.parametrize("odd", [{"memory": "1GiB"}, {"restarts": 1.5}, {"sweeps": None}])
def test_what_is_no_number_is_refused(here: Path, odd: dict[str, Any]) -> None:
    assert refused(**odd)[0].startswith(f"G116 {next(iter(odd))}: must be a whole number, not ")


def test_what_is_called_meanwhile_is_a_function(here: Path) -> None:
    assert refused(tell="loud", on_plan=3) == [
        "G116 tell: must be a function to call, not 'loud'",
        "G116 on_plan: must be a function to call, not 3",
    ]


def test_symmetries_are_proved_and_wrong_ones_are_found_out(here: Path) -> None:
    table, check = prove("a", elements=1)
    assert check.holds and check.error < 1e-12 and table.origin
    axes = dict(table.axes)
    name = "model.layers.0.mlp.gate_proj.weight"
    axes[name] = (axes["model.layers.0.mlp.down_proj.weight"][1], axes[name][1])  # its units are scaled like others
    _, wrong = prove("a", symmetries=Symmetries(table.groups, axes, table.gauges), elements=1)
    assert not wrong.holds and [*wrong.broken] == ["layers.0.mlp"]


def test_what_a_module_is_called_with_must_be_known(here: Path) -> None:
    net, _ = nets()
    with pytest.raises(RecipeError, match="G116 inputs: nothing says what Net is called with"):
        prove(net)
    assert prove(net, inputs=torch.ones(2, 3))[1].holds


def test_the_public_names_are_these() -> None:
    assert eutectic.align is align and eutectic.Alignment is Alignment


def test_a_buffer_in_which_nothing_moves_may_be_in_one_model_only(here: Path) -> None:
    net, apart = nets()
    a, b = (MemorySource(label, dict(one.state_dict())) for label, one in (("a", net), ("b", apart)))
    with_ids = MemorySource("b", {**apart.state_dict(), "ids": torch.arange(3)})
    plain = symmetries_of(a, module=net, inputs=torch.zeros(1, 3))
    table = replace(plain, axes={**plain.axes, "ids": (fixed(3),)})
    due = align(a, b, symmetries=plain)
    found = align(a, with_ids, symmetries=table)
    assert found.moves.orders.keys() == due.moves.orders.keys() and found.gain == due.gain
    assert found.notes[0] == "only one model has ids, in which nothing moves: not compared"
    assert torch.equal(found.source(with_ids)["ids"], torch.arange(3))
    assert "ids" not in align(with_ids, b, symmetries=table).source(b)
    moving = replace(
        plain, groups={**plain.groups, "odd": Group(3)}, axes={**plain.axes, "ids": (axis(Factor(3, "odd")),)}
    )
    assert (
        "G171 'b' has 1 of its 5 tensors, which 'a' has not: ids"
        in refused(RecipeError, a, with_ids, symmetries=moving)[0]
    )


def test_a_proof_takes_tied_names_and_stored_buffers_that_the_module_lacks(here: Path) -> None:
    tiny_llama(here / "tied", seed=1, layers=1, hidden=16, intermediate=16, tied=True)
    with eutectic.open(here / "tied") as source:
        table = symmetries_of(source)
    assert "lm_head.weight" not in table.axes
    assert prove(here / "tied", elements=1)[1].holds
    more = replace(table, axes={**table.axes, "model.ids": (fixed(3),)})
    assert prove(here / "tied", symmetries=more, elements=1)[1].holds


@pytest.mark.parametrize("family", ["experts", "vision"])
def test_symmetries_of_what_is_stored_by_other_names_are_proved_by_loading_it(family: str, here: Path) -> None:
    import transformers

    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 16,
    }
    if family == "experts":
        heads = {"num_key_value_heads": 2, "num_local_experts": 3, "vocab_size": 40}
        module = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, **heads))
    else:
        module = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, image_size=8, patch_size=4))
    module.save_pretrained(here / family)
    with eutectic.open(here / family) as source:
        assert not source.specs.keys() <= module.state_dict().keys()
        table = symmetries_of(source)
    assert prove(here / family, elements=1)[1].holds
    # Units of the feed-forward layer that are scaled where they are made and not where they are read.
    name = next(name for name, one in table.groups.items() if one.size == 16 and name != "residual")
    scaled = replace(table, groups={**table.groups, name: Group(16, "positive")})
    made = {place: tuple(axis(*parts[0].factors) for parts in one) for place, one in table.axes.items()}
    assert not prove(here / family, symmetries=replace(scaled, axes=made), elements=1)[1].holds


def test_a_residual_stream_that_turns_is_an_alignment_like_any_other(here: Path) -> None:
    found = align("a", "apart", method="orthogonal", out=here / "turned")
    assert found.distance[1] < align("a", "apart").distance[1]
    assert found.moves.matrices["residual"].shape == (1, 16, 16)
    assert align("a", "apart", method="orthogonal", out=here / "turned").as_json() == found.as_json()
    recipe = {"merge_method": "passthrough", "models": [{"model": "apart", "aligned": str(here / "turned")}]}
    eutectic.merge(recipe, here / "out", dtype="float32")
    words = {"input_ids": torch.randint(90, (2, 8), generator=torch.Generator().manual_seed(0))}
    logits = []
    for model in ("apart", here / "out"):
        with eutectic.open(model) as source, Loader().module(source, "causal", dtype="float64") as module:
            logits.append(module(**words).logits)
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-6)

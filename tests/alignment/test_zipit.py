"""ZipIt!: what becomes of tensors, what runs once, and what is refused."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from traced_nets import Mlp, Separable, Vgg

from eutectic.alignment.moves import random_moves
from eutectic.alignment.tracing import traced
from eutectic.alignment.zipit import Zipped, load_zipped, reset_statistics, save_zipped, zipit
from eutectic.alignment.zipit.together import Together
from eutectic.averaging import update_bn
from eutectic.checkpoint.symmetry import Factor, Group, Symmetries, axis, fixed
from eutectic.errors import CheckpointError, EutecticError, RecipeError

IMAGES = (3, 6, 6)


class ResNet(nn.Module):
    """A stage of one block, and a layer after it; normalised, with a head of its own for so many classes."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv1, self.norm1 = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.last, self.norm3, self.fc = nn.Conv2d(4, 8, 3, 2), nn.BatchNorm2d(8), nn.Linear(8, classes)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        way = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        way += x
        return self.fc(self.relu(self.norm3(self.last(self.relu(way)))).mean((2, 3)))


def network(make: Callable[..., nn.Module], seed: int, *given: int) -> nn.Module:
    """In float64, with gains, shifts and running statistics that are no 0 or 1, and no unit that is never active."""
    torch.manual_seed(seed)
    module = make(*given)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.copy_(torch.rand_like(tensor) + (0.0 if name.endswith("mean") else 0.5))
    return module.double().eval()


def data(*shape: int, batches: int = 2, size: int = 32, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, *shape, generator=generator, dtype=torch.float64) for _ in range(batches)]


@cache
def table(make: Callable[..., nn.Module], *shape: int) -> Symmetries:
    return traced(make().double(), torch.zeros(2, *shape, dtype=torch.float64))


def apart(found: Any, wanted: Any) -> float:
    return float((found - wanted).abs().max().detach())


KINDS = {"mlp": (Mlp, (5,)), "vgg": (Vgg, IMAGES), "resnet": (ResNet, IMAGES)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("models", [2, 3])
def test_copies_of_a_model_zip_to_the_model(kind: str, models: int) -> None:
    make, shape = KINDS[kind]
    module = network(make, 1)
    given = [copy.deepcopy(module) for _ in range(models)]
    zipped = zipit(given, data(*shape), table(make, *shape), heads="averaged", alpha=1, beta=0)
    assert apart(zipped.eval()(data(*shape)[0])[-1], module(data(*shape)[0])) < 1e-12
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(zipped.tensors[name], tensor, rtol=1e-14, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_in_another_order_zips_to_the_model(kind: str) -> None:
    make, shape = KINDS[kind]
    module, other = network(make, 2), network(make, 2)
    x = data(*shape, size=64)
    symmetries, state = table(make, *shape), module.state_dict()
    moves = random_moves(symmetries, 3)
    other.load_state_dict({name: symmetries.made(name, state.__getitem__, moves) for name in state})
    zipped = zipit([module, other], x, symmetries, beta=0, alpha=1).eval()
    for found in zipped(x[0]):
        assert apart(found, module(x[0])) < 1e-9
    assert all(group.similarity is not None and group.similarity > 0.7 for group in zipped.groups.values())


def test_layers_are_merged_and_unmerged_by_the_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    import eutectic.alignment.zipit.door as door

    seen = {}

    def spy(similarity: Tensor, models: int, **options: float) -> Any:
        seen[len(similarity)] = found = real(similarity, models, **options)
        return found

    real = door.greedy
    monkeypatch.setattr(door, "greedy", spy)
    a, b = network(Mlp, 1), network(Mlp, 2)
    zipped = zipit([a, b], data(5), beta=0.5)
    one, two = seen[12], seen[14]
    found = zipped.members[0]
    joint = torch.block_diag(a.two.weight, b.two.weight)
    torch.testing.assert_close(found.one.weight, one.merge @ torch.cat([a.one.weight, b.one.weight]))
    torch.testing.assert_close(found.two.weight, two.merge @ joint @ one.unmerge)
    torch.testing.assert_close(found.two.bias, two.merge @ torch.cat([a.two.bias, b.two.bias]))
    for model, member, u in zip((a, b), zipped.members, two.unmerge.split(7), strict=True):
        torch.testing.assert_close(member.three.weight, model.three.weight @ u)
        assert torch.equal(member.three.bias, model.three.bias) and member.one.weight is found.one.weight


def test_channels_keep_their_places_behind_a_flatten() -> None:
    a, b = network(Vgg, 1), network(Vgg, 2)
    zipped = zipit([a, b], data(*IMAGES), table(Vgg, *IMAGES), until="features.3")
    assert set(zipped.groups) == {"features.0", "features.3"}
    own, made = zipped.members[1].classifier[0].weight, zipped.groups["features.3"]
    assert own is not zipped.members[0].classifier[0].weight and made.units == 6
    # Each unit's columns go where it went, place by place: all of a place are still there.
    for place in range(6):
        torch.testing.assert_close(own[:, place::6].sum(1), b.classifier[0].weight[:, place::6].sum(1))


def test_all_groups_up_to_a_stage_are_zipped_and_the_rest_stays() -> None:
    a, b = network(ResNet, 1, 5), network(ResNet, 2, 3)
    x = data(*IMAGES)
    zipped = zipit([a, b], x, table(ResNet, *IMAGES), until="conv2.weight").eval()
    assert all(not name.startswith(("last", "fc")) for name in zipped.shared)
    assert {"stem.weight", "norm2.running_var", "conv1.weight"} <= zipped.shared
    assert set(zipped.groups) == {"stem", "conv1"}
    for model, member in zip((a, b), zipped.members, strict=True):
        assert torch.equal(member.fc.weight, model.fc.weight) and torch.equal(member.last.bias, model.last.bias)
        torch.testing.assert_close(member.last.weight.sum(1), model.last.weight.sum(1))
    assert apart(zipped(x[0])[1], zipped.members[1](x[0])) < 1e-12
    with pytest.raises(RecipeError, match=r"G245 each model has tensors of its own: last.weight"):
        _ = zipped.tensors


def test_what_is_common_is_computed_once_and_members_agree() -> None:
    modules = [network(ResNet, seed, classes) for seed, classes in ((1, 5), (2, 3))]
    zipped = zipit(modules, data(*IMAGES), table(ResNet, *IMAGES)).eval()
    for size in (32, 3):
        x = data(*IMAGES, size=size, seed=1)[0]
        for found, member in zip(zipped(x), zipped.members, strict=True):
            assert apart(found, member(x)) < 1e-12
        assert zipped.joint(x).shape == (size, 8)
    cost, head = zipped.cost(x), 2 * 3 * 8 * 8
    assert cost.flops == (cost.flops_apart - head) / 2 + head
    own = sum(one.numel() for member in zipped.members for one in member.fc.parameters())
    assert cost.parameters == (cost.parameters_apart - own) / 2 + own


def test_in_another_dtype_the_trunk_is_still_one() -> None:
    images = data(*IMAGES)
    zipped = zipit([network(ResNet, 1), network(ResNet, 2)], images)
    zipped(images[0])
    zipped.float().train()
    states = [dict(member.named_buffers()) | dict(member.named_parameters()) for member in zipped.members]
    assert all(states[0][name] is states[1][name] for name in zipped.shared)
    zipped.cost(images[0].float())
    assert zipped.training and zipped.members[0].training
    zipped.eval()
    written = io.BytesIO()
    torch.save(zipped, written)
    written.seek(0)
    again = torch.load(written, weights_only=False)
    assert again.members[0].stem.weight is again.members[1].stem.weight
    torch.testing.assert_close(again(images[0].float()), zipped(images[0].float()))
    for found, member in zip(zipped(images[0].float()), zipped.members, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, member(images[0].float()))


def test_sizes_may_change_and_graphs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    import eutectic.alignment.zipit.together as together

    made = []
    real = together._exported
    monkeypatch.setattr(together, "_exported", lambda *given: made.append(1) or real(*given))
    modules = [network(Mlp, 1), network(Mlp, 2)]
    run = Together(modules)
    for size, graphs in ((4, 2), (7, 2), (1, 4), (4, 4), (1, 4)):
        x = data(5, size=size)[0]
        assert all(torch.equal(found, module(x)) for found, module in zip(run(x), modules, strict=True))
        assert len(made) == graphs, "of a size that broadcasts there is another"


def test_attention_is_computed_once() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.before(x)
            return self.head(self.after(nn.functional.scaled_dot_product_attention(x, x, x)))

    modules = [Attention(), Attention()]
    zipped, x = Zipped(modules, ["before.weight", "before.bias", "after.weight", "after.bias"]), torch.randn(3, 5, 4)
    cost, head = zipped.cost(x), 2 * 15 * 6 * 2
    assert cost.flops == cost.flops_apart / 2 + head
    assert all(torch.equal(found, module(x)) for found, module in zip(zipped(x), modules, strict=True))


def test_what_is_random_is_not_computed_once() -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    a, b = Together([Noise(), Noise()])(torch.zeros(4))
    assert not torch.equal(a, b)


def test_constants_and_structured_outputs() -> None:
    class Structured(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Any]:
            return {"logits": x * torch.tensor([1.0, 2.0]) * self.factor * scale, "none": None}

    run = Together([Structured(1.0), Structured(3.0)])
    a, b = run(torch.ones(3, 2), scale=2.0)
    assert a["none"] is None and torch.equal(b["logits"], 3 * a["logits"]) and a["logits"][0].tolist() == [2.0, 4.0]
    assert run(torch.ones(3, 2), scale=1.0)[0]["logits"][0].tolist() == [1.0, 2.0]


def test_a_module_without_a_graph_or_with_a_memory_is_refused() -> None:
    class Loop(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return x * self.count

    with pytest.raises(RecipeError, match=r"G246 torch.export finds no graph of Loop"):
        Together([Loop()])(torch.ones(3))
    with pytest.raises(RecipeError, match="G246 Counter changes 'count'"):
        Together([Counter()])(torch.ones(3))


def test_all_heads_train_one_trunk() -> None:
    zipped = zipit([network(Mlp, 1), network(Mlp, 2)], data(5), table(Mlp, 5)).train()
    first, second = zipped(data(5)[0])
    (first.sum() + second.sum()).backward()
    both = zipped.members[0].one.weight.grad
    zipped.zero_grad()
    zipped.eval()
    sum(found.sum() for found in zipped(data(5)[0])).backward()
    torch.testing.assert_close(zipped.members[1].one.weight.grad, both)
    assert len(list(zipped.parameters())) == 8


def test_statistics_of_the_trunk_are_over_all_tasks_and_of_heads_over_their_own() -> None:
    zipped = zipit(
        [network(ResNet, 1), network(ResNet, 2)], data(*IMAGES), table(ResNet, *IMAGES), until="conv2.weight"
    )
    loaders = [data(*IMAGES, seed=3), [one + 2 for one in data(*IMAGES, seed=4, batches=1)]]
    reset_statistics(zipped, loaders)
    wanted = copy.deepcopy(zipped.members[0])
    update_bn([torch.cat([loaders[0][0], loaders[1][0]]), loaders[0][1]], wanted)
    for name, tensor in zipped.members[1].state_dict().items():
        if "running" in name and name in zipped.shared:
            torch.testing.assert_close(tensor, wanted.state_dict()[name])
    for member, loader in zip(zipped.members, loaders, strict=True):
        # What the head is given in evaluation mode is what its statistics are of.
        given: list[Tensor] = []
        member.norm3.register_forward_pre_hook(lambda _, args, given=given: given.append(args[0]))
        for images in loader:
            member(images)
        torch.testing.assert_close(member.norm3.running_mean, torch.cat(given).mean((0, 2, 3)))
    assert {"norm2.running_mean", "norm.running_var"} <= zipped.shared and "norm3.running_mean" not in zipped.shared
    with pytest.raises(RecipeError, match="G248 loaders: 1 loader for 2 models"):
        reset_statistics(zipped, loaders[:1])


def test_a_folder_has_the_trunk_once_and_is_read_again(tmp_path: Path) -> None:
    modules = [network(ResNet, 1, 5), network(ResNet, 2, 3)]
    zipped = zipit(modules, data(*IMAGES), table(ResNet, *IMAGES)).eval()
    save_zipped(zipped, tmp_path / "out")
    save_zipped(zipped, tmp_path / "out")
    found = load_zipped(tmp_path / "out", [network(ResNet, 8, 5), network(ResNet, 9, 3)]).eval()
    x = data(*IMAGES, seed=5)[0]
    assert all(torch.equal(a, b) for a, b in zip(found(x), zipped(x), strict=True))
    assert found.groups == zipped.groups and found.shared == zipped.shared
    assert found.members[0].conv1.weight is found.members[1].conv1.weight
    about = json.loads((tmp_path / "out" / "zipit.json").read_text())
    assert {"models.1.fc.bias", "trunk.conv1.weight"} <= about["tensors"].keys()
    assert "models.1.conv1.weight" not in about["tensors"]


def test_a_folder_of_other_models_is_refused_with_all_that_differs(tmp_path: Path) -> None:
    save_zipped(
        zipit([network(ResNet, 1, 5), network(ResNet, 2, 3)], data(*IMAGES), table(ResNet, *IMAGES)), tmp_path / "out"
    )
    with pytest.raises(CheckpointError) as error:
        load_zipped(tmp_path / "out", [network(ResNet, 8, 4), network(Vgg, 9)])
    said = [str(one) for one in error.value.problems]
    assert "G247 modules[0]: models.0.fc.bias is of shape [5] in the folder, [4] in the module" in said
    assert any("G247 modules[1]: the folder has no models.1.features.0.weight" in one for one in said)
    assert any("the modules have no models.1.fc.weight" in one for one in said)
    with pytest.raises(CheckpointError, match="holds 2 models, and 1 module is given"):
        load_zipped(tmp_path / "out", [network(ResNet, 8, 4)])
    about = tmp_path / "out" / "zipit.json"
    text = json.loads(about.read_text())
    about.write_text(json.dumps({**text, "tensors": {**text["tensors"], "trunk.conv1.weight": "0"}}))
    with pytest.raises(CheckpointError, match=r"trunk.conv1.weight are not as they were saved"):
        load_zipped(tmp_path / "out", [network(ResNet, 8, 5), network(ResNet, 9, 3)])
    about.write_text("{}")
    with pytest.raises(CheckpointError, match=r"G247 out: zipit.json is not what it should be"):
        load_zipped(tmp_path / "out", [network(ResNet, 8, 5), network(ResNet, 9, 3)])


def test_heads_of_attention_stand_and_so_it_is_said() -> None:
    u, h = Factor(6, "units"), (Factor(2, "heads"), Factor(3))
    axes = {
        "0.weight": (axis(u), fixed(5)),
        "0.bias": (axis(u),),
        "1.weight": (axis(*h), axis(u, role="in")),
        "1.bias": (axis(*h),),
        "2.weight": (fixed(4), axis(*h, role="in")),
        "2.bias": (fixed(4),),
    }
    symmetries = Symmetries({"units": Group(6), "heads": Group(2), "queries": Group(2, within="heads")}, axes)
    modules = [nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)).double() for _ in range(2)]
    zipped = zipit(modules, data(5), symmetries)
    assert zipped.groups["heads"].similarity is None and zipped.groups["units"].similarity is not None
    torch.testing.assert_close(zipped.members[0][1].bias, (modules[0][1].bias + modules[1][1].bias) / 2)


def test_classifiers_of_text_get_one_encoder() -> None:
    transformers = pytest.importorskip("transformers")

    def bert(seed: int, labels: int) -> nn.Module:
        torch.manual_seed(seed)
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
        config = transformers.BertConfig(vocab_size=20, max_position_embeddings=9, num_labels=labels, **sizes)
        return transformers.BertForSequenceClassification(config).double().eval()

    ids = torch.randint(20, (6, 7), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": (torch.arange(7) < torch.tensor([[7], [5]] * 3)).long()}
    zipped = zipit([bert(0, 3), bert(1, 2)], [batch], beta=1).eval()
    for found, member in zip(zipped(**batch), zipped.members, strict=True):
        torch.testing.assert_close(found.logits, member(**batch).logits)
    assert zipped.joint(**batch).shape == (6, 5)
    cost = zipped.cost(**batch)
    assert cost.flops < 0.51 * cost.flops_apart
    assert [name for name, group in zipped.groups.items() if group.similarity is None] == ["encoder.layer.0.heads"]
    query = zipped.members[1].bert.encoder.layer[0].attention.self.query.weight
    assert query is zipped.members[0].bert.encoder.layer[0].attention.self.query.weight


def refused(modules: list[nn.Module], batches: Any, *given: Any, **options: Any) -> list[str]:
    with pytest.raises(EutecticError) as error:
        zipit(modules, batches, *given, **options)
    return [str(one) for one in error.value.problems]


def test_requests_that_cannot_be_are_refused() -> None:
    a, b = network(ResNet, 1, 5), network(ResNet, 2, 3)
    x = data(*IMAGES)
    symmetries = table(ResNet, *IMAGES)
    assert refused([a], x)[0].startswith("G240 modules: 1 is too few")
    assert refused([a, b.state_dict()], torch.ones(2, 3), symmetries) == [  # type: ignore[list-item]
        "G240 modules[1]: must be a live module, not a OrderedDict; load the weights into one",
        "G240 batches: must be a list of batches or a loader, not a Tensor; one batch alone is [batch]",
    ]
    assert refused([a, b], x, symmetries, alpha=True, beta=2)[1] == "G240 beta: must be a number from 0 to 1, not 2"
    assert "not 'mean'" in refused([a, b], x, symmetries, heads="mean")[0]
    assert "3 for 2" in refused([a, b], x, [symmetries] * 3)[0]
    assert refused([a, b], x, symmetries, heads="averaged", until="conv1")[0].startswith("G245 heads")
    assert refused([a, b], x, symmetries, heads="averaged")[0].startswith(
        "G245 modules[1]: fc.bias is [5] float64 on cpu in the first, and [3] float64 on cpu here"
    )
    assert refused([a, b], x, symmetries, until=["cnv1", "conv1"]) == [
        "G242 until: 'cnv1' is no group, and no tensor that makes one; did you mean 'conv1'?"
    ]
    assert "there was no batch" in refused([a, b], [], symmetries)[0]
    assert "there was no batch" in refused([a, b], [])[0]
    separable = [network(Separable, seed) for seed in (1, 2)]
    assert refused(separable, x)[0].startswith("G243 pointwise")


def test_models_that_do_not_fit_are_refused_with_all_that_differs() -> None:
    a, b = network(ResNet, 1), network(Vgg, 2)
    x = data(*IMAGES)
    said = refused([a, b], x, table(ResNet, *IMAGES))
    assert any("G244 modules[1]: its symmetries name tensors that it has not: stem.weight" in one for one in said)
    assert any("G244 modules[1]: its symmetries do not name features.0.weight" in one for one in said)
    said = refused([a, b], x)
    assert any("has 0 units of 'conv1', and the first has 6" in one for one in said)
    wide = copy.deepcopy(a)
    wide.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False).double()
    said = refused([a, wide], x, table(ResNet, *IMAGES))
    assert any("stem.weight is of shape [6, 3, 3, 3], and its symmetries are for [4, 3, 3, 3]" in one for one in said)
    said = refused([a, network(ResNet, 2).float()], x, table(ResNet, *IMAGES))
    assert "stem.weight is [4, 3, 3, 3] float64 on cpu in the first, and [4, 3, 3, 3] float32 on cpu here" in said[-1]
    broken = copy.deepcopy(a)
    broken.conv1.weight.data[0] = torch.nan
    assert refused([a, broken], x, table(ResNet, *IMAGES))[0].startswith("G241")


def test_tied_tensors_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.hidden = nn.Embedding(9, 6), nn.Linear(6, 6)
            self.head = nn.Linear(6, 9, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(torch.tanh(self.hidden(self.embed(ids))))

    torch.manual_seed(0)
    modules = [Tied().double() for _ in range(2)]
    ids = torch.randint(9, (8, 5))
    zipped = zipit(modules, [ids], heads="averaged").eval()
    weights = [getattr(member, name).weight for member in zipped.members for name in ("embed", "head")]
    assert all(weight is weights[0] for weight in weights) and {"embed.weight", "head.weight"} <= zipped.shared
    assert isinstance(zipped, Zipped) and torch.equal(*zipped(ids))

"""Repaired channels have the means and deviations of the parents', and nothing else changes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eutectic.alignment.renormalisation import MOST, repair
from eutectic.averaging.statistics import update_bn
from eutectic.errors import EutecticError


def seeded(make: Any, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    made: nn.Module = make()
    for norm in made.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    return made


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 12, bias=False), nn.Tanh(),
        nn.Linear(12, 3),
    )  # fmt: skip


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 6, 3),
        nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(6 * 16, 10), nn.ReLU(), nn.Linear(10, 3),
    )  # fmt: skip


def averaged(parents: list[nn.Module], shares: list[float]) -> nn.Module:
    merged = copy.deepcopy(parents[0])
    states = [parent.state_dict() for parent in parents]
    mixed = {
        name: sum(w * state[name] for w, state in zip(shares, states, strict=True))
        if states[0][name].is_floating_point()
        else states[0][name]
        for name in states[0]
    }
    merged.load_state_dict(mixed)
    return merged


def made(module: nn.Module, x: Tensor, depth: int) -> np.ndarray:
    """Outputs of the first `depth` parts, (samples, channels)."""
    out = copy.deepcopy(module).eval()[:depth](x).detach().double()
    return (out.movedim(1, -1).flatten(0, -2) if out.dim() > 2 else out).numpy()


X = torch.randn(64, 6, generator=torch.Generator().manual_seed(9))
IMAGES = torch.randn(32, 2, 6, 6, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("share", [0.5, 0.3, 0.0])
@pytest.mark.parametrize("size", [64, 10])
def test_every_hidden_channel_has_the_mean_and_deviation_of_the_parents(share: float, size: int) -> None:
    parents = [seeded(mlp, 1), seeded(mlp, 2)]
    merged = averaged(parents, [1 - share, share])
    found = repair(merged, parents, list(X.split(size)), weights=[1 - share, share])
    for depth in (1, 3):
        a, b, own = (made(one, X, depth) for one in (*parents, found.module))
        np.testing.assert_allclose(own.mean(0), (1 - share) * a.mean(0) + share * b.mean(0), atol=1e-5)
        np.testing.assert_allclose(own.std(0), (1 - share) * a.std(0) + share * b.std(0), rtol=1e-4)
    a, b, own = (made(one, X, 5) for one in (*parents, found.module))
    np.testing.assert_allclose(own.std(0), (1 - share) * a.std(0) + share * b.std(0), rtol=1e-4)
    assert "no bias" in found.changed["4.weight"]
    assert any("1 of 3 layers have no bias" in note for note in found.notes)
    assert found.left == {"6": "its output is the model's"}
    assert torch.equal(found.module[6].weight, merged[6].weight)


def test_the_closed_form_takes_moments_of_the_parents_alone() -> None:
    parents, w = [seeded(mlp, 1), seeded(mlp, 2)], 0.3
    merged = averaged(parents, [1 - w, w])
    found = repair(merged, parents, list(X.split(20)), weights=[1 - w, w], how="closed_form")
    a, b = (made(one, X, 3) for one in parents)
    cov = ((a - a.mean(0)) * (b - b.mean(0))).mean(0)
    var = (1 - w) ** 2 * a.var(0) + 2 * w * (1 - w) * cov + w**2 * b.var(0)
    gain = ((1 - w) * a.std(0) + w * b.std(0)) / np.sqrt(var)
    mean = (1 - w) * a.mean(0) + w * b.mean(0)
    np.testing.assert_allclose(
        found.module[2].weight.detach(), gain[:, None] * merged[2].weight.detach().numpy(), rtol=1e-4
    )
    np.testing.assert_allclose(
        found.module[2].bias.detach(), mean + gain * (merged[2].bias.detach().numpy() - mean), rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("how", ["sequential", "closed_form"])
@pytest.mark.parametrize(("make", "data"), [(mlp, X), (cnn, IMAGES)])
def test_a_merge_of_a_model_with_itself_stays_as_it_is(how: Any, make: Any, data: Tensor) -> None:
    one = seeded(make, 1)
    batches = list(data.split(8))
    update_bn(batches, one)  # so that computing its statistics anew gives the same
    found = repair(one, [one, one], batches, how=how)
    assert found.changed
    for name, tensor in found.module.state_dict().items():
        torch.testing.assert_close(tensor, one.state_dict()[name], atol=1e-6, rtol=1e-6, msg=name)


def test_repairing_twice_changes_nothing_more() -> None:
    parents = [seeded(mlp, 1), seeded(mlp, 2)]
    once = repair(averaged(parents, [0.5, 0.5]), parents, [X])
    again = repair(once.module, parents, [X])
    for name, tensor in again.module.state_dict().items():
        torch.testing.assert_close(tensor, once.module.state_dict()[name], atol=2e-5, rtol=1e-4)


def test_batch_normalisation_is_reset_and_what_feeds_it_stays() -> None:
    parents = [seeded(cnn, 1), seeded(cnn, 2)]
    merged = averaged(parents, [0.5, 0.5])
    before = copy.deepcopy(merged.state_dict())
    found = repair(merged, parents, list(IMAGES.split(8)))
    state = found.module.state_dict()
    assert found.left["0"] == "its output is normalised over the batch" and torch.equal(
        state["0.weight"], before["0.weight"]
    )
    made_by_conv = made(found.module, IMAGES, 1)
    np.testing.assert_allclose(state["1.running_mean"], made_by_conv.mean(0), atol=1e-5)
    assert torch.equal(state["1.weight"], before["1.weight"])
    for depth in (4, 7):
        a, b, own = (made(one, IMAGES, depth) for one in (*parents, found.module))
        np.testing.assert_allclose(own.std(0), (a.std(0) + b.std(0)) / 2, rtol=1e-3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in merged.state_dict().items())


def test_what_is_changed_in_place_before_it_is_normalised_is_repaired() -> None:
    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2)
        )

    parents = [seeded(make, 1), seeded(make, 2)]
    found = repair(averaged(parents, [0.5, 0.5]), parents, [IMAGES])
    assert list(found.left) == ["4"] and "0.weight" in found.changed
    a, b, own = (made(one, IMAGES, 1) for one in (*parents, found.module))
    np.testing.assert_allclose(own.std(0), (a.std(0) + b.std(0)) / 2, rtol=1e-3)
    np.testing.assert_allclose(found.module[2].running_mean, made(found.module, IMAGES, 2).mean(0), atol=1e-5)


def test_with_affine_normalised_channels_are_as_the_parents() -> None:
    parents = [seeded(cnn, 1), seeded(cnn, 2)]
    found = repair(averaged(parents, [0.5, 0.5]), parents, list(IMAGES.split(8)), affine=True)
    a, b, own = (made(one, IMAGES, 2) for one in (*parents, found.module))
    np.testing.assert_allclose(own.std(0), (a.std(0) + b.std(0)) / 2, rtol=1e-2)
    np.testing.assert_allclose(own.mean(0), (a.mean(0) + b.mean(0)) / 2, atol=1e-3)


def test_dead_channels_make_no_nan_and_no_large_gain() -> None:
    parents = [seeded(mlp, 1), seeded(mlp, 2)]
    with torch.no_grad():
        for parent in parents:
            parent[0].weight[3] = 0.0
        parents[1][0].weight[5] = -0.999 * parents[0][0].weight[5]
    merged = averaged(parents, [0.5, 0.5])
    found = repair(merged, parents, [X])
    assert all(tensor.isfinite().all() for tensor in found.module.state_dict().values())
    assert f"1 of 16 held at {MOST:g}" in found.changed["0.weight"]
    assert not found.module[0].weight[3].any()
    expected = (parents[0][0].bias[3] + parents[1][0].bias[3]) / 2
    torch.testing.assert_close(found.module[0].bias[3], expected)


class Text(nn.Module):
    """A norm of samples, padding that is huge, a layer that is called twice, a head that is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(9, 6), nn.LayerNorm(6)
        self.up, self.down, self.twice = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        h = self.embed(input_ids) + 1e4 * (1 - attention_mask)[..., None]
        h = self.twice(self.twice(h))
        h = h + self.down(self.up(self.norm(h)).relu())
        return self.head(h)


def test_padding_counts_nowhere_and_the_rest_is_said() -> None:
    parents = [seeded(Text, 1), seeded(Text, 2)]
    ids = torch.randint(0, 9, (6, 5), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(5) < torch.tensor([5, 3, 2, 5, 4, 1])[:, None]).long()
    batches = [{"input_ids": ids[:4], "attention_mask": mask[:4]}, {"input_ids": ids[4:], "attention_mask": mask[4:]}]
    found = repair(averaged(parents, [0.5, 0.5]), parents, batches)
    single = [
        {"input_ids": ids[i : i + 1, : mask[i].sum()], "attention_mask": mask[i : i + 1, : mask[i].sum()]}
        for i in range(6)
    ]
    alone = repair(averaged(parents, [0.5, 0.5]), parents, single)
    for name, tensor in found.module.state_dict().items():
        torch.testing.assert_close(tensor, alone.module.state_dict()[name], atol=1e-4, rtol=1e-3)
    assert set(found.left) == {"embed", "twice", "head"} and "2 times" in found.left["twice"]
    assert any("LayerNorm" in note for note in found.notes)


class Odd(nn.Module):
    """Two layers with one bias, layers of other kinds, and one like all others."""

    def __init__(self) -> None:
        super().__init__()
        self.volume, self.up = nn.Conv3d(1, 2, 2), nn.ConvTranspose3d(2, 2, 2)
        self.one, self.two, self.three, self.head = nn.Linear(54, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.two.bias = self.one.bias

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(torch.relu(self.volume(x))).flatten(1)
        return self.head(torch.relu(self.three(torch.relu(self.two(torch.relu(self.one(x)))))))


def test_layers_that_cannot_be_repaired_stay_and_are_named() -> None:
    parents = [seeded(Odd, 1), seeded(Odd, 2)]
    merged = averaged(parents, [0.5, 0.5])
    found = repair(merged, parents, [torch.randn(16, 1, 3, 3, 3)])
    assert set(found.changed) == {"three.weight", "three.bias"}
    assert found.left["one"] == found.left["two"] == "its weight or bias is another layer's too"
    assert found.left["volume"].startswith("Conv3d is no") and found.left["up"].startswith("ConvTranspose3d is no")
    assert torch.equal(found.module.one.bias, merged.one.bias)


@pytest.mark.parametrize(("broken", "affine"), [(0, False), (1, True)])
def test_broken_statistics_of_batch_normalisation_are_refused(broken: int, affine: bool) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))

    models = [seeded(make, 1), seeded(make, 2)]
    with torch.no_grad():
        models[broken][0].weight[0] = torch.nan
    with pytest.raises(EutecticError, match="F102 1: NaN or infinity"):
        repair(models[0], models[1:], [IMAGES], affine=affine)


def test_bad_requests_are_answered_at_once_and_together() -> None:
    parents = [seeded(mlp, 1), seeded(cnn, 2)]
    with pytest.raises(EutecticError) as caught:
        repair(parents[0], parents, iter([X]), weights=[1.0], how="sequentail")  # type: ignore[arg-type]
    text = str(caught.value)
    for part in ("parents[1]: differs", "did you mean 'sequential'", "gone through again", "1 weight for 2 parents"):
        assert part in text
    with pytest.raises(EutecticError) as caught:
        repair(parents[0], [parents[0].state_dict()], X)  # type: ignore[list-item]
    said = [str(one) for one in caught.value.problems]
    assert said[0].startswith("G210 parents[0]: must be a live module, not a OrderedDict")
    assert said[1].startswith("G211 batches") and said[1].endswith("a list of them, or a DataLoader")
    with pytest.raises(EutecticError, match="not all 0"):
        repair(parents[0], parents[:1], [X], weights=[0.0])
    with pytest.raises(EutecticError, match="F101"):
        repair(parents[0], parents[:1], [])
    with pytest.raises(EutecticError, match="F102 0: NaN or infinity"):
        repair(parents[0], parents[:1], [torch.full((3, 6), torch.nan)])


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["sequential", "closed_form"])
def test_a_gpu_repairs_alike(how: Any) -> None:
    parents = [seeded(cnn, 1), seeded(cnn, 2)]
    merged = averaged(parents, [0.5, 0.5])
    one = repair(merged, parents, list(IMAGES.split(8)), how=how).module.state_dict()
    moved = [copy.deepcopy(each).cuda() for each in (merged, *parents)]
    two = repair(moved[0], moved[1:], list(IMAGES.split(8)), how=how).module.state_dict()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name].cpu(), tensor, atol=1e-2, rtol=1e-2)

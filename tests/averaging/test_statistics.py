"""Batch normalisation statistics computed anew: every value counts the same, and nothing else is changed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

from eutectic.averaging import update_bn
from eutectic.errors import RecipeError


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 4), nn.BatchNorm1d(4)
    )


def data(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, generator=generator) for size in sizes]


def test_every_sample_counts_the_same():
    """torch gives the short last batch the weight of a whole one; a mean over all samples does not."""
    model, batches = network(), data(64, 64, 4)
    update_bn(batches, model)
    inside = model[0](torch.cat(batches))
    torch.testing.assert_close(model[1].running_mean, inside.mean(0))
    variances = torch.stack([model[0](x).var(0) for x in batches])
    sizes = torch.tensor([64.0, 64.0, 4.0])
    torch.testing.assert_close(model[1].running_var, (variances * sizes[:, None]).sum(0) / sizes.sum())
    theirs = network()
    swa_utils.update_bn(batches, theirs)
    assert not torch.allclose(theirs[1].running_mean, inside.mean(0), rtol=1e-3)


def test_it_equals_torch_for_equal_batches():
    ours, theirs = (nn.Sequential(*(m for m in network() if not isinstance(m, nn.Dropout))) for _ in range(2))
    batches = data(16, 16, 16)
    update_bn(batches, ours)
    swa_utils.update_bn(batches, theirs)
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, theirs.state_dict()[name])


def test_statistics_hold_in_evaluation():
    """Dropout is off, as it is when the statistics are used: what the second layer puts out has mean 0, variance 1."""
    model, batches = network(), data(500)
    update_bn(batches, model)
    out = model.eval()(batches[0])
    torch.testing.assert_close(out.mean(0), torch.zeros(4), atol=5e-3, rtol=0)
    torch.testing.assert_close(out.var(0), torch.ones(4), atol=5e-3, rtol=0)


@pytest.mark.parametrize("training", [True, False])
def test_modes_momenta_and_hooks_are_put_back(training):
    model = network().train(training)
    model[1].momentum, model[5].momentum = None, 0.25
    model[5].eval()  # frozen by its owner
    modes = [module.training for module in model.modules()]
    update_bn(data(8, 8), model)
    assert [module.training for module in model.modules()] == modes
    assert (model[1].momentum, model[5].momentum) == (None, 0.25)
    assert not model[1]._forward_pre_hooks and not model[5]._forward_pre_hooks
    assert model[1].num_batches_tracked == 2


def test_positions_count_in_convolutions():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    small, large = torch.randn(2, 1, 2, 2), torch.randn(2, 1, 8, 8)
    update_bn([small, large], model)
    every = torch.cat([model[0](x).transpose(0, 1).flatten(1) for x in (small, large)], 1)
    torch.testing.assert_close(model[1].running_mean, every.mean(1))


class Odd(nn.Module):
    """Takes keywords, uses one layer twice, another never, and one without running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
        self.plain = nn.BatchNorm1d(2, track_running_stats=False)
        self.instance = nn.InstanceNorm1d(2, track_running_stats=True)

    def forward(self, x, shift=0.0):
        self.instance(x[:, :, None].expand(-1, -1, 3) * torch.arange(3.0))
        return self.twice(input=self.plain(self.twice(x + shift)) + 3)


def test_odd_models_and_batches():
    model = Odd()
    model.never.running_mean.fill_(7)
    x = torch.randn(10, 2)
    update_bn([{"x": x, "shift": 1.0}], model)
    assert torch.equal(model.never.running_mean, torch.full((2,), 7.0))
    torch.testing.assert_close(model.twice.running_mean, ((x + 1).mean(0) + 3) / 2, atol=1e-5, rtol=1e-5)
    assert not torch.equal(model.instance.running_mean, torch.zeros(2))
    update_bn([(x, "label")], model)
    torch.testing.assert_close(model.twice.running_mean, (x.mean(0) + 3) / 2, atol=1e-5, rtol=1e-5)
    update_bn([("label", x)], model, forward=lambda network, batch: network(batch[1]))
    torch.testing.assert_close(model.twice.running_mean, (x.mean(0) + 3) / 2, atol=1e-5, rtol=1e-5)


def test_a_loader_without_batches():
    """torch leaves mean 0 and variance 1 behind; the statistics stay here, and it is told."""
    model = network()
    update_bn(data(32), model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    used_up = iter(data(8))
    list(used_up)
    for loader in ([], used_up):
        with pytest.raises(RecipeError, match="T704 loader: no batch"):
            update_bn(loader, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_error_in_the_model_leaves_the_statistics():
    model = network()
    update_bn(data(32), model)
    before = model[1].running_mean.clone()
    with pytest.raises(RecipeError, match="T708"):
        update_bn([*data(8), torch.randn(2, 4)], model)
    assert torch.equal(model[1].running_mean, before)


def test_a_model_without_statistics_reads_nothing():
    def refuse():
        raise AssertionError("read")
        yield

    update_bn(refuse(), nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))

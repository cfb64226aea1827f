"""The running average against arithmetic, against torch where torch is right, and under every misuse."""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from eutectic.averaging import WeightAverage
from eutectic.averaging.running import STALE
from eutectic.errors import RecipeError


class Tied(nn.Module):
    """Embedding and head share a matrix; integer and floating-point buffers, one with infinities."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 3, dtype=dtype)
        self.head = nn.Linear(3, 7, bias=False, dtype=dtype)
        self.head.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.ones((), dtype=dtype))
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
        self.register_buffer("seen", torch.tensor(0))
        self.register_buffer("level", torch.zeros(2), persistent=False)

    def forward(self, tokens):
        return self.head(self.embedding(tokens)) * self.scale


def walk(model, steps, seed=1):
    """Random steps; yields after each."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        with torch.no_grad():
            for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
                tensor += 0.3 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
            for buffer in model.buffers():
                if not buffer.is_floating_point():
                    buffer += 1
        yield model


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def oracle(history, decay=None, warmup=False):
    """The average by its definition, in float64."""
    average = {name: tensor.double() for name, tensor in history[0].items()}
    for n, now in enumerate(history[1:], start=1):
        held = n / (n + 1) if decay is None else min(decay, (1 + n) / (10 + n)) if warmup else decay
        for name in average:
            average[name] = held * average[name] + (1 - held) * now[name].double()
    return average


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"decay": 0.9}, {"decay": 0.99, "warmup": False}])
def test_it_is_the_average(dtype, options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, dtype=dtype), nn.Linear(4, 1, dtype=dtype))
    average, history = WeightAverage(model, **options), []
    for _ in walk(model, 40):
        average.step()
        history.append(weights(model))
    wanted = oracle(history, options.get("decay"), options.get("warmup", True))
    for name, tensor in average.averaged().items():
        # Accumulated wide and rounded once: the error is half a unit in the last place of the model's dtype.
        unit = max(torch.finfo(dtype).eps / 2, 20 * torch.finfo(torch.float32).eps if dtype != torch.float64 else 0)
        assert tensor.dtype == dtype
        torch.testing.assert_close(tensor.double(), wanted[name], rtol=1.01 * unit + 1e-14, atol=1e-6 * unit)


def test_half_precision_sums_do_not_stall():
    """In bfloat16 itself an EMA of 0.999 would never leave its first value."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(model.weight)
    average = WeightAverage(model, decay=0.999, warmup=False)
    average.step()
    nn.init.constant_(model.weight, 2.0)
    for _ in range(2000):
        average.step()
    assert float(average.averaged()["weight"]) == pytest.approx(2 - 0.999**2000, rel=0.004)


@pytest.mark.parametrize("decay", [None, 0.97])
@pytest.mark.parametrize("buffers", ["copy", "average"])
def test_it_equals_torch_where_torch_is_right(decay, buffers):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    model.register_buffer("level", torch.randn(3))
    function = None if decay is None else get_ema_multi_avg_fn(decay)
    theirs = AveragedModel(model, multi_avg_fn=function, use_buffers=buffers == "average")
    ours = WeightAverage(model, decay=decay, warmup=False, buffers=buffers)
    for _ in walk(model, 25):
        theirs.update_parameters(model)
        ours.collect()
    state = theirs.module.state_dict()
    for name, tensor in ours.averaged().items():
        torch.testing.assert_close(tensor, state[name], rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("start", "period", "collected"),
    [(0, 1, [1, 2, 3, 4, 5, 6, 7, 8]), (4, 1, [4, 5, 6, 7, 8]), (0, 3, [3, 6]), (2, 3, [2, 5, 8]), (9, 1, [])],
)
def test_start_and_period(start, period, collected):
    average = WeightAverage(nn.Linear(1, 1), start=start, period=period)
    assert [step for step in range(1, 9) if average.step()] == collected
    assert average.collected == len(collected)


def test_warm_up_forgets_the_first_weights():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 100.0)
    averages = [WeightAverage(model, decay=0.999, warmup=warmup) for warmup in (True, False)]
    for average in averages:
        average.step()
        nn.init.ones_(model.weight)
        for _ in range(50):
            average.step()
        nn.init.constant_(model.weight, 100.0)
    warm, cold = (float(average.averaged()["weight"]) for average in averages)
    assert warm < 2 and cold > 90


def test_tied_tensors_are_averaged_once_and_stay_tied():
    torch.manual_seed(0)
    model = Tied()
    average = WeightAverage(model)
    for _ in walk(model, 3):
        average.step()
    state = average.averaged()
    assert state["head.weight"] is state["embedding.weight"]
    assert "level" not in state and "seen" in state
    other = Tied()
    other.load_state_dict(state)
    assert other.head.weight is other.embedding.weight
    average.apply()
    assert model.head.weight is model.embedding.weight
    assert torch.equal(model.head.weight, other.head.weight)
    assert len(average.state_dict()["values"]) == 5


def test_buffers():
    """Integers are copied, never averaged; equal infinities stay (their difference is no number)."""
    found = {}
    for policy in ("average", "copy", "recompute"):
        model = Tied()
        average = WeightAverage(model, buffers=policy)
        for step, _ in enumerate(walk(model, 3)):
            model.level.fill_(step)
            average.step()
        state = average.averaged()
        assert torch.equal(state["mask"][0, 1], torch.tensor(-torch.inf)) and not state["mask"].isnan().any()
        assert state["seen"] == 3 and state["seen"].dtype == torch.int64
        with average.swapped():
            found[policy] = float(model.level[0])
    assert found == {"average": 1.0, "copy": 2.0, "recompute": 2.0}


def test_swapping_is_exact_and_survives_errors():
    torch.manual_seed(0)
    model = Tied(torch.bfloat16)
    average = WeightAverage(model)
    for _ in walk(model, 4):
        average.step()
    before, wanted = weights(model), average.averaged()
    with pytest.raises(ZeroDivisionError), average.swapped() as inside:
        assert inside is model and average.is_swapped_in
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())
        raise ZeroDivisionError
    assert not average.is_swapped_in
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    average.swap_out()
    average.apply()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())


def test_training_goes_on_after_a_swap():
    """The optimiser's state and the parameters' identity are untouched."""
    torch.manual_seed(0)
    models = [nn.Linear(3, 1), None]
    models[1] = copy.deepcopy(models[0])
    for model, swaps in zip(models, (True, False), strict=True):
        optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
        average = WeightAverage(model, decay=0.5)
        for step in range(6):
            torch.manual_seed(step)
            optimiser.zero_grad()
            model(torch.randn(4, 3)).square().mean().backward()
            optimiser.step()
            average.step()
            if swaps:
                with average.swapped():
                    pass
    assert torch.equal(models[0].weight, models[1].weight)


def test_a_resumed_average_is_the_same():
    torch.manual_seed(0)
    model = Tied(torch.float16)
    whole, first = WeightAverage(model, decay=0.9), WeightAverage(model, decay=0.9)
    steps = walk(model, 9)
    for _ in range(5):
        next(steps)
        whole.step(), first.step()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = WeightAverage(model, decay=0.9)
    second.load_state_dict(torch.load(file, weights_only=True))
    for _ in steps:
        whole.step(), second.step()
    assert second.steps == 9 and second.collected == 9
    one, two = whole.state_dict()["values"], second.state_dict()["values"]
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_an_empty_state_round_trips():
    average = WeightAverage(nn.Linear(1, 1), start=5)
    average.step()
    again = WeightAverage(nn.Linear(1, 1), start=5)
    again.load_state_dict(average.state_dict())
    assert (again.steps, again.collected) == (1, 0)


def test_a_loaded_state_is_copied():
    model = nn.Linear(1, 1)
    average = WeightAverage(model)
    average.step()
    state = average.state_dict()
    first = state["values"]["weight"].clone()
    twins = [WeightAverage(model), WeightAverage(model, dtype=torch.float64)]
    for twin in twins:
        twin.load_state_dict(state)
    for _ in walk(model, 3):
        for twin in twins:
            twin.step()
    assert torch.equal(state["values"]["weight"], first)
    assert twins[1].state_dict()["values"]["weight"].dtype == torch.float64
    torch.testing.assert_close(twins[0].averaged(), twins[1].averaged())


def test_wider_sums():
    model = nn.Linear(2, 2)
    average = WeightAverage(model, dtype=torch.float64)
    average.step()
    assert {value.dtype for value in average.state_dict()["values"].values()} == {torch.float64}
    assert average.averaged()["weight"].dtype == torch.float32


def test_the_average_may_live_elsewhere():
    """On a machine without an accelerator the `meta` device stands for it: nothing of the average is kept there."""
    model = nn.Linear(2, 2, device="meta")
    average = WeightAverage(nn.Linear(2, 2), device="cpu")
    average.step()
    assert average.averaged()["weight"].device.type == "cpu"
    with pytest.raises(NotImplementedError):
        WeightAverage(model, device="cpu").step()


@pytest.mark.gpu
def test_an_average_beside_the_gpu():
    model = nn.Linear(64, 64, device="cuda")
    average, beside = WeightAverage(model, device="cpu"), WeightAverage(model)
    for _ in walk_on_gpu(model, 5):
        average.step(), beside.step()
    assert {value.device.type for value in average.state_dict()["values"].values()} == {"cpu"}
    with average.swapped():
        inside = model.weight.detach().clone()
        assert inside.is_cuda
    torch.testing.assert_close(inside, beside.averaged()["weight"])


def walk_on_gpu(model, steps):
    for _ in range(steps):
        with torch.no_grad():
            for tensor in model.parameters():
                tensor += 0.1 * torch.randn_like(tensor)
        yield


@pytest.mark.parametrize("shape", [(), (0,), (1,), (64,), (3, 1, 2)])
def test_shapes(shape):
    model = nn.Module()
    model.w = nn.Parameter(torch.zeros(shape, dtype=torch.bfloat16))
    average = WeightAverage(model)
    for value in (0.0, 1.0, 5.0):
        nn.init.constant_(model.w, value)
        average.step()
    assert torch.equal(average.averaged()["w"], torch.full(shape, 2.0, dtype=torch.bfloat16))


def test_frozen_and_equal_weights_come_out_exactly():
    model = nn.Linear(50, 50)
    wanted = weights(model)
    for average in (WeightAverage(model), WeightAverage(model, decay=0.7)):
        for _ in range(20):
            average.step()
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in average.averaged().items())


# Misuse


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"decay": 1.0}, "T701 decay: must lie between 0 and 1, both excluded, not 1.0; leave it out"),
        ({"decay": 0}, "T701 decay"),
        ({"decay": True}, "T701 decay"),
        ({"decay": float("nan")}, "T701 decay"),
        ({"start": -1}, "T701 start: must be a whole number from 0 on"),
        ({"period": 0}, "T701 period: must be a whole number from 1 on"),
        ({"period": 2.0}, "T701 period"),
        ({"buffers": "avrage"}, "T701 buffers: .* did you mean 'average'"),
        ({"dtype": torch.bfloat16}, "T701 dtype"),
    ],
)
def test_arguments_that_cannot_be(options, said):
    with pytest.raises(RecipeError, match=said):
        WeightAverage(nn.Linear(1, 1), **options)


def test_all_arguments_are_told_at_once():
    with pytest.raises(RecipeError) as refused:
        WeightAverage({"w": torch.ones(1)}, decay=2, start=-1, period=0, buffers="all")
    assert [problem.where for problem in refused.value.problems] == ["model", "decay", "start", "period", "buffers"]


@pytest.mark.parametrize(
    ("mark", "by"), [("ds_id", "DeepSpeed ZeRO-3"), ("placements", "DTensor"), ("_is_fsdp_managed_module", "FSDP")]
)
def test_a_sharded_model_is_refused(mark, by):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    setattr(model[1] if by == "FSDP" else model[1].weight, mark, True)
    with pytest.raises(RecipeError, match=f"T707 model: is sharded by {by}: .* `eutectic average`"):
        WeightAverage(model)


@pytest.mark.parametrize("options", [{"start": 10}, {"period": 10}, {"start": 10, "period": 3}])
def test_before_the_first_collection(options):
    average = WeightAverage(nn.Linear(1, 1), **options)
    average.step()
    for use in (average.averaged, average.apply, average.swap_in, lambda: average.update_bn([])):
        with pytest.raises(RecipeError, match="T703 no weights were collected in 1 step; the first are due at step 10"):
            use()


def test_inside_a_swap():
    average = WeightAverage(nn.Linear(1, 1))
    average.step()
    with average.swapped():
        for use in (average.step, average.collect, average.apply, average.swap_in, lambda: average.load_state_dict({})):
            with pytest.raises(RecipeError, match="T703"):
                use()
    assert average.collected == 1


def test_another_model():
    model = nn.Sequential(nn.Linear(2, 2))
    average = WeightAverage(model)
    average.step()
    state = average.state_dict()
    with pytest.raises(RecipeError, match=r"T702 the saved average has other tensors .*: 0\.weight, 0\.bias"):
        WeightAverage(nn.Sequential(nn.Linear(2, 3))).load_state_dict(state)
    with pytest.raises(RecipeError, match=r"T702 .* give the module inside"):
        WeightAverage(nn.ModuleDict({"module": model})).load_state_dict(state)
    model.append(nn.Linear(2, 2))
    with pytest.raises(RecipeError, match=r"T702 the model has other tensors .*: 1\.bias, 1\.weight"):
        average.step()


# Statistics


def normed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))


def trained(average, model, steps=4):
    model.train()
    for _ in walk(model, steps):
        model(torch.randn(16, 3))
        average.step()


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({}, True),
        ({"buffers": "copy"}, True),
        ({"buffers": "recompute", "decay": 0.9}, True),
        ({"decay": 0.9}, False),
        ({"decay": 0.9, "buffers": "copy"}, True),
    ],
)
def test_stale_statistics_are_told_of_once(options, warned):
    model = normed()
    average = WeightAverage(model, **options)
    trained(average, model)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        average.averaged(), average.averaged()
    assert [str(one.message) for one in heard] == [STALE] * warned
    average.update_bn([torch.randn(32, 3)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        average.averaged()


@pytest.mark.parametrize("policy", ["average", "copy", "recompute"])
def test_the_average_has_statistics_of_its_own(policy):
    model, data = normed(), torch.randn(64, 3)
    average = WeightAverage(model, buffers=policy)
    trained(average, model)
    own = model[1].running_mean.clone()
    average.update_bn([data])
    assert torch.equal(model[1].running_mean, own)
    with average.swapped():
        wanted = model[0](data).mean(0)
        torch.testing.assert_close(model[1].running_mean, wanted)
        assert model[1].num_batches_tracked == 1
    trained(average, model, steps=1)
    kept = average.state_dict()["values"]["1.running_mean"]
    assert torch.allclose(kept, wanted, rtol=1e-5) == (policy == "recompute")


def test_update_bn_inside_a_swap():
    model, data = normed(), torch.randn(64, 3)
    average = WeightAverage(model)
    trained(average, model)
    own = model[1].running_mean.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with average.swapped():
            average.update_bn([data])
            assert average.is_swapped_in
            torch.testing.assert_close(model[1].running_mean, model[0](data).mean(0))
    assert torch.equal(model[1].running_mean, own)


def test_a_failed_pass_leaves_everything():
    model = normed()
    average = WeightAverage(model)
    trained(average, model)
    before, kept = weights(model), average.state_dict()["values"]["1.running_mean"]
    with pytest.raises(RecipeError, match="T704"):
        average.update_bn(iter(()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(average.state_dict()["values"]["1.running_mean"], kept)
    assert not average.is_swapped_in


class Packed(nn.Linear):
    """Saves itself as one tensor that it makes for the purpose, with something that is no tensor beside it."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[prefix + "packed"] = torch.cat([self.weight.flatten(), self.bias])
        destination[prefix + "_version_of_packing"] = "1"


def test_a_model_that_makes_its_own_state_dict():
    model = Packed(2, 2)
    average = WeightAverage(model)
    for value in (1.0, 3.0):
        nn.init.constant_(model.weight, value), nn.init.constant_(model.bias, value)
        average.step()
    assert average.averaged()["packed"].tolist() == [2.0] * 6
    assert average.averaged()["_version_of_packing"] == "1"
    with average.swapped():
        assert average.averaged()["packed"].tolist() == [2.0] * 6
    assert model.weight[0, 0] == 3


def test_it_shows_itself_in_a_line():
    model = nn.Linear(2, 2)
    average = WeightAverage(model, period=2)
    assert repr(average) == "<WeightAverage of Linear, equal weights: 0 collections in 0 steps>"
    for _ in range(2):
        average.step()
    assert repr(average) == "<WeightAverage of Linear, equal weights: 1 collection in 2 steps>"
    assert "decay 0.999" in repr(WeightAverage(model, decay=0.999))

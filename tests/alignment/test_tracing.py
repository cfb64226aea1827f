"""Symmetries that are traced in graphs: which they are, that they hold, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import traced_nets as nets
from hypothesis import given, settings
from hypothesis import strategies as st
from random_nets import RandomNet
from torch import Tensor, nn

from eutectic.alignment.proof import check
from eutectic.alignment.tracing import traced
from eutectic.checkpoint.symmetry import Symmetries
from eutectic.errors import RecipeError

IMAGES, PATCHES = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 4, 4)
IDS = torch.randint(11, (2, 5))
RESNET = {"conv1": 4, "layer1.0.conv1": 4, "layer1.1.conv1": 4, "layer2.0.conv1": 8, "layer2.0.conv2": 8} | {
    "layer2.1.conv1": 8
}


def sizes(table: Symmetries) -> dict[str, int]:
    return {name: group.size for name, group in table.groups.items()}


def held(net: nn.Module, *inputs: Any) -> Symmetries:
    """The table of a module, which names all its tensors and holds."""
    table = traced(net, *inputs)
    assert set(table.axes) == set(net.state_dict())
    assert table.origin == "traced"
    found = check(net, table, inputs)
    assert found.holds, str(found)
    return table


def test_an_mlp() -> None:
    table = held(nets.Mlp(), torch.randn(4, 5))
    assert sizes(table) == {"one": 6, "two": 7}
    (part,), (read,) = table.axes["two.weight"]
    assert (part.role, part.factors[0].group) == ("out", "two")
    assert (read.role, read.factors[0].group) == ("in", "one")


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d,
        nets.ChannelNorm,
        lambda channels: nn.GroupNorm(1, channels),
        lambda channels: nn.InstanceNorm2d(channels, affine=True),
    ],
    ids=["batch", "layer", "group of all", "instance"],
)
def test_a_resnet_has_a_stream_in_each_stage(norm: Any) -> None:
    assert sizes(held(nets.ResNet(norm), IMAGES)) == RESNET


def test_channels_of_a_group_norm_stay_in_their_groups() -> None:
    table = held(nets.ResNet(lambda channels: nn.GroupNorm(2, channels)), IMAGES)
    assert sizes(table) == dict.fromkeys(RESNET, 2) | {f"{name}[1]": size for name, size in RESNET.items()}
    assert {table.groups[f"{name}[1]"].within for name in RESNET} == set(RESNET)


def test_a_vgg_whose_dense_layer_reads_channels_x_places() -> None:
    table = held(nets.Vgg(), IMAGES)
    assert sizes(table) == {"features.0": 4, "features.3": 6, "classifier.0": 8}
    (part,) = table.axes["classifier.0.weight"][1]
    assert [(factor.size, factor.group) for factor in part.factors] == [(6, "features.3"), (6, None)]


def test_concatenated_channels_are_parts_of_what_reads_them() -> None:
    table = held(nets.Dense(), IMAGES)
    assert sizes(table) == {"first": 4, "convs.0": 2, "convs.1": 2}
    parts = table.axes["norms.2.running_var"][0]
    assert [part.factors[0].group for part in parts] == ["first", "convs.0", "convs.1"]


def test_depthwise_and_grouped_convolutions() -> None:
    table = held(nets.Separable(), IMAGES)
    assert sizes(table) == {"stem": 8, "pointwise": 2, "pointwise[1]": 3, "squeeze": 3, "grouped": 4}
    # What each group of the grouped convolution reads is an axis by itself, so all groups have it in one order.
    assert table.groups["grouped"].within == "pointwise"
    assert table.groups["pointwise[1]"].within is None


def test_a_unet_with_transposed_convolutions() -> None:
    table = held(nets.UNet(), IMAGES)
    assert sizes(table) == {"enter": 4, "down": 2, "down[1]": 6, "up": 5, "wide": 2, "after": 6}
    assert table.groups["down[1]"].within == "down"


def test_a_mixer() -> None:
    assert sizes(held(nets.Mixer(), torch.randn(2, 6, 3))) == {"enter": 8, "tokens.0": 7, "channels.0": 5}


@pytest.mark.parametrize("form", ["unbind", "items", "chunk", "separate", "einsum", "mha"])
def test_heads_of_attention_however_it_is_written(form: str) -> None:
    """All of q, k, v and o have one order of heads; within a head q and k have one order, v and o another."""
    net = nets.Vit(form, blocks=1)
    table = held(net, PATCHES)
    heads = [name for name, group in table.groups.items() if group.size == 2]
    within = {name: group for name, group in table.groups.items() if group.within}
    assert len(heads) == 1
    assert [(group.size, group.within) for group in within.values()] == [(8, heads[0])] * 2
    assert sorted(sizes(table).values()) == [2, 8, 8, 8, 12]
    qk, vo = within
    made = [part.factors[0].group for name in table.axes if "attn" in name for part in table.axes[name][0]]
    assert made.count(qk) == 4  # weights and biases of queries and keys
    assert made.count(vo) == 2


@pytest.mark.parametrize("repeats", [True, False], ids=["expanded keys", "enable_gqa"])
def test_grouped_queries_rotary_positions_and_a_tied_head(repeats: bool) -> None:
    net = nets.Grouped(repeats=repeats)
    table = held(net, IDS)
    assert sizes(table) == {"embed": 16, "qkv": 2, "qkv[1]": 4, "qkv[2]": 4, "gate_up": 6}
    assert table.groups["qkv[1]"].within == "qkv"
    q, k, v = table.axes["qkv.weight"][0]
    assert [factor.group for part in (q, k, v) for factor in part.factors] == [
        *("qkv[1]", None),
        *("qkv", None),
        *("qkv", "qkv[2]"),
    ]
    assert table.axes["head.weight"] == table.axes["embed.weight"]


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 10**6))
def test_whatever_is_traced_holds(seed: int) -> None:
    torch.manual_seed(seed)
    held(RandomNet(seed), torch.randn(2, 3))


@pytest.mark.parametrize("seed", [6, 39])
def test_products_of_rows_of_which_only_some_change_places_within(seed: int) -> None:
    torch.manual_seed(seed)
    held(RandomNet(seed), torch.randn(2, 3))


def test_tables_are_the_same_every_time() -> None:
    net = nets.Vit(blocks=1)
    one, other = traced(net, PATCHES).as_json(), traced(net, PATCHES).as_json()
    assert one == other
    assert list(one["groups"]) == list(other["groups"])


class Sorted(nn.Module):
    """Units of which the larger half is kept, in the order of size."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.unused = nn.Linear(3, 6), nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).topk(3).values)


def test_units_whose_place_counts_stay_and_so_does_what_is_not_used() -> None:
    assert sizes(held(Sorted(), torch.randn(2, 3))) == {}


class Strange(nn.Module):
    """Operations without a rule, on units and on what does not move."""

    def __init__(self, on_units: bool) -> None:
        super().__init__()
        self.one, self.two, self.on_units = nn.Linear(4, 6), nn.Linear(6, 4), on_units

    def forward(self, x: Tensor) -> Tensor:
        if not self.on_units:
            x = torch.linalg.qr(x).Q + torch.special.zeta(x.abs() + 2, x.abs() + 1)
            return torch.linalg.svdvals(torch.relu(self.two(self.one(x))) @ torch.ones(4, 4))
        x = self.one(x)
        return self.two(torch.linalg.qr(x.T).Q.T + torch.fft.fft(x).real)


def test_operations_that_are_not_understood_are_refused_with_their_place_and_all_at_once() -> None:
    with pytest.raises(RecipeError, match="declare the symmetries") as caught:
        traced(Strange(True), torch.randn(4, 4))
    assert {problem.code for problem in caught.value.problems} == {"G141"}
    said = " ".join(problem.message for problem in caught.value.problems)
    assert "linalg_qr" in said
    assert "_fft_r2c" in said


def test_operations_on_what_does_not_move_are_harmless() -> None:
    net = Strange(False)
    x = torch.randn(4, 4)
    assert sizes(traced(net, x)) == {"one": 6, "two": 4}


class Nested(nn.Module):
    """Something not understood, deep in a module."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Strange(True)])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[0](x)


def test_the_refusal_names_the_module() -> None:
    with pytest.raises(RecipeError, match=r"blocks\.0"):
        traced(Nested(), torch.randn(4, 4))


class Branch(nn.Module):
    """Whose graph depends on its data."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_module_without_a_graph_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RecipeError, match=r"G140.*Branch.*declare") as caught:
        traced(Branch(), torch.randn(2))
    assert len(str(caught.value)) < 500
    assert capfd.readouterr() == ("", "")


class Chosen(nn.Module):
    """Of which some rows are chosen by data."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList([nn.Linear(3, 4)])

    def forward(self, x: Tensor) -> Tensor:
        return self.inner[0](x[x.sum(1) > 0])


def test_sizes_that_depend_on_data_are_refused() -> None:
    with pytest.raises(RecipeError, match="G140 'index' makes a size that depends on data"):
        traced(Chosen(), torch.randn(4, 3))


def test_a_module_is_as_it_was_after_tracing() -> None:
    net = nets.ResNet().train()
    traced(net, IMAGES)
    assert all(part.training for part in net.modules())

"""Activation matching equals numpy, whatever the batches, and finds again what was scrambled."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from eutectic.alignment.activations import match_activations
from eutectic.alignment.correlated import Correlated
from eutectic.alignment.features import View, distinct, rows_of, views_of
from eutectic.alignment.finding import symmetries_of
from eutectic.alignment.moves import random_moves
from eutectic.checkpoint import open_source
from eutectic.checkpoint.symmetry import Axis, Factor, Group, Moves, Part, Symmetries, axis, fixed
from eutectic.errors import EutecticError
from eutectic.statistics.batches import Batch


def units(name: str, size: int, role: Any = "out") -> Axis:
    return axis(Factor(size, group=name), role=role)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 3))


MLP = Symmetries(
    {"0": Group(8), "2": Group(7)},
    {
        "0.weight": (units("0", 8), fixed(5)),
        "0.bias": (units("0", 8),),
        "2.weight": (units("2", 7), units("0", 8, "in")),
        "2.bias": (units("2", 7),),
        "4.weight": (fixed(3), units("2", 7, "in")),
        "4.bias": (fixed(3),),
    },
)


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 3), nn.ReLU(inplace=True), nn.Flatten(),
        nn.Linear(4 * 4, 3),
    )  # fmt: skip


FLAT = (Part((Factor(4, group="2"), Factor(4)), "in"),)
CNN = Symmetries(
    {"0": Group(6), "2": Group(4)},
    {
        "0.weight": (units("0", 6), fixed(2), fixed(3), fixed(3)),
        "0.bias": (units("0", 6),),
        "2.weight": (units("2", 4), units("0", 6, "in"), fixed(3), fixed(3)),
        "2.bias": (units("2", 4),),
        "5.weight": (fixed(3), FLAT),
        "5.bias": (fixed(3),),
    },
)
X = torch.randn(60, 5, generator=torch.Generator().manual_seed(9))
IMAGES = torch.randn(20, 2, 6, 6, generator=torch.Generator().manual_seed(9))
NETS = {"mlp": (mlp, MLP, X), "cnn": (cnn, CNN, IMAGES)}


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return make()


def scrambled(module: nn.Module, symmetries: Symmetries, moves: Moves) -> nn.Module:
    other = copy.deepcopy(module)
    state = module.state_dict()
    other.load_state_dict({name: symmetries.moved(name, tensor, moves) for name, tensor in state.items()})
    return other


def features(module: nn.Module, x: Tensor, depth: int) -> np.ndarray:
    """Outputs of the first `depth` parts, (samples, channels)."""
    out = copy.deepcopy(module)[:depth](x).detach().double()
    return (out.movedim(1, -1).flatten(0, -2) if out.dim() > 2 else out).numpy()


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("size", [60, 7])
def test_equals_numpy_whatever_the_batches(net: str, size: int) -> None:
    make, symmetries, data = NETS[net]
    a, b = seeded(make, 1), seeded(make, 2)
    found = match_activations(a, b, list(data.split(size)), symmetries)
    total = start = 0.0
    for name, depth in (("0", 2), ("2", 4)):
        x, y = features(a, data, depth), features(b, data, depth)
        with np.errstate(invalid="ignore", divide="ignore"):
            pearson = np.nan_to_num(np.corrcoef(x.T, y.T)[: x.shape[1], x.shape[1] :])
        order = linear_sum_assignment(pearson, maximize=True)[1]
        assert np.array_equal(found.moves.orders[name], order)
        total, start = total + pearson[np.arange(len(order)), order].sum(), start + np.trace(pearson)
    np.testing.assert_allclose([*found.objective, found.start], [total, start], rtol=1e-6)


@pytest.mark.parametrize("net", NETS)
def test_scrambled_units_are_found_again(net: str) -> None:
    make, symmetries, data = NETS[net]
    a = seeded(make, 1)
    b = scrambled(a, symmetries, random_moves(symmetries, 3))
    torch.testing.assert_close(a(data.clone()), b(data.clone()))
    back = scrambled(b, symmetries, match_activations(a, b, [data], symmetries).moves)
    for name, tensor in a.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


def test_a_model_and_itself_give_the_identity_dead_units_too() -> None:
    a = seeded(mlp, 1)
    with torch.no_grad():
        a[0].weight[2:5] = 0
        a[0].bias[2:5] = -1.0
    found = match_activations(a, a, [X], MLP)
    assert found.objective == (found.start,)
    assert not found.moves.orders


def test_the_modules_are_left_as_they_were_and_progress_is_told() -> None:
    a, b = seeded(mlp, 1).train(), seeded(mlp, 2)
    before, told = copy.deepcopy(a.state_dict()), []
    match_activations(a, b, list(X.split(25)), MLP, progress=told.append)
    assert told == [25, 25, 10] and a.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in a.state_dict().items())
    assert not any(part._forward_pre_hooks for part in a.modules())


def test_passes_find_the_same_and_an_iterator_serves_for_one() -> None:
    a, b = seeded(mlp, 1), seeded(mlp, 2)
    one = match_activations(a, b, iter(X.split(20)), MLP)
    two = match_activations(a, b, list(X.split(20)), MLP, memory=8 * 64)
    assert all(torch.equal(one.moves.orders[name], order) for name, order in two.moves.orders.items())
    assert one.objective == two.objective
    with pytest.raises(EutecticError, match=r"G200 batches: .* 2 passes"):
        match_activations(a, b, iter(X.split(20)), MLP, memory=8 * 64)
    with pytest.raises(EutecticError, match="G202 memory: 100 bytes hold no pass"):
        match_activations(a, b, [X], MLP, memory=100)


class Stream(nn.Module):
    """A residual stream that two blocks read, behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.norm1, self.norm2 = nn.RMSNorm(6), nn.RMSNorm(6)
        self.up, self.gate, self.down = nn.Linear(6, 8, False), nn.Linear(6, 8, False), nn.Linear(8, 6, False)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        for norm in (self.norm1, self.norm2):
            nn.init.uniform_(norm.weight, 0.5, 1.5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        h = self.embed(input_ids)
        n = self.norm1(h)
        h = h + self.down(self.up(n) * torch.sigmoid(self.gate(n)))
        return self.head(self.norm2(h))


GAIN = axis(Factor(6, group="stream"), role="order")
STREAM = Symmetries(
    {"stream": Group(6, "sign"), "mlp": Group(8)},
    {
        "embed.weight": (fixed(11), units("stream", 6)),
        "norm1.weight": (GAIN,),
        "norm2.weight": (GAIN,),
        "up.weight": (units("mlp", 8), units("stream", 6, "in")),
        "gate.weight": (units("mlp", 8), units("stream", 6, "in")),
        "down.weight": (units("stream", 6), units("mlp", 8, "in")),
    },
)
IDS = torch.randint(0, 11, (8, 5), generator=torch.Generator().manual_seed(4))
MASK = (torch.arange(5) < torch.tensor([5, 3, 2, 5, 4, 1, 5, 2])[:, None]).long()


def test_signs_of_a_residual_stream_and_layers_of_one_input() -> None:
    a = seeded(Stream, 1)
    moves = random_moves(STREAM, 5)
    b = copy.deepcopy(a)
    state = {name: STREAM.moved(name, a.state_dict()[name], moves).float() for name in STREAM.axes}
    b.load_state_dict({**state, "head.weight": state["embed.weight"]})
    assert (moves.scales["stream"] < 0).any()
    batch = {"input_ids": IDS, "attention_mask": MASK}
    torch.testing.assert_close(a(**batch), b(**batch))
    seen = distinct(a, views_of(STREAM, a), Batch.of(batch))
    assert [view.layer.path for view in seen] == ["up", "down", "head"]
    found = match_activations(a, b, [batch], STREAM)
    for name in STREAM.axes:
        back = STREAM.moved(name, b.state_dict()[name], found.moves)
        torch.testing.assert_close(back.float(), a.state_dict()[name])


def test_padding_counts_nowhere() -> None:
    a = seeded(Stream, 1)
    views = views_of(STREAM, a)
    wild = torch.where(MASK.bool(), IDS, 10 - IDS)
    one, other = (
        rows_of(a, views, Batch.of({"input_ids": ids, "attention_mask": MASK}))["down.weight", 0] for ids in (IDS, wild)
    )
    assert torch.equal(one[0], other[0]) and len(one[0]) == int(MASK.sum())


class Wave(nn.Module):
    """A convolution over positions, whose rows do not say which of them are padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.conv = nn.Embedding(11, 6), nn.Conv1d(6, 5, 3, padding=1)
        self.head = nn.Linear(5, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        h = self.embed(input_ids) * attention_mask[..., None]
        return self.head(self.conv(h.mT).mT.tanh())


WAVE = Symmetries(
    {"embed": Group(6), "conv": Group(5)},
    {
        "embed.weight": (fixed(11), units("embed", 6)),
        "conv.weight": (units("conv", 5), units("embed", 6, "in"), fixed(3)),
        "conv.bias": (units("conv", 5),),
        "head.weight": (fixed(2), units("conv", 5, "in")),
        "head.bias": (fixed(2),),
    },
)


def test_padded_samples_go_one_by_one_where_rows_do_not_tell() -> None:
    a, b = seeded(Wave, 1), seeded(Wave, 2)
    padded = match_activations(a, b, [{"input_ids": IDS, "attention_mask": MASK}], WAVE)
    lengths = MASK.sum(1).tolist()
    single = [{"input_ids": IDS[i : i + 1, :n], "attention_mask": MASK[i : i + 1, :n]} for i, n in enumerate(lengths)]
    alone = match_activations(a, b, single, WAVE)
    np.testing.assert_allclose(padded.objective, alone.objective, rtol=1e-6)
    assert padded.moves.orders.keys() == {"embed", "conv"}


def test_views_of_products_and_parts() -> None:
    module = nn.Sequential(nn.Linear(2 + 3 * 4, 5))
    parts = (Part((Factor(2, group="x"),), "in"), Part((Factor(3), Factor(4, group="y")), "in"))
    table = Symmetries({"x": Group(2), "y": Group(4)}, {"0.weight": (fixed(5), parts), "0.bias": (fixed(5),)})
    views = views_of(table, module)
    x = torch.randn(7, 14)
    rows = rows_of(module, views, Batch.of(x))
    assert torch.equal(rows["0.weight", 0][0], x[:, :2])
    assert torch.equal(rows["0.weight", 2][0], x[:, 2:].reshape(21, 4))


def view(*groups: str) -> View:
    """A view by name; nothing of it but its groups is used."""
    return View(None, 0, Part(tuple(Factor(1, group=name) for name in groups)))  # type: ignore[arg-type]


def best(table: Symmetries, correlations: dict[View, Tensor], candidates: list[dict[str, Tensor]]) -> float:
    """The largest value over orders, by trying them."""
    one = Correlated(table, correlations)
    values = []
    for orders in candidates:
        one.orders = {name: orders[name] for name in one.orders}
        values.append(one.value())
    return max(values)


@pytest.mark.parametrize("seed", range(5))
def test_units_within_others_are_the_best_and_products_no_worse_than_they_were(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    table = Symmetries({"outer": Group(3), "inner": Group(6, within="outer"), "other": Group(2)}, {})
    candidates = [
        {"outer": torch.tensor(outer), "inner": torch.tensor(inner), "other": torch.tensor(other)}
        for outer in permutations(range(3))
        for flips in product((0, 1), repeat=3)
        for inner in [[2 * unit + (k ^ flip) for unit, flip in zip(outer, flips, strict=True) for k in (0, 1)]]
        for other in permutations(range(2))
    ]
    nested = {view("inner"): torch.randn(6, 6, dtype=torch.float64, generator=draw)}
    one = Correlated(table, nested)
    one.solve()
    parents = one.orders["inner"] // 2
    assert torch.equal(parents[::2], parents[1::2]) and torch.equal(parents[::2], one.orders["outer"])
    assert one.value() == pytest.approx(best(table, nested, candidates))
    both = {view("outer", "other"): torch.randn(6, 6, dtype=torch.float64, generator=draw)}
    start, one = Correlated(table, both).value(), Correlated(table, both)
    one.solve()
    assert start <= one.value() <= best(table, both, candidates) + 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_signs_of_groups_that_are_seen_as_a_product_agree(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    table = Symmetries({"p": Group(3, "sign"), "q": Group(4, "sign")}, {})
    seen = torch.randn(12, 12, dtype=torch.float64, generator=draw)
    one = Correlated(table, {view("p", "q"): seen})
    start = one.value()
    one.solve()
    assert one.value() >= start
    # No other order and no other signs of one of them are better while the other one stays.
    for name, size in (("p", 3), ("q", 4)):
        for order, signs in product(permutations(range(size)), product((-1.0, 1.0), repeat=size)):
            other = Correlated(table, {view("p", "q"): seen})
            other.orders = {**one.orders, name: torch.tensor(order)}
            other.signs = {**one.signs, name: torch.tensor(signs).double()}
            assert other.value() <= one.value() + 1e-12
    one.orders = {"p": torch.tensor([2, 0, 1]), "q": torch.tensor([3, 1, 0, 2])}
    one.signs = {"p": torch.tensor([-1.0, 1, 1]).double(), "q": torch.tensor([-1.0, -1, 1, -1]).double()}
    columns = (one.orders["p"][:, None] * 4 + one.orders["q"]).flatten()
    seen = torch.zeros(12, 12, dtype=torch.float64)
    seen[torch.arange(12), columns] = (one.signs["p"][:, None] * one.signs["q"]).flatten()
    there = Correlated(table, {view("p", "q"): seen})
    there.orders, there.signs = one.orders, one.signs
    there.solve()
    assert there.value() == 12


def test_heads_bases_and_scales_are_matched_by_weights_and_said(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=12, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    a = transformers.LlamaForCausalLM(config)
    for name, parameter in a.named_parameters():
        nn.init.uniform_(parameter, 0.5, 1.5) if "norm" in name else nn.init.normal_(parameter, std=0.3)
    a.save_pretrained(tmp_path)
    source = open_source(tmp_path)
    table = symmetries_of(source)
    moves = random_moves(table, 3)
    b = copy.deepcopy(a)
    b.load_state_dict({name: table.made(name, source.__getitem__, moves).float() for name in source.specs})
    ids = torch.randint(0, 40, (16, 8))
    found = match_activations(a, b, [{"input_ids": ids}], table)
    assert "layers.0.queries: matched by weights" in found.notes[0] and "layers.0.values" in found.notes[1]
    for name in source.specs:
        back = table.made(name, b.state_dict().__getitem__, found.moves)
        torch.testing.assert_close(back.float(), source[name], atol=1e-6, rtol=1e-6)
    same = match_activations(a, a, [{"input_ids": ids}], table)
    assert (same.moves, same.before) == (Moves(), 0.0)


def test_what_does_not_fit_is_refused() -> None:
    a = seeded(mlp, 1)
    with pytest.raises(EutecticError, match="F101"):
        match_activations(a, a, [], MLP)
    with pytest.raises(EutecticError, match=r"G201 b: .*different layers: 2\.weight, 4\.weight"):
        match_activations(a, nn.Sequential(nn.Linear(5, 3)), [X], MLP)
    with pytest.raises(EutecticError, match="G201 Linear: no linear layer or convolution that runs"):
        match_activations(nn.Linear(5, 3), nn.Linear(5, 3), [X], MLP)
    with pytest.raises(EutecticError, match="F102 2: NaN or infinity in the first model"):
        match_activations(a, seeded(mlp, 2), [torch.full((3, 5), torch.inf)], MLP)
    with pytest.raises(EutecticError, match="F102 2: NaN or infinity in the first model"):
        match_activations(a, seeded(mlp, 2), [1e20 * X], MLP)


@pytest.mark.gpu
def test_a_gpu_finds_the_same() -> None:
    a, b = seeded(cnn, 1), seeded(cnn, 2)
    one = match_activations(a, b, list(IMAGES.split(7)), CNN)
    two = match_activations(a.cuda(), b.cuda(), list(IMAGES.split(7)), CNN)
    np.testing.assert_allclose(two.objective, one.objective, rtol=1e-3)

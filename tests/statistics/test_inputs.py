"""Gram matrices and moments equal direct products of what the layers are given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from collected_nets import NETS, Experts, TiedText, cnn, mlp
from torch import Tensor, nn

from eutectic.errors import EutecticError
from eutectic.statistics import activations, gram
from eutectic.statistics.batches import Batch, Parts
from eutectic.statistics.inputs import GramCollector
from eutectic.statistics.layers import Names


def gram_of(rows: Tensor, *, one: bool = False) -> Tensor:
    """xᵀx / n in float64, with a one behind each row."""
    rows = rows.double()
    rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], 1) if one else rows
    return rows.mT @ rows / len(rows)


def close(found: Tensor, wanted: Tensor) -> None:
    assert found.dtype == torch.float32 and found.shape == wanted.shape
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_linear_layers_with_and_without_bias() -> None:
    torch.manual_seed(0)
    module, batches = mlp().train(), [torch.randn(5, 7), torch.randn(2, 7)]
    found = gram(module, batches)
    assert module.training
    x = torch.cat(batches)
    close(found.tensors["0.weight"], gram_of(x, one=True))
    close(found.tensors["4.weight"], gram_of(module.eval()[:4](x).detach()))
    assert found.layout.bias == {"0.weight": "0.bias"} and found.counts == {"0.weight": 7, "4.weight": 7}
    one = found.tensors["0.weight"]
    assert torch.equal(one, one.T) and one[-1, -1] == 1


def test_matrices_larger_than_a_block() -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 600)
    close(gram(nn.Linear(600, 2), [x]).tensors["weight"], gram_of(x, one=True))


def windows(layer: nn.Conv2d, x: Tensor, group: int) -> Tensor:
    """Every window of one group's channels, cut out by hand."""
    size = layer.kernel_size[0]
    reach = layer.dilation[0] * (size - 1) + 1
    side = (reach - 1) // 2 if layer.padding == "same" else layer.padding[0]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = nn.functional.pad(x, (side,) * 4, mode=mode)
    width = layer.in_channels // layer.groups
    x = x[:, group * width : (group + 1) * width]
    rows = []
    for i in range(0, x.shape[2] - reach + 1, layer.stride[0]):
        for j in range(0, x.shape[3] - reach + 1, layer.stride[1]):
            rows.append(x[:, :, i : i + reach : layer.dilation[0], j : j + reach : layer.dilation[1]].flatten(1))
    return torch.cat(rows)


@pytest.mark.parametrize("side", [12, 30])
def test_convolutions(side: int) -> None:
    torch.manual_seed(0)
    module, x = cnn().eval(), torch.randn(5, 3, side, side)
    found = gram(module, [x[:3], x[3:]])
    close(found.tensors["0.weight"], gram_of(windows(module[0], x, 0)))
    h = module[:3](x).detach()
    grouped = torch.stack([gram_of(windows(module[3], h, group), one=True) for group in range(4)])
    close(found.tensors["3.weight"], grouped)
    assert found.layout.groups == {"3.weight": 4}
    close(found.tensors["5.weight"], gram_of(module[:5](x).detach().movedim(1, -1).flatten(0, 2), one=True))


def test_convolutions_in_one_dimension() -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv1d(3, 4, 3, stride=2, padding=1), torch.randn(5, 3, 12)
    rows = nn.functional.pad(x, (1, 1)).unfold(2, 3, 2).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    close(gram(layer, [x]).tensors["weight"], gram_of(rows, one=True))


class Sharing(nn.Module):
    """Three layers of one input, a fourth of an equal copy; the last layer's weight is the first's."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(4, 4, False), nn.Linear(4, 2, False), nn.Linear(4, 2)
        self.copy, self.out = nn.Linear(4, 4, False), nn.Linear(4, 4, False)
        self.out.weight = self.q.weight

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        h = self.q(x) + self.copy(x.clone())
        self.k(x), self.v(x)
        return self.out(h.tanh())


def test_layers_of_one_input_are_collected_once_and_tied_weights_have_the_rows_of_all_uses() -> None:
    torch.manual_seed(0)
    module, x = Sharing(), torch.randn(6, 4)
    found = gram(module, [x])
    assert found.tensors.keys() == {"q.weight", "k.weight", "v.weight", "copy.weight"}
    assert found.layout.shared == {}  # q is used again, so that its rows are others; v has a bias
    h = (module.q(x) + module.copy(x)).tanh().detach()
    close(found.tensors["q.weight"], gram_of(torch.cat([x, h])))
    assert found.counts["q.weight"] == 12
    module.out.weight = nn.Parameter(module.out.weight.detach().clone())
    found = gram(module, [x])
    assert found.layout.shared == {"k.weight": "q.weight"}
    assert {"v.weight", "copy.weight", "out.weight"} <= found.tensors.keys()


class Changing(nn.Module):
    """Two layers have the same input, but for large inputs."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.a, self.b = way, nn.Linear(4, 4, False), nn.Linear(4, 4, False)

    def forward(self, x: Tensor) -> Tensor:
        y, large = self.a(x), float(x.detach().mean()) > 5
        if large and self.way == "left out":
            return y
        if large and self.way == "called again":
            y = y + self.a(x)
        return y + self.b(x.mul_(2) if large and self.way == "in place" else x)


@pytest.mark.parametrize("way", ["left out", "called again", "in place"])
def test_an_input_that_is_shared_no_more_is_refused(way: str) -> None:
    torch.manual_seed(0)
    small, large = torch.randn(3, 4), torch.randn(3, 4) + 20
    assert gram(Changing(way), [small.clone(), small.clone()]).layout.shared == {"b.weight": "a.weight"}
    with pytest.raises(EutecticError, match=r"F104 b: b had the input of a\.weight at first, and now has another"):
        gram(Changing(way), [small.clone(), large.clone()])


def test_means_take_no_memory_beside_the_sums() -> None:
    torch.manual_seed(0)
    module, x = nn.Linear(600, 2), torch.randn(9, 600)
    collector = GramCollector(module, Names(module), Batch.of(x))
    collector.start(["weight"], "cpu")
    collector.add(Batch.of(x))
    found = collector.means()["weight"]
    assert found.data_ptr() == collector.sums["weight"].data_ptr()
    close(found, gram_of(x, one=True))


def test_a_head_that_is_the_embedding_is_left_out_and_said() -> None:
    found = gram(TiedText(), [torch.randint(0, 9, (3, 5))])
    assert list(found.tensors) == ["twice.weight"] and found.counts == {"twice.weight": 30}
    assert found.layout.left_out == {
        "embed.weight": "a parameter of embed too, which is no linear layer",
        "place.weight": "a parameter of Embedding, whose inputs are not measured",
    }


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("measure", [gram, activations])
def test_every_weight_is_measured_or_listed_with_a_reason(name: str, measure: Any) -> None:
    make, inputs = NETS[name]
    module = make()
    layout = measure(module, [inputs(2)]).layout
    weights = {name for name, parameter in module.named_parameters() if parameter.dim() > 1}
    measured = {*layout.units, *layout.shared}
    assert measured | layout.left_out.keys() == weights and not measured & layout.left_out.keys()
    assert all(layout.left_out.values())


def test_experts_that_transformers_holds_in_one_tensor_are_listed() -> None:
    transformers = pytest.importorskip("transformers", minversion="5")
    config = transformers.Qwen3MoeConfig(
        vocab_size=20, hidden_size=8, moe_intermediate_size=4, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, num_experts=3, num_experts_per_tok=2,
    )  # fmt: skip
    module = transformers.AutoModelForCausalLM.from_config(config)
    left_out = gram(module, [{"input_ids": torch.arange(8)[None]}]).layout.left_out
    reasons = {name.removeprefix("model.layers.0.mlp."): reason for name, reason in left_out.items()}
    for name in ("experts.gate_up_proj", "experts.down_proj"):
        assert reasons[name] == "a parameter of Qwen3MoeExperts, whose inputs are not measured"


def test_padding_counts_nowhere() -> None:
    torch.manual_seed(0)
    module, x = Sharing(), torch.randn(3, 5, 4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 1, 1]])
    found = gram(module, [{"x": x, "attention_mask": mask}])
    close(found.tensors["k.weight"], gram_of(x[mask.bool()]))
    assert found.counts["k.weight"] == found.positions == 9


def test_experts_of_a_padded_batch_and_one_without_a_token() -> None:
    torch.manual_seed(0)
    module, x = Experts(), torch.randn(4, 6, 5)
    mask = torch.ones(4, 6, dtype=torch.long)
    mask[1, 3:] = 0
    mask[2, :2] = 0
    found = gram(module, [{"x": x, "attention_mask": mask}])
    real = x[mask.bool()]
    chosen = module.router(real).argmax(-1)
    for number in (0, 1):
        rows = real[chosen == number]
        close(found.tensors[f"experts.{number}.weight"], gram_of(rows, one=True))
        assert found.counts[f"experts.{number}.weight"] == len(rows) > 0
    assert found.counts["experts.2.weight"] == 0 and not found.tensors["experts.2.weight"].any()


def test_a_transposed_layer_of_transformers() -> None:
    utils = pytest.importorskip("transformers.pytorch_utils")
    layer, x = utils.Conv1D(3, 5), torch.randn(2, 4, 5)
    found = gram(layer, [x])
    assert found.layout.transposed == ("weight",)
    close(found.tensors["weight"], gram_of(x.flatten(0, 1), one=True))


def test_the_size_of_batches_changes_nothing_but_rounding() -> None:
    torch.manual_seed(0)
    module, x = cnn(), torch.randn(6, 3, 12, 12)
    whole, single = gram(module, [x]), gram(module, list(x.split(1)))
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(single.tensors[name], tensor, rtol=1e-5, atol=1e-6)
    assert gram(module, list(x.split(1)), samples=4).samples == gram(module, [x], samples=4).samples == 4


def test_moments() -> None:
    torch.manual_seed(0)
    module, x = mlp(), torch.randn(9, 7)
    found = activations(module, [x])
    h = module.eval()[:4](x).detach()
    for stem, rows in (("0", x), ("4", h)):
        close(found.tensors[f"{stem}.mean"], rows.double().mean(0))
        close(found.tensors[f"{stem}.square"], rows.double().square().mean(0))
    images = torch.randn(4, 3, 12, 12)
    channels = activations(cnn(), [images]).tensors["0.square"]
    close(channels, images.double().square().mean((0, 2, 3)))


@pytest.mark.parametrize(
    ("code", "module", "loader"),
    [
        ("F101", nn.Linear(3, 2), []),
        ("F101", nn.Linear(3, 2), iter([])),
        ("F101", nn.Linear(3, 2), [torch.zeros(0, 3)]),
        ("F101", nn.Linear(3, 2), ["text"]),
        ("F101", Sharing(), [{"x": torch.randn(2, 3, 4), "attention_mask": torch.zeros(2, 3)}]),
        (
            "F104",
            Sharing(),
            [dict.fromkeys(("x", "decoder_input_ids"), torch.ones(1, 2, 4)) | {"attention_mask": torch.eye(2)[:1]}],
        ),
        ("F102", nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), [torch.full((2, 3), 3e38)]),
        ("F107", nn.Embedding(3, 2), [torch.zeros(2, 3, dtype=torch.long)]),
    ],
)
def test_what_cannot_be(code: str, module: nn.Module, loader: Any) -> None:
    with pytest.raises(EutecticError, match=code):
        gram(module, loader)


def test_nan_is_told_with_its_layer_and_samples() -> None:
    broken = torch.randn(3, 7)
    broken[1, 2] = float("nan")
    with pytest.raises(EutecticError, match="F102 0: NaN or infinity in samples 3 to 5; a float16 overflow"):
        gram(mlp(), [torch.randn(2, 7), broken])


@pytest.mark.parametrize("divides", [True, False])
def test_what_the_first_padded_batch_shows_holds_for_all(divides: bool) -> None:
    asked: list[int] = []

    def mixes(head: Batch) -> bool:
        asked.append(head.size)
        return divides

    x, mask = torch.arange(12.0).reshape(3, 4), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]])
    whole, cut = Batch.of({"x": x}), Batch.of({"x": x, "attention_mask": mask})
    parts = Parts()
    assert parts.of(whole, mixes) == [whole] and not asked
    for _ in range(2):
        found = [part.inputs["x"].tolist() for part in parts.of(cut, mixes)]
        assert found == ([[[0, 1, 2, 3]], [[4, 5]], [[10, 11]]] if divides else [x.tolist()])
    assert asked == [2]

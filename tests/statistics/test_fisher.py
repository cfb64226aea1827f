"""The Fisher information equals that of a loop over samples and labels, whatever the module."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from collected_nets import NETS, Places, mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eutectic.errors import EutecticError
from eutectic.statistics import fisher

# Weighted log-likelihoods of one sample.
Terms = Callable[[nn.Module, Any], list[tuple[float, Tensor]]]


def looped(module: nn.Module, samples: list[Any], terms: Terms) -> dict[str, Tensor]:
    """Σ w (∂ log p / ∂θ)² of each sample, over the number of samples."""
    parameters = dict(module.eval().named_parameters())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for sample in samples:
        for weight, value in terms(module, sample):
            found = torch.autograd.grad(value, list(parameters.values()), retain_graph=True, allow_unused=True)
            for name, gradient in zip(total, found, strict=True):
                if gradient is not None:
                    total[name] += weight * gradient**2 / len(samples)
    return total


def every_class(module: nn.Module, x: Tensor) -> list[tuple[float, Tensor]]:
    logs = module(x[None]).log_softmax(-1)[0]
    return [(log.exp().item(), log) for log in logs]


def assert_equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], tolerance: float = 2e-5) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == torch.float32
        scale = float(tensor.abs().max())
        assert float((found[name] - tensor).abs().max()) <= tolerance * scale, name


@pytest.mark.parametrize("name", NETS)
def test_it_equals_a_loop_over_samples_and_classes(name: str) -> None:
    torch.manual_seed(0)
    make, inputs = NETS[name]
    module, batches = make(), [inputs(4), inputs(3)]
    frozen = next(module.parameters()).requires_grad_(False)
    module.train()
    found = fisher(module, batches)
    assert module.training and not frozen.requires_grad and all(p.grad is None for p in module.parameters())
    assert set(found.counts.values()) == {7} and found.samples == 7
    frozen.requires_grad_()
    assert_equal(found.tensors, looped(module, list(torch.cat(batches)), every_class))
    with torch.no_grad():
        frozen += 1  # the module is its own again


@pytest.mark.parametrize("name", NETS)
def test_the_size_of_batches_changes_nothing_but_rounding(name: str) -> None:
    torch.manual_seed(1)
    make, inputs = NETS[name]
    module, x = make(), inputs(6)
    whole = fisher(module, [x]).tensors
    assert_equal(fisher(module, list(x.split(1))).tensors, whole)
    assert_equal(fisher(module, [x[:4], x[4:]]).tensors, whole)


def test_it_equals_finite_differences() -> None:
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double(), torch.randn(5, 3).double()
    found = fisher(module, [x]).tensors["0.weight"]
    weight, step = module[0].weight.data, 1e-5
    for place in [(0, 0), (1, 2), (3, 1)]:
        logs = []
        for sign in (1, -1):
            weight[place] += sign * step
            logs.append(module(x).log_softmax(-1).detach())
            weight[place] -= sign * step
        slope = (logs[0] - logs[1]) / (2 * step)
        wanted = (module(x).softmax(-1) * slope**2).sum(1).mean().item()
        assert found[place].item() == pytest.approx(wanted, rel=1e-4)


def test_it_is_not_the_square_of_the_batch_gradient() -> None:
    torch.manual_seed(0)
    module, x, y = mlp(), torch.randn(8, 7), torch.arange(8) % 5
    nn.functional.cross_entropy(module.eval()(x), y).backward()
    squared = module[0].weight.grad.square()
    found = fisher(module, [(x, y)], labels="data").tensors["0.weight"]
    assert not torch.allclose(found, squared, rtol=0.1)


def test_a_module_is_let_go_when_it_is_done() -> None:
    module = mlp()
    kept = weakref.ref(module)
    fisher(module, [torch.randn(4, 7)])
    del module
    gc.collect()
    assert kept() is None


def test_labels_of_the_data_and_a_loss_of_ones_own() -> None:
    torch.manual_seed(0)
    module, x, y = mlp(), torch.randn(8, 7), torch.arange(8) % 5
    pairs = list(zip(x, y, strict=True))
    wanted = looped(module, pairs, lambda m, pair: [(1.0, m(pair[0][None]).log_softmax(-1)[0, pair[1]])])
    assert_equal(fisher(module, [(x, y)], labels="data").tensors, wanted)

    def loss(output: Tensor, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(output, batch[1], reduction="none")

    assert_equal(fisher(module, [(x, y)], loss=loss).tensors, wanted)


def test_beyond_64_classes_labels_are_drawn() -> None:
    torch.manual_seed(0)
    module, x = nn.Linear(3, 70), torch.randn(2, 3)
    draws = torch.stack([fisher(module, [x], seed=seed).tensors["bias"] for seed in range(600)])
    assert not torch.equal(draws[0], draws[1])
    torch.testing.assert_close(draws[0], fisher(module, [x[:1], x[1:]], seed=0).tensors["bias"])
    exact = looped(module, list(x), every_class)["bias"]
    error = draws.std(0) / len(draws) ** 0.5
    assert float(((draws.mean(0) - exact) / error).abs().max()) < 5


def causal(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 20}
    made = {
        "llama": lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**shape, num_key_value_heads=2, vocab_size=30, tie_word_embeddings=False)
        ),
        "tied": lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**shape, num_key_value_heads=2, vocab_size=30, tie_word_embeddings=True)
        ),
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                n_embd=16, n_layer=2, n_head=2, vocab_size=30, n_positions=32, bos_token_id=1, eos_token_id=2
            )
        ),
    }
    torch.manual_seed(0)
    module: nn.Module = made[name]()
    return module.eval()


def padded() -> dict[str, Tensor]:
    torch.manual_seed(3)
    ids, mask = torch.randint(3, 30, (4, 9)), torch.ones(4, 9, dtype=torch.long)
    mask[1, 6:] = 0
    mask[3, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def by_tokens(module: nn.Module, row: tuple[Tensor, Tensor]) -> list[tuple[float, Tensor]]:
    """The tokens that are no padding, each after one that is none either."""
    ids, mask = row
    logs = module(input_ids=ids[None], attention_mask=mask[None]).logits[0].log_softmax(-1)
    known = (mask[1:] * mask[:-1]).bool()
    return [(1.0, logs[:-1].gather(1, ids[1:, None])[known].sum())]


@pytest.mark.parametrize("masked", [[(1, slice(0, 6)), (3, slice(0, 2))], [(0, slice(3, 5)), (2, slice(7, 8))]])
def test_padding_on_the_left_and_in_the_middle_predicts_nothing(masked: list[tuple[int, slice]]) -> None:
    module, ids, mask = causal("llama"), padded()["input_ids"], torch.ones(4, 9, dtype=torch.long)
    for row, where in masked:
        mask[row, where] = 0
    found = fisher(module, [{"input_ids": ids, "attention_mask": mask}], labels="data").tensors
    assert_equal(found, looped(module, list(zip(ids, mask, strict=True)), by_tokens))


def test_as_many_positions_as_samples() -> None:
    torch.manual_seed(0)
    module, ids = Places(), torch.randint(0, 9, (2, 2))
    assert_equal(fisher(module, [ids]).tensors, looped(module, list(ids), every_class))


@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_parts_that_run_again_in_either_way_are_the_same() -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
            self.reentrant = True

        def forward(self, x: Tensor) -> Tensor:
            h = self.layer(x).tanh()
            for _ in range(2):
                h = checkpoint(lambda h: self.layer(h).tanh(), h, use_reentrant=self.reentrant)
            return self.head(h)

    torch.manual_seed(0)
    module, x = Again(), torch.randn(5, 4)
    found = fisher(module, [x]).tensors
    module.reentrant = False
    assert_equal(found, looped(module, list(x), every_class))


@pytest.mark.parametrize("name", ["llama", "tied", "gpt2"])
def test_of_a_language_model_a_sample_is_a_sequence(name: str) -> None:
    module, batch = causal(name), padded()

    def likelihood(m: nn.Module, row: Tensor) -> list[tuple[float, Tensor]]:
        logs = m(input_ids=row[None]).logits[0].log_softmax(-1)
        return [(1.0, logs[:-1].gather(1, row[1:, None]).sum())]

    rows = [ids[mask.bool()] for ids, mask in zip(*batch.values(), strict=True)]
    assert_equal(fisher(module, [batch], labels="data").tensors, looped(module, rows, likelihood))


def test_drawn_tokens_depend_on_the_seed_and_the_sample_alone() -> None:
    module, batch = causal("llama"), padded()
    halves = [{key: value[low : low + 2] for key, value in batch.items()} for low in (0, 2)]
    whole = fisher(module, [batch], seed=5).tensors
    assert_equal(fisher(module, halves, seed=5).tensors, whole)
    assert not torch.allclose(fisher(module, [batch], seed=6).tensors["lm_head.weight"], whole["lm_head.weight"])


def test_a_model_without_doubt_has_no_information() -> None:
    module = nn.Linear(2, 3)
    with torch.no_grad():
        module.weight.zero_()
        module.bias.copy_(torch.tensor([1000.0, 0, 0]))
    assert all(not tensor.any() for tensor in fisher(module, [torch.randn(4, 2)]).tensors.values())


class Overwrites(nn.Module):
    """Changes what a layer had for its input, after the layer had it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        y = self.layer(x)
        x += 1
        return y + x


class Both(nn.Module):
    """The outputs of a decoder, as many as the encoder has inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(3, 4)

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor) -> Tensor:
        return self.embed(input_ids) + self.embed(decoder_input_ids)


@pytest.mark.parametrize(
    ("code", "module", "batch", "more"),
    [
        ("F103", nn.Linear(3, 1), torch.randn(2, 3), {}),
        ("F103", nn.Conv2d(1, 2, 1), torch.randn(2, 1, 3, 3), {}),
        ("F103", nn.Linear(3, 2), torch.randn(2, 3), {"labels": "data"}),
        ("F103", Both(), {"input_ids": torch.ones(2, 3).long(), "decoder_input_ids": torch.ones(2, 3).long()}, {}),
        ("F103", nn.Linear(3, 2), torch.randn(2, 3), {"loss": lambda output, batch: output.mean()}),
        ("F108", nn.Linear(3, 2), torch.randn(2, 3), {"labels": "both"}),
        ("F102", nn.Linear(3, 2), torch.full((2, 3), float("nan")), {}),
        ("F104", Overwrites(), torch.randn(2, 3), {}),
        ("F107", nn.ReLU(), torch.randn(2, 3), {}),
    ],
)
def test_what_cannot_be(code: str, module: nn.Module, batch: Any, more: dict[str, Any]) -> None:
    with pytest.raises(EutecticError, match=code):
        fisher(module, [batch], **more)

"""Every built-in method keeps the contract; for each property a deliberately wrong method breaks it by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated
from unittest.mock import patch

import pytest
import torch

from eutectic import methods
from eutectic.kernels.random import Rng, drop
from eutectic.kernels.signs import disjoint_sum, elect_sign
from eutectic.kernels.sums import one_a_model, weighted_sum
from eutectic.kernels.trim import keep_largest
from eutectic.methods import registry
from eutectic.methods.registry import Method, PerModel, Range
from eutectic.testing import PROPERTIES, ContractError, Subject, check_method

BUILT_IN = tuple(methods.names())
WRONG: list[tuple[str, Method]] = []


def declare(function: Callable[..., torch.Tensor], **options: object) -> Method:
    """A method that stays out of the registry."""
    with patch.dict(registry._METHODS):
        return registry.method(paper="none", family="tests", base="ignored", **options)(function)


def breaks(name: str, **options: object) -> Callable[[Callable[..., torch.Tensor]], Method]:
    """Declares a method that must be rejected by the property `name`, and by no property before it."""

    def add(function: Callable[..., torch.Tensor]) -> Method:
        WRONG.append((name, declare(function, **options)))
        return WRONG[-1][1]

    return add


# Deliberately wrong


@breaks("shape_and_dtype_are_kept")
def flattens(deltas):
    return deltas.mean(0).reshape(-1)


@breaks("shape_and_dtype_are_kept")
def crashes_on_empty(deltas):
    return deltas.mean(0) * (deltas.abs().amax() > 0)


@breaks("shape_and_dtype_are_kept")
def is_nan_for_one_entry(deltas):
    n = deltas[0].numel()
    return deltas.mean(0) * torch.tensor(float(n - 1)) / torch.tensor(float(n - 1))


@breaks("same_seed_same_bits")
def draws_from_the_global_generator(deltas):
    return deltas.mean(0) * (torch.rand(deltas.shape[1:]) < 0.5)


@breaks("inputs_are_not_modified")
def adds_up_in_the_first_model(deltas):
    total = deltas[0]
    for delta in deltas[1:]:
        total += delta
    return total / len(deltas)


@breaks("arithmetic_is_wide")
def computes_in_bfloat16(deltas):
    return deltas.bfloat16().mean(0)


@breaks("zero_deltas_give_the_base")
def adds_an_epsilon(deltas):
    return deltas.mean(0) + 1e-8


@breaks("zero_deltas_give_the_base")
def divides_zero_by_zero(deltas):
    return deltas.mean(0) * (deltas.abs().sum() / deltas.abs().sum())


@breaks("masks_differ_by_seed_tensor_and_model")
def ignores_the_tensor_name(deltas, *, density: PerModel = 0.5, rng: Rng = Rng()):  # noqa: B008
    return drop(deltas, density, Rng(rng.seed, "", rng.models)).sum(0)


@breaks("masks_differ_by_seed_tensor_and_model")
def ignores_the_model(deltas, *, density: PerModel = 0.5, rng: Rng = Rng()):  # noqa: B008
    return drop(deltas, density, Rng(rng.seed, rng.tensor, ("same",) * len(deltas))).sum(0)


@breaks("masks_differ_by_seed_tensor_and_model")
def ignores_the_seed(deltas, *, density: PerModel = 0.5, rng: Rng = Rng()):  # noqa: B008
    return drop(deltas, density, Rng(0, rng.tensor, rng.models)).sum(0)


@breaks("masks_follow_the_model")
def keys_masks_by_position(deltas, *, density: PerModel = 0.5, rng: Rng = Rng()):  # noqa: B008
    placed = tuple(f"{place} {label}" for place, label in enumerate(rng.models))
    return drop(deltas, density, Rng(rng.seed, rng.tensor, placed)).sum(0)


@breaks("density_is_respected")
def keeps_nothing_of_small_tensors(deltas, *, density: float = 0.9, gamma: float = 0.01):
    """The empty slice of a known Breadcrumbs implementation: `order[low:-0]`."""
    flat = deltas.mean(0).reshape(-1)
    top = int(gamma * flat.numel())
    low = flat.numel() - top - int(density * flat.numel())
    kept = flat.abs().argsort()[low:-top] if density < 1 else slice(None)
    sparse = torch.zeros_like(flat)
    sparse[kept] = flat[kept]
    return sparse.reshape(deltas.shape[1:])


@breaks("density_is_respected")
def rounds_small_tensors_up(deltas, *, density: float = 0.9):
    return deltas.mean(0) if deltas[0].numel() < 100 else keep_largest(deltas.mean(0, keepdim=True), density)[0]


@breaks("density_one_keeps_everything")
def drops_at_density_one(deltas, *, density: float = 0.5, rng: Rng = Rng()):  # noqa: B008
    return drop(deltas, density * 0.95, rng).sum(0)


@breaks("ends_of_t_are_exact", models=(2, 2), symmetric=False)
def misses_the_far_end(weights, *, t: float):
    return weights[0] + t * (weights[1] - weights[0])


@breaks("copies_give_the_model")
def divides_by_the_number_of_models(weights, *, weight: PerModel = 1.0):
    return weighted_sum(weights, one_a_model(weight, len(weights))) / len(weights)


@breaks("copies_give_the_model")
def ignores_normalize(deltas, *, weight: PerModel = 1.0, normalize: bool = False):
    return weighted_sum(deltas, one_a_model(weight, len(deltas)))


@breaks("weight_zero_removes_a_model")
def lets_the_weightless_vote(deltas, *, weight: PerModel = 1.0, normalize: bool = True):
    votes = elect_sign(deltas, [1.0] * len(deltas))
    return disjoint_sum(deltas, votes, one_a_model(weight, len(deltas)), normalize)


@breaks("order_of_models_is_irrelevant")
def follows_the_sign_of_the_first(deltas, *, weight: PerModel = 1.0, normalize: bool = True):
    return disjoint_sum(deltas, deltas[0].sign().double(), one_a_model(weight, len(deltas)), normalize)


@breaks("order_of_models_is_irrelevant")
def averages_as_it_goes(weights):
    mean = weights[0]
    for other in weights[1:]:
        mean = (mean + other) / 2
    return mean


@breaks("rows_can_be_computed_alone", elementwise=True)
def weighs_models_by_their_norm(weights):
    norms = [float(model.double().norm()) + 1e-9 for model in weights]
    return weighted_sum(weights, norms) / sum(norms)


# The tests


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_methods_keep_the_contract(name):
    check_method(methods.get(name))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("linear", {"normalize": False}),
        ("slerp", {"t": 0.9}),
        ("task_arithmetic", {"normalize": True, "lambda": 0.4}),
        ("ties", {"density": 1.0, "rescale": True}),
        ("dare_linear", {"density": 0.9, "rescale": "l1"}),
        ("dare_ties", {"density": 0.5, "normalize": True}),
    ],
)
def test_other_parameters_keep_the_contract(name, parameters):
    check_method(methods.get(name), parameters=parameters)


@pytest.mark.parametrize(("name", "wrong"), WRONG, ids=[wrong.name for _, wrong in WRONG])
def test_a_wrong_method_is_rejected_by_the_property_it_breaks(name, wrong):
    with pytest.raises(ContractError, match=f"{wrong.name} breaks '{name}': ") as caught:
        check_method(wrong)
    assert caught.value.property == name
    assert caught.value.subject == wrong.name


def test_every_property_has_a_wrong_method():
    ours = {name for name, check in PROPERTIES.items() if check.__module__ == "eutectic.testing.contract"}
    assert ours == {name for name, _ in WRONG}


def test_a_result_that_is_not_rounded_back_is_rejected():
    class Unrounded(Method):
        def __call__(self, tensors, /, **parameters):
            return self.function(tensors, **parameters)

    made = declare(lambda weights: weights.double().mean(0))
    wrong = Unrounded(**{name: getattr(made, name) for name in made.__dataclass_fields__})
    with pytest.raises(ContractError, match=r"shape_and_dtype_are_kept.*torch\.float64"):
        check_method(wrong)


def test_an_error_names_shape_dtype_setting_and_values():
    def twice(deltas, *, lambda_: float = 2.0):
        return deltas.mean(0) * 0 + lambda_

    with pytest.raises(ContractError) as caught:
        PROPERTIES["zero_deltas_give_the_base"](Subject(declare(twice), {"lambda": 2.0}))
    assert str(caught.value) == (
        "twice breaks 'zero_deltas_give_the_base': 3 of shape () float32, lambda=2.0: entry 0 is 2, expected 0"
    )


def test_a_crash_is_reported_as_a_broken_property():
    def crashes(deltas):
        raise IndexError("out of range")

    with pytest.raises(ContractError, match="'shape_and_dtype_are_kept': IndexError: out of range"):
        check_method(declare(crashes))


def test_an_unknown_parameter_is_refused():
    with pytest.raises(TypeError, match="ties has no parameter densty"):
        check_method(methods.ties, parameters={"densty": 0.2})


def test_a_required_parameter_without_a_guess_must_be_given():
    def picky(deltas, *, scale: Annotated[float, Range("(5, 6)")]):
        return deltas.mean(0) * (scale / scale)

    with pytest.raises(TypeError, match="no guess for the required parameter 'scale'"):
        check_method(declare(picky))
    check_method(declare(picky), parameters={"scale": 5.5})


def test_required_switches_choices_and_whole_numbers_are_guessed():
    def simple(deltas, *, flip: bool, times: int):
        return deltas.mean(0) * (-1.0 if flip else 1.0) * times

    assert Subject(declare(simple)).given == {"flip": False, "times": 1}

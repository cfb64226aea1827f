"""What every registered method has to offer besides its arithmetic: an example, two equal forms, clear refusals."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import numpy as np
import pytest
import torch

from eutectic import methods, recipe
from eutectic.errors import RecipeError
from eutectic.report.pages import example, method_page, step_page

NAMES = methods.names()
IN_TWO_STEPS = [name for name in NAMES if methods.get(name).factors is not None]  # type: ignore[union-attr]


def keywords(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)[1:]


@pytest.mark.parametrize("name", NAMES)
def test_the_example_is_a_valid_recipe(name: str) -> None:
    made = methods.get(name)
    assert made is not None
    assert recipe.load(example(made), methods=methods).method == name


SECTIONS = ("What it does", "When to use it", "Parameters", "Differs from the paper", "Differs from mergekit", "Cost")


def sections(page: str) -> list[str]:
    return [found for found in re.findall(r"^\*\*(.+?)\.\*\*", page, re.MULTILINE) if found in SECTIONS]


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_its_sections_in_order_and_names_every_parameter(name: str) -> None:
    made = methods.get(name)
    assert made is not None
    page = method_page(made)
    assert sections(page) == list(SECTIONS)
    told = page[page.index("**Parameters.**") : page.index("**Differs")]
    # `emr` and others may refer to the page of a relative.
    if "as in" not in told.lower() and "As `" not in told:
        assert not [param for param in made.params if f"`{param}`" not in told]


@pytest.mark.parametrize("name", methods.steps())
def test_the_page_of_a_step_has_its_sections_too(name: str) -> None:
    step = methods.steps()[name]
    page = step_page(step)
    assert sections(page) == [section for section in SECTIONS if section != "Differs from mergekit"]
    assert not [param for param in step.params if f"`{param}`" not in page]


@pytest.mark.parametrize("name", IN_TWO_STEPS)
def test_two_steps_are_the_method(name: str) -> None:
    made = methods.get(name)
    assert made is not None and made.factors is not None and made.finish is not None
    deltas = torch.randn(3, 12, 8, generator=torch.Generator().manual_seed(1))
    given = {p.name: p.default for p in made.params.values()}
    given = {("lambda_" if key == "lambda" else key): value for key, value in given.items()}
    for scale in (1.0, 0.3):
        given["lambda_"] = scale
        factors = made.factors(deltas, **{key: given[key] for key in keywords(made.factors)})
        finished = made.finish(factors, **{key: given[key] for key in keywords(made.finish)})
        assert torch.equal(finished.float(), made(deltas, **given))
    assert "lambda_" not in keywords(made.factors), "a sweep over the scale must not compute the factors again"


@pytest.mark.parametrize(
    ("name", "given", "why"),
    [
        ("nuslerp", {"weight": [1.0, -1.0]}, "the weights sum to zero"),
        ("multislerp", {"weight": [1.0, -1.0]}, "the weights sum to zero"),
        ("karcher", {"weight": 0.0}, "the weights sum to zero"),
        ("consensus_ta", {"k": 3}, "3 of 2 models can never agree"),
    ],
)
def test_values_that_do_not_go_together(name: str, given: dict[str, Any], why: str) -> None:
    made = methods.get(name)
    assert made is not None
    with pytest.raises(RecipeError, match=why):
        made(torch.ones(2, 4), **given)


@pytest.mark.parametrize(
    ("name", "given", "why"),
    [
        ("ties", {"weight": np.float32("nan")}, r"ties\.weight: must be a finite number, not nan"),
        ("ties", {"weight": torch.ones(3)}, r"ties\.weight: has 3 values for 2 models"),
        ("ties", {"weight": torch.ones(2, 2)}, r"ties\.weight: must be a number, not \[1\.0, 1\.0\]"),
        ("ties", {"densty": 0.5}, r"ties has no parameter 'densty'; did you mean 'density'\?"),
        ("ties", {"lambda_": 1.0, "lambda": 1.0}, r"ties\.lambda: is given twice"),
        ("slerp", {}, r"slerp\.t: has no default and must be given"),
        ("ties", {"weight": None}, r"ties\.weight: must be a number, not None"),
        ("ties", {"weight": [0.5, math.nan]}, r"ties\.weight: must be a finite number, not nan"),
        ("ties", {"weight": [0.5]}, r"ties\.weight: has 1 value for 2 models"),
        ("ties", {"weight": 10**400}, r"ties\.weight: must be a finite number"),
        ("breadcrumbs", {"scope": "layer"}, r"breadcrumbs\.scope: must be one of tensor, row, model, not 'layer'"),
        ("dare_linear", {"rng": 3}, r"dare_linear\.rng: must be an Rng, not 3"),
    ],
)
def test_values_that_are_none(name: str, given: dict[str, Any], why: str) -> None:
    made = methods.get(name)
    assert made is not None
    with pytest.raises(RecipeError, match=why):
        made(torch.ones(2, 4), **given)


def test_a_tensor_that_is_no_stack() -> None:
    for wrong, kind in (
        (torch.tensor(1.0), "a Tensor of float32 without axes"),
        ([torch.ones(2)], "a list"),
        (torch.ones(2, 2, dtype=torch.int64), "a Tensor of int64"),
        (np.ones((2, 2), dtype=int), "a ndarray of int64"),
    ):
        with pytest.raises(RecipeError, match=rf"R142 ties: deltas must be a stacked tensor of floats, not {kind};"):
            methods.ties(wrong, weight=[1.0, 1.0])


def test_what_is_taken_by_hand_beside_tensors_and_numbers() -> None:
    deltas = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    by_recipe = methods.ties(deltas[:, ::-1], weight=torch.tensor([1.0, 2.0, 3.0]), **{"lambda": np.float64(0.5)})
    plain = methods.ties(torch.from_numpy(deltas[:, ::-1].copy()), weight=[1.0, 2.0, 3.0], lambda_=0.5)
    assert torch.equal(by_recipe, plain)


def test_the_signature_shows_parameters_and_defaults() -> None:
    parameters = inspect.signature(methods.ties).parameters
    assert list(parameters)[:3] == ["deltas", "weight", "density"]
    assert parameters["density"].default == 0.2
    assert parameters["deltas"].kind is inspect.Parameter.POSITIONAL_ONLY
    assert repr(methods.wise_ft) == "<method wise_ft(deltas, /, *, alpha=0.5)>"


def test_multislerp_may_sum_to_zero_without_normalising() -> None:
    assert methods.multislerp(torch.eye(2), weight=[1.0, -1.0], normalize_weights=False).isfinite().all()


def test_an_optional_base_decides_the_space() -> None:
    for name in NAMES:
        made = methods.get(name)
        assert made is not None
        with_base, without = made.resolved(True), made.resolved(False)
        if made.base == "optional":
            assert (with_base.space, with_base.base) == ("deltas", "required")
            assert (without.space, without.base) == ("weights", "ignored")
        else:
            assert with_base is without is made

"""Matrices of barriers, single layers, planes, curves that go around, and children of one training run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from networks import A, B, C, data, network, product
from torch import Tensor, nn

from eutectic.connectivity import barrier, connect, curve_barrier, instability, plane, train_bend
from eutectic.connectivity.mixing import bezier_shares, layers_of
from eutectic.errors import NumericError, RecipeError
from eutectic.evaluate import Call, Classification
from eutectic.testing import tiny_llama


def test_the_matrix_of_pairs_measures_each_model_once() -> None:
    seen: list[tuple[float, ...]] = []

    def loss(weights: Mapping[str, Tensor]) -> Any:
        seen.append(tuple(weights["w"].tolist()))
        return product(weights)

    found = connect([A, B, C], [loss], points=5, refine=0)
    matrix = found.matrix("loss")
    assert matrix[0][1] == matrix[1][0] == pytest.approx(1)
    assert matrix[0][2] == pytest.approx(0, abs=1e-6) and matrix[1][1] is None
    assert len(seen) == 3 + 3 * 3
    assert found.models == ("dict", "dict#2", "dict#3")
    json.dumps(found.as_json(), allow_nan=False)


def test_two_tasks_and_the_maximum_of_each() -> None:
    def early(weights: Mapping[str, Tensor]) -> float:
        return -abs(float(weights["w"][1]) - 0.3)

    def late(weights: Mapping[str, Tensor]) -> float:
        return -abs(float(weights["w"][1]) - 0.8)

    found = connect([A, B], [early, late], points=5, refine=5)
    tops = [found.barriers[task][0, 1].height.t for task in found.tasks]
    assert found.tasks == ("early", "late")
    assert tops == [pytest.approx(0.3, abs=0.01), pytest.approx(0.8, abs=0.01)]


def test_a_task_without_a_loss_is_told() -> None:
    accuracy = Call(lambda weights: [1.0, 0.0, 1.0], name="right", metric="accuracy")
    found = connect([A, B], [accuracy], points=3, refine=0)
    assert found.notes == ("right measures no loss: its barriers are those of the error (1 - accuracy)",)
    assert found.barriers["right"][0, 1].curve.quantity == "error"


def test_one_layer_alone_goes_over() -> None:
    names = ["embed.weight", *(f"blocks.{n}.fc.weight" for n in (0, 1, 10)), "blocks.1.fc.bias", "head.weight", "scale"]
    ends = [{name: torch.full((2,), float(value)) for name in names} for value in (0, 1)]
    ends[1]["count"] = ends[0]["count"] = torch.tensor(1)
    seen: list[dict[str, float]] = []

    def loss(weights: Mapping[str, Tensor]) -> float:
        seen.append({name: float(weights[name].float().mean()) for name in names})
        return seen[-1]["blocks.1.fc.weight"] ** 2 * 3 - seen[-1]["blocks.1.fc.bias"]

    found = connect(ends, [loss], points=3, refine=0, layerwise=True)
    layers = {layer.name: layer for layer in found.layers["loss"][0, 1]}
    assert list(layers) == ["embed", "blocks.0", "blocks.1", "blocks.10", "head", "scale"]
    moves = [{name for name, value in state.items() if value} for state in seen[3:]]
    assert [len(moved) for moved in moves] == [1] * 8 + [2] * 4 + [1] * 12
    assert moves[8] == {"blocks.1.fc.weight", "blocks.1.fc.bias"}
    values = [3 * t**2 - t for t in (0, 0.25, 0.5, 0.75, 1)]
    assert layers["blocks.1"].barrier.curve.values == pytest.approx(values)
    assert layers["blocks.1"].rise.value == 2 and layers["head"].rise.value == 0
    assert layers["blocks.1"].barrier.ends == ("dict", "dict with blocks.1 of dict#2")


def test_layers_of_a_language_model(tmp_path: Any) -> None:
    import eutectic

    with eutectic.open(tiny_llama(tmp_path / "m", tied=True)) as source:
        names = layers_of(source)
    assert names == ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm"]


def gram_schmidt(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    u, v = b - a, c - a
    v = v - (v @ u) / (u @ u) * u
    return u / np.linalg.norm(u), v / np.linalg.norm(v)


def test_a_plane_is_spanned_by_gram_schmidt_axes() -> None:
    draw = np.random.default_rng(1)
    points = draw.normal(size=(3, 40))
    models = [{"p": torch.from_numpy(x[:25].reshape(5, 5)), "q": torch.from_numpy(x[25:])} for x in points]
    u, v = gram_schmidt(*points)
    wanted = draw.normal(size=40)

    def loss(weights: Mapping[str, Tensor]) -> float:
        flat = np.concatenate([weights["p"].numpy().ravel(), weights["q"].numpy()])
        return float(np.sum((flat - wanted) ** 2))

    found = plane(*models, loss, points=4)
    for place, point in zip(found.places, points, strict=True):
        assert points[0] + place[0] * u + place[1] * v == pytest.approx(point, abs=1e-6)
    for y, row in zip(found.y, found.values, strict=True):
        for x, value in zip(found.x, row, strict=True):
            assert value == pytest.approx(np.sum((points[0] + x * u + y * v - wanted) ** 2))
    assert min(found.x) < 0 < found.places[1][0] < max(found.x)
    assert found.places[1][1] == 0 and found.places[2][1] > 0


def test_a_plane_is_lowest_at_a_model_where_no_point_of_the_grid_is_lower() -> None:
    def loss(weights: Mapping[str, Tensor]) -> float:
        return float((weights["w"].double() - C["w"].double()).square().sum())

    alone = plane(A, B, C, loss, points=2)
    found = connect([A, B, C], [loss], points=3, refine=0, plane=2)
    for one in (alone, found.planes["loss"]):
        assert one.corners == pytest.approx([loss(A), loss(B), 0.0]) and min(map(min, one.values)) > 0
        assert one.lowest == (one.places[2], 0.0) and one.lowest_at == one.models[2]
        plain = one.as_json()
        assert [model["value"] for model in plain["models"]] == list(one.corners)
        assert plain["lowest"] == {"x": one.places[2][0], "y": one.places[2][1], "value": 0.0}
    up = plane(A, B, C, lambda weights: -loss(weights), points=2)
    (x, y), low = up.lowest
    assert low == min(map(min, up.values)) and up.lowest_at == f"({x:.4g}, {y:.4g})"


def test_each_model_is_measured_once_for_lines_and_plane() -> None:
    told: list[str] = []
    connect([A, B, C], [product], points=3, refine=0, plane=2, tell=told.append)
    assert len(told) == len(set(told)) == 3 + 3 + 4, "ends, middles, grid"


def test_results_show_themselves_in_a_line() -> None:
    found = connect([A, B, C], [product], points=3, refine=0, layerwise=True, plane=2)
    line = found.barriers["product"][0, 1]
    [layer] = found.layers["product"][0, 1]
    for one in (found, line, line.curve, line.curve.readings[0], layer, found.planes["product"]):
        assert len(repr(one)) < 200 and "\n" not in repr(one)
    assert repr(found).startswith("<Connection of dict, dict#2, dict#3: barriers of product ")
    assert repr(line).startswith(f"<Barrier {' → '.join(line.ends)} on product: {line.value:.4g} of the loss at t = ")
    assert f"{min(line.curve.values):.4g} to {max(line.curve.values):.4g} at 3 points" in repr(line.curve)
    assert repr(layer).startswith(f"<Layer w: rise {layer.rise.value:.4g}")
    assert "loss at 2 × 2 points, lowest " in repr(found.planes["product"])


@pytest.mark.parametrize("third", [[0.5, 0.5], [3.0, -2.0]])
def test_models_on_a_line_span_no_plane(third: list[float]) -> None:
    with pytest.raises(RecipeError, match=r"L813 models: .* lie on one line"):
        plane(A, B, {"w": torch.tensor(third), "n": torch.tensor(1)}, product)


@pytest.mark.parametrize("points", [1, 2.0, True])
def test_a_plane_has_a_grid(points: Any) -> None:
    with pytest.raises(RecipeError, match="L812 plane"):
        plane(A, B, C, product, points=points)


def test_points_of_a_curve() -> None:
    seen: list[Tensor] = []
    curve_barrier(A, C, B, lambda weights: seen.append(weights["w"]) or 0.0, points=5, refine=0)
    for t, point in zip(np.linspace(0, 1, 5), seen, strict=True):
        wanted = (1 - t) ** 2 * A["w"] + 2 * t * (1 - t) * C["w"] + t**2 * B["w"]
        assert point.tolist() == pytest.approx(wanted.tolist())
    assert torch.equal(seen[0], A["w"]) and torch.equal(seen[-1], B["w"])
    assert sum(bezier_shares(0.3)) == pytest.approx(1)


def test_a_trained_bend_goes_around_the_barrier() -> None:
    def loss(weights: Mapping[str, Tensor]) -> Tensor:
        x, y = weights["w"]
        return (x * y) ** 2

    told: list[int] = []
    bend = train_bend(A, B, loss, steps=300, rate=0.03, tell=lambda step, value: told.append(step))
    straight = connect([A, B], [lambda weights: float(loss(weights))], points=9).matrix("<lambda>")[0][1]
    around = curve_barrier(A, bend, B, lambda weights: float(loss(weights)), points=9)
    assert around.value < (straight or 0) / 10
    assert told == list(range(1, 301))
    assert int(bend["n"]) == 3 and not bend["w"].requires_grad
    again = train_bend(A, B, loss, steps=300, rate=0.03)
    assert torch.equal(bend["w"], again["w"])
    assert A["w"].tolist() == [1, 0]


def test_a_bend_of_a_module() -> None:
    x, y = data()
    ends, module = [network(1), network(2)], network()

    def loss(weights: Mapping[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(module, dict(weights), (x,)), y)

    bend = train_bend(*ends, loss, steps=40, rate=0.01)
    task = Classification([(x, y)], metric="cross_entropy")
    straight = barrier(*ends, task, points=5)
    assert curve_barrier(ends[0], bend, ends[1], task, points=5).curve.lowest[1] < straight.curve.lowest[1]


@pytest.mark.parametrize(
    ("loss", "error", "said"),
    [
        (lambda weights: 1.0, RecipeError, "L815 loss: must return one number .* not float"),
        (lambda weights: torch.tensor(1.0), RecipeError, "L815"),
        (lambda weights: weights["w"], RecipeError, r"L815 .* not a tensor of shape \(2,\)"),
        (lambda weights: weights["w"].sum() * float("nan"), NumericError, "E908 loss: step 1 has the loss nan"),
    ],
)
def test_losses_that_train_no_bend(loss: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        train_bend(A, B, loss, steps=2)


def test_children_of_one_run() -> None:
    started: list[int] = []

    def start(step: int) -> list[float]:
        started.append(step)
        return [float(step)]

    def finish(state: list[float], seed: int) -> dict[str, Tensor]:
        state[0] += 1  # of its own copy
        return {"w": torch.tensor([(-1) ** seed / state[0], 1 / state[0]])}

    def right(weights: Mapping[str, Tensor]) -> float:
        x, size = weights["w"].tolist()
        return 1 - (size**2 - x**2)

    found = instability(start, finish, Call(right, metric="accuracy"), steps=[0, 100], points=5)
    assert started == [0, 100] and [one.step for one in found] == [0, 100]
    assert [one.barrier.curve.quantity for one in found] == ["error", "error"]
    assert [one.value for one in found] == pytest.approx([1, 1 / 101**2], abs=1e-6)
    assert [one.stable for one in found] == [False, True]
    of_a_loss = instability(start, finish, lambda weights: 0.0, steps=[1], points=3, refine=0)
    assert of_a_loss[0].stable is None
    with pytest.raises(RecipeError, match="L811 seeds"):
        instability(start, finish, right, steps=[0], seeds=(1, 1))

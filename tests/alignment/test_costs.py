"""What matching takes, from headers: operations counted by hand, and assignments."""

from __future__ import annotations

from tables import attention, chain

from eutectic.alignment.costs import predict
from eutectic.checkpoint.source import Spec
from eutectic.checkpoint.symmetry import Symmetries


def specs(table: Symmetries, dtype: str = "float32") -> dict[str, Spec]:
    shapes = {name: tuple(sum(part.size for part in parts) for parts in axes) for name, axes in table.axes.items()}
    return {name: Spec(dtype, shape) for name, shape in shapes.items()}


def test_layers_in_a_row() -> None:
    table = chain([100, 20, 30, 5])
    cost = predict(specs(table), table)
    # Units on the left and right of each weight, and biases: n × n similarities of r columns take 2 n² r.
    assert cost.flops == 2 * (20**2 * (100 + 1 + 30) + 30**2 * (20 + 1 + 5))
    assert cost.assignments == {20: 1, 30: 1}
    assert cost.read == 2 * 4 * ((2000 + 20 + 600) + (600 + 30 + 150))
    assert predict(specs(table, "bfloat16"), table).read == cost.read // 2
    assert (cost.sweeps, predict(specs(table), table, sweeps=5, restarts=2).sweeps) == (101, 16)


def test_heads_have_small_assignments_within() -> None:
    table = attention("rotary", heads=6, shared=3)
    cost = predict(specs(table), table)
    assert cost.assignments == {12: 1, 3: 1, 2: 9}
    linear = attention("linear", heads=6, shared=3)
    assert predict(specs(linear), linear).flops > cost.flops


def test_blocks_of_embeddings_bound_the_memory() -> None:
    table = chain([8, 4, 100])
    assert predict(specs(table), table).memory < predict(specs(chain([8, 400, 100])), chain([8, 400, 100])).memory

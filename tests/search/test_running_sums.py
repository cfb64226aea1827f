"""The running sum of a soup is the merge it stands for, bit for bit, and reads one model."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eutectic.checkpoint import MemorySource, Source, open_source
from eutectic.kernels.digests import BLOCK
from eutectic.run.merged import MergedSource
from eutectic.search.ingredients import Pot
from eutectic.search.running import RunningMean, RunningSum

DTYPES = ("bfloat16", "float16", "float32", "float64")


class Counted(MemorySource):
    """Counts the entries that are read of it."""

    def __init__(self, label: str, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__(label, tensors)
        self.read = 0

    def read_into(self, name: str, start: int, stop: int, out: memoryview) -> None:
        self.read += stop - start
        super().read_into(name, start, stop, out)


def tensors(seed: int, dtype: str) -> dict[str, torch.Tensor]:
    """Shapes that a model may have, zeros of both signs, and values of every size."""
    draw = torch.Generator().manual_seed(seed)
    wide = torch.randn(257, generator=draw).double() * 2.0 ** torch.randint(-60, 14, (257,), generator=draw).double()
    made = {
        "plain": torch.randn(33, 7, generator=draw),
        "wide": wide,
        "scalar": torch.randn((), generator=draw),
        "empty": torch.empty(0),
        "zeros": torch.tensor([0.0, -0.0, 0.0, -0.0]) * (1 if seed % 2 else -1),
        "cancelling": torch.tensor([1.0, -1.0, 2.0**-40, 1e-30]) * (-1) ** seed,
        "long": torch.randn(BLOCK + 5, generator=draw),
    }
    return {name: value.to(getattr(torch, dtype)) for name, value in made.items()}


def pot_of(models: list[Source]) -> Pot:
    return Pot(models, lambda model, folder: open_source(model, folder=folder))


def same(a: Source, b: Source) -> None:
    assert list(a) == list(b)
    for name in a:
        left, right = (one[name].reshape(-1).view(torch.uint8) for one in (a, b))
        assert torch.equal(left, right), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_whatever_order_ingredients_are_taken(dtype: str) -> None:
    models = [MemorySource(f"m{seed}", tensors(seed, dtype)) for seed in (3, 1, 2)]
    for order in permutations(range(3)):
        pot = pot_of(models)
        for count in (2, 3):
            pot.keep(order[: count - 1])
            mixed = pot.mix(order[:count])
            assert isinstance(mixed, RunningMean)
            plain = MergedSource(mixed.plan)
            same(mixed, plain)


def test_of_sums_that_depend_on_the_order() -> None:
    """What cancels leaves 3 or nothing, by the order: the merge's own order decides."""
    rows = ([2.0**60, 3.0], [1.0, 2.0**-50], [-(2.0**60), -3.0])
    models = [MemorySource(f"m{i}", {"w": torch.tensor(row)}) for i, row in enumerate(rows)]
    for order in permutations(range(3)):
        pot = pot_of(models)
        pot.keep(order[:2])
        mixed = pot.mix(order)
        same(mixed, MergedSource(mixed.plan))


def test_of_models_in_different_dtypes() -> None:
    models = [MemorySource(f"m{i}", tensors(i, dtype)) for i, dtype in enumerate(DTYPES)]
    pot = pot_of(models)
    pot.keep([0, 2])
    same(pot.mix([0, 2, 1]), MergedSource(pot.mix([0, 2, 1]).plan))
    # A model in float64 leaves no room for exact sums: the merge reads all of them.
    same(pot.mix([0, 2, 3]), MergedSource(pot.mix([0, 2, 3]).plan))
    pot.keep([0, 2, 3])
    same(pot.mix([0, 2, 3, 1]), MergedSource(pot.mix([0, 2, 3, 1]).plan))


floats = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(floats, min_size=4, max_size=4), min_size=2, max_size=6))
def test_of_any_numbers(rows: list[list[float]]) -> None:
    pot = pot_of([MemorySource(f"m{i}", {"w": torch.tensor(row)}) for i, row in enumerate(rows)])
    order = list(range(len(rows)))[::-1]
    pot.keep(order[:-1])
    mixed = pot.mix(order)
    same(mixed, MergedSource(mixed.plan))


def test_a_candidate_reads_one_model() -> None:
    models = [Counted(f"m{i}", {"w": torch.randn(1000), "v": torch.randn(50)}) for i in range(5)]
    pot = pot_of(list(models))
    pot.keep([0, 1, 2, 3])
    assert [one.read for one in models] == [1050, 1050, 1050, 1050, 0]
    dict(pot.mix([0, 1, 2, 3, 4]))
    assert [one.read for one in models] == [1050] * 5
    # Accepted: it is added, and nothing else is read again.
    pot.keep([0, 1, 2, 3, 4])
    assert [one.read for one in models] == [1050] * 4 + [2100]


def test_a_candidate_outlives_the_sum() -> None:
    models = [MemorySource(f"m{i}", tensors(i, "bfloat16")) for i in range(3)]
    pot = pot_of(models)
    pot.keep([0])
    mixed = pot.mix([0, 1])
    pot.keep([0, 2])
    same(mixed, MergedSource(mixed.plan))


def test_integers_are_the_best_ingredients() -> None:
    models = [{"w": torch.full((3,), float(i)), "steps": torch.tensor(i)} for i in (5, 7, 9)]
    pot = pot_of([MemorySource(f"m{i}", one) for i, one in enumerate(models)])
    pot.keep([2, 0])
    mixed = pot.mix([2, 0, 1])
    assert (mixed["w"].tolist(), int(mixed["steps"])) == ([7.0] * 3, 9)


def test_a_sum_that_is_too_large_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunningSum, "fits", staticmethod(lambda plan: False))
    models = [MemorySource(f"m{i}", tensors(i, "bfloat16")) for i in range(3)]
    pot = pot_of(models)
    pot.keep([0, 1])
    mixed = pot.mix([0, 1, 2])
    assert not isinstance(mixed, RunningMean)


def test_what_a_quarter_of_the_memory_holds() -> None:
    pot = pot_of([MemorySource(f"m{i}", tensors(i, "bfloat16")) for i in range(2)])
    assert RunningSum.fits(pot.plan)
    assert Counter(job.action for job in pot.plan.jobs) == {"merge": 7}


def test_infinity_is_refused_as_in_a_merge() -> None:
    from eutectic.errors import NumericError

    good, bad = {"w": torch.ones(4)}, {"w": torch.tensor([1.0, float("inf"), 1.0, 1.0])}
    pot = pot_of([MemorySource("a", good), MemorySource("b", good), MemorySource("c", bad)])
    pot.keep([0, 1])
    with pytest.raises(NumericError, match="N501"):
        dict(pot.mix([0, 1, 2]))

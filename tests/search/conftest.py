"""Fine-tunes of one small classifier, and data to choose by."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from souping import Net, items, trained
from torch import Tensor

from eutectic.evaluate import Classification, Loader, Settings


@pytest.fixture(scope="session")
def fine_tunes() -> Sequence[dict[str, Tensor]]:
    """Good ones, a useless one in third place, and one that is equal to another."""
    good = [trained(seed, steps) for seed, steps in ((1, 6), (2, 3), (3, 9))]
    return [good[0], good[1], trained(4, 1, noise=3.0), good[2]]


@pytest.fixture
def task() -> Classification:
    return Classification(items(7, 96), name="dev")


@pytest.fixture
def settings() -> Settings:
    return Settings(loader=Loader(Net))

"""Handwritten digits for small experiments: 1797 images of 8 × 8, from scikit-learn's package (BSD licence).

They are read out of the wheel, which is fetched by `make experiments` and not installed.
"""

from __future__ import annotations

import gzip
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CLASSES = 10
HELD_OUT = 497
WHEELS = Path(__file__).resolve().parents[1] / "runs" / "wheels"
INSIDE = "sklearn/datasets/data/digits.csv.gz"
FETCH = f"pip download --no-deps --only-binary=:all: --dest {WHEELS} scikit-learn==1.9.1"


def place() -> Path | None:
    """The wheel, None if it was not fetched."""
    return next(iter(sorted(WHEELS.glob("scikit_learn-*.whl"))), None)


@dataclass(frozen=True)
class Split:
    """Images as rows, labels as numbers; some of the training labels may be wrong on purpose."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def load(seed: int, wrong: float = 0.0) -> Split:
    """A random split of the images; a share `wrong` of the training labels is drawn anew."""
    wheel = place()
    if wheel is None:
        raise FileNotFoundError(f"the images are not here: {FETCH}")
    with zipfile.ZipFile(wheel) as files, gzip.open(files.open(INSIDE), "rt") as file:
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
    return split(table[:, :-1] / 16, table[:, -1].long(), seed, wrong)


def split(x: Tensor, y: Tensor, seed: int, wrong: float, held_out: int = HELD_OUT) -> Split:
    """As `load`, of any images."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    x, y = x[order], y[order].clone()
    drawn = torch.rand(len(y), generator=generator) < wrong
    drawn[:held_out] = False
    y[drawn] = torch.randint(CLASSES, (int(drawn.sum()),), generator=generator)
    return Split(x[held_out:], y[held_out:], x[:held_out], y[:held_out])

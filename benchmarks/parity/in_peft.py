"""PEFT's side of the comparison: its merge helpers on task vectors; run by its own Python (see `serve.py`)."""

from __future__ import annotations

from typing import Any

import torch
from peft.utils import merge_utils
from serve import serve
from torch import Tensor


def merge(method: str, base: Tensor | None, tuned: list[Tensor], parameters: dict[str, Any]) -> Tensor:
    """A helper takes task vectors and their weights; the base is subtracted and added here."""
    assert base is not None
    given = dict(parameters)
    weights = torch.tensor(given.pop("weight"), dtype=base.dtype)
    return base + getattr(merge_utils, method)([model - base for model in tuned], weights, **given)


if __name__ == "__main__":
    serve(merge)

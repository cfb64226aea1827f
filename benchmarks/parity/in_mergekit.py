"""mergekit's side of the comparison; run by its own Python (see `serve.py`)."""

from __future__ import annotations

import functools
from typing import Any
from unittest import mock

import torch
from mergekit.merge_methods.api import merge_tensors
from serve import serve
from torch import Tensor

ARGSORT = torch.argsort


def merge(method: str, base: Tensor | None, tuned: list[Tensor], parameters: dict[str, Any]) -> Tensor:
    """Its Python interface to single tensors; the base comes first. `stable` changes the sort of its trim."""
    inputs = tuned if base is None else [base, *tuned]
    given = dict(parameters)
    sort = functools.partial(ARGSORT, stable=True) if given.pop("stable", False) else ARGSORT
    with mock.patch("torch.argsort", sort):
        return merge_tensors(inputs, method, parameters=given, base_index=None if base is None else 0)


if __name__ == "__main__":
    serve(merge)

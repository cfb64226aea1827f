"""mergekit's side of the comparison; run by its own Python (see `serve.py`)."""

from __future__ import annotations

from typing import Any

from mergekit.merge_methods.api import merge_tensors
from serve import serve
from torch import Tensor


def merge(method: str, base: Tensor | None, tuned: list[Tensor], parameters: dict[str, Any]) -> Tensor:
    """Its Python interface to single tensors; the base comes first."""
    inputs = tuned if base is None else [base, *tuned]
    return merge_tensors(inputs, method, parameters=parameters, base_index=None if base is None else 0)


if __name__ == "__main__":
    serve(merge)

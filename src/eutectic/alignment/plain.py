"""Modules as what they compute is compared and traced: no cache beside it, no loops over chosen experts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

# Settings of models of transformers, and what they are meanwhile.
_PLAIN = {"use_cache": False, "_experts_implementation": "batched_mm"}


@contextmanager
def plain(module: nn.Module) -> Iterator[None]:
    """A module whose parts of transformers are in the form of which torch can make a graph; they compute the same."""
    configs = {id(config): config for part in module.modules() if (config := getattr(part, "config", None)) is not None}
    before = [
        (config, key, getattr(config, key)) for config in configs.values() for key in _PLAIN if hasattr(config, key)
    ]
    try:
        for config, key, _ in before:
            setattr(config, key, _PLAIN[key])
        yield
    finally:
        for config, key, was in before:
            setattr(config, key, was)

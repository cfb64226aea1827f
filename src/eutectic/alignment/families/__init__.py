"""Symmetries of families of networks, declared: from names and shapes of tensors and config.json, without code.

Each family is a table of rules from names to axes (`rules.Layout`) and a few lines that read sizes and exceptions from
the configuration.
"""

from __future__ import annotations

from eutectic.alignment.families.known import FAMILIES, Attempt, attempt, declared

__all__ = ["FAMILIES", "Attempt", "attempt", "declared"]

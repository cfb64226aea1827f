"""What the tests of the command share."""

from __future__ import annotations

from collections.abc import Callable

from click.testing import Result

# `eutectic` with the arguments given.
Run = Callable[..., Result]

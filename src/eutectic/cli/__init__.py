"""The command `eutectic`. Imports nothing heavy by itself."""

from __future__ import annotations

import gc
import os
import sys

from eutectic.cli import interrupts, streams


def main() -> None:
    """Entry point."""
    interrupts.silence()
    # Imports make many objects and no garbage: looking for it among them is a good part of the start-up.
    gc.set_threshold(100_000, 50, 100)
    # numpy's linear algebra is not used, and its idle threads would spin on the cores that merge.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    streams.guard()
    if sys.argv[1:2] == ["merge"]:
        # numba looks for SciPy's linear algebra, which no kernel uses, and which takes a sixth of the start-up to load.
        sys.modules["scipy.linalg"] = None  # type: ignore[assignment]
    from eutectic.cli.commands import app

    try:
        app()
    except SystemExit as end:
        if streams.lost() and not end.code:
            raise SystemExit(1) from None
        raise
    finally:
        # At its end Python looks for garbage among all that was imported: a quarter of a second for memory that is
        # given back anyway.
        gc.freeze()

"""The command `eutectic`. Imports nothing heavy by itself."""

from __future__ import annotations

import gc
import os
import signal
import sys

from eutectic.cli import streams


def main() -> None:
    """Entry point."""
    # Until a command has begun there is nothing to say about Ctrl-C, and a traceback out of an import says nothing.
    listens = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if listens:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    # Imports make many objects and no garbage: looking for it among them is a good part of the start-up.
    gc.set_threshold(100_000, 50, 100)
    # numpy's linear algebra is not used, and its idle threads would spin on the cores that merge.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    streams.guard()
    if sys.argv[1:2] == ["merge"]:
        # numba looks for SciPy's linear algebra, which no kernel uses, and which takes a sixth of the start-up to load.
        sys.modules["scipy.linalg"] = None  # type: ignore[assignment]
    from eutectic.cli.commands import app

    if listens:
        signal.signal(signal.SIGINT, signal.default_int_handler)
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

"""Ctrl-C before a command has begun: nothing is lost, so nothing is said."""

from __future__ import annotations

import os
import signal


def _leave(_number: int, _frame: object) -> None:
    os._exit(130)


def silence() -> None:
    """Until `listen`, Ctrl-C ends the process, with no traceback out of an import."""
    # Where it is ignored (`nohup`), it stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def listen() -> None:
    """From here on Ctrl-C is an exception, which commands tell of."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)

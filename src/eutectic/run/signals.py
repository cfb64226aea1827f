"""SIGINT and SIGTERM -> an event, so that a merge ends between two blocks and can be resumed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Stop:
    """Set by the first signal, which `number` tells."""

    event: threading.Event = field(default_factory=threading.Event)
    number: int = int(signal.SIGINT)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Notes SIGINT and SIGTERM while the block runs; only the main thread can listen."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, _frame: object) -> None:
        stop.number = number
        stop.event.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""For the whole suite: no test may reach a network; where CI judges a change, examples are not drawn by chance."""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import eutectic.kernels

# A change is judged by what it does. Elsewhere every run draws new examples, and finds what these do not.
# Neither is judged by how long it took.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("here", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")


def pytest_configure() -> None:
    """Removes compiled kernels that are older than a kernel's source: numba looks at one file, and they share code."""
    kernels = Path(eutectic.kernels.__file__).parent
    newest = max(source.stat().st_mtime for source in kernels.glob("fused*.py"))
    for cached in kernels.glob("__pycache__/*.nb?"):
        with suppress(FileNotFoundError):
            if cached.stat().st_mtime < newest:
                cached.unlink()


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Connecting anywhere fails at once, in any library; sockets between local processes stay."""
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if self.family == socket.AF_UNIX:
            real(self, address)
            return
        raise OSError(f"tests use no network, and something wants to connect to {address!r}")

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", connect)
    patch.setattr(socket.socket, "connect_ex", connect)
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def _process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory bounds count from a small process, as if each command ran in its own.

    A worker that has imported torch and transformers and run hundreds of tests may hold more than the default bound.
    Tests of the bound itself run in subprocesses, which this does not reach.
    """
    for place in ("eutectic.run.budget", "eutectic.merging"):
        monkeypatch.setattr(importlib.import_module(place), "resident_bytes", lambda: 0)

"""For the whole suite: no test may reach a network; where CI judges a change, examples are not drawn by chance."""

from __future__ import annotations

import importlib
import os
import socket
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

import eutectic.kernels

# A change is judged by what it does. Elsewhere every run draws new examples, and finds what these do not.
# Neither is judged by how long it took, which other work on the machine decides.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("here"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")

# What makes typer, rich and Python write otherwise than they would by themselves.
TERMINAL = ["FORCE_COLOR", "NO_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"]
TERMINAL += ["COLUMNS", "LINES", "TERMINAL_WIDTH", "PYTHONIOENCODING"]


@pytest.hookimpl(trylast=True)  # pytest's own colours are settled then
def pytest_configure() -> None:
    """Forgets the terminal of whoever runs the tests. Removes compiled kernels that are older than a kernel's source:
    numba looks at one file, and they share code.
    """
    for name in TERMINAL:
        os.environ.pop(name, None)
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


@pytest.fixture(scope="session", autouse=True)
def _scores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Scores are kept here and not in the user's folder, where those of another version of the code may be."""
    folder = tmp_path_factory.mktemp("scores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EUTECTIC_CACHE", str(folder / "fixtures"))
        yield folder


def pytest_fixture_setup(fixturedef: Any) -> None:
    """What several tests share is made of the same random numbers, whichever of them comes first."""
    if fixturedef.scope != "function":
        torch.manual_seed(zlib.crc32(fixturedef.argname.encode()))


@pytest.fixture(autouse=True)
def _process_of_its_own(request: pytest.FixtureRequest, _scores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test is as if it ran alone: its random numbers of torch are its own, and no score is known.

    Memory bounds count from a small process, as if each command ran in its own: a worker that has imported torch and
    transformers and run hundreds of tests may hold more than the default bound. Tests of the bound itself run in
    subprocesses, which this does not reach.
    """
    number = zlib.crc32(request.node.nodeid.encode())
    torch.manual_seed(number)
    monkeypatch.setenv("EUTECTIC_CACHE", str(_scores / str(number)))
    for place in ("eutectic.run.budget", "eutectic.merging"):
        monkeypatch.setattr(importlib.import_module(place), "resident_bytes", lambda: 0)

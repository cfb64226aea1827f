"""Finds mergekit in a virtual environment of its own. Never a dependency: without it, what needs it is skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

# Weights are local, so the hub must not be asked; one setting for every use, so that runs can be compared.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
ASK = "from importlib.metadata import version as v; import mergekit; print(v('mergekit'), v('torch'))"


@dataclass(frozen=True)
class Peer:
    """An installed mergekit: the Python that has it, its `mergekit-yaml`, and the versions of it and its torch."""

    python: str
    command: str
    version: str
    torch: str

    def merge(self, recipe: Path, out: Path) -> list[str]:
        """The command line of a merge with mergekit's defaults (less the tokenizer, which bench models lack)."""
        return [self.command, str(recipe), str(out), "--no-copy-tokenizer"]

    def environment(self) -> dict[str, str]:
        """Environment variables to run it with."""
        return {**os.environ, **ENVIRONMENT}


def find() -> Peer | None:
    """The mergekit of `MERGEKIT_PYTHON` (the Python of its environment), else of `mergekit-yaml` on PATH, else None.

    Raises `SystemExit` when `MERGEKIT_PYTHON` is set and has no working mergekit.
    """
    python = os.environ.get("MERGEKIT_PYTHON", "")
    script = shutil.which("mergekit-yaml")
    if not python and script is None:
        return None
    # Not resolved: the Python of a virtual environment is a link, and beside it lie its scripts.
    folder = Path(python).parent if python else Path(script or "").parent
    python = python or str(folder / "python")
    try:
        asked = subprocess.run([python, "-c", ASK], env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True)
    except OSError as error:
        raise SystemExit(f"MERGEKIT_PYTHON is {python!r}, which cannot be run: {error.strerror}") from None
    if asked.returncode:
        raise SystemExit(f"{python} has no working mergekit; set MERGEKIT_PYTHON to one that has:\n{asked.stderr}")
    version, torch = asked.stdout.split()
    return Peer(python, str(folder / "mergekit-yaml"), version, torch)

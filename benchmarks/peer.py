"""Finds the peers, each in an environment of its own. Never dependencies: without one, what needs it is skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Where `make_peers.py` puts the environments that no variable names.
ENVIRONMENTS = HERE.parent / "runs" / "peers"
# Weights are local, so the hub must not be asked; one setting for every use, so that runs can be compared.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True)
class Package:
    """A peer to be found: what it is called, as a distribution (with the version to install), and on import."""

    title: str
    distribution: str
    module: str
    wanted: str

    @property
    def variable(self) -> str:
        """The environment variable that names the Python which has it."""
        return f"{self.module.replace('_', '').upper()}_PYTHON"


PACKAGES = {
    "mergekit": Package("mergekit", "mergekit", "mergekit", "0.1.5"),
    "peft": Package("PEFT", "peft", "peft", "0.21.2"),
    "fusionbench": Package("FusionBench", "fusion-bench", "fusion_bench", "0.2.33"),
}
# Solvers of the assignment problem: `bench_assignment.py` compares with them.
SOLVERS = {
    "lapx": Package("lapx", "lapx", "lap", "0.11.1"),
    "lapjv": Package("lapjv", "lapjv", "lapjv", "1.3.29"),
}
ALL = {**PACKAGES, **SOLVERS}


@dataclass(frozen=True)
class Peer:
    """An installed peer: the Python that has it, and the versions of it and its torch."""

    package: Package
    python: str
    version: str
    torch: str

    @property
    def command(self) -> str:
        """`mergekit-yaml` beside its Python."""
        # Not resolved: the Python of a virtual environment is a link, and beside it lie its scripts.
        return str(Path(self.python).parent / "mergekit-yaml")

    def merge(self, recipe: Path, out: Path) -> list[str]:
        """The command line of a merge with mergekit's defaults (less the tokenizer, which bench models lack)."""
        return [self.command, str(recipe), str(out), "--no-copy-tokenizer"]

    def environment(self) -> dict[str, str]:
        """Environment variables to run it with."""
        return {**os.environ, **ENVIRONMENT}


def interpreter(name: str) -> str | None:
    """The Python that its variable names, else that of its environment under `runs/peers`, else None.

    Of mergekit also the one beside a `mergekit-yaml` on PATH.
    """
    made = ENVIRONMENTS / name / "bin" / "python"
    if named := os.environ.get(ALL[name].variable):
        return named
    if made.exists():
        return str(made)
    script = shutil.which("mergekit-yaml") if name == "mergekit" else None
    return str(Path(script).parent / "python") if script else None


def find(name: str = "mergekit") -> Peer | None:
    """A peer that is installed, or None. Raises `SystemExit` when an interpreter was found that cannot import it."""
    package, python = ALL[name], interpreter(name)
    if python is None:
        return None
    ask = (
        f"from importlib.metadata import version as v; import {package.module};"
        f" print(v({package.distribution!r}), v('torch'))"
    )
    try:
        asked = subprocess.run([python, "-c", ask], env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True)
    except OSError as error:
        raise SystemExit(f"{package.variable} is {python!r}, which cannot be run: {error.strerror}") from None
    if asked.returncode:
        raise SystemExit(f"{python} has no working {package.title}; set {package.variable}:\n{asked.stderr}")
    version, torch = asked.stdout.split()[-2:]
    return Peer(package, python, version, torch)

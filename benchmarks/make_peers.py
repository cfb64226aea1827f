"""Makes the virtual environments of the peers that the other scripts compare with, under runs/peers, where missing.

    python benchmarks/make_peers.py

torch is not installed again: a path file lets every environment see the packages of the one that runs this, behind its
own. A peer whose Python an environment variable names (see benchmarks/README.md) is left alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from peer import ALL, ENVIRONMENTS, Package


def make(name: str, package: Package) -> None:
    """One environment, from nothing; nothing is left of it when the installation fails."""
    folder = ENVIRONMENTS / name
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
    Path(site, "packages_of_eutectic.pth").write_text(sysconfig.get_path("purelib") + "\n")
    wanted = f"{package.distribution}=={package.wanted}"
    if subprocess.run([str(python), "-m", "pip", "install", "--quiet", wanted]).returncode:
        shutil.rmtree(folder)
        print(f"{wanted} could not be installed; its part of the comparison will be missing", file=sys.stderr)


def main() -> None:
    """Every peer that has no environment yet."""
    for name, package in ALL.items():
        if not os.environ.get(package.variable) and not (ENVIRONMENTS / name).exists():
            print(f"installing {package.title} {package.wanted}")
            make(name, package)


if __name__ == "__main__":
    main()

"""Measures child processes: wall time, CPU time and peak resident memory; and says on which machine.

Keep the importing process small: Linux counts the memory of the process that starts a child, up to the moment of
`exec`, as the child's own peak. So no numpy and no torch here.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from statistics import median

CORES = 2
# A caller's settings for other work would slow either program down: too few threads, or modules compiled at each start.
SETTINGS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "PYTHONDONTWRITEBYTECODE",
)


@dataclass(frozen=True)
class Cost:
    """What one run of a child process took: seconds, seconds of all its threads, and bytes."""

    wall: float
    cpu: float
    rss: int

    def as_json(self) -> dict[str, float]:
        """Plain data."""
        return asdict(self)


def middle(costs: Sequence[Cost]) -> Cost:
    """The median of each quantity."""
    return Cost(
        median(cost.wall for cost in costs), median(cost.cpu for cost in costs), int(median(cost.rss for cost in costs))
    )


def run(command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Cost:
    """Runs a command to its end, its output going to `log`. Raises `SystemExit` with the output's end if it fails."""
    with open(log, "wb") as out:
        start = time.perf_counter()
        child = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
    # Popen must not wait for it again.
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise SystemExit(f"{' '.join(command)}\nended with {child.returncode}:\n{tail}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)


def keep_to_cores(count: int = CORES) -> int:
    """Confines this process and its children to `count` cores where the system can; returns how many it has.

    Settings of the environment that would slow them down are removed.
    """
    for name in SETTINGS:
        os.environ.pop(name, None)
    if not hasattr(os, "sched_setaffinity"):
        return os.cpu_count() or 1
    cores = sorted(os.sched_getaffinity(0))[:count]
    os.sched_setaffinity(0, cores)
    return len(cores)


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def version(package: str) -> str:
    """The installed version of a package of this Python, or "none"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def machine(cores: int) -> dict[str, str]:
    """What a reader needs to judge the figures; no host name and no path."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": processor(),
        "cores used": f"{cores} of {os.cpu_count()}",
        "memory": f"{memory / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{package: version(package) for package in ("eutectic", "torch", "numpy", "numba")},
    }


def our_command() -> str:
    """The `eutectic` beside this Python, else the one on PATH."""
    found = shutil.which("eutectic", path=str(Path(sys.executable).parent)) or shutil.which("eutectic")
    if found is None:
        raise SystemExit("no `eutectic` command beside this Python or on PATH; install the package first")
    return found

"""ZipIt!: models of different tasks merged unit by unit, across models and within (arXiv:2305.03053)."""

from eutectic.alignment.zipit.door import zipit
from eutectic.alignment.zipit.greedy import greedy
from eutectic.alignment.zipit.module import Cost, Zipped, ZippedGroup, reset_statistics
from eutectic.alignment.zipit.partition import Partition
from eutectic.alignment.zipit.saved import load_zipped, save_zipped

__all__ = [
    "Cost",
    "Partition",
    "Zipped",
    "ZippedGroup",
    "greedy",
    "load_zipped",
    "reset_statistics",
    "save_zipped",
    "zipit",
]

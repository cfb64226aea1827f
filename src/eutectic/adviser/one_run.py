"""Whether models are checkpoints of one training run, as far as their names tell."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from eutectic.names import numberless

# What trainers call checkpoints, before the number of the step.
_STEP = re.compile(r"(checkpoint|ckpt|step|epoch|iter|iteration)s?[-_=.]?\d", re.IGNORECASE)
NO_BASE = "checkpoints of one run have no base among them: each was trained from the one before"


def of_one_run(paths: Sequence[str]) -> bool:
    """Whether paths lie in one folder and have one name but for its numbers, such as `checkpoint-500`."""
    folders = {os.path.dirname(path) for path in paths}
    names = [os.path.basename(path) for path in paths]
    alike = len(folders) == 1 and len({numberless(name) for name in names}) == 1
    return alike and len(set(names)) > 1 and all(_STEP.search(name) for name in names)

"""Every problem's code with its title and explanation, gathered from the rooms."""

from __future__ import annotations

from eutectic.adviser import CODES as ADVISER
from eutectic.alignment.codes import CODES as ALIGNMENT
from eutectic.averaging import CODES as AVERAGING
from eutectic.checkpoint.codes import CODES as CHECKPOINT
from eutectic.checkpoint.torchfile import CODES as TORCHFILE
from eutectic.connectivity import CODES as CONNECTIVITY
from eutectic.evaluate import CODES as EVALUATE
from eutectic.plan import CODES as PLAN
from eutectic.recipe import CODES as RECIPE
from eutectic.report.pages import CODES as PAGES
from eutectic.report.verify import CODES as VERIFY
from eutectic.run.blocks import CODES as BLOCKS
from eutectic.run.budget import CODES as BUDGET
from eutectic.search import CODES as SEARCH
from eutectic.statistics.codes import CODES as STATISTICS

_OF_CHECKPOINTS = {**CHECKPOINT, **TORCHFILE}
_OF_MERGES = {**RECIPE, **PLAN, **BLOCKS, **BUDGET, **VERIFY}
_OF_SCORES = {**ADVISER, **EVALUATE, **CONNECTIVITY, **SEARCH, **AVERAGING}
CODES: dict[str, tuple[str, str]] = {**_OF_MERGES, **_OF_CHECKPOINTS, **_OF_SCORES, **PAGES, **STATISTICS, **ALIGNMENT}

"""Are these models mergeable, and how? From weights alone: structure, statistics over blocks, a verdict in words."""

from eutectic.adviser.codes import CODES as CODES
from eutectic.adviser.compare import compare as compare
from eutectic.adviser.model import Base as Base
from eutectic.adviser.model import Comparison as Comparison
from eutectic.adviser.model import Place as Place
from eutectic.adviser.model import Structure as Structure
from eutectic.adviser.model import Verdict as Verdict
from eutectic.adviser.sums import Sums as Sums

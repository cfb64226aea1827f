"""Statistics of a model over data, which methods merge with: an artefact that has the shape of a checkpoint."""

from eutectic.statistics.codes import CODES as CODES
from eutectic.statistics.doors import activations as activations
from eutectic.statistics.doors import fisher as fisher
from eutectic.statistics.doors import gram as gram
from eutectic.statistics.layerwise import LayerwiseMerge as LayerwiseMerge
from eutectic.statistics.layerwise import regmean_plusplus as regmean_plusplus
from eutectic.statistics.models import Collected as Collected
from eutectic.statistics.models import Options as Options
from eutectic.statistics.models import Planned as Planned
from eutectic.statistics.models import collect as collect
from eutectic.statistics.parts import Merged as Merged
from eutectic.statistics.parts import merge as merge
from eutectic.statistics.result import Statistics as Statistics

"""What lies between models: loss and error along paths, barriers, planes, and curves that go around."""

from eutectic.connectivity.barriers import Barrier as Barrier
from eutectic.connectivity.barriers import barrier as barrier
from eutectic.connectivity.bend import curve_barrier as curve_barrier
from eutectic.connectivity.bend import train_bend as train_bend
from eutectic.connectivity.codes import CODES as CODES
from eutectic.connectivity.heights import DEFINITIONS as DEFINITIONS
from eutectic.connectivity.heights import Curve as Curve
from eutectic.connectivity.heights import Height as Height
from eutectic.connectivity.pairs import Connection as Connection
from eutectic.connectivity.pairs import Layer as Layer
from eutectic.connectivity.pairs import connect as connect
from eutectic.connectivity.planes import Plane as Plane
from eutectic.connectivity.planes import plane as plane
from eutectic.connectivity.spawning import Instability as Instability
from eutectic.connectivity.spawning import instability as instability

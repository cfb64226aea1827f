"""Where weights come from: checkpoints in files, models in memory and on the hub, each as a Source."""

from eutectic.checkpoint.aligned import Aligned as Aligned
from eutectic.checkpoint.alignment import Alignment as Alignment
from eutectic.checkpoint.alignment import Named as Named
from eutectic.checkpoint.alignment import read_alignment as read_alignment
from eutectic.checkpoint.extents import Extent as Extent
from eutectic.checkpoint.extents import FileSource as FileSource
from eutectic.checkpoint.folder import inside as inside
from eutectic.checkpoint.folder import open_file as open_file
from eutectic.checkpoint.folder import open_folder as open_folder
from eutectic.checkpoint.memory import MemorySource as MemorySource
from eutectic.checkpoint.opening import Place as Place
from eutectic.checkpoint.opening import open_source as open_source
from eutectic.checkpoint.opening import resolve as resolve
from eutectic.checkpoint.safetensors import Header as Header
from eutectic.checkpoint.safetensors import read_header as read_header
from eutectic.checkpoint.safetensors import write_header as write_header
from eutectic.checkpoint.source import Source as Source
from eutectic.checkpoint.source import Spec as Spec
from eutectic.checkpoint.statistics import About as About
from eutectic.checkpoint.statistics import read_about as read_about
from eutectic.checkpoint.storage import REAL as REAL
from eutectic.checkpoint.storage import Storage as Storage

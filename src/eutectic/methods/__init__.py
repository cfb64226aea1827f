"""Every merge method, callable by hand on stacked tensors: `eutectic.methods.ties(deltas, density=0.2)`."""

from eutectic.kernels.random import Rng as Rng
from eutectic.methods.dare import dare_linear as dare_linear
from eutectic.methods.dare import dare_ties as dare_ties
from eutectic.methods.linear import linear as linear
from eutectic.methods.registry import Method as Method
from eutectic.methods.registry import PerModel as PerModel
from eutectic.methods.registry import Range as Range
from eutectic.methods.registry import get as get
from eutectic.methods.registry import method as method
from eutectic.methods.registry import names as names
from eutectic.methods.slerp import slerp as slerp
from eutectic.methods.task_arithmetic import task_arithmetic as task_arithmetic
from eutectic.methods.ties import ties as ties

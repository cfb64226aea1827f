"""recipe × specs -> a flat list of jobs, or every problem at once. Opens headers, reads no weight."""

from eutectic.plan.codes import CODES as CODES
from eutectic.plan.model import NUMERICS as NUMERICS
from eutectic.plan.model import BoundStep as BoundStep
from eutectic.plan.model import Job as Job
from eutectic.plan.model import Plan as Plan
from eutectic.plan.model import PlanInput as PlanInput
from eutectic.plan.planner import make_plan as make_plan

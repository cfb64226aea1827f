"""Averages along one training run: while it trains, or of its checkpoints afterwards."""

from __future__ import annotations

from eutectic.averaging.checkpoints import Window as Window
from eutectic.averaging.checkpoints import average_recipe as average_recipe
from eutectic.averaging.checkpoints import statistics_note as statistics_note
from eutectic.averaging.codes import CODES as CODES
from eutectic.averaging.rates import constant_rate as constant_rate
from eutectic.averaging.rates import cyclic_rate as cyclic_rate
from eutectic.averaging.running import WeightAverage as WeightAverage
from eutectic.averaging.statistics import update_bn as update_bn

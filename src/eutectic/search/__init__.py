"""Searches that end in a recipe: soups of many fine-tunes, and the best values of a recipe's parameters."""

from eutectic.search.codes import CODES as CODES
from eutectic.search.ingredients import Pot as Pot
from eutectic.search.keep import constraints_of as constraints_of
from eutectic.search.over import overrides_of as overrides_of
from eutectic.search.scoring import Scorer as Scorer
from eutectic.search.soup import METHODS as METHODS
from eutectic.search.soup import Choice as Choice
from eutectic.search.soup import SoupOptions as SoupOptions
from eutectic.search.soup import Step as Step
from eutectic.search.soup import choose as choose
from eutectic.search.tune import Candidate as Candidate
from eutectic.search.tune import Tuning as Tuning
from eutectic.search.tune import tune as tune

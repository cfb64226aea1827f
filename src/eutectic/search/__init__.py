"""Searches that end in a recipe: soups of many fine-tunes, the best values of a parameter, learned weights."""

from eutectic.search.codes import CODES as CODES
from eutectic.search.coefficients import Learned as Learned
from eutectic.search.coefficients import LearnOptions as LearnOptions
from eutectic.search.coefficients import LearnStep as LearnStep
from eutectic.search.doors import choose_soup as choose_soup
from eutectic.search.doors import learn_coefficients as learn_coefficients
from eutectic.search.doors import tune_recipe as tune_recipe
from eutectic.search.doors import variants_of as variants_of
from eutectic.search.kept import KeptSteps as KeptSteps
from eutectic.search.over import overrides_of as overrides_of
from eutectic.search.soup import METHODS as METHODS
from eutectic.search.soup import Choice as Choice
from eutectic.search.soup import SoupOptions as SoupOptions
from eutectic.search.soup import Step as Step
from eutectic.search.tune import Tuning as Tuning
from eutectic.search.written import Finished as Finished
from eutectic.search.written import refuse_file as refuse_file
from eutectic.search.written import write_recipe as write_recipe

"""Recipes: YAML, dicts and `--set` → a frozen `Recipe`, or every problem at once. No weights, no torch."""

from eutectic.recipe.codes import CODES as CODES
from eutectic.recipe.load import Variant as Variant
from eutectic.recipe.load import load as load
from eutectic.recipe.load import load_sweep as load_sweep
from eutectic.recipe.model import Model as Model
from eutectic.recipe.model import ModelEntry as ModelEntry
from eutectic.recipe.model import Place as Place
from eutectic.recipe.model import PostStep as PostStep
from eutectic.recipe.model import Recipe as Recipe
from eutectic.recipe.model import label_of as label_of
from eutectic.recipe.model import same_model as same_model
from eutectic.recipe.schema import MethodLike as MethodLike
from eutectic.recipe.schema import MethodTable as MethodTable
from eutectic.recipe.schema import ParamLike as ParamLike
from eutectic.recipe.values import Setting as Setting

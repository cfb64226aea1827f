"""Eutectic merges the weights of trained neural networks: streamed, resumable, proven tensor by tensor.

import eutectic

eutectic.merge("recipe.yml", "out")            # models in, one folder out
eutectic.plan("recipe.yml")                    # what that would do
eutectic.sweep("recipe.yml", "out")            # several merges in one pass, where the recipe sweeps a parameter
eutectic.average("run/checkpoint-*", "out")    # the average of a training run's checkpoints
eutectic.soup("runs/*", "out", task="dev.yml")  # the average of those fine-tunes that do it good
eutectic.tune("recipe.yml", over={"parameters.t": "0:1:0.1"}, tasks=["dev.yml"])  # the best value, by its score
eutectic.merged("recipe.yml")["lm_head.weight"]  # a merge as a lazy mapping
eutectic.open("model")                         # a checkpoint as a lazy mapping
eutectic.compare(["a", "b"], base="base")      # can they be merged, and how
eutectic.evaluate("recipe.yml", "task.yml")    # is the merge good: a score with its interval
eutectic.connect(["a", "b"], ["task.yml"])     # loss and error on the line between models
eutectic.align("a", "b", out="perm")           # the units of b where those of a stand, for models trained apart
eutectic.repair("merged", ["a", "b"], "text.jsonl", "out")  # activations of a merge vary as its parents' do
eutectic.methods.ties(deltas, density=0.2)     # a method by hand, on stacked tensors
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from eutectic._version import __version__ as __version__

if TYPE_CHECKING:
    from eutectic import alignment as alignment
    from eutectic import averaging as averaging
    from eutectic import connectivity as connectivity
    from eutectic import methods as methods
    from eutectic import statistics as statistics
    from eutectic.api import Alignment as Alignment
    from eutectic.api import Comparison as Comparison
    from eutectic.api import Learned as Learned
    from eutectic.api import Merge as Merge
    from eutectic.api import Options as Options
    from eutectic.api import Soup as Soup
    from eutectic.api import Sweep as Sweep
    from eutectic.api import Tuned as Tuned
    from eutectic.api import align as align
    from eutectic.api import average as average
    from eutectic.api import cite as cite
    from eutectic.api import compare as compare
    from eutectic.api import connect as connect
    from eutectic.api import evaluate as evaluate
    from eutectic.api import explain as explain
    from eutectic.api import learn as learn
    from eutectic.api import merge as merge
    from eutectic.api import merged as merged
    from eutectic.api import open_model as open  # noqa: F401 (the public name)
    from eutectic.api import plan as plan
    from eutectic.api import plan_sweep as plan_sweep
    from eutectic.api import repair as repair
    from eutectic.api import soup as soup
    from eutectic.api import sweep as sweep
    from eutectic.api import tune as tune
    from eutectic.api import verify as verify
    from eutectic.checkpoint import Source as Source
    from eutectic.errors import EutecticError as EutecticError
    from eutectic.recipe import Recipe as Recipe


_PLACES = {
    "merge": "eutectic.api:merge",
    "average": "eutectic.api:average",
    "merged": "eutectic.api:merged",
    "soup": "eutectic.api:soup",
    "tune": "eutectic.api:tune",
    "learn": "eutectic.api:learn",
    "repair": "eutectic.api:repair",
    "plan": "eutectic.api:plan",
    "plan_sweep": "eutectic.api:plan_sweep",
    "sweep": "eutectic.api:sweep",
    "open": "eutectic.api:open_model",
    "verify": "eutectic.api:verify",
    "compare": "eutectic.api:compare",
    "cite": "eutectic.api:cite",
    "evaluate": "eutectic.api:evaluate",
    "connect": "eutectic.api:connect",
    "align": "eutectic.api:align",
    "explain": "eutectic.api:explain",
    "Alignment": "eutectic.api:Alignment",
    "Comparison": "eutectic.api:Comparison",
    "Learned": "eutectic.api:Learned",
    "Merge": "eutectic.api:Merge",
    "Soup": "eutectic.api:Soup",
    "Tuned": "eutectic.api:Tuned",
    "Sweep": "eutectic.api:Sweep",
    "Options": "eutectic.api:Options",
    "Source": "eutectic.checkpoint:Source",
    "Recipe": "eutectic.recipe:Recipe",
    "EutecticError": "eutectic.errors:EutecticError",
}
# Subpackages that are used by name.
_ROOMS = ("alignment", "averaging", "connectivity", "methods", "statistics")
__all__ = [*_PLACES, *_ROOMS]


def __getattr__(name: str) -> Any:
    # At first use: `import eutectic` and the command's help stay instant.
    if name in _ROOMS:
        return importlib.import_module(f"eutectic.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module 'eutectic' has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """The package's own type: a public name stays what it is when a submodule of the same name is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing `eutectic.plan` binds that module to `plan`, the name of a public function.
        if not (name in _PLACES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

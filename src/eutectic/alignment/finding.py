"""The symmetries of a model: as declared for its family, else traced, else a refusal that says what would do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from eutectic.alignment.common import refuse_unopened
from eutectic.alignment.families import attempt
from eutectic.alignment.proof import check
from eutectic.alignment.tracing import traced
from eutectic.checkpoint.source import Source
from eutectic.checkpoint.symmetry import Symmetries
from eutectic.checkpoint.vocabulary import json_of
from eutectic.errors import Problem, RecipeError
from eutectic.names import numberless

if TYPE_CHECKING:
    from torch import nn

# What the origin of a table ends with that nothing but names and shapes speaks for.
BY_NAMES = ", by names alone"


def symmetries_of(source: Source, *, module: nn.Module | None = None, inputs: Any = None) -> Symmetries:
    """Finds a table of symmetries for a model's tensors.

    Args:
        source: whose tensors; its config.json is read, no weight is.
        module: with the same tensors. Its `config`, when it has one as transformers' modules do, stands in for the
            file, and it is traced where nothing is declared.
        inputs: what to call the module with: a tensor, a sequence of arguments or a mapping of them by name. For
            tracing only their shapes count.

    A table that config.json does not speak for is told by names, which show no skip: with a module and inputs it is
    proved (`check`), and the module traced if it does not hold; without, its `origin` ends with `by names alone`.

    Raises `RecipeError`: G160 when nothing is declared that fits and there is no module or input, with G161 for what
    config.json lacks and G162 for tensors that do not fit the nearest family; G140 to G149 when tracing fails, G101 and
    G102 when the traced module is not of these tensors. `CheckpointError` (C200) for what is no source.
    """
    refuse_unopened(source)
    found = attempt(source.specs, _config(source, module), tied=source.ties)
    if (table := found.symmetries) is not None:
        if found.stated:
            return table
        if module is None or inputs is None:
            return replace(table, origin=table.origin + BY_NAMES)
        if _holds(table, module, inputs):
            return table
    if module is None or inputs is None:
        unread = _unread(source)
        family = f"; it is nearest to {found.family}" if found.family and not unread else ""
        lacking = "module and an input" if module is None else "input"
        hint = f"give the {lacking} to trace its graph, or a table of your own"
        problem = Problem("G160", f"no symmetries are declared that fit{family}", source.label, hint)
        raise RecipeError([problem, *(unread or _gathered(found.problems))])
    if isinstance(inputs, Mapping):
        made = traced(module, **inputs)
    else:
        made = traced(module, *(inputs if isinstance(inputs, Sequence) else (inputs,)))
    others = source.ties.keys() | source.implied.keys() | _shared(source, module)
    made = replace(made, axes={name: axes for name, axes in made.axes.items() if name not in others})
    if problems := made.problems(source.specs):
        raise RecipeError(_gathered(problems))
    return made


def _shared(source: Source, module: nn.Module) -> set[str]:
    """Names of stored tensors that the module has and the checkpoint lacks, though nothing there says they are tied."""
    names: dict[int, set[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {name for alike in names.values() if alike & source.specs.keys() for name in alike - source.specs.keys()}


def _holds(table: Symmetries, module: nn.Module, inputs: Any) -> bool:
    """Whether a table is proved; where the module cannot be run so, tracing says why."""
    try:
        return check(module, table, inputs).holds
    except Exception:  # whatever the module's own code raises
        return False


def _config(source: Source, module: nn.Module | None) -> Mapping[str, Any]:
    described = getattr(getattr(module, "config", None), "to_dict", None)
    if described is not None:
        return {**described(), "architectures": [type(module).__name__]}
    config = json_of(source.beside("config.json"))
    return config if isinstance(config, dict) else {}


def _unread(source: Source) -> list[Problem]:
    """A config.json that cannot be read: what the tensors may be without it is then no matter."""
    raw = source.beside("config.json")
    if raw is None or isinstance(json_of(raw), dict):
        return []
    return [Problem("G161", "is no valid JSON object", "config.json", "mend it, or copy that of the model's base")]


def _gathered(problems: Sequence[Problem]) -> list[Problem]:
    """Problems with one for all tensors that differ in numbers alone: `layers.*.up.weight (32 tensors)`."""
    alike: dict[tuple[str, str, str], list[Problem]] = {}
    for one in problems:
        alike.setdefault((one.code, one.message, numberless(one.where)), []).append(one)
    return [
        all_[0] if len(all_) == 1 else Problem(code, message, f"{where} ({len(all_)} tensors)", all_[0].hint)
        for (code, message, where), all_ in alike.items()
    ]

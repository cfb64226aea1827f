"""A document → a recipe: every key, parameter and value checked, every problem noted."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field

from eutectic import dtypes
from eutectic.errors import did_you_mean, listed
from eutectic.recipe import checks, values
from eutectic.recipe.inputs import Inputs, find_inputs
from eutectic.recipe.located import Node, Place, shown
from eutectic.recipe.model import Model, ModelEntry, Recipe, label_of, same_model
from eutectic.recipe.post import read_post
from eutectic.recipe.references import WHOLE, Context, artefact_at, model_at
from eutectic.recipe.schema import MethodLike
from eutectic.recipe.tokenizers import BASE, UNION, read_source, read_template
from eutectic.recipe.values import Setting

KEYS = (
    "merge_method",
    "base_model",
    "models",
    "slices",
    "parameters",
    "post",
    "dtype",
    "out_dtype",
    "name",
    "seed",
    "leave_out",
    "missing",
    "buffers_from",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
)
# Keys of other tools' recipes, and what says the same here.
_ELSEWHERE = {
    "random_seed": "write `seed`, or pass `--seed`",
    "sweep": "it takes the place of a parameter's value: `density: {sweep: [0.2, 0.5]}`",
}
# How alike a misspelt method must be to the one that was meant, as `difflib` measures it.
_SURELY = 0.8
_LISTED = "`eutectic methods` lists them"


@dataclass
class _Draft:
    """What is gathered while one recipe is read."""

    root: Node
    context: Context
    method: MethodLike | None = None
    base: Model | None = None
    parameters: dict[str, Setting] = field(default_factory=dict)
    scope: str = "tensor"
    models: list[ModelEntry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    complete: bool = True  # every model was understood, so that they can be counted
    unread: set[str] = field(default_factory=set)  # parameters that are written, in the wrong way or place


def read_recipe(root: Node, context: Context) -> Recipe | None:
    """The recipe at `root`; None after a problem, which is then among the context's faults."""
    before = len(context.faults)
    if not isinstance(root.data, dict):
        message = f"a recipe must be a mapping with the key merge_method, not {shown(root.data)}"
        context.faults.add("R107", root.place, message)
        return None
    if (experts := root.get("experts")) is not None and root.get("merge_method") is None:
        hint = "a merge of whole models has `merge_method` and `models`"
        context.faults.add("R113", experts.key_place, "a mixture of experts cannot be built from models yet", hint)
        return None
    draft = _Draft(root, context)
    draft.method = _method(draft)
    _unknown_keys(draft)
    inputs = find_inputs(root, context.faults)
    _base(draft, inputs)
    _shared_parameters(draft, inputs)
    _models(draft, inputs)
    _structure(draft)
    recipe = _assemble(draft, inputs)
    return recipe if len(context.faults) == before else None


def _unknown_keys(draft: _Draft) -> None:
    faults, method = draft.context.faults, draft.method
    for key, node in draft.root.items():
        if key == "modules":
            if node.data is not None:
                message = "merges of models with several modules are not supported yet"
                faults.add("R113", node.key_place, message, "give the whole models under `models`")
        elif key not in KEYS:
            is_parameter = method is not None and (key in method.params or key in method.accepted)
            hint = "write it under `parameters`" if is_parameter else _ELSEWHERE.get(key) or did_you_mean(key, KEYS)
            faults.add("R110", node.key_place, "unknown key", hint or f"known: {', '.join(KEYS)}")


def _method(draft: _Draft) -> MethodLike | None:
    faults, node = draft.context.faults, draft.root.get("merge_method")
    known = draft.context.methods.names()
    if node is None:
        faults.add("R111", draft.root.place, "the recipe has no merge_method", _LISTED)
        return None
    if not isinstance(node.data, str):
        faults.add("R112", node.place, f"must be the name of a method, not {shown(node.data)}")
        return None
    if method := draft.context.methods.get(node.data):
        return method
    near = difflib.get_close_matches(node.data, known, n=2, cutoff=_SURELY)
    # What else is wrong is told at once where it is plain which method was meant.
    meant = draft.context.methods.get(near[0]) if len(near) == 1 else None
    hint = did_you_mean(node.data, known) or _LISTED
    if node.data in draft.context.methods.steps():
        meant, hint = None, f"{node.data} is a step after a method; it stands in the list `post`"
    elif meant is None and draft.root.get("parameters") is not None:
        hint += "; the parameters are checked once the method is known"
    faults.add("R120", node.place, f"no merge method is called {shown(node.data)}", hint)
    return meant


def _base(draft: _Draft, inputs: Inputs) -> None:
    node = draft.root.get("base_model") or inputs.base
    if draft.method is not None:
        draft.method = draft.method.resolved(node is not None)
    if node is not None:
        draft.base = model_at(node, draft.context)
        draft.complete = draft.base is not None


def _shared_parameters(draft: _Draft, inputs: Inputs) -> None:
    """Globals, with those of a slice in front of them."""
    for node in (inputs.parameters, draft.root.get("parameters")):
        for name, setting in _parameters(draft, node, owner="all").items():
            earlier = draft.parameters.get(name)
            draft.parameters[name] = setting if earlier is None else earlier.over(setting)


def _models(draft: _Draft, inputs: Inputs) -> None:
    for node in inputs.entries:
        named = node.get("model") if isinstance(node.data, dict) else node
        model = model_at(named, draft.context) if named is not None else None
        is_base = draft.base is not None and model is not None and same_model(model, draft.base)
        owner = "base" if is_base and draft.method is not None and draft.method.space == "deltas" else "model"
        parameters = _parameters(draft, node.get("parameters"), owner=owner)
        if model is None:
            draft.complete = False
        elif owner == "model":
            aligned = _aligned(draft, node, model)
            draft.models.append(ModelEntry(model, parameters, _statistics(draft, node), aligned, node.place))
        elif (given := node.get("statistics")) is not None:
            draft.notes.append(f"{given.place.path} has no effect: the base is not merged")
        if owner == "base" and (given := node.get("aligned")) is not None:
            draft.context.faults.add("R136", given.key_place, "the base is read where `base_model` names it", WHOLE)
    draft.complete = draft.complete and inputs.complete


def _aligned(draft: _Draft, entry: Node, model: Model) -> object:
    """What a model is aligned by; None where nothing is said, or after a problem."""
    node = entry.get("aligned") if isinstance(entry.data, dict) else None
    if node is None:
        return None
    if isinstance(model, Recipe):
        hint = "write `aligned` beside the models in it, or merge it and align what comes out"
        draft.context.faults.add("R136", node.key_place, "a recipe in place of a model cannot be aligned", hint)
    return artefact_at(node, draft.context, "an alignment", "eutectic align")


def _statistics(draft: _Draft, entry: Node) -> object:
    """What is named beside a model; None, and a problem, where the method needs it or has no use for it."""
    node = entry.get("statistics") if isinstance(entry.data, dict) else None
    faults, method = draft.context.faults, draft.method
    if method is None:
        return None
    if node is None:
        if method.statistics:
            hint = f"write `statistics: PATH` beside the model; `eutectic collect {method.statistics}` makes one"
            message = f"{method.name} needs the {method.statistics} statistics of each model"
            faults.add("R135", entry.place, message, hint)
        return None
    if not method.statistics:
        table = draft.context.methods
        users = [name for name in table.names() if (known := table.get(name)) is not None and known.statistics]
        hint = f"remove it, or choose a method that uses them: {listed(users)}"
        faults.add("R135", node.key_place, f"{method.name} uses no statistics", hint)
    return artefact_at(node, draft.context, "a folder of statistics", "eutectic collect")


def _parameters(draft: _Draft, node: Node | None, *, owner: str) -> dict[str, Setting]:
    """The settings of a `parameters` mapping; `owner` is `all`, one `model`, or the `base` of a delta method."""
    if node is None or draft.method is None:
        return {}
    if not isinstance(node.data, dict):
        message = f"must be a mapping of parameters, not {shown(node.data)}"
        draft.context.faults.add("R112", node.place, message)
        return {}
    settings = {}
    for name, item in node.items():
        setting = _parameter(draft, draft.method, name, item, owner)
        if setting is not None:
            settings[name] = setting
    return settings


def _parameter(draft: _Draft, method: MethodLike, name: str, node: Node, owner: str) -> Setting | None:
    faults = draft.context.faults
    scoped = len(method.scopes) > 1
    if name in method.params and owner == "base":
        draft.notes.append(f"{node.place.path} has no effect: the base has no delta")
    elif name in method.params and (owner == "all" or method.params[name].per_model):
        setting = values.read(node, method.params[name], faults)
        if setting is None:
            draft.unread.add(name)
        return setting
    elif name in method.params or (scoped and name == "scope" and owner != "all"):
        draft.unread.add(name)
        message = "is shared by all models and cannot be given to one"
        faults.add("R122", node.key_place, message, "move it to the recipe's own `parameters`")
    elif scoped and name == "scope":
        if node.data not in method.scopes:
            message = f"must be one of {', '.join(method.scopes)}, not {shown(node.data)}"
            hint = "it takes one value for the whole merge" if isinstance(node.data, list | dict) else ""
            faults.add("R123", node.place, message, hint)
        else:
            draft.scope = node.data
    elif name in method.accepted:
        draft.notes.append(f"{node.place.path} has no effect: {method.accepted[name]}")
    else:
        known = [*method.params, *method.accepted, *(["scope"] if scoped else [])]
        hint = did_you_mean(name, known) or f"known: {', '.join(known)}"
        faults.add("R121", node.key_place, f"{method.name} has no parameter {shown(name)}", hint)
    return None


def _structure(draft: _Draft) -> None:
    """What can be said without a file once all models are understood."""
    if draft.method is None or not draft.complete:
        return
    if draft.method.base == "first":
        draft.models = checks.from_base(draft.method, draft.models, draft.base, draft.root, draft.context.faults)
    elif draft.method.base == "required" and draft.base is None:
        checks.missing_base(draft.method, draft.root, draft.context.faults)
    elif draft.method.base == "ignored" and draft.base is not None and not _lists_base(draft):
        draft.notes.append(
            f"base_model is not merged, it only gives config and tokenizer: {draft.method.name} takes the models "
            "listed (mergekit would add the base)"
        )
    checks.counts(draft.method, draft.models, draft.root, draft.context.faults)
    checks.repeats(draft.models, draft.context.faults)
    checks.repeated_artefacts(draft.models, draft.context.faults)
    given = draft.parameters.keys() | draft.unread
    checks.required(draft.method, draft.models, given, draft.root, draft.context.faults)
    if not draft.unread & {"weight", "normalize"}:
        checks.weights(draft.method, draft.models, draft.parameters, draft.root, draft.context.faults)


def _lists_base(draft: _Draft) -> bool:
    return any(draft.base is not None and same_model(entry.model, draft.base) for entry in draft.models)


def _assemble(draft: _Draft, inputs: Inputs) -> Recipe:
    root, context = draft.root, draft.context
    return Recipe(
        method=draft.method.name if draft.method is not None else "",
        models=tuple(draft.models),
        base=draft.base,
        parameters=draft.parameters,
        post=read_post(root.get("post"), context.methods.steps(), context.methods.names(), context.faults),
        dtype=_choice(draft, "dtype", dtypes.FLOATS),
        out_dtype=_choice(draft, "out_dtype", dtypes.FLOATS),
        name=_text(draft, "name"),
        seed=_seed(draft),
        leave_out=_leave_out(draft),
        missing=_choice(draft, "missing", ("error", "copy")) or "error",
        scope=draft.scope,
        buffers_from=_buffers_from(draft),
        tokenizer_source=_tokenizer_source(draft),
        chat_template=read_template(root, context.faults),
        layer_range=inputs.layer_range,
        folder=context.folder,
        file=context.file,
        notes=(*draft.notes, *inputs.notes),
        places=_places(root),
    )


def _places(root: Node) -> dict[str, Place]:
    return root.document.places() if not root.trail else {}


def _choice(draft: _Draft, key: str, allowed: tuple[str, ...]) -> str | None:
    node = draft.root.get(key)
    if node is None or (isinstance(node.data, str) and node.data in allowed):
        return None if node is None else node.data
    hint = did_you_mean(dtypes.ALSO.get(node.data, node.data), allowed) if isinstance(node.data, str) else ""
    message = f"must be one of {', '.join(allowed)}, not {shown(node.data)}"
    draft.context.faults.add("R112", node.place, message, hint)
    return None


def _text(draft: _Draft, key: str) -> str | None:
    node = draft.root.get(key)
    if node is None or (isinstance(node.data, str) and node.data):
        return None if node is None else node.data
    hint = "" if isinstance(node.data, str) else "put it in quotes"
    draft.context.faults.add("R112", node.place, f"must be text, not {shown(node.data)}", hint)
    return None


def _seed(draft: _Draft) -> int | None:
    node = draft.root.get("seed")
    if node is None:
        return None
    if isinstance(node.data, int) and not isinstance(node.data, bool) and node.data >= 0:
        return node.data
    draft.context.faults.add("R112", node.place, f"must be an integer from 0 on, not {shown(node.data)}")
    return None


def _leave_out(draft: _Draft) -> tuple[str, ...]:
    node = draft.root.get("leave_out")
    if node is None:
        return ()
    items = list(node.elements()) if isinstance(node.data, list) else [node]
    return tuple(dict.fromkeys(values.pattern_at(item, draft.context.faults) for item in items))


def _buffers_from(draft: _Draft) -> str | None:
    name, node = _text(draft, "buffers_from"), draft.root.get("buffers_from")
    return None if name is None or node is None else _donor(draft, node, name)


def _tokenizer_source(draft: _Draft) -> str | None:
    found = read_source(draft.root, draft.context.faults)
    if found is None or found[1] == UNION:
        return None if found is None else UNION
    return _donor(draft, *found)


def _donor(draft: _Draft, node: Node, name: str) -> str:
    """The name at `node`, which must be `base` or one of the models."""
    faults = draft.context.faults
    if not draft.complete:
        return name
    if name == BASE:
        if draft.base is None:
            faults.add("R132", node.place, "is base, but the recipe has no base_model", "add base_model")
        return name
    models = [entry.model for entry in draft.models] + ([draft.base] if draft.base is not None else [])
    labels = [label_of(model) for model in models]
    if not any(same_model(name, label) for label in labels):
        hint = did_you_mean(name, labels) or f"write base or one of {listed(labels)}"
        faults.add("R130", node.place, f"{shown(name)} is none of the models", hint)
    return name

"""`post`: the steps after a method, read and checked."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from eutectic.errors import did_you_mean
from eutectic.recipe import values
from eutectic.recipe.located import Faults, Node, shown
from eutectic.recipe.model import PostStep
from eutectic.recipe.schema import PostLike
from eutectic.recipe.values import Setting

_FORM = "write a list, as in `- norm_guard: {scope: model}`"


def read_post(
    node: Node | None, known: Mapping[str, PostLike], methods: Collection[str], faults: Faults
) -> tuple[PostStep, ...]:
    """The steps at `node`, in order; `methods` are the names of those, for advice. Problems go to `faults`."""
    if node is None:
        return ()
    if not isinstance(node.data, list):
        faults.add("R150", node.place, f"must be a list of steps, not {shown(node.data)}", _FORM)
        return ()
    steps = [step for item in node.elements() if (step := _step(item, known, methods, faults)) is not None]
    names = [step.name for step in steps]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        faults.add("R150", node.place, f"{name} stands twice", "give each step once")
    return tuple(steps)


def _step(node: Node, known: Mapping[str, PostLike], methods: Collection[str], faults: Faults) -> PostStep | None:
    """`norm_guard`, or `norm_guard: {…}`."""
    if isinstance(node.data, str):
        name, given = node.data, None
    elif isinstance(node.data, dict) and len(node.data) == 1:
        name = next(iter(node.data))
        given = node.get(name)
    else:
        faults.add("R150", node.place, f"must be one step, not {shown(node.data)}", _FORM)
        return None
    post = known.get(name)
    if post is None:
        hint = did_you_mean(name, known) or f"there are {', '.join(known)}"
        if name in methods:
            hint = f"{name} is a method: it stands under `merge_method`"
        faults.add("R150", node.place, f"there is no step {shown(name)}", hint)
        return None
    if given is not None and not isinstance(given.data, dict):
        faults.add("R150", given.place, f"must be a mapping of parameters, not {shown(given.data)}")
        return None
    return _read(node, post, given, faults)


def _read(node: Node, post: PostLike, given: Node | None, faults: Faults) -> PostStep | None:
    before, scope = len(faults), post.scopes[0]
    settings: dict[str, Setting] = {}
    for name, item in given.items() if given is not None else ():
        if name == "scope" and len(post.scopes) > 1:
            if item.data in post.scopes:
                scope = item.data
            else:
                message = f"must be one of {', '.join(post.scopes)}, not {shown(item.data)}"
                faults.add("R123", item.place, message)
        elif name in post.params:
            setting = values.read(item, post.params[name], faults)
            if setting is not None:
                settings[name] = setting
        else:
            names = [*post.params, *(["scope"] if len(post.scopes) > 1 else [])]
            hint = did_you_mean(name, names) or f"known: {', '.join(names)}"
            faults.add("R121", item.key_place, f"{post.name} has no parameter {shown(name)}", hint)
    if len(faults) == before:
        for name, param in post.params.items():
            if param.required and name not in settings:
                faults.add("R126", node.place, f"{post.name} needs {name!r}", f"write `- {post.name}: {{{name}: ...}}`")
    return PostStep(post.name, scope, settings) if len(faults) == before else None

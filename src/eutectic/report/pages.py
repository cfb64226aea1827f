"""A method or a code as a page of Markdown: for the terminal, the docs and, later, model cards."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from eutectic import methods
from eutectic.errors import Problem, RecipeError, did_you_mean
from eutectic.methods import Method, PostProcessor

CODES: dict[str, tuple[str, str]] = {
    "X901": ("no such method", "`eutectic methods` lists every method that is built in or installed."),
    "X902": ("no such code", "Every problem that is printed begins with its code, a letter and three digits."),
    "X903": (
        "a command line that cannot be read",
        "An option or a command that does not exist, one that lacks its value, or an argument too many or too few. "
        "`--help` after a command lists what it takes. On the terminal it is told without this code.",
    ),
}


def step_named(name: str) -> PostProcessor | None:
    """The step after a method that has this name, or None."""
    return methods.steps().get(name)


def method_named(name: str) -> Method:
    """The method, or `RecipeError` (X901) with the nearest name."""
    if (found := methods.get(name)) is None:
        hint = did_you_mean(name, [*methods.names(), *methods.steps()]) or "`eutectic methods` lists them"
        raise RecipeError(Problem("X901", f"there is no method {name!r}", hint=hint))
    return found


def first_line(method: Method) -> str:
    """The method in one sentence."""
    return (inspect.getdoc(method.function) or "").split("\n", 1)[0]


def paper_links(papers: Iterable[str]) -> str:
    """Papers as Markdown links."""
    links = []
    for paper in papers:
        kind, _, number = paper.partition(":")
        address = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}.get(kind)
        links.append(f"[{paper}]({address}{number})" if address else paper)
    return ", ".join(links)


def method_page(method: Method) -> str:
    """The method's page: what it does, its parameters, how it differs, an example."""
    text = inspect.getdoc(method.function) or ""
    rows = [f"| `{p.name}` | {p.describe()} |" for p in method.params.values()]
    if len(method.scopes) > 1:
        rows.append(f"| `scope` | one of {', '.join(method.scopes)}, default {method.scopes[0]} |")
    rows += [f"| `{name}` | accepted, no effect: {why} |" for name, why in method.accepted.items()]
    least, most = method.models
    count = f"{least}" if least == most else f"{least} or more"
    base = {
        "required": "required",
        "ignored": "not used",
        "first": "required: the starting point",
        "optional": "optional: with one, its task vectors are merged",
    }[method.base]
    papers = paper_links((method.paper, *method.also))
    return "\n".join(
        [
            f"# {method.name}",
            "",
            text,
            "",
            f"Family: {method.family}. Paper: {papers}. Models: {count}. Base model: {base}.",
            "",
            "| parameter | value |",
            "|---|---|",
            *rows,
            "",
            "```yaml",
            example(method).rstrip(),
            "```",
            "",
        ]
    )


def step_page(step: PostProcessor) -> str:
    """The page of a step after a method."""
    rows = [f"| `{p.name}` | {p.describe()} |" for p in step.params.values()]
    if len(step.scopes) > 1:
        rows.append(f"| `scope` | one of {', '.join(step.scopes)}, default {step.scopes[0]} |")
    given = ", ".join(f"{p.name}: 0.5" for p in step.params.values() if p.required)
    return "\n".join(
        [
            f"# {step.name}",
            "",
            step.title,
            "",
            step.about,
            "",
            "A step after any method that works on the change from a base, named under `post`."
            + (f" Paper: {paper_links(step.papers)}." if step.papers else ""),
            "",
            "| parameter | value |",
            "|---|---|",
            *rows,
            "",
            "```yaml",
            example(method_named("task_arithmetic")).rstrip(),
            "post:",
            f"  - {step.name}: {{{given}}}" if given else f"  - {step.name}",
            "```",
            "",
        ]
    )


def example(method: Method) -> str:
    """A small recipe that is valid."""
    lines = [f"merge_method: {method.name}"]
    # Where weights scale sums and are not divided by theirs, they are 1 unless there is a reason; `lambda` is swept.
    normalize = method.params.get("normalize")
    weighted = "weight" in method.params and (
        method.space == "weights" or (normalize is not None and normalize.default)
    )
    if method.base != "ignored":
        lines.append("base_model: ./base")
    lines.append("models:")
    least, most = method.models
    count = 1 if method.base == "first" else max(least, min(2, most or 2))
    for model in ("./code", "./math", "./chat")[:count]:
        lines.append(f"  - model: {model}")
        lines += [f"    statistics: {model}-{method.statistics}"] if method.statistics else []
        lines += ["    parameters:", "      weight: 0.5"] if weighted else []
    shown = {p.name: p.default for p in method.params.values() if p.name in ("density", "lambda")}
    shown |= {p.name: 0.5 for p in method.params.values() if p.required and p.name != "weight"}
    shared = [f"  {name}: {value}" for name, value in (shown | dict(method.example)).items()]
    return "\n".join([*lines, *(["parameters:", *shared] if shared else []), "dtype: bfloat16"]) + "\n"

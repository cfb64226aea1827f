"""`eutectic plan`: what a merge would do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eutectic.cli import options, screen, values
from eutectic.errors import several

if TYPE_CHECKING:
    from eutectic.checkpoint import Spec
    from eutectic.plan import Plan
    from eutectic.run.budget import Budget

# Copied and dropped tensors that a plan names.
SHOWN = 3
# Merges of a sweep that it names.
SWEPT = 12
# Names of models that stand in one column: as wide as this at most.
COLUMN = 32


def plan(
    recipe: options.Recipe,
    set_: options.Set = None,
    seed: options.Seed = None,
    dtype: options.DType = None,
    threads: options.Threads = None,
    memory: options.Memory = "1GiB",
    device: options.Device = "cpu",
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor and its parameters.")] = False,
    json: options.Json = False,
) -> None:
    """Show what a merge would do, or every problem of the recipe. Reads headers, no weights."""
    with screen.refusals(json):
        from eutectic import api

        api.check_device(device)
        chosen = api.Options(threads=threads, memory=values.size(memory, "--memory"), device=device)
        changes = set_ or []
        if api.is_sweep(recipe, overrides=changes):
            plans = api.plan_sweep(recipe, overrides=changes, seed=seed, dtype=dtype)
        else:
            plans = {"": api.plan(recipe, overrides=changes, seed=seed, dtype=dtype)}
        first = next(iter(plans.values()))
        budget = api.largest([api.budget_for(planned, chosen, len(plans)) for planned in plans.values()])
        notes = [*first.notes, *api.beside(first).notes, *api.same_merges(plans)]
        if json:
            found = {label: as_json(planned, budget, notes) for label, planned in plans.items()}
            screen.print_json(found.get("", {"merges": found}))
        else:
            show(first, budget, notes)
            if "" not in plans:
                show_sweep(list(plans), first)
            if tensors:
                show_tensors(first)
        for planned in plans.values():
            planned.close()


def show(planned: Plan, budget: Budget, notes: Sequence[str]) -> None:
    """The plan in a dozen lines."""
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    order = as_listed(planned)
    name, *labels = _column([planned.method.name, *(planned.inputs[number].label for number in order)])
    table.add_row("method", f"[bold]{name}[/][dim]{planned.method.paper}[/]")
    for number, label in zip(order, labels, strict=True):
        item = planned.inputs[number]
        size = sum(spec.nbytes for spec in item.specs.values())
        inside = "nested recipe, " if item.plan else ""
        moved = f", aligned to {screen.text(item.aligned)}" if item.aligned else ""
        about = f"{inside}{several(len(item.specs), 'tensor')}, {values.shown(size)}{moved}"
        table.add_row(item.role, f"{label}[dim]{about}[/]")
    if planned.recipe.tokenizer_source is not None:
        table.add_row("tokenizer", screen.text(planned.tokenizer_donor.label))
    if (template := planned.recipe.chat_template) is not None:
        told = template if template.isidentifier() else f"the recipe's own, {several(len(template), 'character')}"
        table.add_row("template", screen.text(told))
    for name, text in [*_what(planned, order), *_how(planned, budget)]:
        table.add_row(name, screen.text(text))
    console = screen.out()
    console.print(table)
    for note in notes:
        console.print(f"[yellow]note[/] {screen.text(note)}")


def _column(names: Sequence[str]) -> list[str]:
    """Names for the console with blanks behind, so that what follows them lines up; a long one moves its own alone."""
    from rich.cells import cell_len

    told = [screen.text(name) for name in names]
    width = max((size for name in names if (size := cell_len(name)) <= COLUMN), default=0)
    return [text + " " * (2 + max(0, width - cell_len(name))) for text, name in zip(told, names, strict=True)]


def show_sweep(labels: Sequence[str], first: Plan) -> None:
    """The folders that a sweep makes, the first of which `show` has described."""
    names = ", ".join(labels[:SWEPT]) + (f", … ({len(labels)} in all)" if len(labels) > SWEPT else "")
    total = values.shown(first.bytes_out * len(labels))
    screen.out().print(
        f"[dim]sweep[/] {several(len(labels), 'merge')} in one pass, {total} in all: {screen.text(names)}"
    )
    screen.out().print(f"[dim]what stands above is the plan of {screen.text(labels[0])}[/]")


def as_listed(planned: Plan) -> list[int]:
    """Numbers of the inputs as the recipe lists them, the base of task vectors first, for display alone.

    The inputs' own order is such that the output does not depend on the recipe's.
    """
    count = len(planned.recipe.models)

    def place(number: int) -> int:
        item = planned.inputs[number]
        if number == 0 and planned.method.space == "deltas":
            return -1
        return count if item.about is not None or item.place is None else item.place

    return sorted(range(len(planned.inputs)), key=place)


def _what(planned: Plan, order: Sequence[int]) -> Iterator[tuple[str, str]]:
    """What becomes of the tensors."""
    copied = [f"{job.name} ({job.reason})" for job in planned.jobs if job.action == "copy"]
    dropped = [f"{name} of {label} ({why})" for label, name, why in planned.dropped]
    counts = {
        "merged": len(planned.jobs) - len(copied),
        "copied": len(copied),
        "tied": len(planned.ties),
        "dropped": len(dropped),
    }
    yield "tensors", ", ".join(f"{count} {fate}" for fate, count in counts.items() if count)
    for fate, names in (("copied", copied), ("dropped", dropped)):
        for name in names[:SHOWN]:
            yield fate, name
        if len(names) > SHOWN:
            yield "", f"and {len(names) - SHOWN} more (plan --tensors lists them)"
    yield "dtype", _dtypes(planned)
    merged = [job.parameters for job in planned.jobs if job.action == "merge"]
    if merged and merged[0]:
        same = {name: value for name, value in merged[0].items() if all(one[name] == value for one in merged)}
        varied = [f"{name} differs between tensors" for name in merged[0] if name not in same]
        hint = ["plan --tensors lists them"] if varied else []
        said = [_bound(planned, order, same, short=True)] if same else []
        yield "parameters", "; ".join([*said, *varied, *hint])
    steps = planned.recipe.to_dict().get("post", [])
    for word, step in zip(["then"] + [""] * len(steps), steps, strict=False):
        yield word, "; ".join(f"{name} {_written(given) if given else ''}".strip() for name, given in step.items())


def _how(planned: Plan, budget: Budget) -> Iterator[tuple[str, str]]:
    """What the merge costs, and its seed."""
    yield "reads", values.shown(planned.bytes_in)
    yield "writes", values.shown(planned.bytes_out)
    threads = several(budget.threads, "thread")
    least = f"; needs {-(-budget.least_bytes >> 20)} MiB at least"
    yield "memory", f"peak about {-(-budget.peak_bytes >> 20)} MiB with {threads}{least}"
    if budget.gpu_bytes:
        yield "GPU memory", f"up to {budget.gpu_bytes >> 20} MiB"
    unused = "" if planned.method.random else f" (not used by {planned.method.name})"
    yield "seed", f"{planned.seed}{unused}"


def _dtypes(planned: Plan) -> str:
    """`bfloat16`, or `float32 (from bfloat16 and float16)`: floating dtypes of the output, and of the inputs."""
    from eutectic.dtypes import FLOATS

    written = {job.spec.dtype for job in planned.jobs}
    read = {planned.inputs[i].specs[name].dtype for job in planned.jobs for i, name in job.inputs}
    after, before = (_and([dtype for dtype in FLOATS if dtype in found]) for found in (written, read))
    return after if after == before else f"{after} (from {before})"


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def show_tensors(planned: Plan) -> None:
    """One row a tensor."""
    table = screen.table(("tensor", "dtype", "shape", "fate", "parameters or reason"))

    def add(name: str, spec: Spec | None, fate: str, why: str) -> None:
        about = (spec.dtype, str(list(spec.shape))) if spec else ("", "")
        table.add_row(screen.text(name), *about, fate, screen.text(why))

    order = as_listed(planned)
    for job in planned.jobs:
        if job.action == "merge":
            steps = [f"then {step.name} {_written(dict(step.parameters))}" for step in job.post]
            fate = [job.reason] if job.reason else []
            add(job.name, job.spec, "merged", "; ".join([*fate, _bound(planned, order, job.parameters), *steps]))
        else:
            add(job.name, job.spec, "copied", job.reason)
    inputs = {item.label: item for item in planned.inputs}
    for label, name, why in planned.dropped:
        spec = inputs[label].specs.get(name) if label in inputs else None
        add(name, spec, "dropped", f"of {label}: {why}")
    screen.out().print(table)


def _bound(planned: Plan, order: Sequence[int], parameters: Mapping[str, Any], *, short: bool = False) -> str:
    """`weight: code=0.77 math=0.1; normalize: true`; if `short`, a value that all models share stands there once."""
    shown = []
    for name, value in parameters.items():
        if not isinstance(value, list):
            shown.append(f"{name}: {_value(value)}")
        elif short and len({_value(one) for one in value}) == 1:
            shown.append(f"{name}: {_value(value[0])}")
        else:
            # The base of task vectors comes first and has no values.
            models = planned.models
            first = len(models) - len(value)
            pairs = (f"{models[i].label}={_value(value[i - first])}" for i in order if first <= i < len(models))
            shown.append(f"{name}: {' '.join(pairs)}")
    return "; ".join(shown)


def _written(value: Any) -> str:
    """A value as a recipe would write it on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_written(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_written, value)) + "]"
    return _value(value)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def as_json(planned: Plan, budget: Budget, notes: Sequence[str]) -> dict[str, Any]:
    """The whole plan as plain data."""
    return {
        "method": planned.method.name,
        "fingerprint": planned.fingerprint,
        "seed": planned.seed,
        "tokenizer": planned.tokenizer_donor.label,
        "chat_template": planned.chat_template,
        "inputs": [
            {"role": item.role, **item.identity(), **({"path": item.path} if item.path else {})}
            for item in planned.inputs
        ],
        "bytes_in": planned.bytes_in,
        "bytes_out": planned.bytes_out,
        "threads": budget.threads,
        "peak_bytes": budget.peak_bytes,
        "least_bytes": budget.least_bytes,
        "gpu_bytes": budget.gpu_bytes,
        "tensors": [
            {
                "name": job.name,
                "dtype": job.spec.dtype,
                "shape": list(job.spec.shape),
                "action": job.action,
                "inputs": [{"model": planned.inputs[i].label, "tensor": name} for i, name in job.reads],
                "parameters": dict(job.parameters),
                **({"post": {step.name: dict(step.parameters) for step in job.post}} if job.post else {}),
                **({"reason": job.reason} if job.reason else {}),
            }
            for job in planned.jobs
        ],
        "tied": dict(planned.ties),
        "dropped": [{"model": model, "tensor": name, "reason": why} for model, name, why in planned.dropped],
        "notes": list(notes),
        "problems": [],
    }

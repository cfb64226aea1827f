"""Does every case by both and measures how far apart the results are."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peer import Peer
from safetensors.torch import load_file, save_file
from torch import Tensor

import eutectic
from eutectic import methods
from parity.cases import Case, cut
from parity.inputs import STORED, families

HERE = Path(__file__).resolve().parent
# A few roundings of float32 arithmetic, in units of its last place, relative to a tensor's largest entry.
ROUNDINGS = 4.0


@dataclass(frozen=True)
class Task:
    """One tensor of a case: so many models, inputs of a kind, stored in a dtype; `compute` is what the peer is told."""

    case: Case
    models: int
    kind: str
    stored: str
    compute: str

    @property
    def tolerance(self) -> float:
        """How far results may be apart, in units in the last place of the stored dtype."""
        if self.stored == "float64":
            return self.case.tolerance
        # Both round a wider result once: the last bit may differ where it lies near the middle.
        return 1.0 if self.stored == "bfloat16" and self.compute else ROUNDINGS

    def inputs(self) -> list[str]:
        """Names of the tensors to merge, the base first if there is one."""
        first = 0 if self.case.base else 1
        return [f"{self.kind}/{self.stored}/{index}" for index in range(first, 1 + self.models)]


@dataclass(frozen=True)
class Outcome:
    """How far apart two results are.

    Attributes:
        gap: the largest difference, in units in the last place of the stored dtype at the tensor's largest magnitude.
        equal: share of the entries that are equal bit by bit.
        failed: the peer's error, if it raised one.
        finite: the peer's result is.
    """

    task: Task
    gap: float
    equal: float
    failed: str = ""
    finite: bool = True

    @property
    def agrees(self) -> bool:
        """True if rounding explains the difference."""
        return not self.failed and self.finite and self.gap <= self.task.tolerance


def tasks(cases: Sequence[Case]) -> Iterator[Task]:
    """Every case for every number of models and kind, in each dtype.

    float64 on one kind shows that the formula is the same. In bfloat16 the peer computes in the wider dtype, and on two
    kinds also as it does by itself.
    """
    for case in cases:
        for models in case.models:
            for kind in case.kinds:
                for stored in STORED[0 if kind in ("random", "related") else 1 :]:
                    told = case.wide if stored == "bfloat16" or case.wide == "float64" != stored else ""
                    yield Task(case, models, kind, stored, told)
                    if stored == "bfloat16" and kind in ("random", "grid"):
                        yield Task(case, models, kind, stored, "")


def recipe_of(case: Case, models: int, states: Sequence[dict[str, Tensor]]) -> dict[str, Any]:
    """The case as a recipe on tensors in memory, the base first."""
    method = methods.get("task_arithmetic" if case.method == "svc" else case.method)
    assert method is not None
    given = cut(case.ours, models)
    shared = {name: value for name, value in given.items() if not isinstance(value, list)}
    each = {name: value for name, value in given.items() if isinstance(value, list)}
    post = [{"svc": {"alpha": shared.pop("alpha")}}] if case.method == "svc" else []
    if case.method == "svc":
        shared = {"lambda": shared["scale"]}
    listed: list[dict[str, Any]] = [{"model": states[0]}] if method.base == "first" else []
    for index, state in enumerate(states[1 : 1 + models]):
        own = {name: value[index] for name, value in each.items()}
        listed.append({"model": state, "parameters": own} if own else {"model": state})
    recipe: dict[str, Any] = {"merge_method": method.name, "models": listed, "parameters": shared}
    if case.base:
        recipe["base_model"] = states[0]
    return recipe | ({"post": post} if post else {})


def ours(case: Case, models: int, tensors: dict[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    """Every tensor of a case in one merge: `kind/dtype` → result."""
    states = [{name: tensors[f"{name}/{index}"] for name in sorted(names)} for index in range(1 + models)]
    # The recipe holds a state once, wherever it is named.
    return dict(eutectic.merged(recipe_of(case, models, states), seed=1))


def stored_inputs() -> dict[str, Tensor]:
    """`kind/dtype/index` → tensor."""
    return {
        f"{kind}/{stored}/{index}": tensor.to(getattr(torch, stored)).clone()
        for kind, family in families().items()
        for stored in STORED
        for index, tensor in enumerate(family)
    }


@dataclass(frozen=True)
class Answers:
    """What a peer made of its tasks, by number: results, CPU seconds, and errors where there is no result."""

    results: Mapping[int, Tensor]
    seconds: Mapping[int, float]
    failed: Mapping[int, str]


def theirs(wanted: Sequence[Task], peer: Peer, scratch: Path, tensors: dict[str, Tensor]) -> Answers:
    """Every task by the peer, in one process of its own Python."""
    asked = [
        {
            "inputs": task.inputs(),
            "base": task.case.base,
            "method": task.case.called or task.case.method,
            "parameters": cut(task.case.theirs, task.models),
            "compute": task.compute,
            "stored": task.stored,
            "settled": task.case.settled,
        }
        for task in wanted
    ]
    paths = [scratch / name for name in ("cases.json", "in.safetensors", "out.safetensors", "notes.json")]
    paths[0].write_text(json.dumps(asked))
    save_file(tensors, paths[1])
    script = HERE / f"in_{peer.package.module.replace('_', '')}.py"
    subprocess.run([peer.python, str(script), *map(str, paths)], env=peer.environment(), check=True)
    notes = {name: {int(k): v for k, v in found.items()} for name, found in json.loads(paths[3].read_text()).items()}
    results = {int(number): tensor for number, tensor in load_file(paths[2]).items()}
    return Answers(results, notes["seconds"], notes["failed"])


def outcome(task: Task, mine: Tensor, other: Tensor | None, failed: str) -> Outcome:
    """The two results compared."""
    if other is None:
        return Outcome(task, float("inf"), 0.0, failed)
    equal = float((mine == other).double().mean())
    if not other.isfinite().all():
        return Outcome(task, float("inf"), equal, finite=False)
    kind = torch.finfo(mine.dtype)
    largest = max(float(mine.double().abs().max()), float(other.double().abs().max()))
    # Below the normal numbers the spacing no longer shrinks.
    unit = kind.eps * max(largest, kind.smallest_normal)
    return Outcome(task, float((mine.double() - other.double()).abs().max()) / unit, equal)


def compare(cases: Sequence[Case], peer: Peer, scratch: Path) -> list[Outcome]:
    """Every case of a peer by both."""
    tensors, wanted = stored_inputs(), list(tasks(cases))
    answers = theirs(wanted, peer, scratch, tensors)
    made: dict[tuple[int, int], dict[str, Tensor]] = {}
    for case in cases:
        for models in case.models:
            names = {f"{task.kind}/{task.stored}" for task in wanted if task.case is case}
            made[id(case), models] = ours(case, models, tensors, names)
    return [
        outcome(
            task,
            made[id(task.case), task.models][f"{task.kind}/{task.stored}"],
            answers.results.get(number),
            answers.failed.get(number, ""),
        )
        for number, task in enumerate(wanted)
    ]

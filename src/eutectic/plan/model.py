"""What a plan is: inputs, jobs, and all that is known before a weight is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Self

from eutectic.checkpoint import About, Aligned, Source, Spec
from eutectic.errors import several
from eutectic.kernels.layers import Layer
from eutectic.methods import Method
from eutectic.recipe import Recipe

# Part of every fingerprint: raised when the numbers that a method gives change.
NUMERICS = 1


@dataclass(frozen=True, slots=True)
class BoundStep:
    """One step after the method, for one tensor: its name, over what it takes norms, its bound parameters."""

    name: str
    scope: str
    parameters: Mapping[str, Any]

    @property
    def measures_model(self) -> bool:
        """Whether its factor needs norms over the whole model."""
        return self.scope == "model" or (self.name == "lines" and self.parameters["alpha"] == "auto")


@dataclass(frozen=True, slots=True)
class Job:
    """One output tensor: print it and you understand it.

    Attributes:
        name: the tensor's name, in the output and in every input.
        spec: dtype and shape of the output.
        action: `merge`, or `copy` (the first input's bytes; the others must be equal).
        inputs: (input number, name there) in the method's order; the base first for deltas.
        parameters: bound values by recipe name; one a model where the parameter is per model.
        reason: why it is copied; under a method with statistics, what became of it.
        beside: (input number, name there) of what is read besides: the statistics of each model; then, where a weight
            and its bias are solved together, the other of the two.
        layer: how a weight (and bias) is a matrix that goes with Gram matrices.
        post: steps that rescale the merged change, in order.
    """

    name: str
    spec: Spec
    action: str
    inputs: tuple[tuple[int, str], ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    post: tuple[BoundStep, ...] = ()
    beside: tuple[tuple[int, str], ...] = ()
    layer: Layer | None = None

    @property
    def reads(self) -> tuple[tuple[int, str], ...]:
        """Everything that is read."""
        return self.inputs + self.beside


@dataclass(frozen=True, slots=True)
class PlanInput:
    """One model: its stable label, its role, and either an open source or the plan of a nested recipe.

    Statistics are inputs as well, with the role `statistics` and `about` from their `statistics.json`. `place` is the
    position among the recipe's models; None for a base that is not one of them.
    """

    label: str
    role: str
    source: Source | None = None
    plan: Plan | None = None
    place: int | None = None
    about: About | None = None

    @property
    def specs(self) -> Mapping[str, Spec]:
        """Dtype and shape of each of its tensors."""
        return self.plan.specs if self.plan else self._open.specs

    @property
    def ties(self) -> Mapping[str, str]:
        """Other names of its tensors."""
        return self.plan.ties if self.plan else self._open.ties

    @property
    def implied(self) -> Mapping[str, str]:
        """Names that config.json ties, see `Source.implied`."""
        return {} if self.plan else self._open.implied

    @property
    def ignored(self) -> Mapping[str, str]:
        """Stored tensors that are not read, and why."""
        return {} if self.plan else self._open.ignored

    @property
    def rounds(self) -> Mapping[str, str]:
        """Tensors that are read wider than they are stored, see `Source.rounds`."""
        return {} if self.plan else self._open.rounds

    @property
    def aligned(self) -> str:
        """The label of the model that it is aligned to; empty if it is read as it is."""
        return self.source.to if isinstance(self.source, Aligned) else ""

    @property
    def path(self) -> str:
        """The absolute path it was opened by; empty for a model of the hub, in memory or made by a nested recipe."""
        return self.source.path if self.source else ""

    def stored(self, name: str) -> str | None:
        """The name under which a tensor is stored, None if there is none."""
        return name if name in self.specs else self.ties.get(name)

    @property
    def _open(self) -> Source:
        assert self.source is not None
        return self.source

    def identity(self) -> dict[str, Any]:
        """What names these weights: plain JSON data."""
        if self.plan:
            return {"label": self.label, "recipe": self.plan.recipe.to_dict(), "fingerprint": self.plan.fingerprint}
        if self.about:
            return {
                **self._open.identity(),
                "label": self.label,
                "kind": self.about.kind,
                "samples": self.about.samples,
            }
        return {**self._open.identity(), "label": self.label}

    def close(self) -> None:
        """Closes its files."""
        if self.plan:
            self.plan.close()
        else:
            self._open.close()

    def folder(self) -> str | None:
        """Where its config and tokenizer are."""
        return self.plan.donor.folder() if self.plan else self._open.folder()

    def beside(self, name: str) -> bytes | None:
        """A small file that stands beside its weights: of a nested recipe, beside those whose config it has."""
        return self.plan.donor.beside(name) if self.plan else self._open.beside(name)

    def tokenizer_folder(self) -> str | None:
        """Where its tokenizer is: of a merge, where that one takes it from."""
        return (self.plan or self._open).tokenizer_folder()

    @property
    def chat_template(self) -> str | None:
        """The chat template that a merge gives its tokenizer; None where that of the files stays."""
        return (self.plan or self._open).chat_template


@dataclass(frozen=True)
class Plan:
    """Everything a merge will do, known before a weight is read.

    Attributes:
        recipe: what was asked for.
        method: the merge method.
        inputs: every model, the base first where there is one; then the statistics of each, if the method uses them.
        donor: whose config and tokenizer files are taken: an input, or the base of a method that does not merge it.
        tokenizer: the input whose tokenizer files are taken instead, if the recipe names one.
        jobs: one for each output tensor, in the order of the donor's files.
        ties: other name → output tensor.
        dropped: input tensors that the output does not have: (input label, name, why).
        seed: what random masks are keyed by.
        notes: what the user should know: defaults that were taken, values without effect.
        chat_template: the Jinja text that the tokenizer gets; None to leave its files as they are.
    """

    recipe: Recipe
    method: Method
    inputs: tuple[PlanInput, ...]
    donor: PlanInput
    tokenizer: PlanInput | None
    jobs: tuple[Job, ...]
    ties: Mapping[str, str]
    dropped: tuple[tuple[str, str, str], ...]
    seed: int
    notes: tuple[str, ...]
    chat_template: str | None = None

    @property
    def models(self) -> tuple[PlanInput, ...]:
        """The inputs without statistics."""
        return tuple(item for item in self.inputs if item.about is None)

    @cached_property
    def specs(self) -> dict[str, Spec]:
        """Dtype and shape of every output tensor."""
        return {job.name: job.spec for job in self.jobs}

    @cached_property
    def working(self) -> tuple[str, ...]:
        """The dtype each job is computed in: float64 if an input or the output is, else float32.

        One for all tensors that are ranked together.
        """
        wide = [
            "float64" in {job.spec.dtype, *(self.inputs[i].specs[name].dtype for i, name in job.inputs)}
            for job in self.jobs
        ]
        if self.recipe.scope == "model":
            together = any(one for one, job in zip(wide, self.jobs, strict=True) if job.action == "merge")
            wide = [together] * len(wide)
        return tuple("float64" if one else "float32" for one in wide)

    @property
    def bytes_out(self) -> int:
        """Bytes of tensors that will be written."""
        return sum(job.spec.nbytes for job in self.jobs)

    @property
    def bytes_in(self) -> int:
        """Bytes of tensors that will be read at least once (nested recipes count their own inputs)."""
        total = sum(
            self.inputs[i].specs[name].nbytes
            for job in self.jobs
            for i, name in job.reads
            if self.inputs[i].plan is None
        )
        return total + sum(nested.plan.bytes_in for nested in self.inputs if nested.plan)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the output's weights, the numerics' version included, and of nothing else."""
        jobs = [
            [j.name, j.spec.dtype, list(j.spec.shape), j.action, list(j.inputs), dict(j.parameters)] for j in self.jobs
        ]
        inputs = [
            {"label": item.label, "fingerprint": item.plan.fingerprint} if item.plan else item.identity()
            for item in self.inputs
        ]
        seed = self.seed if self.method.random else None
        decides = [NUMERICS, self.method.name, self.recipe.scope, seed, inputs, jobs, dict(self.ties)]
        if any(job.beside for job in self.jobs):
            decides.append([[list(job.beside), asdict(job.layer) if job.layer else None] for job in self.jobs])
        if self.recipe.post:
            decides.append([[[step.name, step.scope, dict(step.parameters)] for step in j.post] for j in self.jobs])
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    @property
    def tokenizer_donor(self) -> PlanInput:
        """Whose tokenizer files the output gets."""
        return self.tokenizer or self.donor

    def tokenizer_folder(self) -> str | None:
        """The folder whose tokenizer files the output gets."""
        return self.tokenizer_donor.tokenizer_folder()

    def groups(self) -> list[list[int]]:
        """Jobs whose statistics are taken together: all merged ones under `scope: model`, else each by itself."""
        merged = [i for i, job in enumerate(self.jobs) if job.action == "merge"]
        if self.recipe.scope == "model" and merged:
            return [merged, *([i] for i, job in enumerate(self.jobs) if job.action != "merge")]
        return [[i] for i in range(len(self.jobs))]

    def __repr__(self) -> str:
        # As a dataclass prints itself, a model of a thousand tensors runs to pages.
        of = ", ".join(item.label for item in self.inputs)
        return f"<Plan {self.method.name} of {of}: {several(len(self.jobs), 'tensor')}, {self.bytes_out:,} bytes>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes every input."""
        for item in self.inputs:
            item.close()
        if self.donor not in self.inputs:
            self.donor.close()

"""The first half of `crosscheck_mergekit.py`: methods called by hand beside mergekit's, on single tensors."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peer import Peer
from safetensors.torch import load_file, save_file
from torch import Tensor

from eutectic import methods

# Relative to the largest magnitude of the result: a few roundings of the dtype in which mergekit computes.
TOLERANCE = {"float64": 1e-13, "float32": 1e-6, "bfloat16": 2**-7}
WEIGHTS = [0.7, 0.4, 0.2]
HERE = Path(__file__).resolve().parent

PARALLEL = "mergekit interpolates linearly above a cosine of 0.9995; here it stays spherical"
ZERO_BASE = "mergekit takes an angle of 90° when a tensor is zero; here it is interpolated linearly"
TIED = "equal magnitudes: mergekit's sort is not stable; here the first by index stay"
DECIMAL = "29 % of 100 entries: mergekit keeps ⌊0.29 · 100⌋ = 28 in binary floating point; here 29"


@dataclass(frozen=True)
class Case:
    """One merge done by both. `why` names the documented difference, if the two are not to agree.

    `compute` is the dtype that mergekit is told to compute in, empty for its default, the inputs' own.
    """

    title: str
    method: str
    tensors: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float64"
    compute: str = ""
    models: int = 3
    why: str = ""

    @property
    def arithmetic(self) -> str:
        """The dtype in which mergekit computes: told, or float32 for averages of bfloat16, or the inputs' own."""
        average = self.method in ("linear", "slerp") and self.dtype == "bfloat16"
        return self.compute or ("float32" if average else self.dtype)


@dataclass(frozen=True)
class Outcome:
    """How far apart two results are: largest difference, the same relative to the largest value, share of entries."""

    case: Case
    absolute: float
    relative: float
    share: float

    @property
    def agrees(self) -> bool:
        """True within the rounding of the dtype that mergekit computed in; bit by bit if it rounded once, as we do."""
        if self.case.arithmetic != self.case.dtype:
            return self.share == 0
        return self.relative <= TOLERANCE[self.case.dtype]


def inputs() -> dict[str, list[Tensor]]:
    """Families of tensors in float64, the base first and then three fine-tunes."""
    made = torch.Generator().manual_seed(7)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=made, dtype=torch.float64)

    def whole(top: int, *shape: int) -> Tensor:
        """±1 … ±top in random order: distinct magnitudes, exact in every dtype up to 256."""
        order = torch.randperm(top, generator=made, dtype=torch.int64).double() + 1
        return (order * torch.sign(noise(top))).reshape(shape)

    base = noise(48, 64)
    grid = torch.round(noise(8, 12) * 20).clamp(-100, 100)
    coarse = torch.round(noise(48, 64) * 8) / 8
    hundred = noise(10, 10)
    return {
        "random": [base, *(base + noise(48, 64) * 0.1 for _ in range(3))],
        # Distinct deltas that bfloat16 holds exactly, so that no trim of it depends on how ties are broken.
        "grid": [grid, *(grid + whole(96, 8, 12) for _ in range(3))],
        "tied": [coarse, *(coarse + torch.round(noise(48, 64) * 4) / 16 for _ in range(3))],
        "hundred": [hundred, *(hundred + noise(10, 10) for _ in range(3))],
        "parallel": [base, base + noise(48, 64) * 0.01],
        "antipodal": [base, -base],
        "zero base": [torch.zeros(48, 64, dtype=torch.float64), base],
        "untouched": [base, base, base, base],
    }


def averages(dtype: str) -> Iterator[Case]:
    """Cases of linear and slerp."""
    yield Case("three weights", "linear", "random", {"weight": WEIGHTS}, dtype)
    yield Case("not normalised", "linear", "random", {"weight": WEIGHTS, "normalize": False}, dtype)
    yield Case("a negative weight", "linear", "random", {"weight": [1.0, 0.5, -0.25]}, dtype)
    for t in (0.0, 0.25, 0.5, 1.0):
        yield Case(f"t {t:g}", "slerp", "random", {"t": t}, dtype, models=1)
    yield Case("antipodal, t 0.3", "slerp", "antipodal", {"t": 0.3}, dtype, models=1)


def task_vectors(dtype: str) -> Iterator[Case]:
    """Cases of the methods on deltas."""
    plain = {"weight": WEIGHTS}
    yield Case("three weights", "task_arithmetic", "random", plain, dtype)
    yield Case("λ 0.5, normalised", "task_arithmetic", "random", {**plain, "lambda": 0.5, "normalize": True}, dtype)
    yield Case("analogy: -1, 1, 1", "task_arithmetic", "random", {"weight": [-1.0, 1.0, 1.0]}, dtype)
    for density in (0.1, 0.2, 0.5, 0.9, 1.0):
        yield Case(f"density {density:g}", "ties", "random", {**plain, "density": density}, dtype)
    each = {**plain, "density": [0.2, 0.5, 0.8]}
    yield Case("a density for each model", "ties", "random", each, dtype)
    yield Case("not normalised, λ 1.5", "ties", "random", {**each, "normalize": False, "lambda": 1.5}, dtype)
    yield Case("rescaled", "ties", "random", {**each, "rescale": True}, dtype)
    yield Case("a negative weight", "ties", "random", {"weight": [1.0, -0.5, 0.3], "density": 0.5}, dtype)
    yield Case("untouched by all", "ties", "untouched", {**plain, "density": 0.5}, dtype)
    yield Case("density 1", "dare_linear", "random", {**plain, "density": 1.0}, dtype)
    yield Case("density 1", "dare_ties", "random", {**plain, "density": 1.0}, dtype)


def low_precision() -> Iterator[Case]:
    """bfloat16 inputs; mergekit computes task vectors in bfloat16 by itself, in float32 when told."""
    yield Case("three weights", "linear", "grid", {"weight": WEIGHTS}, "bfloat16")
    yield Case("t 0.3", "slerp", "grid", {"t": 0.3}, "bfloat16", models=1)
    for compute in ("float32", ""):
        yield Case("three weights", "task_arithmetic", "grid", {"weight": WEIGHTS}, "bfloat16", compute)
        for density in (0.2, 0.5, 1.0):
            trimmed = {"weight": WEIGHTS, "density": density}
            yield Case(f"density {density:g}", "ties", "grid", trimmed, "bfloat16", compute)
        yield Case("density 1", "dare_linear", "grid", {"weight": WEIGHTS, "density": 1.0}, "bfloat16", compute)


def differences() -> Iterator[Case]:
    """Cases in which the two differ on purpose."""
    for t in (0.3, 0.5):
        yield Case(f"near-parallel, t {t:g}", "slerp", "parallel", {"t": t}, models=1, why=PARALLEL)
    yield Case("zero base, t 0.25", "slerp", "zero base", {"t": 0.25}, models=1, why=ZERO_BASE)
    yield Case("tied magnitudes", "ties", "tied", {"weight": WEIGHTS, "density": 0.2}, why=TIED)
    yield Case("density 0.29", "ties", "hundred", {"weight": WEIGHTS, "density": 0.29}, why=DECIMAL)


def all_cases() -> list[Case]:
    """Every case, in the order of the table."""
    found = [case for dtype in ("float64", "float32") for case in (*averages(dtype), *task_vectors(dtype))]
    return [*found, *low_precision(), *differences()]


def needs_base(case: Case) -> bool:
    """True if the base is one of the inputs."""
    return case.method != "linear"


def ours(case: Case, tensors: Sequence[Tensor]) -> Tensor:
    """The merge by Eutectic, as a caller by hand does it: the difference in float32 or better, rounded once."""
    method = methods.get(case.method)
    assert method is not None
    parameters = {("lambda_" if name == "lambda" else name): value for name, value in case.parameters.items()}
    stored = tensors[0].dtype
    wide = [tensor if stored == torch.float64 else tensor.float() for tensor in tensors]
    base, tuned = wide[0], wide[1 : 1 + case.models]
    if method.space == "weights":
        return method(torch.stack([base, *tuned] if needs_base(case) else tuned), **parameters).to(stored)
    return (base + method(torch.stack([model - base for model in tuned]), **parameters)).to(stored)


def theirs(cases: Sequence[Case], families: Mapping[str, list[Tensor]], peer: Peer, scratch: Path) -> list[Tensor]:
    """The merges by mergekit, all in one process of its own Python."""
    tensors: dict[str, Tensor] = {}
    asked = []
    for case in cases:
        names = [f"{case.tensors}/{case.dtype}/{index}" for index in range(1 + case.models)]
        tensors |= {
            name: families[case.tensors][index].to(getattr(torch, case.dtype)).clone()
            for index, name in enumerate(names)
        }
        asked.append(
            {
                "inputs": names if needs_base(case) else names[1:],
                "method": case.method,
                "parameters": dict(case.parameters),
                "base_index": 0 if needs_base(case) else None,
                "compute": case.compute,
                "stored": case.dtype,
            }
        )
    save_file(tensors, scratch / "in.safetensors")
    (scratch / "cases.json").write_text(json.dumps(asked))
    files = [str(scratch / name) for name in ("cases.json", "in.safetensors", "out.safetensors")]
    command = [peer.python, str(HERE / "peer_merge_tensors.py"), *files]
    subprocess.run(command, env=peer.environment(), check=True)
    results = load_file(scratch / "out.safetensors")
    return [results[str(number)] for number in range(len(cases))]


def compare(peer: Peer, scratch: Path) -> list[Outcome]:
    """Every case by both, and how far apart they are."""
    cases, families = all_cases(), inputs()
    outcomes = []
    for case, other in zip(cases, theirs(cases, families, peer, scratch), strict=True):
        mine = ours(case, [tensor.to(getattr(torch, case.dtype)) for tensor in families[case.tensors]])
        gap = (mine.double() - other.double()).abs()
        share = float((mine != other).double().mean())
        outcomes.append(Outcome(case, float(gap.max()), float(gap.max() / other.double().abs().max()), share))
    return outcomes

"""What is compared: a method of ours with its parameters, and what a peer calls the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from parity.inputs import COMMON

SETTLED = "equals settled as here"
WEIGHTS = (0.7, 0.4, 0.2)
MATRICES = (
    "random",
    "related",
    "light",
    "one untouched",
    "zeros",
    "untouched",
    "vector",
    "one entry",
    "huge",
    "denormal",
)
# What its functions of matrices alone can take.
PROPER = tuple(kind for kind in MATRICES if kind not in ("vector", "one entry"))


@dataclass(frozen=True)
class Case:
    """A merge done by both.

    Attributes:
        peer: by whom else.
        method: ours; `svc` is the step after `task_arithmetic`.
        title: the parameters in words.
        ours, theirs: parameters; a tuple is one value a model, cut to the models at hand.
        called: the peer's name of the method, where it has another one.
        base: the recipe names one. Of a method on two weights it is the first of them.
        models: how many fine-tunes.
        kinds: which inputs.
        wide: the dtype that the peer is told to compute in so that one rounding is all that is left of a difference.
        tolerance: in units of float64's last place, for what is not the same order of operations.
        settled: the peer's sorts are made to order equal magnitudes as ours does, to show that nothing else differs.
    """

    peer: str
    method: str
    title: str
    ours: Mapping[str, Any] = field(default_factory=dict)
    theirs: Mapping[str, Any] = field(default_factory=dict)
    called: str = ""
    base: bool = True
    models: tuple[int, ...] = (2, 3)
    kinds: tuple[str, ...] = COMMON
    wide: str = "float32"
    tolerance: float = 16.0
    settled: bool = False

    @property
    def name(self) -> str:
        """Its place in tables and reasons."""
        return f"{self.peer}/{self.method}/{self.title}"


def cut(parameters: Mapping[str, Any], models: int) -> dict[str, Any]:
    """Parameters with the values for the first so many models."""
    return {name: list(value[:models]) if isinstance(value, tuple) else value for name, value in parameters.items()}


def same(method: str, title: str, parameters: Mapping[str, Any], **more: Any) -> Case:
    """A case of mergekit with the same parameters on both sides."""
    return Case("mergekit", method, title, parameters, parameters, **more)


def mergekit_averages() -> Iterator[Case]:
    """Averages and the methods on the sphere."""
    free: dict[str, Any] = {"base": False}
    sphere: dict[str, Any] = {"kinds": (*COMMON, "parallel", "antipodal")}
    two: dict[str, Any] = {"models": (2,), **sphere}
    yield same("linear", "weights", {"weight": WEIGHTS}, **free)
    yield same("linear", "not normalised", {"weight": WEIGHTS, "normalize": False}, **free)
    yield same("linear", "a negative weight", {"weight": (1.0, 0.5, -0.25)}, **free)
    for t in (0.0, 0.25, 0.5, 1.0):
        yield same("slerp", f"t {t:g}", {"t": t}, models=(1,), kinds=(*sphere["kinds"], "zero base"))
    yield same("nuslerp", "weights", {"weight": WEIGHTS}, base=False, **two)
    yield same("nuslerp", "weights, on deltas", {"weight": WEIGHTS}, **two)
    for rows in (True, False):
        # Rows and columns are swapped in mergekit's code.
        shared = {"weight": WEIGHTS, "nuslerp_flatten": False}
        ours, theirs = shared | {"nuslerp_row_wise": rows}, shared | {"nuslerp_row_wise": not rows}
        title = f"by {'row' if rows else 'column'}, on deltas"
        yield Case("mergekit", "nuslerp", title, ours, theirs, **two)
    # What it adds to norms would show in float64.
    shared = {"weight": WEIGHTS}
    for base in (False, True):
        title = "weights, on deltas" if base else "weights"
        yield Case("mergekit", "multislerp", title, shared, shared | {"eps": 1e-30}, base=base, **sphere)
    # A tolerance of steps that float64 reaches and float32 does not, hence the limit.
    ours, theirs = {"max_iter": 100}, {"max_iter": 100, "tol": 1e-14}
    yield Case("mergekit", "karcher", "100 steps", ours, theirs, base=False, **sphere)
    yield same("passthrough", "scale 1", {"scale": (1.0,)}, models=(1,), **free)
    yield same("passthrough", "scale 0.3", {"scale": (0.3,)}, models=(1,), **free)
    yield same("nearswap", "t 0.05", {"t": 0.05}, models=(1,))
    yield Case("mergekit", "arcee_fusion", "", models=(1,))
    for each in (False, True):
        yield same("model_stock", "by row" if each else "by tensor", {"filter_wise": each})
    halves = {"weight": (0.25, 0.25)}
    yield Case("mergekit", "wise_ft", "α 0.5", {"alpha": 0.5}, halves, called="task_arithmetic", models=(2,))


def mergekit_task_vectors() -> Iterator[Case]:
    """Methods on deltas."""
    plain = {"weight": WEIGHTS}
    yield same("task_arithmetic", "weights", plain)
    yield same("task_arithmetic", "λ 0.5, normalised", {**plain, "lambda": 0.5, "normalize": True})
    yield same("task_arithmetic", "analogy: -1, 1, 1", {"weight": (-1.0, 1.0, 1.0)})
    for density in (0.2, 0.5, 0.9, 1.0):
        yield same("ties", f"density {density:g}", {**plain, "density": density})
    yield same("ties", f"density 0.5, {SETTLED}", {**plain, "density": 0.5}, settled=True)
    yield same("ties", "density 0.29", {**plain, "density": 0.29}, kinds=(*COMMON, "hundred"))
    each = {**plain, "density": (0.2, 0.5, 0.8)}
    yield same("ties", "a density for each model", each)
    yield same("ties", "not normalised, λ 1.5", {**each, "normalize": False, "lambda": 1.5})
    yield same("ties", "rescaled", {**each, "rescale": True})
    yield same("ties", "a negative weight", {"weight": (1.0, -0.5, 0.3), "density": 0.5})
    for method in ("breadcrumbs", "breadcrumbs_ties"):
        yield same(method, "density 0.3, γ 0.01", {**plain, "density": 0.3, "gamma": 0.01})
        yield same(method, "density 0.5, γ 0.2", {**plain, "density": 0.5, "gamma": 0.2})
        settled = {**plain, "density": 0.5, "gamma": 0.2}
        yield same(method, f"density 0.5, γ 0.2, {SETTLED}", settled, settled=True)
    for method in ("dare_linear", "dare_ties"):
        yield same(method, "density 1", {**plain, "density": 1.0})
    for method in ("della", "della_linear"):
        yield same(method, "density 1", {**plain, "density": 1.0, "normalize": False})
    yield same("sce", "all", {})
    yield same("sce", "select_topk 0.5", {"select_topk": 0.5})
    yield same("sce", f"select_topk 0.5, {SETTLED}", {"select_topk": 0.5}, settled=True)
    yield same("ram", "", {})
    yield same("ramplus_tl", "", {})


def peft() -> Iterator[Case]:
    """PEFT's helpers, which merge the factors of adapters, used on whole task vectors."""
    ones = {"weight": (1.0, 1.0, 1.0)}
    yield Case("peft", "task_arithmetic", "weights", {"weight": WEIGHTS}, {"weight": WEIGHTS})
    for density in (0.2, 0.5):
        trimmed = {"weight": WEIGHTS, "density": density}
        title = f"density {density:g}, γ 0"
        yield Case("peft", "breadcrumbs", title, trimmed | {"gamma": 0.0}, trimmed, called="magnitude_prune")
        even = ones | {"density": density}
        yield Case("peft", "ties", f"density {density:g}", even, even)
    both = ("breadcrumbs", trimmed | {"gamma": 0.0}, trimmed, "magnitude_prune"), ("ties", even, even, "")
    for method, ours, theirs, called in both:
        title = f"density {density:g}, {SETTLED}"
        yield Case("peft", method, title, ours, theirs, called=called, settled=True)
    for method in ("dare_linear", "dare_ties"):
        ours = ones | {"density": 1.0, "normalize": method == "dare_ties"}
        yield Case("peft", method, "density 1", ours, ones | {"density": 1.0})


def fusionbench() -> Iterator[Case]:
    """FusionBench's algorithms."""

    def theirs(method: str, title: str, ours: Mapping[str, Any], given: Mapping[str, Any], **more: Any) -> Case:
        return Case("fusionbench", method, title, ours, given, **more)

    def spectral(method: str, title: str, ours: Mapping[str, Any], given: Mapping[str, Any], **more: Any) -> Case:
        # Two decompositions of one matrix differ by its condition, so agreement in float64 is to some digits only.
        return theirs(method, title, ours, given, wide="float64", tolerance=1e6, **{"kinds": MATRICES, **more})

    yield theirs("linear", "", {}, {}, called="simple_average", base=False)
    yield theirs("task_arithmetic", "λ 0.3", {"lambda": 0.3}, {"scaling_factor": 0.3})
    for density in (0.2, 0.5):
        given = {"threshold": density, "merge_func": "mean", "scaling_factor": 0.7}
        ours = {"density": density, "lambda": 0.7}
        yield theirs("ties", f"density {density:g}, λ 0.7", ours, given)
        yield theirs("ties", f"density {density:g}, λ 0.7, its count one less", ours, given, called="ties_one_less")
    yield theirs("slerp", "t 0.3", {"t": 0.3}, {"t": 0.3}, models=(1,), kinds=(*COMMON, "parallel", "antipodal"))
    yield theirs("model_stock", "by tensor", {}, {})
    yield theirs("magmax", "λ 0.5", {"lambda": 0.5}, {"scaling_factor": 0.5})
    yield theirs("emr", "the unified vector", {}, {})
    shared = {"tall_lambda": 0.4, "k": 2}
    yield theirs("consensus_ta", "λ 0.4, k 2", shared, shared, called="consensus")
    yield spectral("tsv_m", "", {}, {})
    yield spectral("iso_c", "", {}, {})
    yield spectral("iso_cts", "fraction 0.8", {"common_space_fraction": 0.8}, {"common_space_fraction": 0.8})
    yield spectral("knots", "density 0.2", {"density": 0.2}, {"density": 0.2}, kinds=PROPER)
    yield spectral("wudi", "", {}, {"iter_num": 400})
    for alpha in (0.1, 1.0):
        shared = {"alpha": alpha, "scale": 0.3}
        yield spectral("svc", f"α {alpha:g} after task_arithmetic λ 0.3", shared, shared, kinds=PROPER)


def masked() -> Iterator[Case]:
    """Random masks: they are different draws, so shares and means are compared."""
    one: dict[str, Any] = {"models": (1,), "kinds": ("ramp",)}
    drop = {"weight": (1.0,), "density": 0.3}
    window = {"weight": (1.0,), "density": 0.5, "epsilon": 0.3}
    yield Case("mergekit", "dare_linear", "density 0.3", drop | {"rescale": "l1"}, drop, **one)
    yield Case("mergekit", "della_linear", "density 0.5, ε 0.3", window | {"rescale": "l1"}, window, **one)
    yield Case("peft", "dare_linear", "density 0.3", drop, drop, **one)
    yield Case("fusionbench", "dare_linear", "density 0.3", drop, {"sparsity_level": 0.7}, called="dare", **one)


def exact() -> list[Case]:
    """Every case of the large table, in its order."""
    return [*mergekit_averages(), *mergekit_task_vectors(), *peft(), *fusionbench()]

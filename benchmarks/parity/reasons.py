"""Why results differ where they do: every difference that rounding does not explain must be named here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from parity.compare import Outcome
from parity.inputs import families

MERGEKIT, PEFT, FUSIONBENCH = ("mergekit",), ("peft",), ("fusionbench",)
BOTH = (*MERGEKIT, *FUSIONBENCH)
EVERYBODY = (*BOTH, *PEFT)
ELECTING = ("ties", "dare_ties", "della", "breadcrumbs_ties")
TRIMMING = ("ties", "breadcrumbs", "breadcrumbs_ties", "sce")
ON_A_SPHERE = ("slerp", "nuslerp", "multislerp", "karcher", "model_stock")


@dataclass(frozen=True)
class Reason:
    """Explains those differences from some peers for which `when` holds; `methods` empty stands for every method."""

    text: str
    peers: tuple[str, ...]
    methods: tuple[str, ...]
    when: Callable[[Outcome], bool]

    def explains(self, outcome: Outcome) -> bool:
        """True if this is why the two differ."""
        case = outcome.task.case
        return case.peer in self.peers and (not self.methods or case.method in self.methods) and self.when(outcome)


def kinds(*names: str) -> Callable[[Outcome], bool]:
    """On inputs of these kinds."""
    return lambda outcome: outcome.task.kind in names


def raised(words: str) -> Callable[[Outcome], bool]:
    """The peer stopped with such an error."""
    return lambda outcome: words in outcome.failed


def quantised(outcome: Outcome) -> bool:
    """Inputs with many equal magnitudes: made so, or by rounding to bfloat16."""
    return outcome.task.kind == "tied" or outcome.task.stored == "bfloat16"


def trimmed(outcome: Outcome) -> bool:
    """Many equal magnitudes, of which some are left out."""
    case = outcome.task.case
    return (
        quantised(outcome) and not case.settled and case.ours.get("density", case.ours.get("select_topk", 1.0)) != 1.0
    )


def narrow(outcome: Outcome) -> bool:
    """Inputs in bfloat16, and nobody told the peer to compute in anything else."""
    return outcome.task.stored == "bfloat16" and not outcome.task.compute and not outcome.failed


def _mean_cosine(rows: Tensor) -> Tensor:
    """Of every pair of models, for each row; vectors of norm zero have a cosine of 0."""
    units = rows / rows.norm(dim=-1, keepdim=True)
    units = units.nan_to_num()
    first, second = torch.triu_indices(len(rows), len(rows), 1)
    return (units[first] * units[second]).sum(-1).mean(0)


@cache
def _least_cosine(kind: str, models: int, by_row: bool) -> float:
    base, *tuned = families()[kind][: 1 + models]
    deltas = torch.stack([model - base for model in tuned])
    across = deltas.shape[-1] if by_row and base.dim() else base.numel()
    return float(_mean_cosine(deltas.reshape(models, -1, across)).min())


def opposed(outcome: Outcome) -> bool:
    """Task vectors (or some of their rows) that on average point away from each other."""
    task = outcome.task
    return _least_cosine(task.kind, task.models, "row" in task.case.title) < 0


ABSOLUTE = "Constants of absolute size (1e-12 to 1e-4) are added or are thresholds there: small tensors count as zero."
REASONS = (
    Reason("It computes in bfloat16 unless told otherwise, and rounds at every step.", EVERYBODY, (), narrow),
    Reason("It stops: there is no SVD of bfloat16.", FUSIONBENCH, (), raised("BFloat16")),
    Reason("Squares are summed in float32 there and overflow.", BOTH, (*ON_A_SPHERE, "sce"), kinds("huge")),
    Reason(ABSOLUTE, BOTH, (*ON_A_SPHERE, "sce", "svc"), kinds("denormal")),
    Reason(ABSOLUTE, MERGEKIT, ("model_stock", "sce"), kinds("light")),
    Reason(ABSOLUTE, MERGEKIT, ("ties",), lambda o: o.task.kind == "denormal" and "rescaled" in o.task.case.title),
    Reason(ABSOLUTE, FUSIONBENCH, ("knots",), lambda o: o.task.kind in ("light", "denormal") or "kthvalue" in o.failed),
    Reason(
        "Nearly parallel tensors (a cosine above 0.9995) are interpolated linearly there, on the sphere here.",
        BOTH,
        ("slerp",),
        kinds("parallel", "light"),
    ),
    Reason(
        "A zero tensor has an angle of 90° there; here it is interpolated linearly.",
        MERGEKIT,
        ("slerp",),
        kinds("zero base"),
    ),
    Reason(
        "A fine-tune that left the tensor alone has an angle of 90° there; here it is interpolated linearly.",
        MERGEKIT,
        ("nuslerp",),
        kinds("one untouched"),
    ),
    Reason(
        "Columns are taken along the first axis there, within each matrix here.",
        MERGEKIT,
        ("nuslerp",),
        kinds("packed"),
    ),
    Reason(
        "Directions that cancel: coefficients without bound or the first model there, the weighted mean here.",
        MERGEKIT,
        ("nuslerp", "multislerp", "karcher"),
        kinds("antipodal"),
    ),
    Reason(
        "From three models on it stops where they have no direction.", MERGEKIT, ("multislerp",), raised("weighted sum")
    ),
    Reason(
        "A negative mean cosine: it steps away from every model; here the result is the base.",
        BOTH,
        ("model_stock",),
        opposed,
    ),
    Reason(
        "Angles in float32, averaged as angles instead of cosines, and 1e-8 added to their product of norms.",
        FUSIONBENCH,
        ("model_stock",),
        lambda o: True,
    ),
    Reason(
        "The divergence is summed in float32 there, which moves entries across the threshold.",
        MERGEKIT,
        ("arcee_fusion",),
        lambda o: o.task.stored != "float64",
    ),
    Reason(
        "⌊density · n⌋ is 0 for so few entries: none stays there, one here.",
        (*MERGEKIT, *PEFT),
        ("breadcrumbs", "breadcrumbs_ties", "sce", "ties"),
        lambda o: o.task.kind in ("one entry", "scalar"),
    ),
    Reason(
        "29 % of 100 entries are 28 there, in binary floating point, and 29 here.",
        MERGEKIT,
        ("ties",),
        kinds("hundred"),
    ),
    Reason(
        "Its trim keeps one entry more than asked for.",
        FUSIONBENCH,
        ("ties",),
        lambda o: "less" not in o.task.case.title and not quantised(o),
    ),
    Reason(
        "Equal magnitudes at the threshold: all are kept there. Votes of zero go to the majority sign of the tensor.",
        FUSIONBENCH,
        ("ties",),
        quantised,
    ),
    Reason(
        "Equal magnitudes at the threshold: an unstable sort decides there, the first by index stay here.",
        (*MERGEKIT, *PEFT),
        TRIMMING,
        trimmed,
    ),
    Reason(
        "Denormal products are rounded to whole multiples of the smallest number there, one by one.",
        MERGEKIT,
        ("ties",),
        lambda o: o.task.kind == "denormal" and o.task.stored == "float32" and o.gap < 16,
    ),
    Reason(
        "Votes that cancel up to the rounding of the weights: in float32 there, in float64 here.",
        MERGEKIT,
        ELECTING,
        quantised,
    ),
    Reason(
        "Opposite changes of equal size: the model listed last wins there; here the entry stays as in the base.",
        FUSIONBENCH,
        ("magmax",),
        lambda o: quantised(o) or o.task.kind == "grid",
    ),
    Reason(
        "Votes of exactly zero count as negative there; here the entry stays as in the base.",
        FUSIONBENCH,
        ("emr",),
        quantised,
    ),
    Reason(
        "A model without a change: its arbitrary singular vectors (or its response of 0) take part there.",
        FUSIONBENCH,
        ("tsv_m", "iso_cts", "svc"),
        kinds("one untouched"),
    ),
    Reason(
        "Steps of Adam that stop short of the minimum (and 0/0 for a model without a change); here the minimum itself.",
        FUSIONBENCH,
        ("wudi",),
        lambda o: True,
    ),
)


def why(outcome: Outcome) -> Reason | None:
    """The first reason that explains a difference."""
    return next((reason for reason in REASONS if reason.explains(outcome)), None)


def unused(outcomes: Sequence[Outcome]) -> list[str]:
    """Reasons that explain nothing any more."""
    used = {reason.text for outcome in outcomes if not outcome.agrees and (reason := why(outcome))}
    return sorted({reason.text for reason in REASONS} - used)

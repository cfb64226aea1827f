"""FusionBench's side of the comparison; run by its own Python (see `serve.py`).

Where an algorithm is a class that takes a pool of modules, it gets modules of one parameter; where it is a function of
task vectors, those.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from fusion_bench import BaseModelPool
from fusion_bench.method.dare.utils import module_random_drop_
from fusion_bench.method.emr_merging.utils import emr_merge
from fusion_bench.method.isotropic_merging.iso_utils import iso_c, iso_cts
from fusion_bench.method.knots.knots_utils import subspace_alignment
from fusion_bench.method.magmax.magmax import magmax_merge
from fusion_bench.method.model_stock.model_stock import ModelStock
from fusion_bench.method.simple_average import simple_average
from fusion_bench.method.singular_value_calibration.utils import (
    subspace_consistency_spectral_calibration_accelerated as svc,
)
from fusion_bench.method.slerp.slerp_utils import slerp
from fusion_bench.method.tall_mask.utils import generate_task_masks
from fusion_bench.method.task_arithmetic.task_arithmetic import TaskArithmeticAlgorithm
from fusion_bench.method.task_singular_vector.utils.TSVM_utils import compute_and_sum_svd_mem_reduction as tsv_m
from fusion_bench.method.ties_merging.ties_merging import TiesMergingAlgorithm
from fusion_bench.method.ties_merging.ties_merging_utils import ties_merging
from fusion_bench.method.wudi.wudi import wudi_merging
from serve import serve
from torch import Tensor, nn

NAME = "weight"
Deltas = list[Tensor]


class Holder(nn.Module):
    """A module of one parameter."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(tensor.clone())


def pool(base: Tensor, tuned: list[Tensor]) -> BaseModelPool:
    """The base and its fine-tunes as a pool of models."""
    models = {f"tuned-{number}": Holder(tensor) for number, tensor in enumerate(tuned)}
    return BaseModelPool({"_pretrained_": Holder(base), **models})


def named(deltas: Deltas) -> list[dict[str, Tensor]]:
    """Task vectors as its functions take them."""
    return [{NAME: delta} for delta in deltas]


def consensus(base: Tensor, tuned: list[Tensor], *, tall_lambda: float, k: int) -> Tensor:
    """Its TALL masks, counted; the sum of the task vectors where enough of them agree."""
    flat, start = torch.stack([model.reshape(-1) for model in tuned]), base.reshape(-1)
    masks = generate_task_masks(flat - start, flat, start, tall_mask_lambda=tall_lambda)
    kept = masks.reshape(flat.shape).sum(0) >= k
    return ((flat - start).sum(0) * kept).reshape(base.shape)


def one_less(density: float, numel: int) -> float:
    """A density with which its trim, which keeps one entry more than it says, keeps ⌊density · n⌋, at least one."""
    return (max(int(density * numel), 1) - 0.5) / max(numel, 1)


def knots(deltas: Deltas, *, density: float) -> Tensor:
    """Its aligned subspace, merged by its TIES with the right number of entries kept."""
    left, values, rights = subspace_alignment(deltas)
    parts = torch.stack([(values[:, None] * right).reshape(-1) for right in rights])
    merged = ties_merging(parts, reset_thresh=one_less(density, parts[0].numel()), merge_func="mean")
    return left @ merged.reshape(len(values), -1)


def dropped(deltas: Deltas, *, sparsity_level: float) -> Tensor:
    """Its random drop, then the sum."""
    state = {str(number): nn.Parameter(delta) for number, delta in enumerate(deltas)}
    module_random_drop_(state, sparsity_level, rescale=True)
    return sum(tensor.data for tensor in state.values())


ON_DELTAS: dict[str, Callable[..., Tensor]] = {
    "emr": lambda deltas: emr_merge(named(deltas))[0][NAME],
    "tsv_m": lambda deltas: tsv_m(named(deltas), accelerator="cpu")[NAME],
    "iso_c": lambda deltas: iso_c(named(deltas), accelerator="cpu")[NAME],
    "iso_cts": lambda deltas, **given: iso_cts(named(deltas), accelerator="cpu", **given)[NAME],
    "wudi": lambda deltas, **given: wudi_merging(named(deltas), accelerator="cpu", **given)[NAME],
    "knots": knots,
    "dare": dropped,
}
ON_MODELS: dict[str, Callable[..., Tensor]] = {
    "task_arithmetic": lambda base, tuned, **given: TaskArithmeticAlgorithm(**given).run(pool(base, tuned)).weight,
    "magmax": lambda base, tuned, **given: (
        magmax_merge(Holder(base), [Holder(model) for model in tuned], **given).weight
    ),
    "ties": lambda base, tuned, **given: TiesMergingAlgorithm(remove_keys=[], **given).run(pool(base, tuned)).weight,
    "ties_one_less": lambda base, tuned, threshold, **given: (
        TiesMergingAlgorithm(remove_keys=[], threshold=one_less(threshold, base.numel()), **given)
        .run(pool(base, tuned))
        .weight
    ),
    "model_stock": lambda base, tuned: ModelStock().run(pool(base, tuned)).weight,
    "slerp": lambda base, tuned, t: slerp(t, base, tuned[0]),
    "svc": lambda base, tuned, alpha, scale: svc(
        base, tuned, base + scale * sum(model - base for model in tuned), alpha=alpha
    ),
}


def merge(method: str, base: Tensor | None, tuned: list[Tensor], parameters: dict[str, Any]) -> Tensor:
    """An algorithm on models, or on task vectors with the base added back."""
    if base is None:
        assert method == "simple_average"
        return simple_average(tuned)
    if method in ON_MODELS:
        return ON_MODELS[method](base, tuned, **parameters)
    deltas = [model - base for model in tuned]
    change = consensus(base, tuned, **parameters) if method == "consensus" else ON_DELTAS[method](deltas, **parameters)
    return base + change


if __name__ == "__main__":
    serve(merge)

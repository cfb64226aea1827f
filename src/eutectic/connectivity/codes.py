"""What `eutectic explain` says of the requests that a look at paths between models refuses."""

from __future__ import annotations

CODES: dict[str, tuple[str, str]] = {
    "L811": (
        "too few models to connect, or too many",
        "A path needs two models, a plane three. `eutectic.connectivity.connect` takes them as a list; a model that is "
        "named twice counts once.",
    ),
    "L812": (
        "a path that cannot be measured so",
        "A path has 3 points or more, both ends among them. `refine` is how often the two gaps around the maximum are "
        "halved, from 0 on. A plane has 2 points a side or more.",
    ),
    "L813": (
        "three models that span no plane",
        "A plane through three models needs them to be no straight line: one of them is the same as another, or a mix "
        "of the other two, as a merge of them would be.",
    ),
    "L814": (
        "batches without statistics to compute",
        "`batches=` recomputes the statistics of batch normalisation at every point. That needs a module, from the "
        "function `module=`, with such layers in it.",
    ),
    "L815": (
        "a curve that cannot be trained",
        "The loss that trains the bend is a function of tensors by name and returns one number that torch can "
        "differentiate by them: `torch.func.functional_call(module, weights, inputs)` runs a module on given weights.",
    ),
}

"""What `eutectic explain` says of the problems of collecting statistics."""

from __future__ import annotations

CODES: dict[str, tuple[str, str]] = {
    "F101": (
        "no data to collect from",
        "The loader gave no batch, a batch held no sample, every position was masked, or the text had nothing to "
        "predict. A generator can be used up: give something that can be iterated over again.",
    ),
    "F102": (
        "NaN or infinity while collecting",
        "The input of a layer, or a gradient, is not finite, so every mean would be. The message names the first such "
        "layer and the samples. Overflow in float16 goes away with dtype float32; otherwise weights or data are "
        "broken.",
    ),
    "F103": (
        "an output without a likelihood",
        "The Fisher information needs log-likelihoods. It is known for logits of shape (samples, classes), and for "
        "logits of shape (samples, positions, tokens) of batches with `input_ids`. For anything else give `loss=`: a "
        'function of the output and the batch that returns one number a sample. `labels="data"` needs labels in the '
        "batch.",
    ),
    "F104": (
        "rows that cannot be told apart",
        "A layer gets rows that are not the positions of the batch (experts, for example), so that padding, or the "
        "sample that a row belongs to, is not known; or it does something else than in the first batch. Batches of one "
        "sample always work.",
    ),
    "F105": (
        "the memory bound is too small for a pass",
        "The bound holds the model and the running sums of one pass over the data. Passes are made as small as they "
        "can be, and the statistics of one layer are not divided. The message has the figure that is needed.",
    ),
    "F106": (
        "statistics that cannot be merged",
        "Parts of one collection have the same kind, the same labels, the same tensors and the same model (by the "
        "content of its weights, not by its name). Everything that differs is listed.",
    ),
    "F107": (
        "nothing to collect",
        "Gram matrices and moments are of the inputs of linear layers and convolutions (`nn.Linear`, `nn.Conv1d`, "
        "`nn.Conv2d` and the `Conv1D` of transformers); the Fisher information is of parameters. The module has none.",
    ),
    "F108": (
        "an option of a collection that cannot be",
        "`labels` is `model` or `data`, and is chosen by `loss` where one is given; `samples` and `batch` are whole "
        "numbers from 1 on. Options of text (`length`, `pack`, `field`) need a file of text, which "
        "a task file is not: name its data.",
    ),
    "F110": (
        "a batch that the module cannot run",
        "The inputs have another width, dtype or name than the module takes, or a token has a number that it does not "
        "know. The message has what the module said.",
    ),
    "F109": (
        "modules that cannot be merged layer by layer",
        "RegMean++ runs the merged module, so all modules have one architecture: the same layers, names, shapes and "
        "dtypes, and each has a loader. A layer is solved before its outputs are made, so it is called once in a "
        "forward pass, and its weight is no other layer's.",
    ),
}

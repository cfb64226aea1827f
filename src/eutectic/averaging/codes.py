"""What `eutectic explain` says of averages along a training run."""

from __future__ import annotations

CODES: dict[str, tuple[str, str]] = {
    "T701": (
        "an argument of an average cannot be",
        "`decay` lies between 0 and 1, both excluded; `start` is a whole number from 0 on, `period` one from 1 on; "
        "`buffers` is `average`, `copy` or `recompute`; `dtype` is float32 or float64. A rate needs a start from 0 on "
        "and positive factors. `update_bn` takes the loader first and then the model.",
    ),
    "T702": (
        "the model is not the one that is averaged",
        "The average belongs to one set of tensors. The model, or the saved state that is loaded, has tensors of other "
        "names or shapes: a layer was added, frozen into another module, or wrapped (`torch.compile` and distributed "
        "wrappers rename tensors: give the module that is inside them). A saved state is what `state_dict` gave.",
    ),
    "T703": (
        "this cannot be done with the average now",
        "Before the first collection there is no average. While the average stands in the model (`with "
        "average.swapped():`) training cannot go on, as the steps would be made from the average and lost at the end.",
    ),
    "T704": (
        "no data to compute statistics from",
        "The loader gave no batch, or no batch reached a normalisation layer, so its statistics stay as they were. A "
        "generator can be used up: give something that can be iterated over again.",
    ),
    "T705": (
        "the training library is not installed",
        "The callbacks need the library that they are for: `pip install 'eutectic[transformers]'` or `pip install "
        "'eutectic[lightning]'`. `eutectic.averaging.WeightAverage` needs neither.",
    ),
    "T706": (
        "the trainer's settings contradict the average",
        "With `load_best_model_at_end` the Trainer would choose a checkpoint of the model's own weights by a score of "
        "their average. Switch it off: at the end the model gets the average. An average that starts after the last "
        "step would never be one.",
    ),
    "T707": (
        "the model is sharded over several processes",
        "Under ZeRO-3, FSDP and tensor parallelism no process holds all of a parameter, and what one holds changes "
        "while the model computes: under ZeRO-3 it is nothing between steps, under FSDP2 a shard before a forward pass "
        "and all of it after. Have the trainer write whole checkpoints (DeepSpeed's `zero_to_fp32.py`, a full state "
        "dict of FSDP), and average those with `eutectic average`. ZeRO-1 and 2 leave parameters whole.",
    ),
    "T708": (
        "a batch that the model cannot be run on",
        "The model was called with the batch, or with its first item, and refused it. A batch needs the shape that the "
        "model takes, and more than one value for each channel that is normalised: one sample alone has no spread. "
        "Other kinds of batches are run by `forward=`. The statistics stay as they were.",
    ),
    "T711": (
        "not enough checkpoints to average",
        "An average needs two checkpoints or more. A pattern such as `run/checkpoint-*` stands for all that it "
        "matches; a folder of checkpoints is no checkpoint. `until` may leave too few.",
    ),
    "T712": (
        "the order of the checkpoints is not known",
        "The last checkpoints, and weights that fall with age, need an order. It is read from the number in each name "
        "(`checkpoint-500`, `step_500.pt`), the one after `step` if there are several. Every name needs one, and no "
        "two the same.",
    ),
    "T713": (
        "the window of an average cannot be",
        "`window` is `uniform`, `exponential` or `ema`. The last two need `decay`, between 0 and 1, both excluded; "
        "`uniform` takes none. `last` is a whole number from 2 on, `until` a step from 0 on.",
    ),
}

"""What `eutectic explain` says of soups and of sweeps that are evaluated."""

from __future__ import annotations

CODES: dict[str, tuple[str, str]] = {
    "S801": (
        "not enough ingredients for a soup",
        "A soup is made of two checkpoints or more: fine-tunes of one base, which differ in seed, data order or "
        "hyper-parameters. A path that is named twice counts once.",
    ),
    "S802": (
        "an option of a soup cannot be",
        "`method` is `uniform`, `greedy`, `pruned` or `learned`; all but `uniform` need a task to choose by. `by`, "
        "`epochs` and `rate` are for `learned`, `tie_break` for `greedy` and `pruned`. Data that the soup is chosen by "
        "cannot be held out: what was chosen on them scores well on them by luck too.",
    ),
    "S803": (
        "the task has no such metric",
        "Beside its main metric a task measures others, its details: `nll` beside perplexity or accuracy of multiple "
        "choice, `cross_entropy` beside accuracy. The message names those that there are. `eutectic evaluate --json` "
        "shows them too.",
    ),
    "S804": (
        "nothing can be learned from this",
        "A learned soup follows the gradient of a loss. `perplexity` has one, and in Python `Classification`; written "
        "answers, rank correlations and functions of your own have none. Weights by layer need tensors with a layer "
        "number in their names.",
    ),
    "S805": (
        "values to sweep that cannot be read",
        "`--over parameters.t=0:1:0.1` takes every step from 0 to 1, both included; `--over 'parameters.t=[0.1, 0.3]'` "
        "takes the values listed. A range needs a positive step and an end that is not before its start.",
    ),
    "S806": (
        "a constraint that cannot be checked",
        "`--keep 'TASK <= base + 0.02'`: the name of a task that is evaluated (its `name`, or that of its file without "
        "the ending), or `TASK.METRIC` with one of its details, then <=, <, >= or >, then a number, or `base` with a "
        "number added or taken away. `base` is the score of the recipe's base_model, so the recipe needs one.",
    ),
    "S807": (
        "nothing to choose from",
        "Choosing needs a parameter that takes several values, by `--over` or `{sweep: [...]}` in the recipe, and at "
        "least one task. `eutectic merge` writes every merge of a sweep without measuring any.",
    ),
    "S808": (
        "no merge keeps the constraint",
        "Every merge was measured and none keeps all constraints, so nothing is written. The table says by how much "
        "each fails: sweep to values nearer the base, or allow more.",
    ),
    "S809": (
        "the log cannot be written",
        "Each step of a soup is written to a file as it is taken, `OUT.soup.jsonl` unless `--log` names another. Its "
        "folder must exist and be one that may be written to.",
    ),
    "S810": (
        "an option of learning cannot be",
        "`--learn` (in Python `by`) is `task`, `layer` or `tensor`, `--objective` is `entropy` or `cross-entropy`. "
        "Weights begin at those of the recipe or at `--init`, not at both, and within [0, 1] unless `--no-clamp` (in "
        "Python `clamp=False`) frees them. Weights that are learned as one begin as one.",
    ),
    "S811": (
        "a recipe whose weights cannot be learned",
        "The gradient goes through linear, task_arithmetic, ties, dare_linear and dare_ties, tensor by tensor, and not "
        "through steps after the method. A recipe that is to be written names its models by path: what is in memory "
        "has no name there.",
    ),
    "S812": (
        "data that nothing can be learned from",
        "Some of the data is held out, to choose the step by, and some must be left to learn from: two batches of a "
        "loader, two documents or two windows of text at least. A loader gives pairs of inputs and labels; for the "
        "objective entropy also inputs alone.",
    ),
}

"""What `eutectic explain` says of the problems that an evaluation finds."""

from __future__ import annotations

CODES: dict[str, tuple[str, str]] = {
    "E901": (
        "no such task",
        "A task is a YAML file with the key `task`, or the short form KIND:DATA, as `perplexity:text.txt`. The "
        "kinds are perplexity, choice, exact_match, similarity, harness and call. In Python it may be any object with "
        "the methods of `eutectic.evaluate.Task`.",
    ),
    "E902": (
        "a task with a wrong option",
        "A task file has the key `task`, the data and the options of that kind of task; anything else is refused, so "
        "that a misspelt option is not ignored. All that is wrong with a task is told at once.",
    ),
    "E903": (
        "the data of a task cannot be read",
        "The file is missing or may not be read. A path in a task file starts from the folder of that file, a path on "
        "the command line from the current folder.",
    ),
    "E904": (
        "a wrong item in the data of a task",
        "Data are UTF-8: plain text, `.jsonl` with one JSON object a line, or `.tsv` with the names of its columns in "
        "the first line. Each line has the fields that the kind of task needs; what is wrong with several lines is "
        "told once. A loader gives batches of inputs and class numbers from 0, for which the module gives one logit a "
        "class.",
    ),
    "E905": (
        "a model that cannot be run",
        "To be evaluated, weights become a module: by transformers, from the config.json beside them, or by a function "
        "of yours (`module=` in Python). Every tensor of that module must be among the weights with its shape, since "
        "what is missing would be random. A model whose architecture is Python code in its own folder is never run.",
    ),
    "E906": (
        "no tokenizer that fits",
        "Tasks on text use the tokenizer files beside the weights; a merge has those of its donor. A tokenizer may not "
        "give tokens beyond the model's vocabulary. A mixture of models whose tokens have other numbers has none that "
        "fits, unless its recipe names one with `tokenizer_source`. In Python `tokenizer=` names another one.",
    ),
    "E907": (
        "text longer than the model takes",
        "The config says how many tokens the model was made for. Nothing is cut off in silence: the score would be "
        "that of other data, and of different data for models of different lengths.",
    ),
    "E908": (
        "a score that is not a number",
        "An item scored NaN or infinity, so the model's output is broken: a merge with exploding weights, an overflow "
        "in float16, or broken weights to begin with. The message names the task, the item and the model.",
    ),
    "E909": (
        "scores that cannot be paired",
        "A difference between two models is taken item by item, which needs the same task, data, limit and seed for "
        "both. Perplexity a token is not the same thing under two tokenizers; bits a byte are.",
    ),
    "E910": (
        "a package is missing",
        "Evaluation of language models and encoders needs transformers, tasks of lm-evaluation-harness need lm_eval. "
        "Neither is needed to merge, so they come with extras: `pip install 'eutectic[transformers]'` and "
        "`pip install 'eutectic[eval]'`.",
    ),
    "E911": (
        "a function that cannot be called",
        "A task `call` names `module:function`. The module is looked for in the folder of the task file (the current "
        "one for the short form) and among the installed ones; the function gets the source or a module, and returns a "
        "number or one number an item.",
    ),
    "E912": (
        "the cache of scores cannot be used",
        "Scores are kept in a folder (`--cache`, or the variable EUTECTIC_CACHE, or ~/.cache/eutectic/scores). One "
        "that was asked for must be one that may be written to. `--no-cache` does without.",
    ),
    "E913": (
        "a task of the harness that cannot be used",
        "lm-evaluation-harness has no such task or metric, or its data are not on this machine: nothing is downloaded. "
        "Load the data set once with the package `datasets`, or write a YAML file of the harness with local data.",
    ),
}

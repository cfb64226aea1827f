"""What each P code means, and how problems of a plan are collected."""

from __future__ import annotations

CODES: dict[str, tuple[str, str]] = {
    "P301": (
        "tensors of different shapes",
        "A tensor must have the same shape in every model that is merged. A first dimension that differs by a few "
        "rows is usually a vocabulary with added tokens: resize the embeddings of one model to the other's first. "
        "Heads for other labels are no vocabulary: `leave_out` copies them from one model.",
    ),
    "P302": (
        "a tensor is missing from a model",
        "Every model must have every floating-point tensor. Tensors that are tied in config.json count as present. "
        "With `missing: copy` in the recipe, a tensor that some models lack is copied from the base (or the first "
        "model that has it) and the manifest says so. Where most of a model is missing, copying makes no merge: look "
        "whether the names begin otherwise (`module.`, `_orig_mod.`), or whether a file named is one shard of several.",
    ),
    "P303": (
        "a filter matches no tensor",
        "A `{filter, value}` entry whose pattern matches none of the tensors is nearly always a spelling mistake. "
        "Patterns are plain parts of names, or regular expressions between slashes: /self_attn\\.(q|k)/.",
    ),
    "P304": (
        "a parameter has no value for some tensors",
        "Every entry of a filtered parameter has a filter, none matches these tensors, and the method has no default. "
        "End the list with an entry without a filter.",
    ),
    "P305": (
        "weights that sum to zero",
        "Normalising divides by the sum of the weights. Set `normalize: false`, or change the weights.",
    ),
    "P306": (
        "one density for a whole-model ranking",
        "`scope: model` ranks all tensors of a model together, so each model has one density; gradients and filters "
        "on `density` need `scope: tensor`.",
    ),
    "P307": (
        "a dtype that cannot be merged",
        "fp8 tensors mean nothing without their scales, which stand in other tensors. Convert the checkpoint to "
        "bfloat16 with the tool that made it, then merge.",
    ),
    "P308": (
        "no tensor can be merged",
        "The names of the tensors are different in every model: perhaps one is of another architecture, or its names "
        "have a prefix. Or `leave_out` takes every tensor that they have in common.",
    ),
    "P309": (
        "layer_range does not cover the model",
        "A recipe in mergekit's slice form is supported when its one slice covers every layer of the models. "
        "Stacking and cutting layers is not supported yet.",
    ),
    "P310": (
        "a float tensor in one model is an integer tensor in another",
        "The models store this tensor with dtypes of different kinds, which usually means that one is quantised.",
    ),
    "P311": (
        "a model named in the recipe is not merged",
        "`buffers_from` and `tokenizer_source` name one of the models that are merged, as it is written there, or "
        "`base`. A method that does not use the base merges the models listed: list the base among them, or name "
        "another.",
    ),
    "P313": (
        "values that do not go together",
        "Each value is allowed by itself, but not with the others or with this number of models. The method's page, "
        "`eutectic methods NAME`, says what goes together.",
    ),
    "P314": (
        "statistics that do not fit",
        "The statistics beside a model are of another kind, of a model with other tensors or shapes, of no samples, or "
        "lack a tensor that those of the other models have. Tensors that none of them has are averaged, and the plan "
        "says so. Collect the statistics of all models with the same command.",
    ),
    "P315": (
        "no tokenizer to take",
        "The model that `tokenizer_source` names has no tokenizer files. Or it is `union`, which is the tokenizer of "
        "all models where they give the same tokens the same numbers. Where they do not, a row of the embeddings means "
        "one token in one model and another in the next, and rows are not moved yet: give the models one tokenizer "
        "first. Where the tokens that differ do not matter, `tokenizer_source` names one model, whose tokenizer files "
        "are copied.",
    ),
    "P316": (
        "a chat template that cannot be written",
        "A chat template stands in the tokenizer's files, and the model that they are taken from has none, or a broken "
        "tokenizer_config.json. Remove `chat_template`, or name a model with `tokenizer_source`.",
    ),
    "P317": (
        "a sweep that changes nothing",
        "Every value of a swept parameter gives one and the same merge: each model has its own value, which comes "
        "before that for all; or `normalize` divides by the sum of the weights, which grow alike; or the method takes "
        "the parameter without effect. Sweep the value that counts: `models[0].parameters.density`, or the weight of "
        "one model.",
    ),
    "P312": (
        "steps after a method that cannot be",
        "What stands under `post` rescales the change from the base model: the method must work on task vectors or "
        "start from the base. `svc` needs whole tensors, which a method under `scope: model` does not have.",
    ),
}

"""What each R code means, for `eutectic explain`."""

from __future__ import annotations

CODES: dict[str, tuple[str, str]] = {
    "R101": (
        "recipe file cannot be read",
        "The file does not exist, is not a regular file, is larger than 1 MB, is not UTF-8 text or may not be read. "
        "Check the path: a recipe is a .yml, .yaml or .json file. A recipe may also be given from Python as a dict, or "
        "as YAML text that contains a line break.",
    ),
    "R102": (
        "not valid YAML",
        "The text could not be read as YAML at the line and column shown. Usual causes are a tab in the indentation, "
        "a missing space after a colon, or a bracket or quote that is never closed.",
    ),
    "R103": (
        "key given twice",
        "The same key stands twice in one mapping. Most readers silently take the last; here nothing is guessed. "
        "Remove one of the two.",
    ),
    "R104": (
        "tag refused",
        "YAML tags such as !!python/object ask the reader to build something other than text, numbers, lists and "
        "mappings. A recipe needs none, so all of them are refused. Remove the tag; put text in quotes.",
    ),
    "R105": (
        "recipe too large",
        "A recipe may have 100 uses of aliases, 100,000 values after they are expanded, 50 levels of nesting, 4,096 "
        "characters in one text (65,536 in a chat template), 1,000 models, 100 recipes inside it, and those 20 deep. "
        "Real recipes stay far below.",
    ),
    "R106": (
        "value that no recipe can hold",
        "Keys are text; numbers are finite and smaller than 2**63; text has no control characters. From Python, values "
        "are None, booleans, numbers, text, lists and dicts, and modules, mappings of tensors or sources only where a "
        "model is expected.",
    ),
    "R107": (
        "not one recipe",
        "A recipe is a mapping with the key merge_method. A file may hold several, separated by lines of ---, when "
        "each but one has a name: of its own. The one without a name is the result, or the last if all have names. Of "
        "models and slices a recipe has one, and of tokenizer and tokenizer_source.",
    ),
    "R108": (
        "recipe contains itself",
        "A recipe names, directly or through others, itself as one of its models. Break the circle.",
    ),
    "R110": (
        "unknown key",
        "The key is not part of the recipe language, so it would have no effect. Check its spelling and whether it "
        "stands at the right level: parameters of a method stand under `parameters`.",
    ),
    "R111": (
        "key missing",
        "Something that every recipe needs is not there: merge_method, models (or slices), or the model of an entry.",
    ),
    "R112": (
        "value of the wrong kind",
        "The key is known, but its value is not of the kind shown. Text that looks like a number needs quotes.",
    ),
    "R113": (
        "not supported yet",
        "mergekit has this and Eutectic does not, so far: layer stacking, modules, mixtures of experts, LoRA inputs, "
        "tokens with embeddings of their own, padded vocabularies, and chat templates by a name that means several. "
        "Nothing is merged, because the result would not be what the recipe asks for.",
    ),
    "R120": (
        "unknown merge method",
        "No method has this name, neither built in nor offered by an installed package. `eutectic methods` lists all.",
    ),
    "R121": (
        "unknown parameter",
        "The method has no parameter of this name, so it would have no effect. `eutectic methods NAME` lists them.",
    ),
    "R122": (
        "parameter in the wrong place",
        "A parameter that all models share was given to one of them. Move it to `parameters` of the recipe.",
    ),
    "R123": (
        "value not allowed",
        "The value is of the wrong kind or outside the range of the parameter. In a gradient every anchor, and in a "
        "list of filters every value, must be allowed. Booleans are written true or false.",
    ),
    "R124": (
        "setting not understood",
        "A parameter is one value, a list of values (a gradient over the layers), {filter, value}, or a list of those. "
        "The first filter that matches a tensor's name wins, so nothing may follow an entry without a filter.",
    ),
    "R125": (
        "broken filter",
        "A filter is a part of a tensor's name, * for all, or a regular expression between slashes, as in "
        "/layers\\.[0-3]\\./. The expression could not be compiled.",
    ),
    "R126": (
        "parameter missing",
        "The method needs this parameter and has no default for it. Give it under `parameters`, or to each model if "
        "it is one a model.",
    ),
    "R127": (
        "weights sum to zero",
        "Under `normalize: true` the result is divided by the sum of the weights, which is zero. Set normalize: false, "
        "as for negation and analogies, or change the weights.",
    ),
    "R128": (
        "sweep not understood",
        "`{sweep: [0.1, 0.3]}` in place of a parameter's value makes one merge for each value, all in one pass over "
        "the models, each in a folder of its own. Only what stands under `parameters` or `post` can be swept, and a "
        "blank follows the colon. Every value stands once, several sweeps are combined, up to 256 merges. A recipe "
        "that is a model of another, and what reads a single merge, cannot have one.",
    ),
    "R130": (
        "model not understood",
        "A model is a path, a hub id such as org/name or org/name@revision, the name of another document in the same "
        "file, a recipe file, or a recipe written in place; from Python also a module, a mapping of tensors, or a "
        "source.",
    ),
    "R131": (
        "wrong number of models",
        "The method merges fewer or more models. For methods on task vectors the base is not counted.",
    ),
    "R132": (
        "base model missing or not among the models",
        "Methods on task vectors subtract the base from each model, and slerp starts from it: `base_model` names it. "
        "For slerp it must be one of the two models.",
    ),
    "R133": (
        "same model twice",
        "One model is listed twice, by one name or by two: a link, or a folder and the file in it. Its copies would "
        "count as one vote twice; list it once and give it a larger weight. Statistics stand beside one model, the "
        "one that they were measured of; so does an alignment.",
    ),
    "R134": (
        "layer range not understood",
        "Slices are taken when they describe a merge of whole models: one slice, whose sources all have the same "
        "layer_range, beginning at layer 0.",
    ),
    "R135": (
        "statistics missing, or without use",
        "Methods that use statistics, `fisher` and `regmean`, need those of every model: `statistics: PATH` beside "
        "`model`, a folder that `eutectic collect` made. Other methods use none, and a key without effect is refused.",
    ),
    "R136": (
        "an alignment in the wrong place",
        "`aligned: PATH` stands beside a model (a folder, a file, a hub id): the second of the two that `eutectic "
        "align` was given. A base of task vectors is aligned by a recipe in its place: `base_model: {merge_method: "
        "passthrough, models: [{model: B, aligned: PATH}]}`.",
    ),
    "R140": (
        "override not understood",
        "--set takes KEY=VALUE with a path into the recipe: parameters.t=0.4 or models[0].parameters.weight=2. The "
        "value is YAML.",
    ),
    "R150": (
        "step after the method not understood",
        "`post` is a list of steps that rescale the merged change, each a name with its parameters: "
        "`- lines: {beta: 0.5}`, `- norm_guard`, `- svc: {alpha: 1}`. `eutectic methods post` lists them.",
    ),
    "R142": (
        "a method called by hand with what it does not take",
        "Methods take models stacked along the first axis of one floating-point tensor, and the values that a recipe "
        "may give, one for all models or one for each. `eutectic methods NAME` lists them.",
    ),
}

"""What `eutectic explain` says of alignments that are refused."""

from __future__ import annotations

CODES: dict[str, tuple[str, str]] = {
    "G101": (
        "tensors and symmetries do not name the same",
        "A table of symmetries names every tensor of its model, those that nothing moves in too, so that none is "
        "forgotten. Make it for this model: `eutectic align --check` says what is known of it.",
    ),
    "G102": (
        "a tensor of another shape than its symmetries",
        "The table was made for a model of other sizes. Make it for this one.",
    ),
    "G103": (
        "a table of symmetries that contradicts itself",
        "Each axis names the groups and gauges that its units and coordinates are of, and their sizes must agree.",
    ),
    "G110": (
        "no alignment",
        "`aligned` names a folder that `eutectic align` made: moves as tensors, and alignment.json, which says of "
        "which models they are.",
    ),
    "G111": (
        "a broken alignment",
        "alignment.json, or the tensors beside it, are not what `eutectic align` writes, or are of a later version. "
        "Align the models again.",
    ),
    "G112": (
        "moves that are none",
        "An order holds each unit once and keeps units together that go together; scales are finite and not zero, of "
        "the kind that the group allows; matrices are finite and can be inverted, of the kind that the gauge allows. "
        "Anything else would change what the model computes.",
    ),
    "G113": (
        "tied tensors that would move apart",
        "The names are of one tensor, so they have the same symmetries. A table that says otherwise is wrong for this "
        "model; or its config calls a head tied that is not.",
    ),
    "G114": (
        "a tensor that cannot be multiplied or compared",
        "The moves scale or mix units of a tensor that holds integers or fp8; or a matrix of integers would have to "
        "say which units are alike. Quantised models are aligned before they are quantised.",
    ),
    "G116": (
        "an alignment that lacks something",
        "Matching by activations runs both models over data: a file of text for causal language models (`--data`), or, "
        "in Python, batches. The straight-through estimator also needs a loss and a number of steps. What a method has "
        "no use for is refused, as it would have no effect. A proof runs the model: of a module that transformers does "
        "not know, nothing says what it is called with.",
    ),
    "G115": (
        "an alignment of another model",
        "The moves were found for another model than the one that they stand beside in the recipe: its tensors have "
        "other names or shapes, or the digest of one differs. They belong beside the second model that `eutectic "
        "align` was given, as it was then; if it was trained on, align it again.",
    ),
    "G140": (
        "a module without a graph",
        "Symmetries are traced in the graph that `torch.export` makes, and it makes none of what depends on data (a "
        "loop over chosen experts, a branch on a value, `nonzero`) or on code it cannot see into. The message has its "
        "own words. Declare the symmetries, or trace the module in a form that can be exported. Nor is there a graph "
        "of a module that cannot be called with the inputs that were given.",
    ),
    "G141": (
        "an operation that is not understood",
        "Units that could change places pass through an operation without a rule, so it is not known whether they may. "
        "Nothing is guessed. Where only inputs, outputs and other fixed places pass, any operation is welcome.",
    ),
    "G150": (
        "tied tensors that move apart",
        "Two names of one tensor must have the same axes in a table: they are one set of weights.",
    ),
    "G151": (
        "outputs that prove nothing",
        "A table is proved by comparing outputs. There are none, or they are NaN or infinite, whole numbers alone, "
        "drawn at random, or the same whatever the weights: give inputs as the module meets them in use, and a module "
        "that returns numbers which its weights decide.",
    ),
    "G160": (
        "a model whose symmetries are not known",
        "They are declared for families of networks, recognised by `model_type` in config.json or, for layers in a "
        "row and ResNets, by the names of the tensors, and every tensor must fit. What names tell is proved where "
        "there is a module and an input, and traced if it does not hold. For any other network give the module and an "
        "input to trace its graph, or a table (`Symmetries`) of your own.",
    ),
    "G161": (
        "config.json does not say what shapes leave open",
        "How many heads there are, over how many channels a group norm goes and what kind of network it is cannot be "
        "told from tensors. Put the config.json of the model beside its weights.",
    ),
    "G162": (
        "a tensor that does not fit a family",
        "The model is nearest to a family of which it is no plain member, so what is declared for that may not hold. "
        "Trace the module instead.",
    ),
    "G163": (
        "a tensor under two names that would move in two ways",
        "Weights that are shared between layers keep what is declared for layers of their own from holding. Trace the "
        "module: its graph knows what is shared.",
    ),
    "G170": (
        "models of different shapes",
        "Two models are aligned when all their tensors have the same names and shapes: the second moves onto the first "
        "unit by unit. The message counts those that differ. Heads for other classes, or embeddings of another "
        "vocabulary, have to be left out of both first.",
    ),
    "G171": (
        "tensors that only one model has",
        "Two models are aligned when they have the same tensors; the message counts those that they do not share. If "
        "that is all of them, the models are of different architectures, and have no units to match. Models of one "
        "architecture with other names (a prefix, a tied head that one of them stores) have to be renamed first.",
    ),
    "G172": (
        "weights that are to be aligned, and are NaN, infinite or too large",
        "Such weights are like no others. The model is broken, or overflowed in float16; every tensor is listed. "
        "Numbers beyond 1e15 (1e150 in float64) overflow when they are multiplied.",
    ),
    "G173": (
        "an argument of matching that cannot be",
        "`restarts` is a whole number from 0 on, `sweeps` one from 1 on, and `fixed` names groups of the symmetries. "
        "What runs a model takes a live module, not its state dict.",
    ),
    "G117": (
        "symmetries that do not hold",
        "Random elements of the group change what the model computes, so the table is wrong for it: units were "
        "declared or traced as alike that are not. Nothing can be aligned by it. The groups that break by themselves "
        "are named.",
    ),
    "G174": (
        "a residual stream that may not turn",
        "A rotation of the residual stream is exact where RMSNorm stands before each block, its gains can be folded "
        "into what reads behind it, and the head is no copy of the embeddings. Elsewhere orders and signs are all "
        "there is: align without it.",
    ),
    "G180": (
        "similarities that are no numbers",
        "Units are matched by how alike they are, and NaN or infinity is no likeness. It comes from weights or "
        "activations that are NaN or infinite, or too large for their dtype. Units that never fire give zeros.",
    ),
    "G181": (
        "too few models to align",
        "Many models are aligned with each other, the others to the first; that takes two.",
    ),
    "G182": (
        "no such method for many models",
        "`universe` matches all models at once and then one after the other; `mean` does the latter alone.",
    ),
    "G200": (
        "data that can be gone through once",
        "With a memory bound activations are collected in several passes over the data, so a generator does not do. "
        "Give a list, a DataLoader or anything else that can be iterated over again.",
    ),
    "G201": (
        "activations that do not show the units of a table",
        "Units are looked at in the inputs of linear layers and convolutions, found by the names of their weights. "
        "Both models are of the architecture that the table is for. Where no such layer runs, match by weights.",
    ),
    "G202": (
        "the memory bound is too small for a pass of activation matching",
        "Each pair of units of a group takes 8 bytes for each layer that reads them, and what depends on each other is "
        "collected together. The message has the figure that is needed.",
    ),
    "G210": (
        "parents that a merge cannot be repaired with",
        "REPAIR brings the activations of a merge to those of the models that it was merged from: of the same layers, "
        "tensors and dtypes, with their units in the merge's order. A model that was aligned for the merge is given "
        "aligned.",
    ),
    "G211": (
        "an option of REPAIR that cannot be",
        "`how` is `sequential` or `closed_form`; there is one weight from 0 on for each parent, and not all are 0; the "
        "data can be gone through again, as there are several passes.",
    ),
    "G240": (
        "a zip that cannot be",
        "Zipping takes two models or more, with as many units each; alpha and beta are shares from 0 to 1; heads stay "
        "separate or are averaged.",
    ),
    "G241": (
        "similarities that are no numbers",
        "NaN or infinity in the correlations of units: look for it in the data, or in the models' activations.",
    ),
    "G242": (
        "no such place to zip up to",
        "`until` names a group of the symmetries, or a tensor that makes the units of one.",
    ),
    "G243": (
        "units that no layer shows",
        "Units are seen where a linear layer or convolution reads them. Behind the last of these nothing is known of "
        "which go together: zip up to a group before it.",
    ),
    "G244": (
        "models that cannot be zipped",
        "In the trunk the models have the same tensors, and their symmetries fit them. What comes behind the trunk may "
        "be another for each model; give a table of symmetries for each then.",
    ),
    "G245": (
        "heads that are not one",
        "Heads are averaged when everything is zipped and they have the same shapes. Otherwise each model keeps its "
        "own.",
    ),
    "G246": (
        "no graph to run models together",
        "What models have in common is computed once by the graphs that torch.export makes of them. Where it makes "
        "none, each of the `members` runs by itself with the same result.",
    ),
    "G247": (
        "not the folder of these zipped models",
        "`load_zipped` takes the folder that `Zipped.save` made, and modules of the architectures that were zipped, in "
        "their order: their values are replaced.",
    ),
    "G248": (
        "not one loader for each model",
        "Statistics of a head are of its own task's data, so each model's data is given by itself.",
    ),
    "G250": (
        "widths that cannot be fitted",
        "Models of other widths have the same tensors, of which the groups of their symmetries alone have other sizes; "
        "heads and experts are as many.",
    ),
    "G251": (
        "a transport that is too large",
        "Where neither of two widths divides the other, units are mixed as a linear program says, which grows with the "
        "product of the widths.",
    ),
    "G252": (
        "weights that are no numbers",
        "NaN or infinity in the weights of a model that is to be brought to other widths.",
    ),
    "G212": (
        "an alignment of none of the parents",
        "An alignment moves one model, which it knows by the content of its tensors. Give that model as a parent, as "
        "it was when it was aligned, or leave the alignment out.",
    ),
    "G220": (
        "an option of the straight-through estimator that cannot be",
        "`steps` is a whole number from 1 on, `lr` a number above 0, `momentum` from 0 on and below 1, and the data "
        "can be gone through again.",
    ),
    "G221": (
        "a loss that is no number",
        "The loss at the midpoint of the two models is NaN or infinite. The learning rate may be too high, or the "
        "models or data are broken.",
    ),
}

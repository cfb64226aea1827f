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
        "`aligned` names a folder that `eutectic align` made: moves as tensors, and alignment.json, which says of which "
        "models they are.",
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
        "model: is its head really tied?",
    ),
    "G114": (
        "a tensor that cannot be multiplied",
        "The moves scale or mix units of a tensor that holds integers or fp8. Quantised models are aligned before they "
        "are quantised.",
    ),
    "G115": (
        "an alignment of another model",
        "The moves were found for a model with other weights than the one that they stand beside in the recipe: the "
        "digest of a tensor differs. They belong beside the second model that `eutectic align` was given, as it was "
        "then; if it was trained on, align it again.",
    ),
    "G180": (
        "similarities that are no numbers",
        "Units are matched by how alike they are, and NaN or infinity is no likeness. It comes from weights or "
        "activations that are NaN or infinite, or too large for their dtype. Units that never fire give zeros.",
    ),
}

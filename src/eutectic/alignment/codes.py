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
    "G180": (
        "similarities that are no numbers",
        "Units are matched by how alike they are, and NaN or infinity is no likeness. It comes from weights or "
        "activations that are NaN or infinite, or too large for their dtype. Units that never fire give zeros.",
    ),
}

"""What `eutectic explain` says of the requests that a comparison refuses."""

from __future__ import annotations

CODES: dict[str, tuple[str, str]] = {
    "A801": (
        "too few models to compare",
        "A comparison needs two models, or one model and the base it was trained from (`--base`). In Python the models "
        "come as a list: `eutectic.compare([a, b], base=c)`. A model that is named twice, or that is the base itself, "
        "counts once.",
    ),
    "A802": (
        "the report cannot be written",
        "The report is one HTML file: its name ends in .html, its folder exists and may be written to. A report that "
        "has this name is replaced.",
    ),
}

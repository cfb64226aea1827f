"""What the user should know of models whose config.json contradict each other."""

from __future__ import annotations

from collections.abc import Sequence

from eutectic.checkpoint.configs import CONFIG, contradictions
from eutectic.checkpoint.vocabulary import json_of
from eutectic.plan.findings import Findings
from eutectic.plan.model import PlanInput


def note_configs(models: Sequence[PlanInput], findings: Findings) -> None:
    """Notes every key that has several values; shapes cannot tell, and the output has one config.

    Args:
        models: what is merged, first the one whose config the output gets.
        findings: where it is told.

    Raises `CheckpointError` for a config that cannot be read.
    """
    for found in contradictions((item.label, json_of(item.beside(CONFIG))) for item in models):
        told = [str(found)]
        if found.cuts:
            told.append("the same rows are other heads or experts there, so unlike things are averaged")
        if found.values[0][0] == models[0].label:
            told.append(f"the output says what {models[0].label} says")
        findings.notes.append("; ".join(told))

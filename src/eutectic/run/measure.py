"""Factors of the steps after a method that need norms over the whole model: one more pass over the inputs for each."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from eutectic.plan import BoundStep, Plan
from eutectic.run.blocks import Loader
from eutectic.run.engine import Engine, Lane
from eutectic.run.groups import Work
from eutectic.run.post import Tally, factor_of


class _Nowhere:
    """A sink for a pass that is made for its norms."""

    def write(self, job: int, first: int, bits: Any) -> None:
        """Takes a block and keeps nothing."""

    def finish(self, job: int, record: dict[str, Any]) -> None:
        """Takes a record and keeps nothing."""


def measured(
    works: Sequence[Work],
    loader: Loader,
    *,
    threads: int = 1,
    hold_bytes: int = 0,
    stop: threading.Event | None = None,
) -> list[Work]:
    """Each work with the factor of every step that measures the whole model, all measured in the same passes.

    The norms are added in the order of the jobs and blocks, so the factors do not depend on threads. After `stop` they
    are not complete.
    """
    found = list(works)
    while due := {number: place for number, work in enumerate(found) if (place := _next(work)) is not None}:
        tallies = {number: Tally() for number in due}
        lanes = [
            Lane(replace(found[number], tally=tally), _Nowhere(), _copies(found[number].plan))
            for number, tally in tallies.items()
        ]
        if not Engine(lanes, loader, threads=threads, hold_bytes=hold_bytes, stop=stop).run():
            break
        for number, place in due.items():
            factor = factor_of(_steps(found[number])[place], tallies[number].model_norms())
            found[number] = replace(found[number], factors={**found[number].factors, place: factor})
    return found


def _steps(work: Work) -> tuple[BoundStep, ...]:
    return next((job.post for job in work.plan.jobs if job.post), ())


def _next(work: Work) -> int | None:
    """The place of the first step whose factor has yet to be measured."""
    steps = enumerate(_steps(work))
    return next((place for place, step in steps if step.measures_model and place not in work.factors), None)


def _copies(plan: Plan) -> list[int]:
    return [number for number, job in enumerate(plan.jobs) if job.action == "copy"]

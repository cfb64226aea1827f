"""Factors of the steps after a method that need norms over the whole model: one more pass over the inputs for each."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from eutectic.plan import Plan
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
    plan: Plan,
    loader: Loader,
    *,
    device: str = "cpu",
    reference: bool = False,
    threads: int = 1,
    hold_bytes: int = 0,
    stop: threading.Event | None = None,
    on_pass: Callable[[str], None] | None = None,
) -> Work:
    """The work of a plan, with the factor of every step that measures the whole model.

    The norms are added in the order of the jobs and blocks, so the factors do not depend on threads. `on_pass` is
    called with the step's name before each pass. After `stop` the factors are not complete.
    """
    work = Work(plan, device, reference)
    steps = next((job.post for job in plan.jobs if job.post), ())
    for number, step in enumerate(steps):
        if not step.measures_model:
            continue
        if on_pass:
            on_pass(step.name)
        tally = Tally()
        lanes = [
            Lane(replace(work, tally=tally), _Nowhere(), [i for i, j in enumerate(plan.jobs) if j.action == "copy"])
        ]
        if not Engine(lanes, loader, threads=threads, hold_bytes=hold_bytes, stop=stop).run():
            return work
        work = replace(work, factors={**work.factors, number: factor_of(step, tally.model_norms())})
    return work

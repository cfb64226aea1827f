"""Tasks of lm-evaluation-harness, by name or from a YAML file of its own, offline."""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib import import_module
from inspect import getfile
from typing import Any, ClassVar

import numpy as np

from eutectic.checkpoint import Source
from eutectic.errors import EutecticError, Problem, RecipeError, did_you_mean, listed
from eutectic.evaluate import options
from eutectic.evaluate.content import digest_of_json
from eutectic.evaluate.loading import needed, quiet
from eutectic.evaluate.model import Score, Settings, score_of
from eutectic.evaluate.options import Checked, option
from eutectic.paths import absolute

_READ = ("huggingface_hub.constants", "datasets.config")
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


@dataclass(frozen=True)
class Harness(Checked):
    """One metric of a task of lm-evaluation-harness (`pip install 'eutectic[eval]'`), item by item.

    A name of the harness, whose data must be in the Hugging Face cache, or a YAML file in the harness's language, whose
    data may be local. Nothing is downloaded. A group of tasks is the mean over all items of its tasks.

    Attributes:
        harness: the task's name, or a `.yaml` file.
        name: label; the task's name where it is empty.
        metric: as the harness calls it (`acc`, `acc_norm`, `exact_match`), with its filter after a comma if there are
            several (`exact_match,flexible-extract`); the task's first where it is empty.
        num_fewshot: examples before each question; None: as the task says.
        include: a folder with further YAML files.
        dtype: of the arithmetic; None: as stored.
    """

    kind: ClassVar[str] = "harness"
    harness: str = option()
    name: str = options.name()
    metric: str = option("")
    num_fewshot: int | None = option(None, least=0)
    include: str | None = option(None, path=True)
    dtype: str | None = options.dtype()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name:
            object.__setattr__(self, "name", os.path.splitext(os.path.basename(self.harness))[0])

    @property
    def higher_is_better(self) -> bool:
        """As the harness says of the metric."""
        return all(task.higher_is_better().get(self.wanted[0], True) for task in self._tasks.values())

    @cached_property
    def wanted(self) -> tuple[str, str]:
        """The metric and the filter; the first that the task has where they are not given."""
        first = next(iter(self._tasks.values()))
        name, _, chosen = self.metric.partition(",")
        name = name or next(iter(first.higher_is_better()))
        if name not in (known := first.higher_is_better()):
            hint = did_you_mean(name, known) or f"it has {listed(list(known))}"
            raise RecipeError(Problem("E913", f"{self.harness!r} has no metric {name!r}", "metric", hint))
        return name, chosen

    @cached_property
    def _tasks(self) -> Mapping[str, Any]:
        """The harness's tasks by name. Raises `RecipeError` (E910, E913)."""
        with offline():
            library()
            try:
                found = self._load()
            except EutecticError:
                raise
            except Exception as error:
                said = str(error).strip().splitlines()
                message = f"{self.harness!r} cannot be loaded: {type(error).__name__}: {said[0] if said else ''}"
                hint = "nothing is downloaded: its data must be local, or in the Hugging Face cache"
                raise RecipeError(Problem("E913", message, "harness", hint)) from error
        for task in found.values():
            if self.num_fewshot is not None:
                task.set_config("num_fewshot", self.num_fewshot)
            task.set_fewshot_seed(0)
        return found

    def _load(self) -> Mapping[str, Any]:
        name, folder = self.harness, self.include
        own = name.endswith((".yaml", ".yml"))
        if own:
            folder = os.path.dirname(name) or os.curdir
            name = _name_in(name)
        folder = folder and absolute(folder)
        # A folder of one's own is read anew: its files may have changed.
        manager = _index(folder, False) if own else _known_index(folder)
        if name not in manager.all_tasks:
            hint = did_you_mean(name, manager.all_tasks)
            raise RecipeError(Problem("E913", f"the harness has no task {name!r}", "harness", hint))
        place = getattr(getattr(manager, "task_index", {}).get(name), "yaml_path", None)
        if own and place is not None and os.path.realpath(place) != os.path.realpath(self.harness):
            message = f"the task {name!r} is also in {os.path.relpath(place, folder)}"
            raise RecipeError(Problem("E913", message, "harness", "rename one of the two", self.harness))
        tasks: Mapping[str, Any] = manager.load([name])["tasks"]
        return tasks

    def identity(self) -> dict[str, Any] | None:
        """Every option, the harness's version, and for each of its tasks the settings and a digest of its data.

        None for a task with Python functions from outside the harness: nothing tells what these depend on.
        """
        if any(_has_code(task) for task in self._tasks.values()):
            return None
        version = library().__version__
        tasks = {
            name: digest_of_json([_plain(task.dump_config()), *([_plain(doc) for doc in docs] for docs in _data(task))])
            for name, task in self._tasks.items()
        }
        return {"task": self.kind, "version": 2, **self.options(), "lm_eval": version, "tasks": tasks}

    def check(self, source: Source, run: Settings) -> None:
        """See `Task.check`."""
        assert self.wanted
        run.loader.config(source, "causal")
        run.loader.tokenizer(source)

    def score(self, source: Source, run: Settings) -> Score:
        """See `Task.score`."""
        tasks = self._tasks
        counts = {name: len(task.eval_docs) for name, task in tasks.items()}
        numbers = run.chosen(sum(counts.values()))
        chosen: dict[str, list[int]] = {}
        first = 0
        for name, count in counts.items():
            chosen[name] = [number - first for number in numbers if first <= number < first + count]
            first += count
        tokenizer = run.loader.tokenizer(source)
        with (
            offline(),
            quiet(),
            seeded(run.seed),
            run.loader.module(source, "causal", device=run.device, dtype=self.dtype) as model,
        ):
            # Given to `evaluate`, a batch size would be ignored.
            wrapped = import_module("lm_eval.models.huggingface").HFLM(
                pretrained=model, tokenizer=tokenizer, batch_size=run.batch
            )
            wanted = {
                "tasks": {name: task for name, task in tasks.items() if chosen[name]},
                "groups": {},
                "group_map": {},
            }
            found = import_module("lm_eval.evaluator").evaluate(
                wrapped, wanted, samples=chosen, bootstrap_iters=0, log_samples=True
            )
        run.tell(1.0)
        items = [value for name in wanted["tasks"] for value in self._values(found["samples"][name])]
        return replace(score_of(self, source, run, items, numbers=numbers), metric=self.wanted[0])

    def _values(self, samples: list[dict[str, Any]]) -> list[float]:
        """The metric of each item, in the order of the data. Raises `RecipeError` (E913) where items have none."""
        metric, chosen = self.wanted
        kept = chosen or (samples[0].get("filter", "none") if samples else "none")
        rows = sorted((row for row in samples if row.get("filter", "none") == kept), key=lambda row: int(row["doc_id"]))
        try:
            return [float(row[metric]) for row in rows]
        except (KeyError, TypeError, ValueError) as error:
            message = f"{metric!r} of {self.harness!r} is no number an item, and has no interval"
            raise RecipeError(Problem("E913", message, "metric", "choose another metric of the task")) from error


def library() -> Any:
    """The harness. Raises `RecipeError` (E910) where it is not installed."""
    return needed("lm_eval", "eval")


@contextmanager
def offline() -> Iterator[None]:
    """Whatever the harness loads comes from this machine."""
    before = {key: os.environ.get(key) for key in _OFFLINE}
    os.environ.update(dict.fromkeys(_OFFLINE, "1"))
    # Of libraries that were imported before, and read the environment then.
    read = [(module, module.HF_HUB_OFFLINE) for name in _READ if (module := _importable(name)) is not None]
    for module, _ in read:
        module.HF_HUB_OFFLINE = True
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        for module, offline_before in read:
            module.HF_HUB_OFFLINE = offline_before
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


def _importable(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        return None


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The generators of Python and numpy, which the harness's tasks draw from, at the seed; restored at the end."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@cache
def _known_index(folder: str | None) -> Any:
    """The index of all tasks that the harness has, which takes seconds to make."""
    return _index(folder, True)


def _index(folder: str | None, defaults: bool) -> Any:
    return import_module("lm_eval.tasks").TaskManager(include_path=folder, include_defaults=defaults)


def _name_in(path: str) -> str:
    """The task's name in a YAML file of the harness, which may have tags of its own, so it is not parsed here."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(Problem("E913", f"cannot be read: {error}", "harness", file=path)) from error
    for line in lines:
        if line.startswith("task:"):
            return line.partition(":")[2].split(" #")[0].strip().strip("'\"")
    raise RecipeError(Problem("E913", "has no line `task: NAME`", "harness", "it is a YAML file of the harness", path))


def _data(task: Any) -> Iterator[Any]:
    """The items, and where examples are shown before each, those that they are drawn from."""
    yield task.eval_docs
    if task.config.num_fewshot:
        yield task.fewshot_docs()


def _has_code(task: Any) -> bool:
    """Whether a task runs Python that did not come with the harness."""
    return _is_foreign(type(task)) or _any_foreign(task.config.to_dict(keep_callable=True))


def _any_foreign(data: Any) -> bool:
    parts = data.values() if isinstance(data, Mapping) else data if isinstance(data, list | tuple) else []
    return any(map(_any_foreign, parts)) or (callable(data) and _is_foreign(data))


def _is_foreign(code: Any) -> bool:
    home = os.path.dirname(os.path.realpath(library().__file__))
    try:
        return not os.path.realpath(getfile(code)).startswith(home + os.sep)
    except TypeError:
        return True


def _plain(data: Any) -> Any:
    return json.loads(json.dumps(data, sort_keys=True, default=str))

"""How a merge is done on a GPU, with the CPU in its place: what is gathered, what comes down, what is refused."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import eutectic
from eutectic.api import Options
from eutectic.errors import ResourceError
from eutectic.kernels.streams import Block
from eutectic.report.verify import _near
from eutectic.run import gpu, groups
from eutectic.run.blocks import Loader
from eutectic.run.engine import Engine
from eutectic.run.on_gpu import OnGpu
from every_method import assert_near, models, recipe
from faults import contents

# What torch takes for another name of the CPU, and Eutectic for a device.
DEVICE = "cpu:0"
METHODS = ["linear", "ties", "dare_ties", "della", "slerp", "iso_c", "iso_cts", "wudi", "fisher", "regmean", "knots"]


class Alone:
    """One lock, as on a GPU; `most` is how many have computed at a time."""

    lock = threading.Lock()
    inside: ClassVar[list[int]] = []
    most = 0

    @classmethod
    def on(cls, device: str) -> type[Alone]:
        return cls

    @classmethod
    @contextmanager
    def alone(cls) -> Iterator[None]:
        with cls.lock:
            cls.inside.append(threading.get_ident())
            cls.most = max(cls.most, len(set(cls.inside)))
            yield
            cls.inside.pop()


@pytest.fixture(scope="module")
def home(tmp_path_factory: Any) -> Path:
    return models(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eutectic.merging.check_device", lambda device: None)
    monkeypatch.setattr(gpu, "Computing", Alone)
    monkeypatch.setattr(gpu, "worker_stream", lambda device: nullcontext())
    monkeypatch.setattr(gpu, "wait", lambda device: None)
    monkeypatch.setattr(gpu, "load_linear_algebra", lambda device: None)
    monkeypatch.setattr(gpu, "shared", lambda shape, dtype, device: torch.empty(shape, dtype=dtype))
    monkeypatch.setattr(gpu, "pinned", lambda nbytes: np.empty(nbytes, np.uint8))
    monkeypatch.setattr(gpu, "free_bytes", lambda device: 8 << 30)
    monkeypatch.setattr(gpu, "name_of", lambda device: "a CPU")


def on_gpu(asked: dict[str, Any], out: Path, **options: Any) -> Any:
    eutectic.merge(asked, out, options=Options(device=DEVICE, **options))
    return eutectic.open(str(out))


@pytest.mark.parametrize("name", METHODS)
def test_every_kind_of_method(home: Path, tmp_path: Path, name: str) -> None:
    asked = recipe(home, name)
    eutectic.merge(asked, tmp_path / "cpu")
    assert_near(name, home, eutectic.open(str(tmp_path / "cpu")), on_gpu(asked, tmp_path / "gpu", threads=4))
    for threads in (1, 3):
        on_gpu(asked, tmp_path / str(threads), threads=threads)
        assert contents(tmp_path / str(threads)) == contents(tmp_path / "gpu")
    assert Alone.most == 1 or name in ("linear", "dare_ties", "fisher", "regmean")


def test_main_memory_holds_no_whole_tensor(home: Path) -> None:
    plan = eutectic.plan(recipe(home, "iso_c"))
    embedding = next(i for i, job in enumerate(plan.jobs) if "embed" in job.name)
    there, here = groups.Work(plan, DEVICE), groups.Work(plan)
    assert not groups.is_whole(there, embedding) and groups.is_whole(here, embedding)
    # Two buffers for one block, of which page-locked memory takes up to twice as much.
    assert groups.block_bytes(there, embedding) <= 2 * (1 << 20) * 2 * 5
    assert groups.gpu_bytes(there, embedding, 4, 1) > 10 * plan.jobs[embedding].spec.nbytes


@pytest.mark.parametrize(
    ("name", "parameter", "values"), [("ties", "lambda", [0.5, 1.0]), ("iso_cts", "lambda", [0.5, 1.0])]
)
def test_a_sweep_gathers_once(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, parameter: str, values: list[float]
) -> None:
    made: list[tuple[int, ...]] = []

    def counted(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> torch.Tensor:
        made.append(shape)
        return torch.empty(shape, dtype=dtype)

    monkeypatch.setattr(gpu, "shared", counted)
    asked = recipe(home, name)
    swept = {**asked, "parameters": asked["parameters"] | {parameter: {"sweep": values}}}
    merges = eutectic.sweep(swept, tmp_path / "swept", options=Options(device=DEVICE, threads=3)).merges.values()
    assert len(made) == len(eutectic.plan(asked).jobs)
    for value, merge in zip(values, merges, strict=True):
        single = {**asked, "parameters": asked["parameters"] | {parameter: value}}
        alone, own = on_gpu(single, tmp_path / str(value)), eutectic.open(merge.path)
        assert all(torch.equal(own[tensor], alone[tensor]) for tensor in alone)


def test_sweeps_that_measure_what_they_make_gather_apart(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered: dict[tuple[int, ...], int] = {}

    def counted(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> torch.Tensor:
        gathered[shape] = gathered.get(shape, 0) + 1
        return torch.empty(shape, dtype=dtype)

    monkeypatch.setattr(gpu, "shared", counted)
    asked = recipe(home, "ties") | {"post": [{"norm_guard": {"factor": 0.5}}]}
    swept = {**asked, "parameters": asked["parameters"] | {"lambda": {"sweep": [0.5, 1.0, 1.5]}}}
    eutectic.sweep(swept, tmp_path / "swept", options=Options(device=DEVICE))
    apart = eutectic.plan(asked)
    together = eutectic.plan(recipe(home, "ties"))
    largest = max(range(len(apart.jobs)), key=lambda number: apart.jobs[number].spec.numel)
    more, less = (groups.gpu_bytes(groups.Work(plan, DEVICE), largest, 4, 3) for plan in (apart, together))
    shape = (4, apart.jobs[largest].spec.numel)
    assert gathered[shape] % 3 == 0 and more - less == 2 * 2 * (2 * shape[0] * shape[1])


def test_inputs_of_several_dtypes_are_planned_as_they_are_gathered(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = models(tmp_path / "wide", "float32")
    asked = recipe(home, "ties") | {"base_model": str(wide / "base")}
    plan = eutectic.plan(asked)
    taken: list[int] = []

    def counted(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> torch.Tensor:
        taken.append(shape[0] * shape[1] * dtype.itemsize)
        return torch.empty(shape, dtype=dtype)

    monkeypatch.setattr(gpu, "shared", counted)
    on_gpu(asked, tmp_path / "out")
    numel = max(job.spec.numel for job in plan.jobs)
    number = next(i for i, job in enumerate(plan.jobs) if job.spec.numel == numel)
    assert max(taken) == numel * groups._entry_bytes(plan, number)


def test_rows_are_cut_on_the_gpu_too(home: Path, tmp_path: Path) -> None:
    asked = recipe(home, "breadcrumbs")
    asked["parameters"] = {**asked["parameters"], "scope": "row", "density": 0.3, "gamma": 0.1}
    eutectic.merge(asked, tmp_path / "cpu")
    one, two = eutectic.open(str(tmp_path / "cpu")), on_gpu(asked, tmp_path / "gpu")
    assert all(torch.equal(one[tensor], two[tensor]) for tensor in one)
    assert json.loads((tmp_path / "gpu" / "eutectic.json").read_text())["gpu"] == "a CPU"


def test_a_result_is_shown_after_it_was_waited_for(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was gathered goes before anyone else computes."""
    states: list[tuple[int, int, bool]] = []
    compute = OnGpu._compute

    def watched(self: OnGpu, job: int, floats: type[Any]) -> None:
        def wait(device: str) -> None:
            states.append((len(self._gathered), len(self._results), Alone.lock.locked()))

        monkeypatch.setattr(gpu, "wait", wait)
        compute(self, job, floats)
        states.append((len(self._gathered), len(self._results), Alone.lock.locked()))

    monkeypatch.setattr(OnGpu, "_compute", watched)
    on_gpu(recipe(home, "ties"), tmp_path / "out", threads=1)
    assert set(states) == {(1, 0, True), (0, 1, True)} and states[0] == (1, 0, True)


def test_a_held_block_holds_nothing_that_was_made_of_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Block] = []
    load, keep = Loader.load, Loader.keep

    def noted(self: Loader, unit: groups.Unit) -> Block:
        loaded.append(load(self, unit))
        return loaded[-1]

    kept: list[int] = []

    def counted(self: Loader) -> Any:
        kept.append(len(loaded[-1].cache))
        return keep(self)

    monkeypatch.setattr(Loader, "load", noted)
    monkeypatch.setattr(Loader, "keep", counted)
    asked = recipe(home, "task_arithmetic") | {"post": [{"norm_guard": {"factor": 0.5}}]}
    on_gpu(asked, tmp_path / "out", threads=1)
    assert kept and not any(kept)


def test_what_a_group_holds_is_gone_when_it_is_done(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[groups.Group]] = []
    too_many: list[int] = []
    take = Engine._take

    def noted(*given: Any) -> groups.Group:
        group = groups.Group(*given)
        made.append(weakref.ref(group))
        return group

    def counted(self: Engine) -> Any:
        too_many.append(sum(ref() is not None for ref in made) - len(self._active))
        return take(self)

    monkeypatch.setattr("eutectic.run.engine.Group", noted)
    monkeypatch.setattr(Engine, "_take", counted)
    on_gpu(recipe(home, "ties"), tmp_path / "out", threads=1)
    assert len(made) > 2 and not any(too_many)


def test_a_device_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads begin at device 0, whichever is the caller's."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert [gpu.numbered(device) for device in ("cpu", "cuda", "cuda:0", "cuda:02")] == [
        "cpu",
        "cuda:1",
        "cuda:0",
        "cuda:2",
    ]
    seen = eutectic.merging.checked(Options(device="cuda"), "out")
    assert seen.device == "cuda:1"


def test_what_the_cpu_does_is_said(home: Path, tmp_path: Path) -> None:
    def notes(asked: dict[str, Any], out: str) -> list[str]:
        merge = eutectic.merge(asked, tmp_path / out, options=Options(device=DEVICE))
        return [note for note in merge.notes if "CPU" in note]

    asked = recipe(home, "ties")
    whole = asked | {"parameters": {"density": 0.4, "scope": "model"}}
    assert notes(whole, "model") == [f"`scope: model` is computed on the CPU, {DEVICE} is not used"]
    assert notes(asked | {"post": ["svc"]}, "svc") == [f"`svc` is computed on the CPU, not on {DEVICE}"]
    nested = recipe(home, "linear")
    nested["models"][0] = {"model": recipe(home, "ties"), "parameters": {"weight": 1.0}}
    assert notes(nested, "nested") == [f"recipes within the recipe are computed on the CPU, not on {DEVICE}"]


def test_too_little_memory(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "free_bytes", lambda device: 8 << 20)
    with pytest.raises(ResourceError, match=r"M604 .*embed_tokens.* MiB of cpu:0, which has 8 MiB free"):
        on_gpu(recipe(home, "ties"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_fewer_workers_where_blocks_do_not_fit(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = eutectic.plan(recipe(home, "linear"))
    one = max(groups.gpu_bytes(groups.Work(plan, DEVICE), number, 1, 1) for number in range(len(plan.jobs)))
    for workers, room in ((4, 4), (2, 3), (1, 1)):
        monkeypatch.setattr(gpu, "free_bytes", lambda device, room=room: room * one)
        budget = eutectic.api.budget_for(plan, Options(device=DEVICE, threads=4))
        assert (budget.threads, budget.gpu_bytes) == (workers, workers * one)


def test_verify_allows_a_gpu_its_last_digits(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method whose sums are in another order there; a mistake is found all the same."""
    for factor, near in ((1 + 2**-7, True), (1.05, False)):
        with monkeypatch.context() as other:
            floats = "eutectic.run.on_gpu.floats_of"
            real = eutectic.run.on_gpu.floats_of
            other.setattr(floats, lambda stored, floats, f=factor, real=real: real(stored, floats) * f)
            on_gpu(recipe(home, "iso_c"), tmp_path / str(near))
        found = eutectic.verify(tmp_path / str(near))
        assert bool(found.near) == near and bool(found.problems) != near


def test_near_is_told_by_blocks_and_with_nan() -> None:
    two = torch.linspace(-1, 1, (1 << 20) + 5)
    two[3], two[7], two[-1] = torch.nan, torch.inf, 0.25
    one = two * (1 + 2**-23)
    other = one.clone()
    other[-1] += 1e-3
    gone = one.clone()
    gone[7] = 1.0
    for tensor, near in ((one, True), (other, False), (gone, False)):
        assert _near(eutectic.open({"w": tensor}), eutectic.open({"w": two}), "w") == near

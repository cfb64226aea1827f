"""The folder of an alignment: what is written is what is read, and anything else in it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eutectic.alignment.moves import random_moves
from eutectic.checkpoint import Alignment, MemorySource, Named, open_source, read_alignment
from eutectic.checkpoint.elements import misfits
from eutectic.checkpoint.symmetry import Factor, Gauge, Group, Moves, Symmetries, axis, fixed
from eutectic.errors import CheckpointError, RecipeError

KV, Q, CODE = Factor(2, "kv"), Factor(4, "q"), Factor(4, gauge="code")
TABLE = Symmetries(
    {
        "kv": Group(2),
        "q": Group(4, within="kv"),
        "signed": Group(3, "sign"),
        "positive": Group(3, "positive"),
        "any": Group(3, "any"),
    },
    {
        "v": (axis(KV, CODE), fixed(3)),
        "o": (fixed(3), axis(Q, CODE, role="in")),
        "signed": (axis(Factor(3, "signed")),),
        "positive": (axis(Factor(3, "positive")),),
        "any": (axis(Factor(3, "any")),),
    },
    {"code": Gauge("kv", 4, "linear"), "turn": Gauge(None, 4, "orthogonal"), "planes": Gauge("kv", 4, "rotary")},
    "by hand",
)


def alignment(moves: Moves, **changes: Any) -> Alignment:
    given: dict[str, Any] = {
        "reference": Named("a", {"v": "1" * 32}),
        "model": Named("b", {"v": "2" * 32}),
        "method": "weights",
        "settings": {"seed": 3},
        "objective": (1.0, 2.5),
        "distance": (4.0, 1.0),
        "changes": {"kv": {"units": 2, "moved": 1, "before": 2.0, "after": 0.5}},
        "notes": ("one.",),
    }
    return Alignment(TABLE, moves, **{**given, **changes})


def read(folder: Path) -> Alignment:
    with open_source(folder) as source:
        return read_alignment(source)


def test_it_shows_as_a_line() -> None:
    assert repr(alignment(Moves())) == "<Alignment 'b to a': by weights, distance² 4 before and 1 after>"


@given(seed=st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_what_is_written_is_read(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("alignments") / "perm"
    made = alignment(random_moves(TABLE, seed))
    made.save(folder)
    found = read(folder)
    assert found.symmetries == TABLE
    for kind in ("orders", "scales", "matrices"):
        one, other = getattr(found.moves, kind), getattr(made.moves, kind)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert found.as_json() == made.as_json()
    assert (found.reference, found.model, found.gain, found.label) == (made.reference, made.model, 0.75, "b to a")


def test_nothing_moves_and_that_is_an_alignment_too(tmp_path: Path) -> None:
    made = alignment(Moves(), distance=(0.0, 0.0))
    made.save(tmp_path / "perm")
    assert read(tmp_path / "perm").gain == 0.0


def test_a_folder_that_is_there_is_kept_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "perm"
    alignment(Moves()).save(folder)
    before = (folder / "alignment.json").stat().st_mtime_ns
    alignment(Moves()).save(folder)
    assert (folder / "alignment.json").stat().st_mtime_ns == before
    other = alignment(random_moves(TABLE, 1))
    with pytest.raises(RecipeError, match="W401"):
        other.save(folder)
    other.save(folder, replace=True)
    assert read(folder).moves.orders.keys() == other.moves.orders.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["perm"]


def test_a_folder_that_holds_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "perm").mkdir()
    (tmp_path / "perm" / "thesis.tex").write_text("years")
    with pytest.raises(RecipeError, match="W401"):
        alignment(Moves()).save(tmp_path / "perm", replace=True)


def orders(**changes: list[int]) -> Moves:
    return Moves({name: torch.tensor(order) for name, order in changes.items()})


def scales(name: str, *values: float) -> Moves:
    return Moves({}, {name: torch.tensor(values, dtype=torch.float64)})


def matrices(name: str, one: torch.Tensor, units: int) -> Moves:
    return Moves({}, {}, {name: one.double().expand(units, -1, -1)})


@pytest.mark.parametrize(
    ("moves", "due"),
    [
        (orders(positiv=[1, 0, 2]), "positiv: has order, and the symmetries do not know it; did you mean 'positive'?"),
        (orders(signed=[0, 1, 1]), "signed: the order does not have each unit once"),
        (orders(signed=[0, 1]), "signed: the order is int64 [2], and must be int64 [3]"),
        (orders(signed=[0, 1, 3]), "signed: the order does not have each unit once"),
        (orders(kv=[1, 0]), "q: units leave the unit of kv that they are within"),
        (orders(q=[2, 3, 0, 1]), "q: units leave the unit of kv that they are within"),
        (scales("kv", 1, 2), "kv: the scale is of a group whose units have none"),
        (
            Moves({}, {"any": torch.ones(3)}),
            "any: the scale is float32 [3], and must be float64 [3]",
        ),
        (scales("any", 1, 0, 2), "any: the scale is zero or not finite for some units"),
        (scales("any", 1, float("nan"), 2), "any: the scale is zero or not finite for some units"),
        (scales("any", 1, 1e-320, 2), "any: the scale is zero or not finite for some units, or its inverse is not"),
        (scales("signed", 1, -1, 2), "signed: the scale is not 1 or -1 for some units, which is all that the group"),
        (scales("positive", 1, -1, 2), "positive: the scale is not positive for some units"),
        (matrices("code", torch.ones(4, 4), 2), "code: the matrices cannot be inverted"),
        (matrices("code", torch.eye(4).double() * 1e-320, 2), "code: the matrices cannot be inverted"),
        (matrices("code", torch.eye(4), 1), "code: the matrices are float64 [1, 4, 4], and must be float64 [2, 4, 4]"),
        (matrices("code", torch.eye(4) / 0, 2), "code: the matrices are not finite"),
        (matrices("turn", 2 * torch.eye(4), 1), "turn: the matrices are not orthogonal"),
        (matrices("planes", torch.diag(torch.tensor([1.0, 1, 2, 1])), 2), "planes: the matrices are not rotary"),
    ],
)
def test_what_is_no_element_of_the_group_is_refused(moves: Moves, due: str, tmp_path: Path) -> None:
    alignment(moves).save(tmp_path / "perm")
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path / "perm")
    assert str(caught.value).startswith(f"G112 {due}")


@given(st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_what_is_drawn_from_the_group_is_an_element(seed: int) -> None:
    assert not list(misfits(TABLE, random_moves(TABLE, seed)))
    assert not list(misfits(TABLE, Moves()))


def test_empty_tensors_are_part_of_a_table(tmp_path: Path) -> None:
    table = replace(TABLE, axes={**TABLE.axes, "empty": (axis(KV), fixed(0)), "mixed": (fixed(0), axis(KV, CODE))})
    moves = random_moves(table, 0)
    replace(alignment(moves), symmetries=table).save(tmp_path / "perm")
    found = read(tmp_path / "perm").symmetries
    assert found == table
    for shape, name in (((2, 0), "empty"), ((0, 8), "mixed")):
        assert found.moved(name, torch.ones(shape), moves).shape == shape


@pytest.mark.parametrize(
    ("groups", "due"),
    [
        ({"a": Group(2, within="a")}, ["group 'a' is within itself"]),
        ({"a": Group(2, within="b"), "b": Group(2, within="a")}, ["group 'a' is", "group 'b' is"]),
        ({"a": Group(2, within="b"), "b": Group(4)}, ["group 'a' cannot be divided among units of 'b'"]),
    ],
)
def test_groups_that_are_within_each_other_are_no_table(groups: dict[str, Group], due: list[str]) -> None:
    problems = Symmetries(groups, {}).problems({})
    assert [one.code for one in problems] == ["G103"] * len(due)
    assert all(words in one.message for words, one in zip(due, problems, strict=True))
    list(misfits(Symmetries(groups, {}), Moves({"a": torch.tensor([1, 0])})))


Edit = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("edit", "due"),
    [
        (lambda body: body.update(format=2), "is of format 2, and this version of Eutectic reads 1"),
        (lambda body: body.pop("symmetries"), "has no table under 'symmetries'"),
        (lambda body: body["symmetries"].update(axes=[]), "has no table under 'symmetries'"),
        (lambda body: body["symmetries"]["axes"].update(v=[[["sideways", [2, "kv", None]]]]), "has no table under"),
        (lambda body: body["symmetries"]["groups"].update(q=[4, "", "gone"]), "has symmetries of groups .*: gone"),
        (lambda body: body["symmetries"]["groups"].update(any=["3", "any", None]), "has no table under"),
        (lambda body: body["symmetries"]["gauges"].update(code=["kv", 4, "bent"]), "has no table under"),
        (lambda body: body["tensors"].clear(), "does not list the tensors beside it"),
        (lambda body: body["tensors"].update({"orders/kv": "0" * 32}), "is of other tensors .*: orders/kv"),
        (lambda body: body.pop("reference"), "lacks the labels and digests"),
        (lambda body: body["model"].update(digests=["v"]), "lacks the labels and digests"),
        (lambda body: body["model"].update(label=3), "lacks the labels and digests"),
        (lambda body: body.update(distance=[1]), "lacks the labels and digests"),
        (lambda body: body.update(changes={"kv": 3}), "lacks the labels and digests"),
        (lambda body: body["symmetries"]["groups"].update(kv=[2, "", 3]), "has no table under"),
        (lambda body: body["symmetries"]["groups"].update(kv=[0, "", None]), "has no table under"),
        (lambda body: body["symmetries"]["axes"].update(any=[[["out", [3, ["any"], None]]]]), "has no table under"),
        (lambda body: body["symmetries"]["stacks"].update(kv=[3]), "has no table under"),
        # Whatever is well formed too: a role, a digest that is left out, what people read.
        (lambda body: body["symmetries"]["axes"].update(any=[[["in", [3, "any", None]]]]), "was changed after"),
        (lambda body: body["model"]["digests"].clear(), "was changed after"),
        (lambda body: body.update(distance=[8, 1]), "was changed after"),
    ],
)
def test_a_broken_file_is_refused(edit: Edit, due: str, tmp_path: Path) -> None:
    alignment(random_moves(TABLE, 1)).save(tmp_path / "perm")
    about = tmp_path / "perm" / "alignment.json"
    body = json.loads(about.read_text())
    edit(body)
    about.write_text(json.dumps(body))
    with pytest.raises(CheckpointError, match=rf"G111 alignment.json of 'perm' {due}"):
        read(tmp_path / "perm")


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1, "format": 1}', '{"format": NaN}'])
def test_what_is_no_json_is_refused(text: str, tmp_path: Path) -> None:
    alignment(Moves()).save(tmp_path / "perm")
    (tmp_path / "perm" / "alignment.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"G111 alignment.json of 'perm' is (no JSON|no mapping)"):
        read(tmp_path / "perm")


def test_a_model_is_no_alignment() -> None:
    with pytest.raises(CheckpointError, match=r"G110 'model' has no alignment.json"):
        read_alignment(MemorySource("model", {"v": torch.ones(1)}))

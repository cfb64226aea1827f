"""A model read through moves: any range of it is that range of the moved tensor, and no more is read than it needs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eutectic.alignment.moves import inverse, random_moves
from eutectic.checkpoint import MemorySource
from eutectic.checkpoint.aligned import Aligned
from eutectic.checkpoint.symmetry import Factor, Gauge, Group, Moves, Part, Symmetries, axis, fixed
from eutectic.errors import CheckpointError, NumericError
from eutectic.testing import check_source

KV, Q = Factor(2, "kv"), Factor(4, "q")
CODE, PLANES = Factor(4, gauge="code"), Factor(4, gauge="planes")
STREAM, UNITS, SIGNED = Factor(6, "stream"), Factor(5, "units"), Factor(6, "signed")
TABLE = Symmetries(
    {
        "kv": Group(2),
        "q": Group(4, within="kv"),
        "stream": Group(6),
        "signed": Group(6, "sign"),
        "units": Group(5, "any"),
        "experts": Group(3),
        **{f"hidden.{number}": Group(4) for number in range(3)},
    },
    {
        "embed": (fixed(7), axis(STREAM)),
        "steps": (),
        "fused": (
            (Part((KV, PLANES)), Part((KV, CODE)), Part((UNITS,))),
            axis(STREAM, role="in"),
        ),
        "fused.bias": ((Part((KV, PLANES)), Part((KV, CODE)), Part((UNITS,))),),
        "query": (axis(Q, PLANES, role="in"), axis(STREAM, role="in")),
        "out": (axis(STREAM), axis(Q, CODE, role="in")),
        "conv": (axis(UNITS), axis(STREAM, role="in"), fixed(3), fixed(3)),
        "dense": (fixed(2), axis(UNITS, Factor(9), role="in")),
        "signed": (axis(SIGNED), axis(STREAM, role="in")),
        "count": (axis(STREAM),),
        **{f"up.{number}": (axis(Factor(4, f"hidden.{number}")), axis(STREAM, role="in")) for number in range(3)},
        **{f"down[{number}]": (axis(UNITS), axis(Factor(4, f"hidden.{number}"), role="in")) for number in range(3)},
    },
    {"code": Gauge("kv", 4, "linear"), "planes": Gauge("kv", 4, "rotary")},
    stacks={"experts": ("up.{}", "down[{}]")},
)
DTYPES = {"fused": torch.bfloat16, "fused.bias": torch.float16, "signed": torch.bfloat16, "out": torch.float64}
VALUES = {"fused", "fused.bias", "query", "conv", "dense", "down"}
seeds = st.integers(0, 2**32)


def model(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {name: tuple(sum(p.size for p in parts) for parts in axes) for name, axes in TABLE.axes.items()}
    shapes = {name: shape for name, shape in shapes.items() if "[" not in name} | {"down": (3, 5, 4)}
    made = {
        name: torch.randn(shape, generator=draw).to(DTYPES.get(name, torch.float32)) for name, shape in shapes.items()
    }
    return made | {"count": torch.arange(6), "steps": torch.tensor(3)}


def moved(name: str, state: dict[str, torch.Tensor], moves: Moves) -> torch.Tensor:
    """The whole tensor at once, rounded as the view rounds it."""
    made = TABLE.made(name, state.__getitem__, moves)
    wide = name in VALUES and state[name].dtype != torch.float64
    return made.to(torch.float32 if wide else state[name].dtype)


def bits_of(view: Aligned, name: str, start: int, stop: int) -> bytes:
    size = view.specs[name].nbytes // max(view.specs[name].numel, 1)
    out = bytearray((stop - start) * size)
    view.read_into(name, start, stop, memoryview(out))
    return bytes(out)


def stored(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


@given(seeds, st.data())
@settings(max_examples=60, deadline=None)
def test_any_range_is_that_of_the_moved_tensor(seed: int, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eutectic.checkpoint.moving.BLOCK", data.draw(st.sampled_from([1, 20, 1 << 20])))
        state, moves = model(seed), random_moves(TABLE, seed)
        view = Aligned(MemorySource("b", state), TABLE, moves)
        name = data.draw(st.sampled_from(list(state)))
        spec = view.specs[name]
        due = moved(name, state, moves)
        assert (getattr(torch, spec.dtype), spec.shape) == (due.dtype, tuple(due.shape))
        start, stop = sorted(data.draw(st.tuples(*[st.integers(0, spec.numel)] * 2)))
        whole, size = bits_of(view, name, 0, spec.numel), due.element_size()
        assert bits_of(view, name, start, stop) == whole[start * size : stop * size]
        if name in VALUES or name == "out":
            torch.testing.assert_close(view[name], due, rtol=1e-6, atol=1e-6)
        else:
            assert whole == stored(due)


def test_the_view_is_a_source() -> None:
    check_source(Aligned(MemorySource("b", model()), TABLE, random_moves(TABLE, 1)))


def test_nothing_moves_and_no_bit_changes_without_moves() -> None:
    state = model()
    view = Aligned(MemorySource("b", state), TABLE, Moves())
    assert all(stored(view[name]) == stored(state[name]) for name in state)
    assert view.specs == MemorySource("b", state).specs and not view.rounds and not view.working_bytes()


def test_places_and_signs_come_back_bit_by_bit_and_values_to_rounding() -> None:
    state, moves = model(), random_moves(TABLE, 3)
    back = Aligned(Aligned(MemorySource("b", state), TABLE, moves), TABLE, inverse(moves, TABLE))
    for name in state:
        if name in VALUES or name == "out":
            torch.testing.assert_close(back[name].double(), state[name].double(), rtol=1e-5, atol=1e-6)
        else:
            assert stored(back[name]) == stored(state[name])


def test_the_dtypes_that_values_were_stored_with_are_told() -> None:
    view = Aligned(MemorySource("b", model()), TABLE, random_moves(TABLE, 3))
    assert view.rounds == {
        "fused": "bfloat16",
        "fused.bias": "float16",
        **dict.fromkeys(("query", "conv", "dense", "down"), "float32"),
    }


def test_matrices_are_part_of_what_reading_takes() -> None:
    table = Symmetries(
        {}, {"w": (fixed(1), axis(Factor(256, gauge="turn"), role="in"))}, {"turn": Gauge(None, 256, "orthogonal")}
    )
    view = Aligned(MemorySource("b", {"w": torch.ones(1, 256)}), table, random_moves(table, 0))
    assert view.working_bytes() >= 256 * 256 * 8


class Watched(MemorySource):
    """Counts the entries that are read."""

    entries = 0

    def read_into(self, name: str, start: int, stop: int, out: memoryview) -> None:
        self.entries += stop - start
        super().read_into(name, start, stop, out)


@pytest.mark.parametrize(
    ("name", "start", "stop", "read"), [("embed", 8, 9, 6), ("conv", 60, 110, 108), ("up.1", 0, 6, 6)]
)
def test_only_rows_that_are_wanted_are_read(name: str, start: int, stop: int, read: int) -> None:
    source = Watched("b", model())
    bits_of(Aligned(source, TABLE, random_moves(TABLE, 5)), name, start, stop)
    assert source.entries == read


def test_rows_that_are_mixed_are_made_once_for_all_who_want_them() -> None:
    source = Watched("b", model())
    view = Aligned(source, TABLE, random_moves(TABLE, 5))
    for start in range(0, 48, 6):
        bits_of(view, "query", start, start + 6)
    assert source.entries == 96


def digests(source: Any) -> dict[str, str]:
    return {name: source.digest(name) for name in source.specs}


def test_other_bytes_than_were_aligned_are_refused_and_the_other_model_is_recognised() -> None:
    source, other = MemorySource("b", model()), MemorySource("a", model(1))
    moves = random_moves(TABLE, 1)
    keys: dict[str, Any] = {"digests": digests(source), "reference": digests(other)}
    good = Aligned(source, TABLE, moves, **keys)
    assert len(dict(good)) == len(source.specs)
    with pytest.raises(NumericError, match=r"G115 embed: a is not the model that was aligned.*those of the model"):
        Aligned(other, TABLE, moves, **keys)["embed"]
    with pytest.raises(
        NumericError, match="G115 embed: c is not the model that was aligned: the tensor has other bytes"
    ):
        Aligned(MemorySource("c", model(2)), TABLE, moves, **keys)["embed"]


def test_a_table_that_does_not_fit_is_refused_with_all_that_is_wrong() -> None:
    state = model()
    del state["conv"]
    with pytest.raises(CheckpointError) as caught:
        Aligned(MemorySource("b", state | {"odd": torch.ones(2), "embed": torch.ones(7, 5)}), TABLE, Moves())
    assert {(p.code, p.where) for p in caught.value.problems} == {("G101", "odd"), ("G101", "conv"), ("G102", "embed")}


def test_integers_change_places_and_are_never_multiplied() -> None:
    table = replace(TABLE, axes=TABLE.axes | {"count": (axis(SIGNED),)})
    with pytest.raises(CheckpointError, match="G114 count: is int64, and the moves multiply it"):
        Aligned(MemorySource("b", model()), table, random_moves(table, 1))


def test_tied_tensors_move_as_one() -> None:
    state = model()
    source = MemorySource("b", state | {"head": state["embed"]})
    table = replace(TABLE, axes=TABLE.axes | {"head": TABLE.axes["embed"]})
    moves = random_moves(TABLE, 2)
    view = Aligned(source, table, moves)
    assert view.ties == {"head": "embed"}
    assert torch.equal(view["head"], view["embed"]) and torch.equal(view["head"], moved("embed", state, moves))
    assert torch.equal(Aligned(source, TABLE, moves)["head"], view["head"])
    apart = replace(TABLE, axes=TABLE.axes | {"head": (fixed(7), fixed(6))})
    with pytest.raises(CheckpointError, match="G113 head: is tied to embed"):
        Aligned(source, apart, moves)


def test_what_is_beside_the_weights_is_the_source_s_own() -> None:
    source = MemorySource("b", model())
    view, same = (Aligned(source, TABLE, random_moves(TABLE, 7)) for _ in range(2))
    other = Aligned(source, TABLE, random_moves(TABLE, 8))
    assert view.label == "b" and view.files() is None and view.folder() is None and view.beside("config.json") is None
    assert view.identity() == same.identity() != other.identity() != source.identity()

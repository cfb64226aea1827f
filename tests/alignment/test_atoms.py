"""Axes as sums of products of atoms: what is refined, and what is fixed where it cannot be told apart."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from eutectic.alignment.tracing.atoms import ONE, Axis, cut, fix, fresh, is_fixed, joined, length, peel, resolved, unify


def shape(axis: Axis) -> list[list[int]]:
    """Sizes of the atoms of each segment."""
    return [[atom.size for atom in segment] for segment in resolved(axis)]


def test_a_split_is_known_to_all_that_has_the_units() -> None:
    units, read = fresh(12), fresh(12)
    unify(units, read)
    outer, inner = peel(units, 4)
    assert shape(read) == [[3, 4]]
    assert resolved(joined([outer, inner])) == resolved(read)
    assert peel(units, 1) == (resolved(units), ONE)
    assert peel(units, 12) == (ONE, resolved(units))


def test_two_factorisations_are_refined_to_a_common_one() -> None:
    one, other = fresh(24), fresh(24)
    peel(one, 4)
    peel(other, 8)
    unify(one, other)
    assert shape(one) == shape(other) == [[3, 2, 4]]
    assert resolved(one) == resolved(other)


def test_factorisations_without_a_common_one_are_fixed() -> None:
    one, other = fresh(6), fresh(6)
    peel(one, 2)
    peel(other, 3)
    unify(one, other)
    assert is_fixed(one) and is_fixed(other)


def test_a_slice_makes_a_sum_of_what_is_before_and_behind() -> None:
    whole = fresh(10)
    left, right = cut(whole, 4)
    assert shape(whole) == [[4], [6]]
    assert left + right == resolved(whole)
    assert cut(whole, 0) == ((), resolved(whole))
    assert cut(whole, 10) == (resolved(whole), ())
    assert not is_fixed(left)


def test_a_product_is_cut_between_its_slowest_units_only() -> None:
    heads = fresh(6)
    peel(heads, 2)
    cut(heads, 4)
    assert shape(heads) == [[2, 2], [2]]
    assert not is_fixed(heads)
    odd = fresh(6)
    peel(odd, 2)
    left, right = cut(odd, 3)
    assert (length(left), length(right)) == (3, 3)
    assert is_fixed(odd) and is_fixed(left + right)


def test_segments_of_other_lengths_are_cut_where_the_others_end() -> None:
    one, other = fresh(3) + fresh(5), fresh(4) + fresh(4)
    unify(one, other)
    assert shape(one) == shape(other) == [[3], [], [4]]


def test_a_sum_behind_other_factors_stays_whole_until_it_is_first() -> None:
    inner = fresh(2) + fresh(3)
    axis = joined([fresh(4), inner])
    assert shape(axis) == [[4, 5]]
    outer, back = peel(axis, 5)
    assert shape(back) == [[2], [3]]
    assert shape(joined([inner, fresh(4)])) == [[2, 4], [3, 4]]
    assert length(outer) == 4


def test_what_is_fixed_fixes_what_it_meets() -> None:
    held, units = fresh(12, True), fresh(12)
    peel(units, 3)
    unify(held, units)
    assert is_fixed(units)
    fix(units)
    assert is_fixed(units)


def test_factors_of_a_sum_are_those_that_all_parts_end_with() -> None:
    places = fresh(3)
    channels = joined([fresh(2) + fresh(5), places])
    outer, inner = peel(channels, 3)
    assert resolved(inner) == resolved(places)
    assert shape(outer) == [[2], [5]]


axes = st.lists(st.tuples(st.sampled_from(["peel", "cut"]), st.integers(1, 36)), max_size=5)


@given(axes, axes)
def test_axes_that_are_unified_are_the_same_or_fixed_and_keep_their_length(one: list, other: list) -> None:
    made = []
    for steps in (one, other):
        axis = fresh(36)
        for kind, at in steps:
            if kind == "cut":
                cut(axis, at)
            elif 36 % at == 0:
                peel(axis, at)
        made.append(axis)
    before = [is_fixed(axis) for axis in made]
    unify(*made)
    assert [length(axis) for axis in made] == [36, 36]
    assert resolved(made[0]) == resolved(made[1]) or (is_fixed(made[0]) and is_fixed(made[1]))
    assert all(is_fixed(axis) for axis, was in zip(made, before, strict=True) if was)

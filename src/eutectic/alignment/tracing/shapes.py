"""Rules of operations that only arrange entries: views, permutations, slices, concatenation, look-ups."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from eutectic.alignment.tracing.atoms import ONE, Axis, cut, fix, fresh, joined, length, peel, unify
from eutectic.alignment.tracing.rules import Made, Step, rule
from eutectic.alignment.tracing.values import Origin, Stack, Value, all_fixed, all_free, fix_value

_Axes = tuple[frozenset[int], ...]


@rule("clone", "alias", "detach", "contiguous", "lift_fresh_copy", "_to_copy", "to")
def _same(step: Step, x: Value, *_: Any, **__: Any) -> Made:
    return x


@rule("copy")
def _copied(step: Step, x: Value, source: Value, *_: Any) -> Made:
    return source if source.shape == x.shape else _expanded(step, source, x.shape)


@rule("as_strided")
def _strided(step: Step, x: Value, shape: Sequence[int], strides: Sequence[int], offset: int | None = None) -> Made:
    """Only what leaves a tensor as it is, which is how a pooled one gets its memory format."""
    source = step.node.args[0].meta["val"]
    kept = tuple(shape) == x.shape and not offset and not source.storage_offset()
    moved = [a != b for size, a, b in zip(shape, strides, source.stride(), strict=False) if size > 1]
    return NotImplemented if any(moved) or not kept else x


@rule("view", "_unsafe_view", "reshape")
def _viewed(step: Step, x: Value, shape: Sequence[int]) -> Made:
    if 0 in x.shape:
        return all_fixed(step.shape)
    axes: list[Axis] = []
    origins: list[frozenset[int]] = []
    stack: Stack | None = None
    for old, sizes in _blocks(x.shape, step.shape):
        whole = joined([x.axes[dim] for dim in old])
        of = frozenset[int]().union(*(x.origin.axes[dim] for dim in old)) if x.origin else frozenset[int]()
        origins += [of] * len(sizes)
        if stack is None and (count := _apart(step.node, len(axes), sizes)):
            stack = Stack(len(axes), tuple(_items(whole, count, sizes[1:])))
            axes += [fresh(size, True) for size in sizes]
        else:
            axes += _factors(whole, sizes)
    origin = Origin(x.origin.name, tuple(origins)) if x.origin else None
    if stack is not None:
        # Each item has the other axes too, before and behind.
        at, after = stack.dim, stack.dim + 1 + len(stack.items[0])
        stack = Stack(at, tuple((*axes[:at], *item, *axes[after:]) for item in stack.items))
    return Value(tuple(axes), origin, stack)


def _blocks(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The dimensions of one shape that together make dimensions of another, block by block: numbers, and sizes."""
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = [i] if i < len(old) else [], [new[j]] if j < len(new) else []
        i, j = i + len(left), j + len(right)
        while (have := math.prod(old[dim] for dim in left)) != (due := math.prod(right)):
            if have < due:
                left.append(i)
                i += 1
            else:
                right.append(new[j])
                j += 1
        yield left, right


def _factors(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    made: list[Axis] = []
    for size in reversed(sizes[1:]):
        axis, inner = peel(axis, size)
        made.insert(0, inner)
    return [axis, *made] if sizes else []


def _items(axis: Axis, count: int, sizes: Sequence[int]) -> Iterator[tuple[Axis, ...]]:
    for _ in range(count):
        item, axis = cut(axis, math.prod(sizes))
        yield tuple(_factors(item, sizes))


def _apart(node: Any, dim: int, sizes: Sequence[int]) -> int:
    """Into how many items a view's new dimension is pulled apart by all that use it; 0: it is not."""
    leading = next((number for number, size in enumerate(sizes) if size > 1), len(sizes))
    if leading + 1 >= len(sizes) or leading != 0 or not _picked(node, dim):
        return 0
    return sizes[0]


def _picked(node: Any, dim: int) -> bool:
    """Whether all that is done with a value, but for arranging its axes, is to take single items along one."""
    for user in node.users:
        name = getattr(getattr(user.target, "overloadpacket", None), "__name__", "")
        if name in {"select", "slice", "split_with_sizes"}:
            made = user.meta["val"]
            place = 2 if name == "split_with_sizes" else 1
            at = int(user.args[place] if len(user.args) > place else 0) % len(node.meta["val"].shape)
            single = name == "select" or {one.shape[dim] for one in (made if isinstance(made, list) else [made])} == {1}
            if at != dim or not single:
                return False
            continue
        moved = _where(name, user, node, dim)
        if moved is None or not _picked(user, moved):
            return False
    return bool(node.users)


def _where(name: str, user: Any, node: Any, dim: int) -> int | None:
    """Where an axis is after an operation that only arranges axes; None for any other operation."""
    rank = len(node.meta["val"].shape)
    if name in {"clone", "alias", "detach", "contiguous"}:
        return dim
    if name == "permute":
        return [int(at) % rank for at in user.args[1]].index(dim)
    if name == "unsqueeze":
        at = int(user.args[1]) % (rank + 1)
        return dim + (at <= dim)
    if name == "squeeze":
        gone = _squeezed(tuple(node.meta["val"].shape), *user.args[1:])
        return dim - sum(at < dim for at in gone)
    return None


def _rearranged(x: Value, order: Sequence[int | None]) -> Value:
    """Axis i of the result is axis `order[i]`, or a new one of size 1."""
    axes = tuple(ONE if dim is None else x.axes[dim] for dim in order)
    origin = stack = None
    if x.origin is not None:
        of: _Axes = tuple(frozenset() if dim is None else x.origin.axes[dim] for dim in order)
        origin = Origin(x.origin.name, of)
    if x.stack is not None:
        at = x.stack.dim
        within = {dim: number for number, dim in enumerate(d for d in range(len(x.axes)) if d != at)}
        items = [
            tuple(ONE if dim is None else item[within[dim]] for dim in order if dim != at) for item in x.stack.items
        ]
        stack = Stack(list(order).index(at), tuple(items))
    return Value(axes, origin, stack)


@rule("permute")
def _permuted(step: Step, x: Value, order: Sequence[int]) -> Made:
    return _rearranged(x, [dim % len(x.axes) for dim in order])


@rule("t")
def _t(step: Step, x: Value) -> Made:
    return _rearranged(x, list(reversed(range(len(x.axes)))))


@rule("transpose")
def _transposed(step: Step, x: Value, one: int, other: int) -> Made:
    order = list(range(len(x.axes)))
    order[one], order[other] = order[other], order[one]
    return _rearranged(x, order)


@rule("unsqueeze")
def _unsqueezed(step: Step, x: Value, dim: int) -> Made:
    order: list[int | None] = list(range(len(x.axes)))
    order.insert(dim % (len(x.axes) + 1), None)
    return _rearranged(x, order)


@rule("squeeze")
def _without(step: Step, x: Value, *dims: Any) -> Made:
    gone = _squeezed(x.shape, *dims)
    return _rearranged(x, [dim for dim in range(len(x.axes)) if dim not in gone])


def _squeezed(shape: tuple[int, ...], dims: Any = None) -> set[int]:
    chosen = range(len(shape)) if dims is None else [dims] if isinstance(dims, int) else dims
    return {dim % len(shape) for dim in chosen if shape[dim] == 1}


@rule("expand")
def _expanded(step: Step, x: Value, shape: Sequence[int], **_: Any) -> Made:
    sizes = step.shape
    new = len(sizes) - len(x.axes)
    axes = [fresh(size) for size in sizes[:new]]
    axes += [fresh(size) if length(axis) == 1 else axis for axis, size in zip(x.axes, sizes[new:], strict=True)]
    origin = x.origin and Origin(x.origin.name, (frozenset[int](),) * new + x.origin.axes)
    return Value(tuple(axes), origin)


@rule("repeat")
def _repeated(step: Step, x: Value, counts: Sequence[int]) -> Made:
    axes = (ONE,) * (len(counts) - len(x.axes)) + x.axes
    return Value(tuple(joined([fresh(count), axis]) for count, axis in zip(counts, axes, strict=True)))


@rule("cat")
def _concatenated(step: Step, values: Sequence[Value], dim: int = 0) -> Made:
    kept = [value for value in values if value.shape != (0,)]
    dim %= len(kept[0].axes)
    for value in kept[1:]:
        for number, (one, other) in enumerate(zip(kept[0].axes, value.axes, strict=True)):
            if number != dim:
                unify(one, other)
    axes = list(kept[0].axes)
    axes[dim] = tuple(segment for value in kept for segment in value.axes[dim])
    return Value(tuple(axes))


def _piece(x: Value, dim: int, start: int, end: int) -> Value:
    axes = list(x.axes)
    axes[dim] = cut(cut(x.axes[dim], end)[0], start)[1]
    return Value(tuple(axes), x.origin)


@rule("split_with_sizes")
def _split(step: Step, x: Value, sizes: Sequence[int], dim: int = 0) -> Made:
    dim %= len(x.axes)
    if x.stack is not None:
        return tuple(Value((*item[:dim], ONE, *item[dim:]), x.origin) for item in x.stack.items)
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    return tuple(_piece(x, dim, end - size, end) for size, end in zip(sizes, ends, strict=True))


@rule("slice")
def _sliced(
    step: Step, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, stride: int = 1
) -> Made:
    dim %= len(x.axes)
    size = x.shape[dim]
    low, high, _ = slice(start, end).indices(size)
    if x.stack is not None:
        item = x.stack.items[low]
        return Value((*item[:dim], ONE, *item[dim:]), x.origin)
    if stride == 1:
        return x if (low, high) == (0, size) else _piece(x, dim, low, max(low, high))
    return _fixed_along(x, dim, step.shape[dim])


@rule("select")
def _selected(step: Step, x: Value, dim: int, index: int) -> Made:
    dim, index = dim % len(x.axes), index % x.shape[dim]
    item = x.stack.items[index] if x.stack is not None else None
    if item is None:
        piece = _piece(x, dim, index, index + 1).axes
        item = (*piece[:dim], *piece[dim + 1 :])
    origin = x.origin and Origin(x.origin.name, (*x.origin.axes[:dim], *x.origin.axes[dim + 1 :]))
    return Value(item, origin)


def _fixed_along(x: Value, dim: int, size: int) -> Value:
    """The entries along one axis have places that count; there are `size` of them afterwards."""
    fix(x.axes[dim])
    return Value((*x.axes[:dim], fresh(size, True), *x.axes[dim + 1 :]))


@rule("flip", "roll")
def _turned(step: Step, x: Value, *arguments: Any) -> Made:
    dims = arguments[-1] if isinstance(arguments[-1], list | tuple) and arguments[-1] else range(len(x.axes))
    if step.operation == "roll" and len(arguments) == 1:
        dims = range(len(x.axes))
    for dim in dims:
        x = _fixed_along(x, dim % len(x.axes), x.shape[dim])
    return x


@rule("constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d")
def _padded(step: Step, x: Value, pads: Sequence[int], *_: Any) -> Made:
    for number in range(len(pads) // 2):
        dim = len(x.axes) - 1 - number
        if any(pads[2 * number : 2 * number + 2]):
            x = _fixed_along(x, dim, step.shape[dim])
    return x


@rule("full", "zeros", "ones", "empty", "full_like", "zeros_like", "ones_like", "empty_like", "new_full", "new_zeros")
def _constant(step: Step, *_: Any, **__: Any) -> Made:
    return all_free(step.shape)


@rule("embedding")
def _looked_up(step: Step, weight: Value, ids: Value, *_: Any) -> Made:
    fix(weight.axes[0])
    step.trace.plays("out", weight, 1)
    return Value((*ids.axes, weight.axes[1]))


@rule("index")
def _indexed(step: Step, x: Value, indices: Sequence[Value | None]) -> Made:
    """Advanced indexing as numpy has it: the axes of the indices stand where these do, or first if they are apart."""
    chosen = [dim for dim, index in enumerate(indices) if index is not None]
    for dim in chosen:
        fix(x.axes[dim])
    numbers = [index for index in indices if index is not None]
    for number in numbers if len(numbers) > 1 else []:
        fix_value(number)
    rank = max(len(number.axes) for number in numbers)
    kept = [axis for dim, axis in enumerate(x.axes) if dim not in chosen]
    at = chosen[0] if chosen == list(range(chosen[0], chosen[-1] + 1)) else 0
    picked = numbers[0].axes if len(numbers) == 1 else all_fixed(step.shape[at : at + rank]).axes
    origin = None
    if x.origin is not None:
        of = [axes for dim, axes in enumerate(x.origin.axes) if dim not in chosen]
        origin = Origin(x.origin.name, (*of[:at], *[frozenset[int]()] * rank, *of[at:]))
    return Value((*kept[:at], *picked, *kept[at:]), origin)


@rule("index_select")
def _index_selected(step: Step, x: Value, dim: int, index: Value) -> Made:
    return _fixed_along(x, dim % len(x.axes), step.shape[dim])


@rule("gather")
def _gathered(step: Step, x: Value, dim: int, index: Value, **_: Any) -> Made:
    dim %= len(x.axes)
    fix(x.axes[dim])
    for number, (one, other) in enumerate(zip(x.axes, index.axes, strict=True)):
        if number == dim:
            continue
        if length(one) == length(other):
            unify(one, other)
        else:
            fix(one)
            fix(other)
    return Value(index.axes)


@rule("topk", "sort", "kthvalue")
def _ranked(step: Step, x: Value, *arguments: Any, **options: Any) -> Made:
    packet = step.operation
    position = 1 if packet in {"topk", "kthvalue"} else 0
    dim = int(arguments[position] if len(arguments) > position else options.get("dim", -1)) % len(x.axes)
    values = _fixed_along(x, dim, step.shape[dim])
    return values, values


@rule("cumsum", "cumprod", "argsort")
def _in_sequence(step: Step, x: Value, dim: int = -1, *_: Any, **__: Any) -> Made:
    return _fixed_along(x, dim % len(x.axes), x.shape[dim]) if x.axes else x

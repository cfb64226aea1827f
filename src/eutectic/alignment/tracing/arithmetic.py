"""Rules of operations that compute: entry by entry, sums of products, norms, attention, reductions, pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eutectic.alignment.tracing.atoms import ONE, Axis, fix, joined, length, peel, unify
from eutectic.alignment.tracing.rules import Made, Step, rule
from eutectic.alignment.tracing.values import Apart, Value, all_fixed, values_in


def pointwise(step: Step, *arguments: Any, **options: Any) -> Value:
    """Entry by entry, axes of size 1 being stretched: what stands at one place in each has the same units."""
    values = values_in([arguments, options])
    rank = max(len(value.axes) for value in values)
    made: list[Axis] = []
    for dim in range(-rank, 0):
        here = [value.axes[dim] for value in values if len(value.axes) >= -dim]
        full = [axis for axis in here if length(axis) != 1] or here[:1]
        for other in full[1:]:
            unify(full[0], other)
        made.append(full[0])
    return Value(tuple(made))


@rule("add", "sub")
def _added(step: Step, *arguments: Any, **options: Any) -> Made:
    values = values_in(arguments)
    for value in values if len(values) > 1 else []:
        for dim in range(len(value.axes)):
            step.trace.plays("out", value, dim)
    return pointwise(step, *arguments, **options)


@rule("mm")
def _mm(step: Step, a: Value, b: Value) -> Made:
    unify(a.axes[1], b.axes[0])
    step.trace.apart.append(Apart((a.axes[1],), (a.axes[0], b.axes[1])))
    for value, read, made in ((a, 1, 0), (b, 0, 1)):
        step.trace.plays("in", value, read)
        step.trace.plays("out", value, made)
    return Value((a.axes[0], b.axes[1]))


@rule("addmm")
def _addmm(step: Step, bias: Value, a: Value, b: Value, **_: Any) -> Made:
    return _added(step, _mm(step, a, b), bias)


@rule("bmm")
def _bmm(step: Step, a: Value, b: Value) -> Made:
    unify(a.axes[0], b.axes[0])
    unify(a.axes[2], b.axes[1])
    step.trace.apart.append(Apart((a.axes[2],), (a.axes[1], b.axes[2])))
    for value, read, made in ((a, 2, 1), (b, 1, 2)):
        step.trace.plays("in", value, read)
        step.trace.plays("out", value, made)
    return Value((a.axes[0], a.axes[1], b.axes[2]))


@rule("baddbmm")
def _baddbmm(step: Step, bias: Value, a: Value, b: Value, **_: Any) -> Made:
    return _added(step, _bmm(step, a, b), bias)


@rule("_trilinear")
def _trilinear(step: Step, one: Value, two: Value, three: Value, *positions: Sequence[int]) -> Made:
    """Sums of products of three: each gets axes of size 1 at its positions, the last are those summed over."""
    rank = len(one.axes) + len(positions[0])
    spread = []
    for value, at in zip((one, two, three), positions, strict=False):
        left = list(value.axes)
        spread.append(Value(tuple(ONE if dim in at else left.pop(0) for dim in range(rank))))
    made = pointwise(step, *spread)
    step.trace.values.append(made)
    step.trace.mixes(made, positions[3])
    return Value(tuple(axis for dim, axis in enumerate(made.axes) if dim not in positions[3]))


@rule("mv", "dot")
def _mv(step: Step, a: Value, b: Value) -> Made:
    unify(a.axes[-1], b.axes[0])
    step.trace.plays("in", a, len(a.axes) - 1)
    return Value(a.axes[:-1])


@rule("convolution")
def _convolved(
    step: Step,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Made:
    spatial = len(x.axes) - 2
    one = {*weight.shape[2:], *stride} == {1} and not any(padding) and not any(output_padding)
    for axis in weight.axes[2:]:
        fix(axis)
    kept = x.axes[2:] if one else all_fixed(step.shape[2:]).axes
    for axis in () if one else x.axes[2 : 2 + spatial]:
        fix(axis)
    # Channels are groups x those of a group, on both sides.
    _, inner = peel(x.axes[1], x.shape[1] // groups)
    split, rest = peel(weight.axes[0], weight.shape[0] // groups)
    unify(joined([split, inner]), x.axes[1])
    unify(inner, rest if transposed else weight.axes[1])
    made = joined([split, weight.axes[1] if transposed else rest])
    reads, makes = (0, 1) if transposed else (1, 0)
    # Of a depthwise convolution a channel is read where it is made.
    step.trace.plays("out", weight, makes)
    step.trace.plays("in", weight, reads)
    value = Value((x.axes[0], made, *kept))
    if bias is not None:
        unify(made, bias.axes[0])
        step.trace.plays("out", bias, 0)
    return value


@rule("scaled_dot_product_attention")
def _attended(
    step: Step,
    q: Value,
    k: Value,
    v: Value,
    mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    enable_gqa: bool = False,
    **_: Any,
) -> Made:
    pointwise(step, Value(k.axes[:-1]), Value(v.axes[:-1]))
    if enable_gqa and len(q.axes) > 2:
        many = length(q.axes[-3]) // length(k.axes[-3])
        unify(peel(q.axes[-3], many)[0], k.axes[-3])
        unify(q.axes[-1], k.axes[-1])
        if len(q.axes) > 3:
            pointwise(step, Value(q.axes[:-3]), Value(k.axes[:-3]))
    else:
        pointwise(step, Value((*q.axes[:-2], ONE, q.axes[-1])), Value((*k.axes[:-2], ONE, k.axes[-1])))
    queries, keys = q.axes[-2], k.axes[-2]
    if is_causal:
        fix(queries)
        fix(keys)
    batch = pointwise(step, Value(q.axes[:-2]), Value(v.axes[:-2])).axes if not enable_gqa else q.axes[:-2]
    scores = Value((*batch, queries, keys))
    if mask is not None:
        scores = pointwise(step, scores, mask)
    step.trace.values.append(scores)
    step.trace.apart.append(Apart((q.axes[-1],), (queries, keys)))
    step.trace.mixes(scores, [-1])
    return Value((*batch, queries, v.axes[-1]))


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax")
def _softmax(step: Step, x: Value, dim: int, *_: Any) -> Made:
    if x.axes:
        step.trace.mixes(x, [dim])
    return Value(x.axes)


@rule("native_layer_norm", "_fused_rms_norm")
def _layer_norm(step: Step, x: Value, sizes: Sequence[int], weight: Value | None = None, *more: Any) -> Made:
    step.trace.mixes(x, range(-len(sizes), 0))
    for gain in [weight, *values_in(more)]:
        for one, other in zip(x.axes[-len(sizes) :], gain.axes if gain else (), strict=False):
            unify(one, other)
    single = Value(x.axes[: -len(sizes)] + (ONE,) * len(sizes))
    return Value(x.axes), single, single


@rule("native_group_norm")
def _group_norm(
    step: Step, x: Value, weight: Value | None, bias: Value | None, n: int, c: int, size: int, groups: int, eps: float
) -> Made:
    norms, inner = peel(x.axes[1], c // groups)
    for gain in (weight, bias):
        if gain is not None:
            unify(x.axes[1], gain.axes[0])
    step.trace.apart.append(Apart((x.axes[0], norms), (inner, *x.axes[2:])))
    single = Value((x.axes[0], norms))
    return Value(x.axes), single, single


@rule(
    "_native_batch_norm_legit_no_training",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_functional",
    "native_batch_norm",
)
def _batch_norm(step: Step, x: Value, *arguments: Any) -> Made:
    for per_channel in values_in(arguments):
        unify(x.axes[1], per_channel.axes[0])
    step.trace.mixes(x, [dim for dim in range(len(x.axes)) if dim != 1])
    channels = Value((x.axes[1],))
    return (Value(x.axes), *[channels] * 4)


@rule("sum", "mean", "amax", "amin", "prod", "var", "std", "any", "all", "max", "min", "norm", "linalg_vector_norm")
def _reduced(step: Step, x: Value, *arguments: Any, **options: Any) -> Made:
    made = step.node.meta["val"]
    if isinstance(made, list | tuple):
        # With the places where the extremes are, which makes places count.
        dim = int(arguments[0]) % len(x.axes)
        fix(x.axes[dim])
        dims = {dim}
    else:
        dims = _dims(step, x, arguments, options)
    keeps = len(step.shape) == len(x.axes) and bool(dims)
    axes = [ONE if dim in dims else axis for dim, axis in enumerate(x.axes) if keeps or dim not in dims]
    value = Value(tuple(axes))
    return (value, value) if isinstance(made, list | tuple) else value


@rule("argmax", "argmin")
def _extreme(step: Step, x: Value, dim: int | None = None, *_: Any, **__: Any) -> Made:
    dims = set(range(len(x.axes))) if dim is None else {dim % len(x.axes)}
    for number in dims:
        fix(x.axes[number])
    keeps = len(step.shape) == len(x.axes)
    return Value(tuple(ONE if n in dims else axis for n, axis in enumerate(x.axes) if keeps or n not in dims))


def _dims(step: Step, x: Value, arguments: Sequence[Any], options: dict[str, Any]) -> set[int]:
    """Over which axes a reduction goes: all of them, unless it is told."""
    names = [argument.name for argument in step.node.target._schema.arguments[1:]]
    given = {**dict(zip(names, arguments, strict=False)), **options}
    chosen = given.get("dim")
    if chosen is None or chosen == []:
        return set(range(len(x.axes)))
    return {dim % len(x.axes) for dim in ([chosen] if isinstance(chosen, int) else chosen)}


@rule(
    "max_pool2d_with_indices",
    "max_pool3d_with_indices",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d",
    "adaptive_avg_pool1d",
    "adaptive_max_pool2d",
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "upsample_bilinear2d",
    "upsample_bicubic2d",
)
def _pooled(step: Step, x: Value, *_: Any, **__: Any) -> Made:
    spatial = int(next(letter for letter in step.operation if letter.isdigit()))
    kept, gone = x.axes[:-spatial], x.axes[-spatial:]
    for axis in gone:
        fix(axis)
    out = Value((*kept, *all_fixed(step.shape[-spatial:]).axes))
    return (out, out) if isinstance(step.node.meta["val"], list | tuple) else out

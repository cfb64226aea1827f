"""Residual streams that differ by any rotation: exact for RMSNorm before each block, with a head of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from eutectic.alignment.comparing import Pair, compared
from eutectic.alignment.matching import match_weights
from eutectic.alignment.model import Match
from eutectic.checkpoint.aligned import Aligned
from eutectic.checkpoint.source import Source
from eutectic.checkpoint.symmetry import Axis, Factor, Gauge, Group, Moves, Part, Symmetries, axis
from eutectic.errors import Problem, RecipeError

if TYPE_CHECKING:
    from torch import Tensor

# Families whose blocks read the stream through an RMSNorm alone and add to it what they make, whose gains multiply as
# they are stored.
FAMILIES = (
    *("llama", "mistral", "ministral", "granite", "smollm3", "phi3", "qwen2", "qwen3"),
    *("mixtral", "olmoe", "qwen2_moe", "qwen3_moe"),
)
STREAM = "residual"
# Who reads the stream behind which norm.
_NORMS = (
    (re.compile(r"(.*layers\.\d+\.)self_attn\."), r"\1input_layernorm.weight"),
    (re.compile(r"(.*layers\.\d+\.)(?:mlp|block_sparse_moe)\."), r"\1post_attention_layernorm.weight"),
    (re.compile(r"(?:lm_head|score)\."), "model.norm.weight"),
)


@dataclass(frozen=True)
class _Stream:
    """Tensors of a residual stream: gain of a norm → the tensors that read the stream behind it; and its size."""

    readers: Mapping[str, list[str]]
    size: int


def match_orthogonal(a: Source, b: Source, symmetries: Symmetries, **options: Any) -> tuple[Match, Symmetries]:
    """Weight matching in which the residual stream may turn in any way, where orders and signs are what others allow.

    Gains of norms are folded into the matrices that read behind them, B's stream is turned by Procrustes together with
    all that `match_weights` finds, and A's gains are taken out again: B has A's gains then, and A stays as it is.

    Args:
        a: stays.
        b: moves.
        symmetries: of both, declared for one of `FAMILIES`.
        options: of `match_weights`.

    Returns the match and the table that its moves are of. Matrices of the residual stream and of what is behind its
    norms leave the function as it is only together: other elements of this table do not.

    Source: rotations of a residual stream by folded gains as in Ashkboos et al., 2024, *SliceGPT*, §3.

    Raises `RecipeError` G174 where a rotation is not exact: a tied head, whose columns would have to hold the last
    gain once and once not; norms behind blocks, whose gains cannot be folded forward; norms that subtract means; other
    families; gains of zero. And as `match_weights`.
    """
    stream = _stream(symmetries)
    gains = [_gains(one, stream) for one in (a, b)]
    left, right = (_folded(one, symmetries, stream, of) for one, of in zip((a, b), gains, strict=True))
    match = match_weights(left, right, _turning(symmetries, stream), **options)
    table = _unfolding(symmetries, stream)
    moves = _unfolded(match.moves, *gains)
    before, after, changes = compared(Pair(a, b, table, options.get("memory", 1 << 30)), moves)
    return replace(match, moves=moves, before=before, after=after, changes=changes), table


def _stream(symmetries: Symmetries) -> _Stream:
    family = symmetries.origin.removeprefix("declared for ")
    group = symmetries.groups.get(STREAM)
    if family not in FAMILIES or group is None or group.scale != "sign":
        known = ", ".join(FAMILIES)
        message = f"the residual stream of {family or 'this model'} may not turn"
        raise RecipeError(Problem("G174", message, hint=f"it may in models with a head of {known}"))
    roles = {name: part.role for name, _, part, _ in symmetries.places(STREAM)}
    readers: dict[str, list[str]] = {name: [] for name, role in roles.items() if role == "order"}
    problems = []
    for name in (name for name, role in roles.items() if role == "in"):
        gain = next((pattern.sub(to, name[: end.end()]) for pattern, to in _NORMS if (end := pattern.match(name))), "")
        if gain in readers:
            readers[gain].append(name)
        else:
            problems.append(Problem("G174", "reads the residual stream, and not behind a norm that is known", name))
    for gain, names in readers.items():
        if not names:
            message = "nothing that is stored reads the residual stream behind this norm"
            problems.append(Problem("G174", message, gain, "a head that is tied to the embeddings allows no rotation"))
    if problems:
        raise RecipeError(problems)
    return _Stream(readers, group.size)


def _gains(source: Source, stream: _Stream) -> dict[str, Tensor]:
    gains = {name: source[name].double() for name in stream.readers}
    problems = [
        Problem("G174", f"some gains of {source.label!r} are zero, and cannot be folded and taken out again", name)
        for name, gain in gains.items()
        if not (gain != 0).all()
    ]
    if problems:
        raise RecipeError(problems)
    return gains


def _folded(source: Source, symmetries: Symmetries, stream: _Stream, gains: Mapping[str, Tensor]) -> Aligned:
    """The model with all gains at 1 and what reads behind them as much larger."""
    size = stream.size
    table = _with_stream(
        symmetries, stream, Factor(size), lambda norm: Factor(size, norm), lambda norm: Factor(size, norm)
    )
    return Aligned(source, table, Moves(scales={name: 1 / gain for name, gain in gains.items()}))


def _turning(symmetries: Symmetries, stream: _Stream) -> Symmetries:
    """The table of models with all gains at 1: the stream turns as one."""
    turned = Factor(stream.size, gauge=STREAM)
    return _with_stream(symmetries, stream, turned, lambda norm: turned, lambda norm: Factor(stream.size))


def _unfolding(symmetries: Symmetries, stream: _Stream) -> Symmetries:
    """The table of models as they are: behind each norm the stream has a basis of its own."""
    size = stream.size
    return _with_stream(
        symmetries,
        stream,
        Factor(size, gauge=STREAM),
        lambda norm: Factor(size, gauge=_behind(norm)),
        lambda norm: Factor(size, norm),
    )


def _behind(norm: str) -> str:
    return f"behind {norm}"


def _with_stream(
    symmetries: Symmetries,
    stream: _Stream,
    made: Factor,
    read: Callable[[str], Factor],
    gain: Callable[[str], Factor],
) -> Symmetries:
    """The table with other factors where the stream is made, read behind a norm, and multiplied by the norm's gains."""
    axes = {name: tuple(_replaced(parts, made) for parts in of) for name, of in symmetries.axes.items()}
    for norm, readers in stream.readers.items():
        axes[norm] = (axis(gain(norm)),)
        for name in readers:
            axes[name] = tuple(_replaced(parts, read(norm)) for parts in symmetries.axes[name])
    factors = [factor for of in axes.values() for parts in of for part in parts for factor in part.factors]
    groups = {name: group for name, group in symmetries.groups.items() if name != STREAM}
    groups |= {norm: Group(stream.size, "any") for norm in stream.readers if any(one.group == norm for one in factors)}
    gauges = dict(symmetries.gauges)
    for name in dict.fromkeys(one.gauge for one in factors if one.gauge is not None and one.gauge not in gauges):
        gauges[name] = Gauge(None, stream.size, "orthogonal" if name == STREAM else "linear")
    return replace(symmetries, groups=groups, gauges=gauges, axes=axes, origin=f"{symmetries.origin}, turning")


def _replaced(parts: Axis, by: Factor) -> Axis:
    return tuple(
        Part(tuple(by if factor.group == STREAM else factor for factor in part.factors), part.role) for part in parts
    )


def _unfolded(moves: Moves, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Moves:
    """The moves for B with its own gains, which lead to A's: W′ = W diag(b) Oᵀ diag(1/a) behind each norm."""
    if STREAM not in moves.matrices:
        return moves
    turn = moves.matrices[STREAM][0]
    scales = {norm: a[norm] / b[norm] for norm in a}
    matrices = {_behind(norm): (a[norm][:, None] * turn / b[norm])[None] for norm in a}
    return Moves(moves.orders, {**moves.scales, **scales}, {**moves.matrices, **matrices})

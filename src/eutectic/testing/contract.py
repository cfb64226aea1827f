"""a method -> nothing, or the property it breaks: the contract that every merge method passes, built in or not."""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eutectic.kernels.random import Rng
from eutectic.methods.registry import Method, Param

SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (64,), (4, 1, 3))
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Where a method does nothing but pass one model on.
NEUTRAL: Mapping[str, Any] = {"weight": 1.0, "density": 1.0, "lambda": 1.0}
# Masks are compared on this many entries: two independent ones at density ½ are equal with probability 2⁻⁴⁰⁹⁶.
MASKED = (4096,)


class ContractError(AssertionError):
    """A promise that is not kept. `subject` is the method (or source), `property` the promise's name."""

    def __init__(self, subject: str, property: str, found: str) -> None:
        super().__init__(f"{subject} breaks {property!r}: {found}")
        self.subject = subject
        self.property = property


class PropertyError(AssertionError):
    """What a property found, before it is known by the property's name."""


@dataclass(frozen=True)
class Subject:
    """A method under test, with the values that its parameters take.

    `given` holds parameters by their recipe names (`lambda`, not `lambda_`), one value for all models. A required
    parameter that is not given takes a value its range allows. Raises `TypeError` for a parameter it does not have.
    """

    method: Method
    given: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = set(self.given) - set(self.method.params)
        if unknown:
            raise TypeError(f"{self.method.name} has no parameter {', '.join(sorted(unknown))}")
        missing = [p for p in self.method.params.values() if p.required and p.name not in self.given]
        object.__setattr__(self, "given", {p.name: _allowed_value(p) for p in missing} | dict(self.given))

    def declares(self, *names: str) -> bool:
        """True if the method has every one of these parameters."""
        return all(name in self.method.params for name in names)

    def takes(self, count: int) -> bool:
        """True if the method can merge `count` models."""
        least, most = self.method.models
        return least <= count and (most is None or count <= most)

    @property
    def count(self) -> int:
        """Models in a check: three, or as near as the method allows."""
        least, most = self.method.models
        return max(least, 3 if most is None else min(3, most))

    def settings(self) -> Iterator[dict[str, Any]]:
        """The values given, then each switch and choice (not given) set to each of its values, one at a time."""
        yield dict(self.given)
        for param in self.method.params.values():
            values = {"bool": (False, True), "choice": param.choices}.get(param.kind, ())
            for value in values:
                if param.name not in self.given and value != param.default:
                    yield {**self.given, param.name: value}

    def spread(self, setting: Mapping[str, Any]) -> dict[str, Any]:
        """`setting` with a different value for each model wherever a number may be one a model."""
        spread = dict(setting)
        for param in self.method.params.values():
            value = setting.get(param.name, param.default)
            if param.per_model and param.kind == "float" and isinstance(value, int | float):
                spread[param.name] = [_nearest(param, value / 2**model, value) for model in range(self.count)]
        return spread

    def run(self, tensors: Tensor, setting: Mapping[str, Any], *, rng: Rng | None = None) -> Tensor:
        """The method on `(K, *shape)`. What it does not declare is left out; a random one gets `rng` or a default.

        One that uses statistics gets some that follow from each model's own values, so that they go where it goes.
        """
        arguments = {self.method.keywords[name]: value for name, value in setting.items() if self.declares(name)}
        if self.method.random:
            arguments["rng"] = rng or Rng(seed=1, tensor="tensor", models=labels(len(tensors)))
        beside = [statistics_of(tensors, self.method.statistics)] if self.method.statistics else []
        return self.method(tensors, *beside, **arguments)


Property = Callable[[Subject], None]
PROPERTIES: dict[str, Property] = {}
"""Every property by name, in the order of checking. Each takes a `Subject` and raises `ContractError`."""


def contract(check: Property) -> Property:
    """Adds a property to the contract under its function's name; what it raises becomes a `ContractError`."""

    @functools.wraps(check)
    def named(subject: Subject) -> None:
        try:
            check(subject)
        except Exception as error:
            found = str(error) if isinstance(error, PropertyError) else f"{type(error).__name__}: {error}"
            raise ContractError(subject.method.name, check.__name__, found) from error

    PROPERTIES[check.__name__] = named
    return named


def check_method(method: Method, *, parameters: Mapping[str, Any] | None = None) -> None:
    """Checks a merge method against the contract: every property of `PROPERTIES`, in order.

    `parameters` fixes values by their recipe names, for a method whose defaults or required parameters leave no
    sensible guess. Takes a fraction of a second and no network; all data is made from fixed seeds.
    Raises `ContractError` (an `AssertionError`) that names the first property broken, with shape, setting and values,
    and `TypeError` for a parameter that the method does not have.
    """
    subject = Subject(method, parameters or {})
    for check in PROPERTIES.values():
        check(subject)


# Data and comparisons


def labels(count: int) -> tuple[str, ...]:
    """Names of models, as masks are keyed by them."""
    return tuple(f"model {chr(ord('a') + model)}" for model in range(count))


def sample(count: int, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers of standard deviation 0.02, `(count, *shape)`: the same for every call with the same arguments."""
    generator = torch.Generator().manual_seed(zlib.crc32(repr((count, tuple(shape))).encode()))
    return (torch.randn((count, *shape), generator=generator, dtype=torch.float64) * 0.02).to(dtype)


def statistics_of(tensors: Tensor, kind: str) -> Tensor | None:
    """Statistics in float32 as models of these values might have them, each of its own: `(K, *shape)` for `fisher`.

    For `gram` the second moments of pretended inputs, `(K, …, n, n)`; None for what is no matrix.
    """
    wide = tensors.double()
    if kind == "fisher":
        return (1e3 * wide**2 + 0.1).float()
    if tensors.dim() < 3 or not tensors.shape[-1]:
        return None
    return (2500 * wide.mT @ wide + torch.eye(tensors.shape[-1], dtype=torch.float64)).float()


def expect_equal(found: Tensor, wanted: Tensor, where: str) -> None:
    """Raises unless both have equal values everywhere (-0 equals 0; NaN equals nothing)."""
    _expect(found == wanted if found.shape == wanted.shape else None, found, wanted, where)


def expect_near(found: Tensor, wanted: Tensor, ulps: float, where: str) -> None:
    """Raises where values differ by more than `ulps` of `wanted`'s dtype at its largest magnitude."""
    if found.shape != wanted.shape:
        _expect(None, found, wanted, where)
    scale = float(wanted.double().abs().max()) if wanted.numel() else 0.0
    bound = ulps * torch.finfo(wanted.dtype).eps * scale
    _expect((found.double() - wanted.double()).abs() <= bound, found, wanted, f"{where}, bound {bound:.2g}")


def _expect(holds: Tensor | None, found: Tensor, wanted: Tensor, where: str) -> None:
    if holds is None:
        raise PropertyError(f"{where}: shape {tuple(found.shape)}, expected {tuple(wanted.shape)}")
    if not bool(holds.all()):
        entry = int((~holds).reshape(-1).int().argmax())
        values = f"{found.reshape(-1)[entry].item():.9g}, expected {wanted.reshape(-1)[entry].item():.9g}"
        raise PropertyError(f"{where}: entry {entry} is {values}")


def _told(tensors: Tensor, setting: Mapping[str, Any]) -> str:
    dtype = str(tensors.dtype).removeprefix("torch.")
    values = "".join(f", {name}={value}" for name, value in setting.items())
    return f"{len(tensors)} of shape {tuple(tensors.shape[1:])} {dtype}{values}"


def _allowed_value(param: Param) -> Any:
    usual: tuple[Any, ...] = {"bool": (False,), "int": (1, 2)}.get(param.kind, (0.5, 1.0, 2.0))
    for value in param.choices or usual:
        if param.fault(value) is None:
            return value
    raise TypeError(f"no guess for the required parameter {param.name!r}: pass it in `parameters`")


def _nearest(param: Param, value: float, otherwise: float) -> float:
    return value if param.fault(value) is None else otherwise


# The properties. The specific ones come first, so that a mistake is reported by its own name.


@contract
def shape_and_dtype_are_kept(subject: Subject) -> None:
    """Scalars, empty, short and odd tensors of every dtype: shape and dtype stay, every value is finite."""
    for setting, shape, dtype in itertools.product(subject.settings(), SHAPES, DTYPES):
        tensors = sample(subject.count, shape, dtype)
        merged = subject.run(tensors, setting)
        where = _told(tensors, setting)
        if merged.shape != tensors.shape[1:] or merged.dtype != dtype:
            raise PropertyError(f"{where}: the result is {tuple(merged.shape)} {merged.dtype}")
        if not bool(merged.isfinite().all()):
            raise PropertyError(f"{where}: the result is {merged.reshape(-1)[:4].tolist()}")


@contract
def inputs_are_not_modified(subject: Subject) -> None:
    """The stacked tensors are the same before and after, also those the method needs no wider copy of."""
    for setting, dtype in itertools.product(subject.settings(), DTYPES):
        tensors = sample(subject.count, (64,), dtype)
        before = tensors.clone()
        subject.run(tensors, setting)
        expect_equal(tensors, before, f"{_told(tensors, setting)}, inputs after the call")


@contract
def same_seed_same_bits(subject: Subject) -> None:
    """Two calls with the same arguments agree, whatever was drawn from global generators in between."""
    tensors = sample(subject.count, MASKED)
    for setting in subject.settings():
        first = subject.run(tensors, setting)
        torch.rand(1)
        expect_equal(subject.run(tensors, setting), first, f"{_told(tensors, setting)}, second call")


@contract
def arithmetic_is_wide(subject: Subject) -> None:
    """Half precision is computed in float32 and rounded once; float32 agrees with float64 within 8 ulp.

    Nothing narrower happens inside: inputs scaled by 1 + 2⁻¹⁸ (float64: 1 + 2⁻⁴⁰) change most non-zero entries.
    """
    for setting, dtype in itertools.product(subject.settings(), DTYPES):
        tensors = sample(subject.count, (64,), dtype)
        merged, where = subject.run(tensors, setting), _told(tensors, setting)
        if dtype.itemsize == 2:
            expect_equal(merged, subject.run(tensors.float(), setting).to(dtype), where)
            continue
        expect_near(merged, subject.run(tensors.double(), setting).to(dtype), 8, where)
        factor = 1 + 2.0 ** (-18 if dtype.itemsize == 4 else -40)
        unmoved = int(((subject.run(tensors * factor, setting) == merged) & (merged != 0)).sum())
        if 2 * unmoved > int(merged.count_nonzero()):
            raise PropertyError(f"{where}: {unmoved} entries are the same for inputs scaled by {factor:.14g}")


@contract
def zero_deltas_give_the_base(subject: Subject) -> None:
    """Models equal to the base: the merged delta is exactly zero, whatever the parameters."""
    if subject.method.space != "deltas":
        return
    for setting, shape, dtype in itertools.product(subject.settings(), SHAPES, DTYPES):
        zeros = torch.zeros((subject.count, *shape), dtype=dtype)
        expect_equal(subject.run(zeros, setting), zeros[0], _told(zeros, setting))


@contract
def masks_differ_by_seed_tensor_and_model(subject: Subject) -> None:
    """Another seed, another tensor name or another model label: another mask."""
    if not subject.method.random:
        return
    tensors, names = sample(subject.count, MASKED), labels(subject.count)
    setting = {**subject.given, "density": 0.5}
    start = Rng(seed=1, tensor="tensor", models=names)
    merged = subject.run(tensors, setting, rng=start)
    for what, other in {
        "seed": Rng(seed=2, tensor="tensor", models=names),
        "tensor name": Rng(seed=1, tensor="other", models=names),
        "model label": Rng(seed=1, tensor="tensor", models=("other", *names[1:])),
    }.items():
        if torch.equal(subject.run(tensors, setting, rng=other), merged):
            raise PropertyError(f"{_told(tensors, setting)}: another {what} gives the same mask ({start} and {other})")


@contract
def masks_follow_the_model(subject: Subject) -> None:
    """A model's mask is keyed by its label, not by its place in the list."""
    if not subject.method.random or not subject.method.symmetric or not subject.takes(2):
        return
    delta = sample(1, MASKED)[0]
    zero, setting = torch.zeros_like(delta), {**subject.given, "density": 0.5}
    ahead = subject.run(torch.stack([delta, zero]), setting, rng=Rng(1, "tensor", ("a", "b")))
    behind = subject.run(torch.stack([zero, delta]), setting, rng=Rng(1, "tensor", ("b", "a")))
    expect_equal(behind, ahead, f"shape {MASKED}, the only non-zero model listed second instead of first")


@contract
def density_is_respected(subject: Subject) -> None:
    """Of one model, the share `density` of the entries stays: within one entry, or 6 standard deviations if random."""
    if not subject.declares("density") or not subject.takes(1):
        return
    for density, shape in itertools.product((0.1, 0.5, 0.9), ((1,), (64,), (4, 1, 3), (1000,))):
        delta = sample(1, shape)
        kept = int(subject.run(delta, {**subject.given, **NEUTRAL, "density": density}).count_nonzero())
        wanted = density * delta.numel()
        slack = 6 * (wanted * (1 - density)) ** 0.5 if subject.method.random else 1.0
        if abs(kept - wanted) > slack:
            raise PropertyError(
                f"{_told(delta, {'density': density})}: {kept} entries kept, expected {wanted:g} ± {slack:.2g}"
            )


@contract
def density_one_keeps_everything(subject: Subject) -> None:
    """At density 1 one model of weight 1 comes out exactly, rescaled or not."""
    if not subject.declares("density") or not subject.takes(1):
        return
    for setting, shape, dtype in itertools.product(subject.settings(), SHAPES, DTYPES):
        delta, neutral = sample(1, shape, dtype), {**setting, **NEUTRAL}
        expect_equal(subject.run(delta, neutral), delta[0], _told(delta, neutral))


@contract
def ends_of_t_are_exact(subject: Subject) -> None:
    """`t` = 0 gives the first model and `t` = 1 the second, bit for bit."""
    if not subject.declares("t") or subject.method.space != "weights" or not subject.takes(2):
        return
    for setting, shape, dtype in itertools.product(subject.settings(), SHAPES, DTYPES):
        tensors = sample(2, shape, dtype)
        for t in (0, 1):
            at_end = {**setting, **subject.method.neutral, "t": float(t)}
            expect_equal(subject.run(tensors, at_end), tensors[t], _told(tensors, at_end))


@contract
def copies_give_the_model(subject: Subject) -> None:
    """K copies of one model give that model, whatever their weights: half precision exactly, wider within 4 ulp.

    Sums that are not divided by the weights are checked for one model only; nothing is dropped (`density` = 1).
    """
    divided = subject.declares("normalize") or subject.method.space == "weights"
    counts = sorted({1, subject.count} if divided else {1})
    for count, setting, shape, dtype in itertools.product(counts, subject.settings(), SHAPES, DTYPES):
        if not subject.takes(count):
            continue
        model = sample(1, shape, dtype)
        neutral = {**setting, **NEUTRAL, **subject.method.neutral}
        if count > 1:
            neutral = {**subject.spread(neutral), "density": 1.0, "normalize": True}
        copies = model.expand(count, *shape).clone()
        expect_near(subject.run(copies, neutral), model[0], 4 if dtype.itemsize > 2 else 0, _told(copies, neutral))


@contract
def weight_zero_removes_a_model(subject: Subject) -> None:
    """A model of weight 0 is as good as absent: no share, no vote, no part in a divisor."""
    count = subject.count
    if not subject.declares("weight") or not subject.method.params["weight"].per_model or not subject.takes(count - 1):
        return
    tensors, names = sample(count, (64,)), labels(count)
    for setting in subject.settings():
        spread = subject.spread({**setting, "weight": 1.0})
        spread["weight"][1] = 0.0
        rest = {name: [*v[:1], *v[2:]] if isinstance(v, list) else v for name, v in spread.items()}
        rng = Rng(1, "tensor", (*names[:1], *names[2:]))
        alone = subject.run(torch.cat([tensors[:1], tensors[2:]]), rest, rng=rng)
        expect_equal(subject.run(tensors, spread), alone, f"{_told(tensors, spread)}, against the rest alone")


@contract
def order_of_models_is_irrelevant(subject: Subject) -> None:
    """Models listed in another order, each with its own values and label, give the same within 4 ulp."""
    if not subject.method.symmetric or subject.count < 2:
        return
    count = subject.count
    for setting, shape in itertools.product(subject.settings(), SHAPES):
        tensors, names, spread = sample(count, shape), labels(count), subject.spread(setting)
        merged = subject.run(tensors, spread)
        for order in ([*range(count)][::-1], [*range(1, count), 0]):
            moved = {name: [v[i] for i in order] if isinstance(v, list) else v for name, v in spread.items()}
            rng = Rng(1, "tensor", tuple(names[i] for i in order))
            found = subject.run(tensors[order], moved, rng=rng)
            expect_near(found, merged, 4, f"{_told(tensors, spread)}, in the order {order}")


@contract
def rows_can_be_computed_alone(subject: Subject) -> None:
    """Where the method says it is elementwise, any part of the entries gives exactly that part of the result."""
    if not subject.method.elementwise:
        return
    tensors = sample(subject.count, (7, 3))
    for setting in subject.settings():
        spread = subject.spread(setting)
        whole = subject.run(tensors, spread)
        for cuts in (range(8), (0, 5, 7)):
            parts = [subject.run(tensors[:, start:stop], spread) for start, stop in itertools.pairwise(cuts)]
            expect_equal(torch.cat(parts), whole, f"{_told(tensors, spread)}, in rows cut at {tuple(cuts)}")

"""What a recipe needs to know of the methods. The registry in `eutectic.methods` has this shape; pass it in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, Self


class ParamLike(Protocol):
    """One parameter of a method."""

    @property
    def kind(self) -> str:
        """`float`, `int`, `bool` or `choice`."""

    @property
    def per_model(self) -> bool:
        """May take one value a model."""

    @property
    def required(self) -> bool:
        """Has no default."""

    @property
    def default(self) -> Any:
        """What holds when the recipe says nothing."""

    def fault(self, value: object) -> str | None:
        """Why one value is not allowed, or None."""


class MethodLike(Protocol):
    """A merge method, as recipes see it (see `eutectic.methods.Method`)."""

    @property
    def name(self) -> str:
        """What `merge_method` says."""

    @property
    def params(self) -> Mapping[str, ParamLike]:
        """The parameters by name."""

    @property
    def accepted(self) -> Mapping[str, str]:
        """Parameters taken without effect, and the reason."""

    @property
    def scopes(self) -> tuple[str, ...]:
        """What a whole-tensor statistic may range over."""

    @property
    def space(self) -> str:
        """`weights` or `deltas`."""

    @property
    def base(self) -> str:
        """`required`, `ignored`, `first` or `optional`."""

    @property
    def statistics(self) -> str:
        """The kind of statistics that it takes of each model; empty if none."""

    @property
    def models(self) -> tuple[int, int | None]:
        """Least and most models, the base not counted for `deltas`."""

    def resolved(self, has_base: bool, /) -> Self:
        """The method as it is with or without a base model."""


class PostLike(Protocol):
    """A step after a method (see `eutectic.methods.PostProcessor`)."""

    @property
    def name(self) -> str:
        """What `post` says."""

    @property
    def params(self) -> Mapping[str, ParamLike]:
        """The parameters by name."""

    @property
    def scopes(self) -> tuple[str, ...]:
        """Over what it takes norms."""


class MethodTable(Protocol):
    """All methods by name; the module `eutectic.methods` is one."""

    def get(self, name: str, /) -> MethodLike | None:
        """The method of that name, or None."""

    def names(self) -> list[str]:
        """Every method's name."""

    def steps(self) -> Mapping[str, PostLike]:
        """The steps after a method, by name."""

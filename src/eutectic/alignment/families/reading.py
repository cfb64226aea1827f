"""What families read from a model: its configuration, and the names of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from eutectic.checkpoint.source import Spec
from eutectic.errors import Problem


@dataclass
class Model:
    """A model as families see it.

    Attributes:
        specs: its tensors, under all their names.
        config: what config.json says, empty when there is none.
        problems: what was asked of config.json and is not there, G161.
    """

    specs: Mapping[str, Spec]
    config: Mapping[str, Any]
    problems: list[Problem] = field(default_factory=list)

    def says(self, key: str, otherwise: Any = None) -> Any:
        """The value of a key; `otherwise` when it is missing or null."""
        value = self.config.get(key)
        return otherwise if value is None else value

    def number(self, *keys: str) -> int:
        """The integer that the first of these keys with one says; 1, and a problem, when none does."""
        for key in keys:
            if isinstance(self.config.get(key), int):
                return int(self.config[key])
        hint = "shapes do not tell how many there are; add it to config.json, or give the module and an input"
        self.problems.append(Problem("G161", f"no {' or '.join(keys)} is given", "config.json", hint))
        return 1

    def has(self, end: str) -> bool:
        """Whether a tensor's name ends so."""
        return any(name.endswith(end) for name in self.specs)

    def anchored(self, heads: tuple[str, ...]) -> frozenset[str]:
        """`residual` when that is itself the output of the model, so that nothing may move in it.

        It is not when a tensor whose name starts as one of `heads` reads it, or when the head is the embedding and
        left out: config.json then names, in `architectures`, a class with a head (`GPT2LMHeadModel`).
        """
        read = any(name.startswith(heads) for name in self.specs)
        named = self.says("tie_word_embeddings", True) and any("LM" in one for one in self.says("architectures", []))
        return frozenset(() if read or named else ("residual",))

    def behind_relu(self) -> Literal["", "positive"]:
        """What units behind an activation may be multiplied by: only a ReLU lets a positive number through."""
        keys = ("hidden_act", "activation_function", "activation")
        return "positive" if any(self.says(key) == "relu" for key in keys) else ""

"""What families read from a model: its configuration, and the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from eutectic.checkpoint.source import Spec
from eutectic.errors import Problem

# How the classes of transformers are called whose head stands over tokens: `GPT2LMHeadModel`, `LlamaForCausalLM`.
_OVER_TOKENS = re.compile(r"LM(HeadModel)?$")


@dataclass
class Model:
    """A model as families see it.

    Attributes:
        specs: its tensors, under all their names.
        config: what config.json says, empty when there is none.
        problems: what was asked of config.json and is not there or cannot be, G161.
    """

    specs: Mapping[str, Spec]
    config: Mapping[str, Any]
    problems: list[Problem] = field(default_factory=list)

    def says(self, key: str, otherwise: Any = None) -> Any:
        """The value of a key; `otherwise` when it is missing or null."""
        value = self.config.get(key)
        return otherwise if value is None else value

    def number(self, *keys: str, otherwise: int | None = None) -> int:
        """What the first of these keys that is given says, else `otherwise`; 1, and a problem, when none says a number.

        A number is a whole one above 0.
        """
        key = next((key for key in keys if self.says(key) is not None), None)
        value = otherwise if key is None else self.config[key]
        if type(value) is int and value > 0:
            return value
        hint = "shapes do not tell how many there are; add it to config.json, or give the module and an input"
        message = f"no {' or '.join(keys)} is given"
        if key is not None:
            hint, message = "correct it in config.json", f"{key} is {value!r}, and must be a whole number above 0"
        self.problems.append(Problem("G161", message, "config.json", hint))
        return 1

    def has(self, end: str) -> bool:
        """Whether a tensor's name ends so."""
        return any(name.endswith(end) for name in self.specs)

    def classes(self) -> list[str]:
        """Of transformers, under `architectures`."""
        given = self.says("architectures", [])
        return [one for one in given if isinstance(one, str)] if isinstance(given, list) else []

    def anchored(self, heads: tuple[str, ...]) -> frozenset[str]:
        """`residual` when that is itself the output of the model, so that nothing may move in it.

        It is not when a tensor whose name starts as one of `heads` reads it, or when the head is the embedding and
        left out: config.json then names, in `architectures`, a class with a head (`GPT2LMHeadModel`).
        """
        read = any(name.startswith(heads) for name in self.specs)
        named = self.says("tie_word_embeddings", True) and any(map(_OVER_TOKENS.search, self.classes()))
        return frozenset(() if read or named else ("residual",))

    def behind_relu(self) -> Literal["", "positive"]:
        """What units behind an activation may be multiplied by: only a ReLU lets a positive number through."""
        keys = ("hidden_act", "activation_function", "activation")
        return "positive" if any(self.says(key) == "relu" for key in keys) else ""

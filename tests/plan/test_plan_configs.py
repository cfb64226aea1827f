"""What a plan says of models whose config.json contradict each other."""

from __future__ import annotations

import json
from typing import Any

import pytest
from planning import Header, linear, llama, plan_of, ties_of


class WithConfig(Header):
    """A model of nothing but headers, with a config."""

    text: bytes = b""

    def beside(self, name: str) -> bytes | None:
        return self.text if name == "config.json" else None


def model(label: str, config: Any) -> Header:
    made = llama(label)
    made.__class__ = WithConfig
    made.text = config if isinstance(config, bytes) else json.dumps(config).encode()  # type: ignore[attr-defined]
    return made


def test_heads_cut_another_way_are_merged_and_told_of() -> None:
    """Shapes are the same and recipes of mergekit say no more: a warning, not a refusal."""
    plan = plan_of(linear("b", "a"), model("a", {"num_attention_heads": 2}), model("b", {"num_attention_heads": 4}))
    assert plan.notes == (
        "config.json says num_attention_heads: b 4, a 2; the same rows are other heads or experts there, so unlike "
        "things are averaged; the output says what b says",
    )


def test_each_key_that_has_several_values_is_told_with_whose_the_output_has() -> None:
    base, a = {"rope_theta": 1e4, "id2label": {"0": "no", "1": "yes"}}, {"id2label": {"0": "yes", "1": "no"}}
    models = model("base", base), model("a", a | {"rope_theta": 10000}), model("b", base | {"model_type": "x"})
    plan = plan_of(ties_of("base", "a", "b"), *models)
    assert [note for note in plan.notes if "config.json" in note] == [
        "config.json says id2label: base {'0': 'no', '1': 'yes'}, a {'0': 'yes', '1': 'no'}, "
        "b {'0': 'no', '1': 'yes'}; the output says what base says"
    ]


def test_a_config_that_the_output_lacks_gives_it_nothing() -> None:
    plan = plan_of(linear("a", "b", "c"), model("a", {}), model("b", {"act": "x"}), model("c", {"act": "y"}))
    assert plan.notes == ("config.json says act: b 'x', c 'y'",)


@pytest.mark.parametrize("other", [{"a": 1}, {"_name_or_path": "x", "a": 1.0}, {}, [], b"{", b"[" * 100_000])
def test_what_says_nothing_of_the_weights_is_not_told(other: Any) -> None:
    plan = plan_of(linear("a", "b"), model("a", {"a": 1, "_name_or_path": "y", "label2id": {}}), model("b", other))
    assert not plan.notes

"""Whose tokenizer a plan takes, when a union is one, and which chat template is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from planning import Header, linear, llama, plan_of, refused, ties_of

import eutectic.methods
from eutectic.checkpoint.vocabulary import tokens_of
from eutectic.errors import CheckpointError
from eutectic.plan import tokenizers
from eutectic.plan.planner import planning_together
from eutectic.recipe import load

WORDS = {"<unk>": 0, "<s>": 1, "red": 2, "blue": 3}
HINT = (
    "rows of the embeddings mean other tokens: give all models one tokenizer first, or, where these tokens do not "
    "matter, name the model whose to take: `tokenizer_source: MODEL`"
)


class InFolder(Header):
    """A model of nothing but headers, with a folder for its tokenizer."""

    home = ""

    def folder(self) -> str | None:
        return self.home


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """Makes a model with these words, this template, and these further files (None: absent)."""

    def made(label: str, words: Any = WORDS, template: Any = None, **files: Any) -> InFolder:
        home = tmp_path / label
        home.mkdir(exist_ok=True)
        config = {} if template is None else {"chat_template": template}
        tokenizer = {"model": {"vocab": words}}
        found = {"tokenizer.json": tokenizer, "tokenizer_config.json": config} | {
            name.replace("__", "."): data for name, data in files.items()
        }
        for name, data in found.items():
            if data is not None:
                (home / name).write_text(data if isinstance(data, str) else json.dumps(data))
        model = llama(label)
        model.__class__ = InFolder
        model.home = str(home)  # type: ignore[attr-defined]
        return model  # type: ignore[return-value]

    return made


def notes(plan: Any) -> list[str]:
    return [note for note in plan.notes if "token" in note or "chat_template" in note]


@pytest.mark.parametrize(
    "given",
    [
        {"tokenizer_source": "union"},
        {"tokenizer": {"source": "union"}},
        {"tokenizer": {}},
        {"tokenizer": {"source": None, "tokens": {}, "pad_to_multiple_of": None}},
    ],
)
def test_a_union_of_one_numbering_is_the_first_model_s(make: Any, given: dict[str, Any]) -> None:
    reordered = dict(reversed(WORDS.items()))
    plan = plan_of(linear("b", "a", **given), make("a"), make("b", reordered))
    assert (plan.donor.label, plan.tokenizer, plan.recipe.tokenizer_source) == ("b", None, "union")
    assert notes(plan) == ["tokenizer_source: union is the tokenizer of b: all have the same tokens"]


def test_a_union_with_a_base_is_the_base_s(make: Any) -> None:
    given = {"tokenizer_source": "union"}
    for recipe in (ties_of("base", "a", "b", **given), linear("a", "b", base_model="base", **given)):
        plan = plan_of(recipe, make("base"), make("a"), make("b"))
        assert plan.tokenizer_folder() == plan.donor.folder() and plan.donor.label == "base"
        assert "tokenizer_source: union is the tokenizer of base: all have the same tokens" in plan.notes


def test_p315_tokens_that_differ_are_named_few_and_counted(make: Any) -> None:
    swapped = WORDS | {"red": 3, "blue": 2}
    more = WORDS | {f"<{i}>": 4 + i for i in range(5)}
    models = make("base"), make("a", swapped), make("b", more), make("c", WORDS | {"<|im_end|>": 4})
    assert refused(ties_of("base", "a", "b", "c", tokenizer_source="union"), *models) == [
        "P315 tokenizer_source: the tokenizers of base and a differ: 2 tokens have other numbers "
        f"('red' 2 and 3, 'blue' 3 and 2); {HINT}",
        "P315 tokenizer_source: the tokenizers of base and b differ: 5 tokens are in one only "
        f"('<0>', '<1>', '<2>' and 2 more); {HINT}",
        f"P315 tokenizer_source: the tokenizers of base and c differ: 1 token is in one only ('<|im_end|>'); {HINT}",
    ]


def test_p315_stands_where_it_was_written(make: Any) -> None:
    text = "merge_method: linear\nmodels: [a, b]\ntokenizer:\n  source: union\n"
    (said,) = refused(text, make("a"), make("b", {"<s>": 0, "<unk>": 1}))
    assert said.startswith("P315 recipe:4:11 tokenizer.source: the tokenizers of a and b differ: 2 tokens have other")
    assert "2 tokens are in one only ('red', 'blue')" in said


def test_p315_models_without_tokenizer_files_are_named(make: Any) -> None:
    hint = "copy them beside the weights, or name the model whose to take: `tokenizer_source: MODEL`"
    bare = make("b", tokenizer__json=None)
    assert refused(linear("a", "b", "c", tokenizer_source="union"), make("a"), bare, llama("c")) == [
        "P315 tokenizer_source: b, c have no tokenizer files, so nothing says which token has which number; " + hint
    ]
    assert refused(linear("c", tokenizer_source="union"), llama("c")) == [
        "P315 tokenizer_source: c has no tokenizer files, so nothing says which token has which number; " + hint
    ]


def test_sentencepiece_models_are_compared_by_their_bytes(make: Any) -> None:
    def piece(label: str, data: Any = "pieces", added: Any = 7) -> InFolder:
        config = {"added_tokens_decoder": {str(added): {"content": "<x>"}}}
        return make(label, tokenizer__json=None, tokenizer__model=data, tokenizer_config__json=config)

    recipe = linear("a", "b", tokenizer_source="union")
    assert notes(plan_of(recipe, piece("a"), piece("b")))
    for change, names in (({"data": "others"}, "tokenizer.model"), ({"added": 8}, "tokenizer_config.json")):
        assert refused(recipe, piece("a"), piece("b", **change)) == [
            f"P315 tokenizer_source: the tokenizers of a and b differ: {names}, which cannot be compared by token; "
            + HINT
        ]


@pytest.mark.parametrize("wanted", ["base", "a"])
def test_with_a_named_source_what_differs_is_a_note(make: Any, wanted: str) -> None:
    plan = plan_of(ties_of("base", "a", tokenizer_source=wanted), make("base"), make("a", WORDS | {"green": 4}))
    assert plan.tokenizer is not None and plan.tokenizer.label == wanted
    assert plan.fingerprint == plan_of(ties_of("base", "a"), make("base"), make("a")).fingerprint
    first, other = (wanted, "a" if wanted == "base" else "base")
    assert notes(plan) == [
        f"the tokenizers of {first} and {other} differ: 1 token is in one only ('green'); rows of the embeddings are "
        "merged as they are numbered"
    ]


ADVICE = (
    "rows of the embeddings are merged as they are numbered: unless these tokens do not matter, give all models one "
    "tokenizer first"
)


def test_what_differs_is_a_note_where_no_source_is_named(make: Any) -> None:
    swapped, words = WORDS | {"red": 3, "blue": 2}, {"<unk>": 0, "rot": 1, "blau": 2, "gelb": 3}
    plan = plan_of(ties_of("base", "a", "b"), make("base"), make("a", swapped), make("b", words))
    assert notes(plan) == [
        f"the tokenizers of base and a differ: 2 tokens have other numbers ('red' 2 and 3, 'blue' 3 and 2); {ADVICE}",
        "the tokenizers of base and b differ: only 1 of 4 tokens are in both ('<s>', 'rot', 'blau' and 3 more); "
        + ADVICE,
    ]
    bare = make("c", tokenizer__json=None)
    assert not notes(plan_of(linear("a", "b", "c"), make("a"), make("b", dict(reversed(WORDS.items()))), bare))


def test_tokenizers_that_nobody_asked_for_refuse_nothing(make: Any, tmp_path: Path) -> None:
    models = make("a"), make("b")
    (tmp_path / "secret").write_text("{}")
    Path(models[1].home, "vocab.json").symlink_to(tmp_path / "secret")
    (said,) = notes(plan_of(linear("a", "b"), *models))
    assert said.startswith("the tokenizers were not compared: ") and "'vocab.json' of model 'b'" in said


@pytest.mark.parametrize("given", [{"tokenizer_source": "b"}, {"tokenizer": {"source": "b"}}])
def test_p315_a_named_source_without_a_tokenizer(make: Any, given: dict[str, Any]) -> None:
    bare = make("b", tokenizer__json=None, tokenizer_config__json=None)
    for model in (bare, llama("b")):
        assert refused(linear("a", "b", **given), make("a"), model) == [
            "P315 tokenizer_source: b has no tokenizer files that could be taken; copy them beside its weights, or "
            "name another model"
        ]
    # Of a kind that is copied and not compared.
    Path(bare.home, "qwen.tiktoken").write_text("IQ== 0")
    assert not notes(plan_of(linear("a", "b", **given), make("a"), bare))


def test_messages_stay_short_whatever_tokens_are(make: Any) -> None:
    long, keys = "x" * 100_000, {"added_tokens_decoder": {"9" * 5000: {"content": "<y>"}}}
    models = make("a"), make("b", WORDS | {long: 4, "red": 5}, tokenizer_config__json=keys)
    (said,) = refused(linear("a", "b", tokenizer_source="union"), *models)
    assert f"1 token has other numbers ('red' 2 and 5), 1 token is in one only ('{'x' * 56}...)" in said


def test_a_base_that_is_not_merged_is_told_from_a_model_of_its_name(make: Any, tmp_path: Path) -> None:
    base, same, a = make("base", template=A), make("other", template=B), make("a", template=A)
    same.label, same.path, base.path = "base", "/x/base", "/y/base"
    # Live models, as two of one label cannot be told apart by it.
    plan = plan_of(linear(same, "a", base_model=base, chat_template="auto"), a)
    assert [item.label for item in plan.inputs] == ["a", "base"] and plan.donor.label == "y/base"
    assert (plan.chat_template, notes(plan)[-1:]) == (
        None,
        ["chat_template: auto is that of y/base, which 2 of 3 models have"],
    )


def test_a_base_that_is_not_merged_may_be_named_in_other_words(make: Any) -> None:
    for name in ("base", "./base", {"model": {"path": "base"}}):
        recipe = linear("a", "b", base_model="base", tokenizer_source=name)
        plan = plan_of(recipe, make("base"), make("a"), make("b"))
        assert (plan.tokenizer, plan.donor.label) == (None, "base")


@pytest.mark.parametrize("named", [{}, {"tokenizer_source": "base"}, {"tokenizer_source": "inner"}])
def test_a_recipe_as_the_base_that_is_not_merged(make: Any, named: dict[str, Any]) -> None:
    inner = {**linear("c", chat_template="chatml"), "name": "inner"}
    plan = plan_of(linear("a", "b", base_model=inner, **named), make("a"), make("b"), c := make("c"))
    assert (plan.donor.label, plan.tokenizer_folder(), plan.donor.folder()) == ("inner", c.home, c.home)
    assert "<|im_start|>" in str(plan.chat_template)
    plan.close()
    assert c.closed


@pytest.mark.parametrize("source", ["a", {"model": {"path": "a"}}, {"path": "a"}, "model:a", {"model": "a"}, "./a"])
@pytest.mark.parametrize("key", ["tokenizer", "tokenizer_source"])
def test_every_form_of_a_source(make: Any, source: Any, key: str) -> None:
    recipe = ties_of("base", "a", **{key: {"source": source} if key == "tokenizer" else source})
    plan = plan_of(recipe, make("base"), make("a"))
    assert plan.tokenizer is not None and plan.tokenizer.label == "a"


def test_a_nested_recipe_has_the_tokenizer_that_it_takes(make: Any) -> None:
    models = make("a"), make("b", WORDS | {"green": 4}), make("c")
    inner = linear("a", "c", tokenizer_source="union", chat_template="chatml")
    plan = plan_of(linear(inner, "c", tokenizer_source="union"), *models)
    assert plan.chat_template == plan.inputs[1].plan.chat_template and "<|im_start|>" in plan.chat_template
    said = refused(linear(inner, "b", tokenizer_source="union"), *models)
    assert said[0].startswith("P315 tokenizer_source: the tokenizers of linear of a, c and b differ: 1 token")


# Chat templates


A, B = "{{ 'a' }}", "{{ 'b' }}"


@pytest.mark.parametrize(
    ("base", "a", "b", "written", "said"),
    [
        (A, B, B, B, "a, which 2 of 3"),
        (A, A, B, None, "base, which 2 of 3"),
        (A, B, None, None, "base, which 1 of 3"),
        (None, B, A, B, "a, which 1 of 3"),
        (None, None, f"\n{A} ", A, "b, which 1 of 3"),
        (A, f" {A}\n", B, None, "base, which 2 of 3"),
        (A, [{"name": "default", "template": B}, {"name": "rag", "template": A}], B, B, "a, which 2 of 3"),
        (A, [{"name": "rag", "template": B}], B, None, "base, which 1 of 3"),
    ],
)
def test_auto_is_the_template_of_most_models(make: Any, base: Any, a: Any, b: Any, written: Any, said: str) -> None:
    models = make("base", template=base), make("a", template=a), make("b", template=b)
    plan = plan_of(ties_of("base", "a", "b", chat_template="auto"), *models)
    assert plan.chat_template == written
    verb = "has" if "which 1" in said else "have"
    assert notes(plan) == [f"chat_template: auto is that of {said} models {verb}"]


def test_of_equals_the_first_listed_decides_whatever_the_order_of_the_inputs(make: Any) -> None:
    models = make("a", template=A), make("b", template=B)
    assert plan_of(linear("b", "a", chat_template="auto"), *models).chat_template is None
    plan = plan_of(linear("b", "a", chat_template="auto", tokenizer_source="a"), *models)
    assert plan.chat_template == B
    assert notes(plan) == ["chat_template: auto is that of b, which 1 of 2 models has"]


def test_a_file_of_its_own_wins_over_the_config(make: Any) -> None:
    models = make("a", template=A, chat_template__jinja=B), make("b", template=B), make("c", template=A)
    plan = plan_of(linear("c", "a", "b", chat_template="auto"), *models)
    assert plan.chat_template == B


def test_auto_without_any_template(make: Any) -> None:
    plan = plan_of(linear("a", "b", chat_template="auto"), make("a"), make("b", chat_template__jinja=" "))
    assert plan.chat_template is None
    assert notes(plan) == ["chat_template: auto has no effect: no model has a chat template"]


def test_a_text_is_taken_as_it_is_and_does_not_change_the_weights(make: Any) -> None:
    text = "{% for message in messages %}{{ undefined_name() }}{% endfor %}\n"
    models = make("a"), make("b")
    plan = plan_of(linear("a", "b", chat_template=text), *models)
    assert plan.chat_template == text and not notes(plan)
    assert plan.fingerprint == plan_of(linear("a", "b"), *models).fingerprint


@pytest.mark.parametrize("wanted", ["auto", "chatml", A])
def test_p316_where_nothing_can_hold_a_template(make: Any, wanted: str) -> None:
    hint = "name the model whose to take: `tokenizer_source: MODEL`"
    recipe = linear("a", "b", chat_template=wanted)
    assert refused(recipe, llama("a"), make("b", template=B)) == [
        f"P316 chat_template: a has no tokenizer files that could hold a chat template; remove it, or {hint}"
    ]
    for broken in ("[]", "{"):
        models = make("a", tokenizer_config__json=broken), make("b")
        assert refused(recipe, *models) == [
            "P316 chat_template: tokenizer_config.json of a is no valid JSON object and can hold no chat template; "
            f"mend it, or {hint}"
        ]
        assert plan_of({**recipe, "tokenizer_source": "b"}, *models).tokenizer_folder() == models[1].home


def test_files_that_leave_the_folder_are_refused_and_nothing_stays_open(make: Any, tmp_path: Path) -> None:
    models = make("a"), make("b")
    (tmp_path / "secret").write_text("{}")
    Path(models[1].home, "vocab.json").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"C208 .*'vocab.json' of model 'b'"):
        plan_of(linear("a", "b", tokenizer_source="union"), *models)
    assert all(model.closed for model in models)


def test_plans_of_a_sweep_compare_tokenizers_once(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {name: make(name, words) for name, words in (("a", WORDS), ("b", dict(reversed(WORDS.items()))))}
    read: list[str] = []

    def counted(files: Any) -> dict[str, int]:
        read.append("tokens")
        return tokens_of(files)

    monkeypatch.setattr(tokenizers, "tokens_of", counted)
    made = planning_together(lambda model, folder: models[model])
    inner = linear("a", "b", tokenizer_source="union")
    for weight in (1, 2, 3):
        recipe = linear(inner, "b", tokenizer_source="union", parameters={"weight": weight})
        assert notes(made(load(recipe, methods=eutectic.methods)))
    assert read == ["tokens", "tokens"]

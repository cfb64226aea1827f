"""Hostile recipes: refused with a problem, without much work, whatever they are."""

from __future__ import annotations

import re
import string
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eutectic.methods
from eutectic.errors import RecipeError
from eutectic.recipe import load
from eutectic.recipe.compose import compose

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
HEAD = "merge_method: linear\nmodels: "

BOMBS = {
    "billion laughs": LAUGHS,
    "quadratic": "a: &a [" + "x, " * 3000 + "]\nb: [" + "*a, " * 90 + "]\n",
    "many aliases": "a: &a x\nb: [" + "*a, " * 200 + "]\n",
    "merge keys": "a: &a {"
    + ", ".join(f"k{i}: 1" for i in range(2000))
    + "}\n"
    + "".join(f"b{i}: {{<<: *a}}\n" for i in range(90)),
    "merge keys in depth": "".join(
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}], k{i}: 1}}\n" if i else "a0: &a0 {x: 1}\n"
        for i in range(12)
    ),
    "deep list": "a: " + "[" * 100_000 + "\n",
    "deep list, closed": "a: " + "[" * 400 + "]" * 400 + "\n",
    "deep mapping": "a: " + "{a: " * 100_000 + "\n",
    "deep block": "".join(" " * i + "a:\n" for i in range(1000)),
    "deep sequence": "- " * 300_000 + "\n",
    "deep keys": "? " * 300_000 + "\n",
    "deep by alias": "a: &a " + "[" * 30 + "]" * 30 + "\nb: " + "[" * 30 + "*a" + "]" * 30 + "\n",
    "many nodes": HEAD + "[" + "a, " * 300_000 + "]\n",
    "many duplicate keys": "a: 1\n" * 100_000,
    "many models": HEAD + "[" + ", ".join(f"m{i}" for i in range(40_000)) + "]\nwrong: 1\n",
    "many equal models": HEAD + "[" + "a, " * 40_000 + "]\n",
    "many documents": "---\nname: a\n" * 80_000,
    "many keys": "".join(f"key{i}: 1\n" for i in range(30_000)),
    "long gradient": HEAD + "[a]\nparameters: {weight: [" + "x, " * 40_000 + "]}\n",
    "long text": HEAD + "[" + "a" * 900_000 + "]\n",
    "long number": HEAD + "[a]\nseed: " + "9" * 900_000 + "\n",
    "long anchor": "&" + "a" * 900_000 + " x\n",
    "long tag": "!" + "a" * 900_000 + " x\n",
    "too long": "#" * 1_000_001 + "\n",
    "directives": "%TAG ! tag:x,2000:\n" * 1000 + "--- !x\na: 1\n",
    "python object": "!!python/object/apply:os.system ['exit 1']\n",
    "python name": "merge_method: !!python/name:os.system\n",
    "open quotes": '"' * 99_999 + "\n",
    "open braces": "{" * 999_000 + "\n",
    "percent": "%" * 999_000 + "\n",
    "broken expression": HEAD + "[a]\nparameters: {weight: {filter: '/a{99999999999}/', value: 1}}\n",
    "deep expression": HEAD + "[a]\nparameters: {weight: {filter: '/" + "(" * 4000 + "/', value: 1}}\n",
    "exponent": HEAD + "[a]\nparameters: {weight: 1e99999999}\n",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_without_much_work(name: str) -> None:
    begin = time.process_time()
    with pytest.raises(RecipeError) as caught:
        load(BOMBS[name], methods=eutectic.methods)
    assert time.process_time() - begin < 15  # a third of a second; what grows with the square takes minutes
    assert all(len(str(problem)) < 1000 for problem in caught.value.problems)


def test_dicts_without_end_are_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    for value in (endless, [[0] * 400] * 400, {"a": {"a": endless}}):
        with pytest.raises(RecipeError) as caught:
            load({"merge_method": "linear", "models": value}, methods=eutectic.methods)
        assert caught.value.problems[0].code == "R105"


def test_yaml_means_what_it_says() -> None:
    text = """
    words: [yes, no, on, off, y, "true", 'null', 0x10, 0o7, 1_000, 1:30, 2001-01-01, =, ., -, "1"]
    constants: [true, True, TRUE, false, False, FALSE, null, ~, ]
    numbers: [1, -1, +1, 007, 1e-5, 1E5, .5, 5., -0.5e+3]
    """
    (document,) = compose(text)
    assert document.data == {
        "words": re.findall(r"\S+", "yes no on off y true null 0x10 0o7 1_000 1:30 2001-01-01 = . - 1"),
        "constants": [True, True, True, False, False, False, None, None],
        "numbers": [1, -1, 1, 7, 1e-5, 1e5, 0.5, 5.0, -500.0],
    }
    assert [type(number) for number in document.data["numbers"]] == [int] * 4 + [float] * 5


def test_anchors_and_merge_keys_work_within_bounds() -> None:
    (document,) = compose("a: &a {x: 1, y: 2}\nb: &b {z: 3, <<: *a, x: 9}\nc: {<<: [*a, *b], w: [*a]}\nd: {'<<': 1}\n")
    assert document.data["b"] == {"z": 3, "x": 9, "y": 2}
    assert document.data["c"] == {"w": [{"x": 1, "y": 2}], "x": 1, "y": 2, "z": 3}
    assert document.data["d"] == {"<<": 1}


def test_positions_count_from_one_and_in_characters() -> None:
    (document,) = compose("\ufeffä: [ö, {k: v}]\n---\n---\n~\n")
    assert (document.place(("ä",), key=True).line, document.place(("ä",), key=True).column) == (1, 1)
    assert (document.place(("ä", 1, "k")).line, document.place(("ä", 1, "k")).column) == (1, 12)
    assert document.places()["ä[1].k"].path == "ä[1].k"
    assert document.place(("nowhere",)).line is None


def answers(source: Any, overrides: list[str] | None = None) -> None:
    """Junk gives a recipe or a `RecipeError`, and its message can be printed."""
    try:
        recipe = load(source, overrides=overrides or [], methods=eutectic.methods)
    except RecipeError as error:
        assert error.problems
        str(error).encode()
    else:
        assert load(recipe.to_dict(), methods=eutectic.methods) == recipe


KEYS = re.findall(
    r"\w+",
    """merge_method models base_model slices parameters dtype out_dtype name seed missing buffers_from tokenizer_source
    tokenizer source tokens chat_template sources model weight density t normalize lambda rescale scope filter value
    layer_range path revision lora""",
)
WORDS = re.findall(
    r"\S+",
    "linear slerp ties dare_ties task_arithmetic a b c base org/x@main tensor model copy float16 l1 union auto {{x}} "
    "mlp /a+/ *",
)
scalars = st.one_of(
    st.sampled_from(WORDS),
    st.sampled_from([0, 1, -1, 0.5, 2.5, True, False, None, 10**30, 1e-300, float("inf"), float("nan")]),
    st.text(max_size=5),
)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)
recipes = st.fixed_dictionaries(
    {
        "merge_method": st.sampled_from(WORDS[:5]),
        "models": st.lists(st.sampled_from("abc"), min_size=1, unique=True),
    },
    optional=dict.fromkeys(KEYS[2:], trees),
)
sources = st.text(alphabet=string.printable + "é\u2028\ud800\ufeff", max_size=80).map(lambda text: text + "\n")
yamlish = st.lists(st.sampled_from([*KEYS, *WORDS, *"\n\n\n:[]{},&*!|>%@-?#'\"", ": ", "- ", "  ", "--- "]))


@settings(max_examples=250, deadline=None)
@given(trees.filter(lambda tree: isinstance(tree, dict)) | recipes, st.lists(st.text(max_size=12), max_size=1))
def test_junk_in_dicts_never_escapes(tree: dict[str, Any], overrides: list[str]) -> None:
    answers(tree, overrides)


@settings(max_examples=250, deadline=None)
@given(sources | yamlish.map(lambda parts: "".join(parts) + "\n"))
def test_junk_in_text_never_escapes(text: str) -> None:
    answers(text)

"""Every mistake that a user can make in a recipe, and the exact words that answer it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import eutectic.methods
from eutectic.errors import RecipeError
from eutectic.recipe import CODES, load

TABLE = Path(__file__).with_name("mistakes.txt").read_text(encoding="utf-8")
ARROW = "----> "


def cases() -> list[tuple[str, str, list[str]]]:
    """(title, recipe, messages) of each block of the table."""
    found = []
    for block in re.split("^#### ", TABLE, flags=re.MULTILINE)[1:]:
        title, _, rest = block.partition("\n")
        lines = rest.splitlines()
        recipe = "".join(f"{line}\n" for line in lines if not line.startswith(ARROW))
        found.append((title, recipe, [line.removeprefix(ARROW) for line in lines if line.startswith(ARROW)]))
    return found


def problems(source: object, **options: object) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(source, methods=eutectic.methods, **options)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2
    assert str(caught.value) == "\n".join(str(problem) for problem in caught.value.problems)
    # The table's models are nowhere.
    return [str(problem) for problem in caught.value.problems if problem.code != "C200"]


@pytest.mark.skipif(not hasattr(yaml, "CSafeLoader"), reason="words and columns of syntax errors are libyaml's")
@pytest.mark.parametrize(("title", "recipe", "messages"), cases(), ids=[title for title, _, _ in cases()])
def test_the_message_is_exactly(
    title: str, recipe: str, messages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert problems(recipe) == messages


@pytest.mark.parametrize(("title", "recipe", "messages"), cases(), ids=[title for title, _, _ in cases()])
def test_a_file_gives_the_same_message_with_its_name(
    title: str, recipe: str, messages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yml").write_text(recipe, encoding="utf-8")
    expected = [re.sub(r"\brecipe(?=:\d| ->)", "r.yml", m).replace("R107 the", "R107 r.yml: the") for m in messages]
    if not any("not valid YAML" in message for message in messages):
        assert problems("r.yml") == expected


def test_the_table_is_large_and_every_code_is_explained() -> None:
    assert len(cases()) > 150
    used = {message.split()[0] for _, _, messages in cases() for message in messages}
    assert used <= set(CODES)
    rooms = Path(eutectic.recipe.__file__).parent
    raised = {code for file in rooms.glob("*.py") for code in re.findall(r'"(R\d{3})"', file.read_text("utf-8"))}
    assert raised == set(CODES)
    for title, explanation in CODES.values():
        assert title and not title.endswith(".") and explanation.endswith(".")


def test_messages_have_no_exclamation_marks_and_begin_in_lower_case() -> None:
    for _, _, messages in cases():
        for message in messages:
            assert "!" not in message.replace("!!", "").replace("'!list'", "")


def test_a_tab_is_named() -> None:
    assert problems("merge_method: linear\nmodels:\n\t- a\n") == [
        "R102 recipe:3:1: a tab cannot indent YAML; use spaces"
    ]


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\ufeff", "\ud800"])
def test_characters_that_yaml_excludes(character: str) -> None:
    assert problems(f"merge_method: linear\nmodels: [a{character}, b]\n") == [
        f"R102 recipe:2:11: the character U+{ord(character):04X} is not allowed in YAML"
    ]


def test_the_number_of_problems_is_bounded() -> None:
    assert len(problems("merge_method: linear\nmodels: [a]\n" + "".join(f"k{i}: 1\n" for i in range(5000)))) == 200


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({}, "R111 the recipe has no merge_method"),
        ({"merge_method": "linear", 1: 2}, "R106 a key must be text, not 1"),
        ({"merge_method": "linear", "models": ["a"], "parameters": {"weight": float("nan")}}, "R106 parameters.weight"),
        ({"merge_method": "linear", "models": ["a"], "seed": 2**63}, "R106 seed: must be a number smaller than 2**63"),
        ({"merge_method": "linear", "models": ["a\0"]}, "R106 models[0]: text must not contain the control character"),
        ({"merge_method": "linear", "models": ["a" * 5000]}, "R106 models[0]: text of 5000 characters"),
        ({"merge_method": "linear", "models": ["a"], "parameters": {"weight": {1}}}, "R124 parameters.weight: must be"),
        ({"merge_method": "linear", "models": ["a"], "dtype": object()}, "R112 dtype: must be one of"),
        ({"merge_method": "linear", "models": ["a", {"model": {}}]}, "R130 models[1].model: this mapping names no"),
    ],
)
def test_mistakes_in_a_dict_have_a_path(recipe: dict[str, object], message: str) -> None:
    assert problems(recipe)[0].startswith(message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("parameters.t", "R140 overrides: 'parameters.t' is not an override; write KEY=VALUE"),
        ("=1", "R140 overrides: '=1' is not an override"),
        ("a..b=1", "R140 overrides: 'a..b=1' is not an override"),
        ("parameters.weight=[1", "R140 overrides parameters.weight: the value '[1' cannot be read: not valid YAML"),
        (
            "parameters.weight={sweep:[1, 2]}",
            "R140 overrides parameters.weight: the value '{sweep:[1, 2]}' cannot be read: not valid YAML: found "
            "unexpected ':' while scanning a plain scalar from line 1; write a blank after the colon, as in "
            "{sweep: [1, 2]}",
        ),
        (
            "chat_template={{ x }}",
            "R140 overrides chat_template: the value '{{ x }}' cannot be read: a key must be text, not a mapping; put "
            "it in quotes",
        ),
        (
            "chat_template={% x %}",
            "R140 overrides chat_template: the value '{% x %}' cannot be read: not valid YAML: found character that "
            "cannot start any token while scanning for the next token from line 1; put text that begins "
            "with % in quotes",
        ),
        ("name=a\n---\nb", "R140 overrides name: the value is more than one YAML document"),
        ("models[7].parameters.weight=1", "R140 overrides models[7]: leads nowhere: models has the entries 0 to 1"),
        ("models.x=1", "R140 overrides models.x: leads nowhere: models has the entries 0 to 1"),
        ("dtype.x=1", "R140 overrides dtype.x: leads nowhere: dtype is 'float16'"),
        (
            "dtype=float61",
            "R112 overrides dtype: must be one of bfloat16, float16, float32, float64, not 'float61'; did",
        ),
        ("paramters.weight=1", "R110 overrides paramters: unknown key; did you mean 'parameters'?"),
        ("parameters.wieght=1", "R121 overrides parameters.wieght: linear has no parameter 'wieght'; did you mean"),
        (
            "parameters.normalize=yes",
            "R123 overrides parameters.normalize: must be true or false, not 'yes'; write true",
        ),
        (
            "models[1].parameters.weight=[1, x]",
            "R123 overrides models[1].parameters.weight[1]: must be a number, not 'x'",
        ),
    ],
)
def test_mistakes_in_an_override(override: str, message: str) -> None:
    (found,) = problems("merge_method: linear\nmodels: [a, b]\ndtype: float16\n", overrides=[override])
    assert found.startswith(message)


def test_an_override_into_an_empty_list() -> None:
    found = problems({"merge_method": "linear", "models": []}, overrides=["models[0]=a"])
    assert "R140 overrides models[0]: leads nowhere: models has no entries" in found


def test_files_that_are_no_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yml").write_bytes(b"merge_method: linear\nmodels: [\xff]\n")
    Path("folder.yml").mkdir()
    Path("big.yml").write_bytes(b"#" * 1_000_001)
    Path("link.yml").symlink_to("nowhere.yml")
    assert problems("recpe.yml") == ["R101 the recipe 'recpe.yml' does not exist; did you mean 'recipe.yml'?"]
    assert problems("no/such.yml") == ["R101 the recipe 'no/such.yml' does not exist; nor does the folder 'no'"]
    assert problems("recipe.yml") == [
        "R101 the recipe 'recipe.yml' cannot be read: byte 30 is not UTF-8; save it as UTF-8"
    ]
    assert problems("folder.yml") == ["R101 the recipe 'folder.yml' cannot be read: it is not a regular file"]
    assert problems("big.yml") == ["R101 the recipe 'big.yml' cannot be read: it is larger than 1000000 bytes"]
    assert problems("link.yml") == ["R101 the recipe 'link.yml' is a link to a file that does not exist"]
    assert problems("a\0.yml")[0].startswith("R101 the recipe 'a\\x00.yml' cannot be read")


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.yml")
    (found,) = problems(tmp_path / "pipe.yml")
    assert found.endswith("cannot be read: it is not a regular file")

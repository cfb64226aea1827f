"""Recipes of the shapes that stand in model cards: which run as they are, and what the others are refused with."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import eutectic
from eutectic.errors import RecipeError
from eutectic.recipe import load
from eutectic.recipe.tokenizers import TEMPLATES
from eutectic.testing import tiny_llama

TABLE = Path(__file__).with_name("cards.txt").read_text(encoding="utf-8")
ARROW = "----> "
SIZE = {"layers": 4, "hidden": 16, "intermediate": 16, "vocab": 48}
FINE_TUNES = (
    "northwind/Base-7B-Instruct",
    "hazel/Scribe-7B",
    "hazel/Coder-7B",
    "kestrel/Reason-7B",
    "kestrel/Chat-7B",
    "orchard/Chatty-7B",
    "orchard/Silent-7B",
)
# What mergekit registers, and the keys of its recipes for whole models.
METHODS = re.findall(
    r"\w+",
    """linear slerp nuslerp multislerp karcher task_arithmetic ties dare_linear dare_ties breadcrumbs breadcrumbs_ties
    della della_linear sce ram ramplus_tl model_stock nearswap arcee_fusion passthrough""",
)
KEYS = re.findall(
    r"\w+",
    "merge_method base_model models slices parameters dtype out_dtype name tokenizer_source tokenizer chat_template",
)


def cards() -> dict[str, tuple[str, list[str]]]:
    """Title → the recipe, and what comes of it: `merged`, or the codes of its problems."""
    found = {}
    for block in re.split("^#### ", TABLE, flags=re.MULTILINE)[1:]:
        title, _, rest = block.partition("\n")
        recipe, _, codes = rest.partition(ARROW)
        found[title] = recipe, codes.split()
    return found


CARDS = cards()


def change(file: Path, **keys: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and fine-tunes of it, some with chat templates, one with a token of its own, one without a tokenizer."""
    home = tmp_path_factory.mktemp("zoo")
    tiny_llama(home / "northwind/Base-7B", **SIZE)
    tiny_llama(home / "orchard/Wide-7B", **{**SIZE, "vocab": 50})
    for seed, name in enumerate(FINE_TUNES, 1):
        tiny_llama(home / name, base=home / "northwind/Base-7B", seed=seed)
    change(home / "northwind/Base-7B-Instruct/tokenizer_config.json", chat_template=TEMPLATES["llama3"])
    for name in ("kestrel/Reason-7B", "kestrel/Chat-7B"):
        change(home / name / "tokenizer_config.json", chat_template=TEMPLATES["chatml"])
    own = home / "orchard/Chatty-7B/tokenizer.json"
    words = {word: at for word, at in json.loads(own.read_text())["model"]["vocab"].items() if at < 47}
    change(own, model={"type": "WordLevel", "vocab": words | {"<|im_end|>": 47}, "unk_token": "<unk>"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (home / "orchard/Silent-7B" / name).unlink()
    return home


@pytest.mark.parametrize("title", [title for title, (_, codes) in CARDS.items() if codes == ["merged"]])
def test_it_runs_as_it_stands(title: str, zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(zoo)
    recipe = CARDS[title][0]
    done = eutectic.merge(recipe, tmp_path / "out")
    assert eutectic.verify(done.path).problems == []
    assert load(done.plan.recipe.to_dict(), methods=eutectic.methods) == done.plan.recipe
    assert eutectic.merge(recipe, tmp_path / "out").already_complete


@pytest.mark.parametrize("title", [title for title, (_, codes) in CARDS.items() if codes != ["merged"]])
def test_it_is_refused_with(title: str, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(zoo)
    with pytest.raises(RecipeError) as caught:
        eutectic.plan(CARDS[title][0])
    assert [problem.code for problem in caught.value.problems] == CARDS[title][1]


def test_the_cards_cover_every_method_and_key_that_mergekit_has_for_whole_models() -> None:
    merged = "\n".join(recipe for recipe, codes in CARDS.values() if codes == ["merged"])
    assert set(METHODS) <= set(re.findall(r"^merge_method: (\w+)", merged, re.MULTILINE))
    assert set(KEYS) <= set(re.findall(r"^(\w+):", merged, re.MULTILINE))
    assert sum(codes == ["merged"] for _, codes in CARDS.values()) >= 25

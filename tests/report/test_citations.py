"""BibTeX of what a recipe uses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import eutectic
from eutectic import methods
from eutectic.errors import RecipeError
from eutectic.methods.posts import POSTS
from eutectic.report.citations import ENTRIES


def declared() -> set[str]:
    papers = {paper for post in POSTS.values() for paper in post.papers}
    for name in methods.names():
        method = methods.get(name)
        assert method is not None
        papers |= {method.paper, *method.also}
    return papers


def test_every_paper_of_a_method_has_an_entry() -> None:
    assert declared() - ENTRIES.keys() == set()


def test_entries_are_sound() -> None:
    keys = [entry.key for entry in ENTRIES.values()]
    assert len(keys) == len(set(keys))
    for paper, entry in ENTRIES.items():
        assert re.fullmatch(r"arXiv:\d{4}\.\d{5}|doi:10\.\S+", paper)
        assert re.fullmatch(r"[a-z0-9]+", entry.key)
        # The number of an arXiv paper begins with the year and month of its first version.
        assert paper.startswith("doi:") or str(entry.year)[2:] == paper[6:8]
        assert str(entry.year) in entry.key
        for text in (entry.authors, entry.title):
            assert text.count("{") == text.count("}") and text.isascii()
        assert all("," in author or author == "others" for author in entry.authors.split(" and "))


def test_a_recipe_cites_its_method() -> None:
    found = eutectic.cite({"merge_method": "ties", "base_model": "nowhere", "models": ["no", "such"]})
    assert [one.key for one in found] == ["yadav2023ties", "eutectic"]
    assert found[0].used_by == ("ties",)
    assert found[0].bibtex.splitlines() == [
        "@misc{yadav2023ties,",
        "  author = {Yadav, Prateek and Tam, Derek and Choshen, Leshem and Raffel, Colin and Bansal, Mohit},",
        "  title = {{TIES}-Merging: Resolving Interference When Merging Models},",
        "  year = {2023},",
        "  eprint = {2306.01708},",
        "  archiveprefix = {arXiv},",
        "}",
    ]
    assert eutectic.__version__ in found[-1].bibtex


def test_models_that_are_aligned_cite_what_aligns_them() -> None:
    inner = {"merge_method": "passthrough", "models": [{"model": "b", "aligned": "perm"}]}
    found = {one.key: one for one in eutectic.cite({"merge_method": "linear", "models": ["a", {"model": inner}]})}
    assert found["ainsworth2022rebasin"].used_by == ("aligned",)


def test_recipes_within_and_steps_after() -> None:
    inner = {"merge_method": "slerp", "base_model": "x", "models": ["x", "y"], "parameters": {"t": 0.5}}
    outer = {
        "merge_method": "breadcrumbs_ties",
        "base_model": {"merge_method": "linear", "models": ["u", "v"]},
        "models": [{"model": inner}, {"model": {"merge_method": "ties", "base_model": "x", "models": ["z"]}}],
        "post": ["norm_guard", {"lines": {"beta": 0.5}}],
    }
    found = {one.paper: one for one in eutectic.cite(outer)}
    assert found["arXiv:2306.01708"].used_by == ("breadcrumbs_ties", "ties")
    assert found["arXiv:2203.05482"].used_by == ("linear",)
    assert found["arXiv:2410.17146"].used_by == ("lines",)
    assert "doi = {10.1145/325165.325242}" in found["doi:10.1145/325165.325242"].bibtex
    assert list(found)[-1] == ""


def test_a_sweep_is_cited_as_one_merge() -> None:
    swept = {"merge_method": "linear", "models": ["a", "b"], "parameters": {"weight": {"sweep": [0.2, 0.4]}}}
    assert [one.key for one in eutectic.cite(swept)] == ["wortsman2022soups", "eutectic"]


def test_a_method_from_elsewhere_is_cited_by_its_number() -> None:
    @methods.method(paper="arXiv:1234.56789", family="averages", base="ignored", elementwise=True)
    def foreign(weights):  # type: ignore[no-untyped-def]
        """Somebody's."""
        return weights.mean(0)

    try:
        found = eutectic.cite({"merge_method": "foreign", "models": ["a", "b"]})
    finally:
        methods.registry._METHODS.pop("foreign")
    assert "eprint = {1234.56789}" in found[0].bibtex and "arXiv-1234-56789" in found[0].key


def test_a_recipe_with_mistakes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="R120"):
        eutectic.cite({"merge_method": "tise", "models": ["a"]})
    with pytest.raises(RecipeError, match="R101"):
        eutectic.cite(tmp_path / "no.yml")

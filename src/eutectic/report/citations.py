"""A recipe -> BibTeX of what it uses: the papers of its methods and steps, of recipes within it, and Eutectic."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from eutectic import methods, recipe
from eutectic._version import __version__
from eutectic.errors import Problem, RecipeError, did_you_mean
from eutectic.methods.posts import POSTS
from eutectic.recipe import Recipe
from eutectic.report.again import recipe_in
from eutectic.report.verify import read_manifest


@dataclass(frozen=True, slots=True)
class Citation:
    """One entry: the id that methods declare, what uses it, the entry's key and its text."""

    paper: str
    used_by: tuple[str, ...]
    key: str
    bibtex: str


@dataclass(frozen=True, slots=True)
class Entry:
    """Bibliographic facts; `authors` as BibTeX has them, `others` for those who are not listed."""

    key: str
    authors: str
    title: str
    year: int


# Every paper that a method declares, as `paper` or `also` (a test keeps it complete). Braces keep capitals.
ENTRIES: dict[str, Entry] = {
    "arXiv:2111.09832": Entry(
        "matena2021fisher",
        "Matena, Michael and Raffel, Colin",
        "Merging Models with {F}isher-Weighted Averaging",
        2021,
    ),
    "arXiv:2212.09849": Entry(
        "jin2022regmean",
        "Jin, Xisen and Ren, Xiang and Preotiuc-Pietro, Daniel and Cheng, Pengxiang",
        "Dataless Knowledge Fusion by Merging Weights of Language Models",
        2022,
    ),
    "arXiv:2109.01903": Entry(
        "wortsman2021robust",
        "Wortsman, Mitchell and Ilharco, Gabriel and Kim, Jong Wook and Li, Mike and Kornblith, Simon and "
        "Roelofs, Rebecca and Gontijo-Lopes, Raphael and Hajishirzi, Hannaneh and Farhadi, Ali and "
        "Namkoong, Hongseok and Schmidt, Ludwig",
        "Robust fine-tuning of zero-shot models",
        2021,
    ),
    "arXiv:2203.05482": Entry(
        "wortsman2022soups",
        "Wortsman, Mitchell and Ilharco, Gabriel and Gadre, Samir Yitzhak and Roelofs, Rebecca and "
        "Gontijo-Lopes, Raphael and Morcos, Ari S. and Namkoong, Hongseok and Farhadi, Ali and Carmon, Yair "
        "and Kornblith, Simon and Schmidt, Ludwig",
        "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing inference "
        "time",
        2022,
    ),
    "arXiv:2208.05592": Entry(
        "ilharco2022patching",
        "Ilharco, Gabriel and Wortsman, Mitchell and Gadre, Samir Yitzhak and Song, Shuran and Hajishirzi, "
        "Hannaneh and Kornblith, Simon and Farhadi, Ali and Schmidt, Ludwig",
        "Patching open-vocabulary models by interpolating weights",
        2022,
    ),
    "arXiv:2209.04836": Entry(
        "ainsworth2022rebasin",
        "Ainsworth, Samuel K. and Hayase, Jonathan and Srinivasa, Siddhartha",
        "{Git Re-Basin}: Merging Models modulo Permutation Symmetries",
        2022,
    ),
    "arXiv:2212.04089": Entry(
        "ilharco2022editing",
        "Ilharco, Gabriel and Ribeiro, Marco Tulio and Wortsman, Mitchell and Gururangan, Suchin and "
        "Schmidt, Ludwig and Hajishirzi, Hannaneh and Farhadi, Ali",
        "Editing Models with Task Arithmetic",
        2022,
    ),
    "arXiv:2306.01708": Entry(
        "yadav2023ties",
        "Yadav, Prateek and Tam, Derek and Choshen, Leshem and Raffel, Colin and Bansal, Mohit",
        "{TIES}-Merging: Resolving Interference When Merging Models",
        2023,
    ),
    "arXiv:2311.03099": Entry(
        "yu2023dare",
        "Yu, Le and Yu, Bowen and Yu, Haiyang and Huang, Fei and Li, Yongbin",
        "Language Models are Super {M}ario: Absorbing Abilities from Homologous Models as a Free Lunch",
        2023,
    ),
    "arXiv:2312.06795": Entry(
        "davari2023breadcrumbs",
        "Davari, MohammadReza and Belilovsky, Eugene",
        "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks",
        2023,
    ),
    "arXiv:2403.13257": Entry(
        "goddard2024mergekit",
        "Goddard, Charles and Siriwardhana, Shamane and Ehghaghi, Malikeh and Meyers, Luke and Karpukhin, "
        "Vlad and Benedict, Brian and McQuade, Mark and Solawetz, Jacob",
        "Arcee's {MergeKit}: A Toolkit for Merging Large Language Models",
        2024,
    ),
    "arXiv:2403.19522": Entry(
        "jang2024stock",
        "Jang, Dong-Hwan and Yun, Sangdoo and Han, Dongyoon",
        "Model Stock: All we need is just a few fine-tuned models",
        2024,
    ),
    "arXiv:2405.07813": Entry(
        "wang2024localizing",
        r"Wang, Ke and Dimitriadis, Nikolaos and Ortiz-Jim{\'e}nez, Guillermo and Fleuret, Fran{\c{c}}ois "
        "and Frossard, Pascal",
        "Localizing Task Information for Improved Model Merging and Compression",
        2024,
    ),
    "arXiv:2405.17461": Entry(
        "huang2024emr",
        "Huang, Chenyu and Ye, Peng and Chen, Tao and He, Tong and Yue, Xiangyu and Ouyang, Wanli",
        "{EMR}-Merging: Tuning-Free High-Performance Model Merging",
        2024,
    ),
    "arXiv:2406.11617": Entry(
        "deep2024della",
        "Deep, Pala Tej and Bhardwaj, Rishabh and Poria, Soujanya",
        "{DELLA}-Merging: Reducing Interference in Model Merging through Magnitude-Based Sampling",
        2024,
    ),
    "arXiv:2407.06322": Entry(
        "marczak2024magmax",
        r"Marczak, Daniel and Twardowski, Bart{\l}omiej and Trzci{\'n}ski, Tomasz and Cygert, Sebastian",
        "{MagMax}: Leveraging Model Merging for Seamless Continual Learning",
        2024,
    ),
    "arXiv:2408.07990": Entry(
        "wan2024fusechat",
        "Wan, Fanqi and Zhong, Longguang and Yang, Ziyi and Chen, Ruijun and Quan, Xiaojun",
        "{FuseChat}: Knowledge Fusion of Chat Models",
        2024,
    ),
    "arXiv:2410.02396": Entry(
        "du2024parameter",
        "Du, Guodong and Lee, Junlin and Li, Jing and Jiang, Runhua and Guo, Yifei and Yu, Shuyang and Liu, "
        "Hanting and Goh, Sim Kuan and Tang, Ho-Kin and He, Daojing and Zhang, Min",
        "Parameter Competition Balancing for Model Merging",
        2024,
    ),
    "arXiv:2410.17146": Entry(
        "wang2024lines",
        r"Wang, Ke and Dimitriadis, Nikolaos and Favero, Alessandro and Ortiz-Jim{\'e}nez, Guillermo and "
        r"Fleuret, Fran{\c{c}}ois and Frossard, Pascal",
        "{LiNeS}: Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging",
        2024,
    ),
    "arXiv:2410.19735": Entry(
        "stoica2024knots",
        "Stoica, George and Ramesh, Pratik and Ecsedi, Boglarka and Choshen, Leshem and Hoffman, Judy",
        "Model merging with {SVD} to tie the {K}nots",
        2024,
    ),
    "arXiv:2412.00081": Entry(
        "gargiulo2024task",
        "Gargiulo, Antonio Andrea and Crisostomi, Donato and Bucarelli, Maria Sofia and Scardapane, Simone "
        r"and Silvestri, Fabrizio and Rodol{\`a}, Emanuele",
        "Task Singular Vectors: Reducing Task Interference in Model Merging",
        2024,
    ),
    "arXiv:2412.12153": Entry(
        "choi2024revisiting",
        "Choi, Jiho and Kim, Donggyun and Lee, Chanhyuk and Hong, Seunghoon",
        "Revisiting Weight Averaging for Model Merging",
        2024,
    ),
    "arXiv:2502.04959": Entry(
        "marczak2025isotropic",
        r"Marczak, Daniel and Magistri, Simone and Cygert, Sebastian and Twardowski, Bart{\l}omiej and "
        "Bagdanov, Andrew D. and van de Weijer, Joost",
        "No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces",
        2025,
    ),
    "arXiv:2502.10339": Entry(
        "lee2025star",
        "Lee, Yu-Ang and Ko, Ching-Yun and Pedapati, Tejaswini and Chung, I-Hsin and Yeh, Mi-Yen and Chen, Pin-Yu",
        "{STAR}: Spectral Truncation and Rescale for Model Merging",
        2025,
    ),
    "arXiv:2503.08099": Entry(
        "cheng2025whoever",
        "Cheng, Runxi and Xiong, Feng and Wei, Yongxian and Zhu, Wanyun and Yuan, Chun",
        "Whoever Started the Interference Should End It: Guiding Data-Free Model Merging via Task Vectors",
        2025,
    ),
    "arXiv:2601.13572": Entry(
        "yuan2026behavior",
        "Yuan, Xiangchi and Shi, Dachuan and Zhang, Chunhui and Liu, Zheyuan and Yao, Shenglong and "
        "Vosoughi, Soroush and Lee, Wenke",
        "Behavior Knowledge Merge in Reinforced Agentic Models",
        2026,
    ),
    "arXiv:2602.05536": Entry(
        "li2026shared",
        "Li, Yayuan and others",
        "When Shared Knowledge Hurts: Spectral Over-Accumulation in Model Merging",
        2026,
    ),
    "arXiv:2603.04972": Entry(
        "wang2026functionality",
        "Wang, Jiayu and others",
        "Functionality-Oriented {LLM} Merging on the {F}isher-{R}ao Manifold",
        2026,
    ),
    "doi:10.1145/325165.325242": Entry(
        "shoemake1985animating", "Shoemake, Ken", "Animating rotation with quaternion curves", 1985
    ),
}
EUTECTIC = "eutectic"
# Of the version.
YEAR = 2026
# What models of a recipe are aligned by.
ALIGNED = ("arXiv:2209.04836",)


def cite(source: str | os.PathLike[str] | Mapping[str, Any] | Recipe) -> list[Citation]:
    """What to cite for a recipe: each paper once, in the order of first use, then Eutectic. Opens no model.

    `source` is a path, YAML text, a dict or a `Recipe`, the folder or manifest of a finished merge, or the name of a
    method or of a step after one, if there is no file of that name. Raises `RecipeError` with every problem of the
    recipe, or for a word that is neither (X901), `CheckpointError` for a folder that holds no merge.
    """
    if isinstance(source, str) and source.isidentifier() and not os.path.exists(source):
        return [*(_citation(paper, (source,)) for paper in _papers(source)), _itself()]
    written = recipe_in(source)
    if written is source and isinstance(source, str | os.PathLike) and os.path.isdir(source):
        # It holds no merge, and this says why.
        read_manifest(os.fspath(source))
    swept = [variant.recipe for variant in recipe.load_sweep(written, methods=methods)]
    users: dict[str, list[str]] = {}
    for one in swept or [recipe.load(written, methods=methods)]:
        for user, papers in _uses(one):
            for paper in papers:
                users.setdefault(paper, []).append(user)
    found = [_citation(paper, tuple(dict.fromkeys(by))) for paper, by in users.items()]
    return [*found, _itself()]


def _papers(name: str) -> tuple[str, ...]:
    """The papers of a method or step. Raises `RecipeError` (X901) where there is none of that name."""
    if (method := methods.get(name)) is not None:
        return (method.paper, *method.also)
    if name not in POSTS:
        hint = did_you_mean(name, [*methods.names(), *POSTS]) or "name a file, or one that `eutectic methods` lists"
        raise RecipeError(Problem("X901", f"there is no recipe {name!r}, and no method of that name", hint=hint))
    return POSTS[name].papers


def _uses(written: Recipe) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every method and step of a recipe and of those within it, with their papers."""
    method = methods.get(written.method)
    assert method is not None, "the recipe was checked"
    yield method.name, (method.paper, *method.also)
    for step in written.post:
        yield step.name, POSTS[step.name].papers
    if any(entry.aligned is not None for entry in written.models):
        yield "aligned", ALIGNED
    for model in (written.base, *(entry.model for entry in written.models)):
        if isinstance(model, Recipe):
            yield from _uses(model)


def _citation(paper: str, used_by: tuple[str, ...]) -> Citation:
    kind, _, number = paper.partition(":")
    where = {"eprint": number, "archiveprefix": "arXiv"} if kind == "arXiv" else {kind: number}
    if (entry := ENTRIES.get(paper)) is None:
        # A method that somebody else made: the id is all that is known.
        key = "".join(c if c.isalnum() else "-" for c in paper)
        return Citation(paper, used_by, key, _bibtex("misc", key, {"title": f"{{{paper}}}", **where}))
    fields = {"author": entry.authors, "title": entry.title, "year": str(entry.year), **where}
    return Citation(paper, used_by, entry.key, _bibtex("misc", entry.key, fields))


def _itself() -> Citation:
    fields = {
        "author": "{The Eutectic developers}",
        "title": "{Eutectic}",
        "year": str(YEAR),
        "note": f"Version {__version__}",
    }
    return Citation("", (), EUTECTIC, _bibtex("misc", EUTECTIC, fields))


def _bibtex(kind: str, key: str, fields: dict[str, str]) -> str:
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])

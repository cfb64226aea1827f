"""Skills of a sentence encoder and how to score them: a text has to find its partner; with paired intervals."""

from __future__ import annotations

import ast
import inspect
import json
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

logging.disable_progress_bar()

HERE = Path(__file__).parent
LONGEST_BODY = 60  # words: a body is told from its rivals by its first sentences
MAX_TOKENS = 128
MODULES = """
argparse ast asyncio/base_events asyncio/streams base64 bisect calendar cmd codecs collections concurrent/futures/_base
configparser contextlib copy csv dataclasses datetime decimal difflib dis doctest email/message enum filecmp fileinput
fnmatch fractions ftplib functools gettext glob gzip heapq hmac html/parser http/client http/server imaplib
importlib/abc inspect io ipaddress json locale logging logging/handlers lzma mailbox mimetypes multiprocessing/pool
ntpath numbers optparse os pathlib pickle pkgutil platform plistlib posixpath pprint queue random re sched secrets
selectors shelve shlex shutil smtplib socket socketserver statistics string subprocess tarfile tempfile textwrap
threading timeit tkinter traceback turtle types typing unittest/case unittest/mock urllib/parse urllib/request uuid
wave weakref webbrowser xml/dom/minidom xml/etree/ElementTree zipfile zipimport
"""


@dataclass(frozen=True)
class Skill:
    """Queries, each with one right answer in a pool: query `i` belongs to `pool[i]`.

    All other entries of the pool compete with it, or, if `duels`, only `pool[i + len(queries)]`.
    """

    name: str
    queries: tuple[str, ...]
    pool: tuple[str, ...]
    duels: bool = False


def docstrings(limit: int = 300, library: Path | None = None) -> Skill:
    """General similarity: the summary line of a standard-library docstring has to find the rest of its docstring.

    Takes `limit` items at even distances from all functions, methods and classes of a fixed list of modules that have
    a docstring of at least three lines; nothing is imported. The text is the running Python's own, so the figures move
    a little between Python versions. `library` is the folder of the standard library (default: this Python's).
    """
    library = library or Path(sysconfig.get_path("stdlib"))
    items = dict(item for module in MODULES.split() for item in _items(library, module))
    unique = {body: summary for summary, body in items.items()}
    chosen = [list(unique.items())[i] for i in np.linspace(0, len(unique) - 1, min(limit, len(unique))).astype(int)]
    return Skill("similarity", tuple(summary for _, summary in chosen), tuple(body for body, _ in chosen))


def _items(library: Path, module: str) -> Iterator[tuple[str, str]]:
    files = [file for file in (library / f"{module}.py", library / module / "__init__.py") if file.is_file()]
    # A module that this Python version does not have gives nothing.
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_bytes()))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            summary, _, rest = inspect.cleandoc(ast.get_docstring(node) or "").partition("\n")
            words = rest.split()
            if rest.count("\n") >= 1 and len(words) >= 12 and len(summary.split()) >= 4:
                yield summary, " ".join(words[:LONGEST_BODY])


def operations(path: Path = HERE / "sre_pairs.json") -> tuple[Skill, Skill]:
    """The specialist's domain, site reliability engineering, as two questions on the same symptoms.

    `operations`: a symptom has to find its cause or fix among the causes of all pairs. `distractors`: the cause has to
    be nearer than a distractor that repeats the symptom's words with another meaning.
    """
    pairs = json.loads(path.read_text(encoding="utf-8"))["pairs"]
    symptoms, causes, distractors = (tuple(pair[key] for pair in pairs) for key in ("symptom", "cause", "distractor"))
    return Skill("operations", symptoms, causes), Skill("distractors", symptoms, causes + distractors, duels=True)


class Encoder:
    """A sentence encoder in a Hugging Face folder: mean of the last hidden states, normalised."""

    def __init__(self, folder: str | Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str], batch: int = 32) -> NDArray[np.float32]:
        """Unit vectors, one row a text: `(len(texts), width)`."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # equal lengths together: less padding
        rows: list[torch.Tensor] = []
        for start in range(0, len(order), batch):
            chosen = [texts[i] for i in order[start : start + batch]]
            tokens = self.tokenizer(chosen, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
            hidden = self.model(**tokens).last_hidden_state
            mask = tokens["attention_mask"].unsqueeze(-1)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            rows.append(torch.nn.functional.normalize(mean, dim=-1))
        vectors = torch.cat(rows).numpy()
        return np.asarray(vectors[np.argsort(order)])


def ranks(encoder: Encoder, skill: Skill) -> NDArray[np.int64]:
    """The place of each query's right answer among its competitors by cosine similarity: 1 is best. `(queries,)`.

    A competitor that is exactly as near counts as nearer.
    """
    similarity = encoder(skill.queries) @ encoder(skill.pool).T
    queries = np.arange(len(skill.queries))
    right = similarity[queries, queries]
    similarity[queries, queries] = -np.inf
    rivals = similarity[queries, queries + len(queries), None] if skill.duels else similarity
    return np.asarray((rivals >= right[:, None]).sum(axis=1) + 1)


def scores(encoder: Encoder, skill: Skill) -> dict[str, NDArray[np.float64]]:
    """One figure a query, whose means are the metrics: `accuracy` (of rank 1) and `mrr`, the reciprocal rank.

    A duel has no `mrr`: with one competitor it says nothing new.
    """
    rank = ranks(encoder, skill)
    accuracy = {"accuracy": (rank == 1).astype(np.float64)}
    return accuracy if skill.duels else accuracy | {"mrr": 1 / rank}


def interval(
    ours: NDArray[np.float64], base: NDArray[np.float64], resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of `mean(ours) - mean(base)` by the paired bootstrap over queries."""
    difference = ours - base
    drawn = np.random.default_rng(seed).integers(len(difference), size=(resamples, len(difference)))
    low, high = np.quantile(difference[drawn].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)

"""Text of different kinds that every Python installation has: three domains to specialise in, and one as a guard."""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Iterator
from importlib.metadata import metadata
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics

DOMAINS = ("code", "arithmetic", "documentation")
GUARD = "readmes"
TRAINING, HELD_OUT = 400_000, 80_000  # characters
README_PACKAGES = ("torch", "transformers", "numpy", "numba", "safetensors", "huggingface_hub", "rich", "typer", "tqdm")


def training(domain: str) -> str:
    """About 400,000 characters to fine-tune on; `domain` is one of `DOMAINS`."""
    return _text(domain, held_out=False)[:TRAINING]


def held_out(domain: str) -> str:
    """Up to 80,000 characters that share no file, topic or problem with `training`; also for `GUARD`.

    The guard is prose that nobody is trained on: sentences from the descriptions of installed packages.
    """
    if domain == GUARD:
        lines = "\n".join(metadata(package)["Description"] for package in README_PACKAGES).splitlines()
        prose = [line for line in lines if len(line) > 60 and not set(line) & set("<>|`{}") and "://" not in line]
        return "\n".join(prose)[:HELD_OUT]
    return _text(domain, held_out=True)[:HELD_OUT]


def _text(domain: str, held_out: bool) -> str:
    if domain == "arithmetic":
        numbers = random.Random(f"arithmetic {held_out}")
        return "\n".join(_problem(numbers, even=held_out) for _ in range(400 if held_out else 2500))
    parts: list[str | Path] = [*_sources()] if domain == "code" else [*_topics()]
    random.Random(domain).shuffle(parts)
    mine = (part for i, part in enumerate(parts) if (i % 5 == 0) == held_out)
    return "\n".join(p.read_text("utf-8", "replace") if isinstance(p, Path) else p for p in islice(mine, 60))


def _sources() -> list[Path]:
    library = Path(sysconfig.get_path("stdlib"))
    unwanted = {"test", "tests", "site-packages", "dist-packages", "pydoc_data", "encodings", "lib2to3"}
    return [path for path in sorted(library.rglob("*.py")) if not unwanted & set(path.relative_to(library).parts)]


def _topics() -> Iterator[str]:
    """The topics of `help()`, mostly the language reference, each paragraph once: some topics contain others."""
    seen: set[str] = set()
    for name in sorted(topics):
        paragraphs = [paragraph for paragraph in topics[name].split("\n\n") if paragraph.strip() not in seen]
        seen.update(paragraph.strip() for paragraph in paragraphs)
        yield "\n\n".join(paragraphs)


def _problem(numbers: random.Random, even: bool) -> str:
    """A worked word problem. Its largest part, `a`, is odd in training and even in held-out text: they share none."""
    name = numbers.choice(("Ada", "Bruno", "Chen", "Dalia", "Emil", "Farah", "Goran", "Hana"))
    thing = numbers.choice(("apples", "stamps", "marbles", "books", "tickets", "coins", "shells", "cards"))
    a, b, c = 2 * numbers.randint(10, 60) + (not even), numbers.randint(3, 12), numbers.randint(2, 9)
    kinds = (
        (
            f"{name} has {a} {thing} and buys {b} boxes with {c} {thing} each. How many {thing} are there now?",
            f"The boxes hold {b} × {c} = {b * c} {thing}. With the first ones that makes {a} + {b * c} = {a + b * c}.",
            a + b * c,
        ),
        (
            f"{name} shares {a * c} {thing} equally among {c} friends and keeps none. Each friend then gives away {b}. "
            f"How many {thing} does a friend have left?",
            f"Each friend gets {a * c} / {c} = {a} {thing}. After giving {b} away, {a} - {b} = {a - b} remain.",
            a - b,
        ),
        (
            f"Solve {c}x + {b} = {a * c + b} for x.",
            f"Subtract {b} on both sides: {c}x = {a * c}. Divide by {c}: x = {a * c} / {c} = {a}.",
            a,
        ),
        (
            f"A ticket costs {a} pounds. {name} buys {c} tickets and pays {b} pounds for parking. What is the total?",
            f"The tickets cost {c} × {a} = {c * a} pounds. With parking that is {c * a} + {b} = {c * a + b} pounds.",
            c * a + b,
        ),
    )
    question, working, answer = numbers.choice(kinds)
    return f"Question: {question}\nWorking: {working}\nAnswer: {answer}\n"

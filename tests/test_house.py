"""Rules of the house: what may be imported when, how long things may be, and what must never be called."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import eutectic
from eutectic.testing import tiny_llama

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
HEAVY = {"torch", "numba", "transformers", "safetensors", "huggingface_hub"}
# Modules that a light command may import: each costs a fraction of a millisecond on the slowest machine in use.
MODULES = 800

LONG_FILES = {
    "src/eutectic/kernels/fused.py": "one compiled function for each element type and method; they share private ones",
}
LONG_FUNCTIONS = {
    "src/eutectic/kernels/fused.py:combine_deltas": "the whole of TIES and DARE in one loop, as numba must see it",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("house")
    tiny_llama(home / "base", seed=1, layers=1)
    tiny_llama(home / "a", seed=2, base=home / "base")
    (home / "r.yml").write_text("merge_method: ties\nbase_model: base\nmodels: [a]\n")
    return home


def imported(folder: Path, *arguments: str, exit_code: int = 0) -> set[str]:
    """The modules that the command has imported by its end."""
    code = (
        "import sys\nfrom eutectic.cli.commands import app\n"
        "try:\n    app(sys.argv[1:])\nexcept SystemExit as end:\n    left = end.code or 0\n"
        "print(left, sorted(sys.modules), sep='\\n', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=folder)
    *_, left, modules = done.stderr.splitlines()
    assert (done.returncode, left) == (0, str(exit_code)), done.stderr
    return set(ast.literal_eval(modules))


@pytest.mark.parametrize(
    "arguments", ["--help", "methods", "methods ties", "plan r.yml", "explain P302", "inspect a --tensors"]
)
def test_light_commands_import_nothing_heavy(folder: Path, arguments: str) -> None:
    assert not HEAVY & imported(folder, *arguments.split())


def test_a_fused_merge_and_its_proof_import_no_torch(folder: Path) -> None:
    assert HEAVY & imported(folder, "merge", "r.yml", "out", "--quiet") == {"numba"}
    assert HEAVY & imported(folder, "verify", "out", "--quiet") == {"numba"}


def test_importing_the_package_imports_nothing() -> None:
    code = "import sys; before = set(sys.modules); import eutectic; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = {name.partition(".")[0] for name in ast.literal_eval(done.stdout)}
    assert imported <= {"eutectic", *sys.stdlib_module_names}


def test_mistakes_are_answered_at_once(folder: Path) -> None:
    (folder / "wrong.yml").write_text("merge_method: tise\nbase_modl: base\nmodels: [a]\n")
    modules = imported(folder, "plan", "wrong.yml", exit_code=2)
    # What a command takes before its first word is the import of modules: counted, as the clock hears of other work.
    assert not HEAVY & modules and len(modules) < MODULES


def test_no_network() -> None:
    import socket

    with socket.socket() as sock, pytest.raises(OSError, match="tests use no network"):
        sock.connect(("127.0.0.1", 9))


def test_imports_go_one_way() -> None:
    command = Path(sys.executable).with_name("lint-imports")
    if not command.exists():
        pytest.skip("import-linter is not installed")
    done = subprocess.run([command, "--no-cache"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def public_things() -> Iterator[tuple[str, object]]:
    """Every public module, function, class and method that the package defines."""
    for found in pkgutil.walk_packages(eutectic.__path__, "eutectic."):
        if found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        yield found.name, module
        for name, thing in vars(module).items():
            if name.startswith("_") or getattr(thing, "__module__", None) != found.name:
                continue
            if inspect.isfunction(thing) or inspect.isclass(thing):
                yield f"{found.name}.{name}", thing
            if inspect.isclass(thing):
                yield from methods_of(f"{found.name}.{name}", thing)


def methods_of(path: str, owner: type) -> Iterator[tuple[str, object]]:
    """Public methods that a class has of its own; those that override have their base's words."""
    for name, thing in vars(owner).items():
        inherited = any(hasattr(base, name) for base in owner.__mro__[1:])
        if not name.startswith("_") and not inherited and (inspect.isfunction(thing) or isinstance(thing, property)):
            yield f"{path}.{name}", thing


def test_everything_public_has_a_docstring() -> None:
    bare = [path for path, thing in public_things() if not (inspect.getdoc(thing) or "").strip()]
    assert bare == []


def test_files_and_functions_are_short() -> None:
    long_files, long_functions = [], []
    for source in SOURCES:
        path = source.relative_to(ROOT).as_posix()
        text = source.read_text()
        if len(text.splitlines()) > 400:
            long_files.append(path)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno >= 60:
                    long_functions.append(f"{path}:{node.name}")
    assert set(long_files) <= LONG_FILES.keys()
    assert set(long_functions) <= LONG_FUNCTIONS.keys()


def test_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == eutectic.__version__
    from importlib.metadata import version

    assert version("eutectic") == eutectic.__version__


# call → the files that may have it.
FORBIDDEN = {
    r"\bpickle\.(load|loads|Unpickler)\b": set[str](),
    r"\btorch\.load\(": set[str](),
    r"(?<![.\w])eval\(": {
        "src/eutectic/methods/registry.py",  # annotations of a method's own parameters
        "src/eutectic/kernels/fused.py",  # arithmetic written out for so many models; takes numbers, no text
    },
    r"(?<![.\w])exec\(": set[str](),
    r"\byaml\.(load|unsafe_load|full_load)\(": set[str](),
    r"\btrust_remote_code\s*=": set[str](),
    r"\bmmap\b": set[str](),
    r"\bshell=True\b": set[str](),
}


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_what_is_never_called(pattern: str) -> None:
    found = {path.relative_to(ROOT).as_posix() for path in SOURCES if re.search(pattern, code_of(path))}
    assert found <= FORBIDDEN[pattern]


def code_of(path: Path) -> str:
    """The file without its strings and comments."""
    import io
    import tokenize

    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    kept = [t for t in tokens if t.type not in (tokenize.COMMENT, tokenize.STRING)]
    lines: dict[int, list[str]] = {}
    for token in kept:
        row = lines.setdefault(token.start[0], [])
        gap = token.start[1] - len("".join(row))
        row.append(" " * gap + token.string.rstrip("\n"))
    return "\n".join("".join(row) for row in lines.values())

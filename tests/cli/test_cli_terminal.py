"""The command as a process: pipes that break, terminals that are narrow or none, names that would draw on them."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commanding import Run
from rich.cells import cell_len

from eutectic.testing import write_safetensors

COMMAND = [sys.executable, "-m", "eutectic"]


def shell(text: str, **more: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHON": sys.executable, **more}
    return subprocess.run(["bash", "-c", text], capture_output=True, env=environment, timeout=600)


@pytest.mark.parametrize("options", ["", "--json"])
def test_a_reader_that_goes_away(here: Path, options: str) -> None:
    done = shell(f"set -o pipefail; $PYTHON -m eutectic plan r.yml --tensors {options} | head -1")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"\n") == 1


def test_a_merge_goes_on_without_a_reader(here: Path) -> None:
    done = shell("set -o pipefail; $PYTHON -m eutectic merge r.yml out | true")
    assert (done.returncode, done.stderr) == (0, b"")
    assert (here / "out" / "eutectic.json").exists()


@pytest.mark.parametrize("command", ["plan r.yml", "explain W408 --json", "--help", "--version"])
@pytest.mark.parametrize("closed", [">/dev/full", ">&-"])
def test_what_cannot_be_said_is_said_once(here: Path, command: str, closed: str) -> None:
    done = shell(f"$PYTHON -m eutectic {command} {closed}", PYTHONIOENCODING="utf-8")
    assert done.returncode == 1
    first, second = done.stderr.decode().splitlines()
    assert first.startswith("error W408 standard output cannot be written: ") and second.lstrip().startswith("→")


@pytest.mark.parametrize("closed", [">/dev/full", "2>&- >&-"])
def test_a_merge_is_not_lost_for_its_words(here: Path, closed: str) -> None:
    done = shell(f"$PYTHON -m eutectic merge r.yml out {closed}")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.count(b"\n") == (0 if "2>" in closed else 2)
    assert shell("$PYTHON -m eutectic verify out").returncode == 0


def test_errors_that_cannot_be_said_keep_their_number(here: Path) -> None:
    assert shell("$PYTHON -m eutectic plan none.yml --json >/dev/full 2>/dev/full").returncode == 2


def test_an_early_interrupt_is_silent(here: Path) -> None:
    # What runs in the background has inherited that Ctrl-C is ignored.
    hook = (
        "import builtins, os, signal, sys\nplain = builtins.__import__\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def slow(name, *rest):\n    if name == 'typer':\n        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return plain(name, *rest)\n"
        "builtins.__import__ = slow\nsys.argv[1:] = ['plan', 'r.yml']\nfrom eutectic.cli import main\nmain()\n"
    )
    (here / "hook.py").write_text(hook)
    done = shell("$PYTHON hook.py")
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def on_terminal(*arguments: str, **environment: str) -> bytes:
    """What a pseudo-terminal gets."""
    parent, child = pty.openpty()
    merged = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **environment}
    process = subprocess.Popen([*COMMAND, *arguments], stdout=child, stderr=child, env=merged)
    os.close(child)
    text = b""
    while True:
        try:
            part = os.read(parent, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        text += part
    os.close(parent)
    assert process.wait() == 0
    return text


def test_colours_go_to_terminals_only(here: Path) -> None:
    assert b"\x1b[" in on_terminal("plan", "r.yml")
    assert b"\x1b[3" not in on_terminal("plan", "r.yml", NO_COLOR="1")
    assert b"\x1b" not in shell("$PYTHON -m eutectic plan r.yml").stdout


def test_a_bar_is_for_terminals_only(here: Path) -> None:
    assert b"merging" in on_terminal("merge", "r.yml", "out")
    assert b"verifying" in on_terminal("verify", "out")
    assert b"merging" not in on_terminal("merge", "dare.yml", "quiet", "--quiet")
    done = shell("$PYTHON -m eutectic merge dare.yml none")
    assert done.stderr == b"" and b"merging" not in done.stdout


@pytest.mark.parametrize("columns", ["20", "40", "400"])
def test_narrow_terminals(run: Run, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    # A terminal for rich, without colours.
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "dumb"), ("COLUMNS", columns), ("LINES", "25")):
        monkeypatch.setenv(name, value)
    for command in (["plan", "r.yml", "--tensors"], ["inspect", "a", "--tensors"], ["methods"], ["methods", "ties"]):
        result = run(*command)
        assert result.exit_code == 0
        assert max(map(cell_len, result.stdout.splitlines())) <= int(columns)
    # Messages are left to the terminal, so that they can be copied.
    assert "R101 the recipe 'none.yml' does not exist" in run("plan", "none.yml").stderr


@pytest.mark.parametrize("command", ["plan m.yml --tensors", "inspect x.safetensors --tensors"])
def test_a_row_in_a_pipe_is_one_line(here: Path, command: str) -> None:
    name = "long." * 60 + "weight"
    for label in "xy":
        write_safetensors(here / f"{label}.safetensors", {name: torch.ones(2)})
    (here / "m.yml").write_text("merge_method: linear\nmodels: [x.safetensors, y.safetensors]\n")
    rows = shell(f"$PYTHON -m eutectic {command}", COLUMNS="80").stdout.decode().splitlines()
    assert [row.split()[1:3] for row in rows if row.startswith(name)] == [["float32", "[2]"]]


@pytest.mark.parametrize(("columns", "most"), [("40", 40), ("400", 100), ("", 100), ("wide", 100)])
def test_pages_keep_to_columns_in_a_pipe_too(
    run: Run, monkeypatch: pytest.MonkeyPatch, columns: str, most: int
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    lengths = [len(line.rstrip()) for line in run("explain", "W408").stdout.splitlines()]
    assert most - 20 < max(lengths) <= most


def test_an_ascii_terminal(here: Path) -> None:
    done = shell("$PYTHON -m eutectic plan none.yml", PYTHONIOENCODING="ascii", COLUMNS="80")
    assert done.returncode == 2 and b"Traceback" not in done.stderr
    (here / "ä.yml").write_text("merge_method: linear\nmodels: [ö, b]\n")
    done = shell("$PYTHON -m eutectic plan ä.yml", PYTHONIOENCODING="ascii", COLUMNS="80")
    assert done.returncode == 1 and b"Traceback" not in done.stderr
    assert b"C200" in done.stderr


NAMES = ["w[red]x[/red]", "w[/]", "[bold", "w\\", ":warning:", "w[link=file:///etc/passwd]here[/link]", "тензор.重み"]


def test_markup_in_names_is_text(run: Run, here: Path) -> None:
    for label in "xy":
        write_safetensors(here / f"{label}.safetensors", {name: torch.ones(2) for name in NAMES})
    (here / "m.yml").write_text("merge_method: linear\nmodels: [x.safetensors, y.safetensors]\n")
    for command in (["inspect", "x.safetensors", "--tensors"], ["plan", "m.yml", "--tensors"]):
        result = run(*command)
        assert result.exit_code == 0
        for name in NAMES:
            assert name in result.stdout
    assert run("merge", "m.yml", "out").exit_code == 0
    assert json.loads(run("inspect", "out", "--json").stdout)["tensors"].keys() == set(NAMES)


FILES = [
    "a[red]b",
    "a\x1b[31mb",
    "a\nerror",
    "a\rb",
    "a\x07",
    "a\u202eb",
    "a\u200bb",
    b"a\xff".decode("utf-8", "surrogateescape"),
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("command", ["inspect", "plan", "verify"])
def test_file_names_cannot_draw(run: Run, here: Path, name: str, command: str) -> None:
    (here / name).mkdir()
    result = run(command, name)
    assert result.exit_code in (1, 2)
    assert all(c.isprintable() or c == "\n" for c in result.output)
    # The escape stands there instead, and no line begins with what the name would forge.
    assert not any(line.startswith("error'") or line == "error" for line in result.stderr.splitlines())
    json.loads(run(command, name, "--json").stdout)


def test_a_model_with_a_name_that_draws_can_be_merged(run: Run, here: Path) -> None:
    name = "a\x1b[31m[bold]\n:fire:"
    os.rename(here / "a", here / name)
    (here / "m.json").write_text(json.dumps({"merge_method": "linear", "models": ["folder", "b"]}))
    os.symlink(name, here / "folder")
    assert run("merge", "m.json", "out[b]").exit_code == 0
    result = run("inspect", name)
    assert result.exit_code == 0 and "\x1b" not in result.stdout
    assert "a\\x1b[31m[bold]\\n:fire:" in result.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_with_their_number(here: Path, number: signal.Signals) -> None:
    code = (
        "import os, sys, eutectic.cli, eutectic.run.engine as engine\n"
        "run = engine.Engine.run\n"
        f"def stopped(self):\n    os.kill(os.getpid(), {int(number)})\n    return run(self)\n"
        "engine.Engine.run = stopped\n"
        "sys.argv[1:] = ['merge', 'r.yml', 'out']\neutectic.cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 128 + number
    assert "W407" in done.stderr and "the same command resumes" in done.stderr
    assert not (here / "out").exists()
    again = subprocess.run([*COMMAND, "merge", "r.yml", "out", "-q"], capture_output=True, timeout=600)
    assert (again.returncode, again.stdout, again.stderr) == (0, b"", b"")

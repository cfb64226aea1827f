"""Paths as the operating system reads them: `..` after a link is not the folder that the link stands in."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable

from eutectic.errors import did_you_mean


def collapsed(path: str) -> str:
    """`./a/b/../c` → `a/c`; a path that would lead elsewhere by that, as `b` is a link, stays as it is."""
    plain = os.path.normpath(path)
    if os.pardir not in path.split(os.sep) or os.path.realpath(plain) == os.path.realpath(path):
        return plain
    return path


def folder_name(given: object) -> str | None:
    """The path as text, or None for what can name no folder."""
    path = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    return path if isinstance(path, str) and path and "\0" not in path else None


def near_file(path: str) -> str:
    """A hint at a file of a similar name in the same folder, or nothing."""
    folder, name = os.path.split(os.path.expanduser(path))
    try:
        return did_you_mean(name, (one for one in os.listdir(folder or os.curdir) if one != name))
    except (OSError, ValueError):
        return ""


def near_path(written: str, bases: Iterable[str], among: Callable[[str], Iterable[str]] = os.listdir, /) -> str:
    """A hint at a path that differs a little from the one written, in case or letters of its last part, or nothing.

    Args:
        written: what leads nowhere.
        bases: the folders from which it was looked for; the first that has something near wins.
        among: what may be meant in a folder; raises `OSError` where there is none.
    """
    parent, name = os.path.split(written.rstrip(os.sep))
    for base in bases:
        try:
            found = among(os.path.join(base, os.path.expanduser(parent)) or os.curdir)
        except OSError:
            continue
        by_lower = {one.lower(): os.path.join(parent, one) for one in found if one != name}
        if near := difflib.get_close_matches(name.lower(), by_lower, n=1):
            return f"did you mean {by_lower[near[0]]!r}?"
    return ""


def absolute(path: str) -> str:
    """The path from the root, its last part a name."""
    found = collapsed(os.path.join(os.getcwd(), path))
    return os.path.realpath(found) if os.path.basename(found) in ("", os.pardir) else found

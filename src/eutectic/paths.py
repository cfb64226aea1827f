"""Paths as the operating system reads them: `..` after a link is not the folder that the link stands in."""

from __future__ import annotations

import os

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


def absolute(path: str) -> str:
    """The path from the root, its last part a name."""
    found = collapsed(os.path.join(os.getcwd(), path))
    return os.path.realpath(found) if os.path.basename(found) in ("", os.pardir) else found

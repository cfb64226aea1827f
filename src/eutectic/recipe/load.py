"""Loading: a path, YAML text, a dict or a `Recipe` → checked recipes, with the recipes inside them."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from eutectic.errors import Problem, RecipeError, did_you_mean
from eutectic.recipe.compose import compose
from eutectic.recipe.located import OVER, Document, Faults, Node, Place, shown
from eutectic.recipe.model import Recipe, rebased
from eutectic.recipe.overrides import override
from eutectic.recipe.parse import read_recipe
from eutectic.recipe.plain import from_python
from eutectic.recipe.references import Context, shadowed
from eutectic.recipe.schema import MethodTable
from eutectic.recipe.sweep import axes_of, variants_of

MAX_BYTES = 1_000_000
MAX_RECIPES = 100
MAX_RECIPE_DEPTH = 20
# Of a sweep's folders: file systems take 255 bytes, and `.partial` is added while one is made.
MAX_LABEL = 200
_SUFFIXES = (".yml", ".yaml", ".json")
_NO_RECIPE = "a recipe is a YAML file; `eutectic inspect` shows what a model holds"


def load(
    source: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    *,
    overrides: Sequence[str] = (),
    methods: MethodTable,
) -> Recipe:
    """Reads and checks a recipe. Opens recipe files only, never weights.

    `source` is a path, YAML text (anything with a line break that is no path), a dict, which may hold live modules,
    mappings of tensors, sources and recipes where a model is expected, or a `Recipe`. `overrides` are `KEY=VALUE`
    changes to it (`parameters.t=0.4`). `methods` is the table of methods: the module `eutectic.methods`.

    Raises `RecipeError` with every problem found.
    """
    sheet, final = _opened(source, overrides, methods)
    session = sheet.session
    axes = axes_of(final, Faults())
    for axis in axes:
        message = "is swept, which is not one merge but several"
        session.faults.add("R128", final.place(axis.trail), message, "use `eutectic merge` or `eutectic.sweep`")
    recipe = None if axes else sheet.read(final, Node(final, final.data).place)
    if recipe is None or session.faults:
        raise session.faults.error()
    return _kept(source, recipe) if isinstance(source, Recipe) else recipe


@dataclass(frozen=True, slots=True)
class Variant:
    """One merge of a sweep: the name of its folder, the value of each swept parameter by path, and its recipe."""

    label: str
    choices: Mapping[str, Any]
    recipe: Recipe


def load_sweep(
    source: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    *,
    overrides: Sequence[str] = (),
    over: Sequence[str] = (),
    methods: MethodTable,
) -> list[Variant]:
    """As `load`, for a recipe in which parameters have `{sweep: [...]}` for a value: one recipe for each combination.

    `over` are changes like `overrides`, after them, that make sweeps; problems call them so. Without a sweep the list
    is empty.
    """
    sheet, final = _opened(source, overrides, methods)
    override(final, over, sheet.session.faults, OVER)
    name = final.data.get("merge_method") if isinstance(final.data, dict) else None
    known = methods.get(name) if isinstance(name, str) else None
    axes = axes_of(final, sheet.session.faults, () if known is None else known.params)
    if sheet.session.faults:
        raise sheet.session.faults.error()
    found, faults = [], Faults()
    for label, choices, document in variants_of(final, axes) if axes else ():
        # Faults of its own: a problem that an earlier merge has as well must stop this one too.
        session = _Session(methods)
        documents = [document if one is final else one for one in sheet.documents]
        again = _Sheet(session, documents, sheet.file, sheet.folder)
        last = again.final()
        recipe = again.read(last, Node(last, last.data).place) if last is not None else None
        if recipe is not None:
            found.append(Variant(label, choices, recipe))
        # Models that are absent are no problem by themselves: who opens them will tell.
        faults.extend(session.faults.error().problems if session.faults else ())
        if len(label.encode()) > MAX_LABEL:
            hint = "sweep fewer parameters at once"
            faults.add("R128", final.place(axes[-1].trail), "the folders' names would be too long", hint)
            break
    if faults:
        raise faults.error()
    return found


def _opened(source: Any, overrides: Sequence[str], methods: MethodTable) -> tuple[_Sheet, Document]:
    """The sheet of a source and its final document, with the overrides in it."""
    session = _Session(methods)
    if isinstance(source, Recipe):
        sheet = _Sheet(session, [from_python(source.with_live_objects())], source.file, source.folder)
    elif isinstance(source, Mapping):
        sheet = _Sheet(session, [from_python(source)])
    elif isinstance(source, str | os.PathLike):
        sheet = _from_text(os.fspath(source), session)
    else:
        kind = type(source).__name__
        raise RecipeError(Problem("R101", f"a {kind} is no recipe", hint="give a path, YAML text, a dict or a Recipe"))
    final = sheet.final()
    if final is None:
        raise session.faults.error()
    override(final, overrides, session.faults)
    return sheet, final


def _kept(recipe: Recipe, fresh: Recipe) -> Recipe:
    """`fresh`, made from `recipe` and overrides, with what only the first reading knew."""
    if fresh == recipe:
        return recipe
    places = {**recipe.places, **fresh.places}
    return replace(fresh, places=places, notes=tuple(dict.fromkeys((*recipe.notes, *fresh.notes))))


def _from_text(source: str, session: _Session) -> _Sheet:
    if "\n" in source and not os.path.isfile(source):
        return _Sheet(session, compose(source, faults=session.faults))
    text = read_text(source, Place("", None, None, ""))
    return _Sheet(session, compose(text, source, session.faults), source, os.path.dirname(source) or os.curdir)


def read_text(path: str, place: Place) -> str:
    """The text of a recipe file; `place` is where the file is named. Raises `RecipeError` if it cannot be read."""
    message, hint = f"the recipe {shown(path)} cannot be read", ""
    try:
        with open(path, "rb", opener=_open_regular) as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES} bytes")
        text = raw.decode("utf-8")
    except FileNotFoundError:
        message, hint = f"the recipe {shown(path)} does not exist", _neighbour(path)
        if os.path.islink(path):
            message, hint = f"the recipe {shown(path)} is a link to a file that does not exist", ""
    except UnicodeDecodeError as error:
        message += f": byte {error.start} is not UTF-8"
        hint = "save it as UTF-8" if path.lower().endswith(_SUFFIXES) else _NO_RECIPE
    except (OSError, ValueError) as error:
        message += f": {(error.strerror if isinstance(error, OSError) else None) or error}"
        hint = _NO_RECIPE if os.path.isdir(path) and not path.lower().endswith(_SUFFIXES) else ""
    else:
        # JSON may be indented with tabs, which YAML refuses.
        return text.replace("\t", " ") if path.lower().endswith(".json") else text
    raise RecipeError(Problem("R101", message, place.path, hint, place.file, place.line, place.column))


def _open_regular(path: str, flags: int) -> int:
    """Opens without waiting for the other end of a pipe; raises `OSError` for anything but a regular file."""
    handle = os.open(path, flags | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    raise OSError("it is not a regular file")


def _neighbour(path: str) -> str:
    folder, name = os.path.split(path)
    try:
        names = os.listdir(folder or os.curdir)
    except (OSError, ValueError):
        return f"nor does the folder {shown(folder)}"
    return did_you_mean(name, names)


@dataclass
class _Session:
    """What all files of one `load` share.

    `done` remembers a recipe and how many it holds, itself included; `sheets` a file by its real path, None if it
    could not be read; `count` is the number of recipes so far and `depth` how many are being read.
    """

    methods: MethodTable
    faults: Faults = field(default_factory=Faults)
    open: list[tuple[str, str]] = field(default_factory=list)
    done: dict[tuple[str, str], tuple[Recipe | None, int]] = field(default_factory=dict)
    sheets: dict[str, _Sheet | None] = field(default_factory=dict)
    count: int = 0
    depth: int = 0


class _Sheet:
    """One file, text or dict: its documents, and how recipes inside them are found."""

    def __init__(
        self, session: _Session, documents: list[Document], file: str | None = None, folder: str | None = None
    ) -> None:
        self.session = session
        self.file = file
        self.folder = folder
        self.documents = documents
        self.key = os.path.realpath(file) if file is not None else ""
        self.named: dict[str, Document] = {}
        self._final: Document | None = None

    def fault(self, code: str, place: Place, message: str, hint: str = "") -> None:
        self.session.faults.add(code, place, message, hint)

    def final(self) -> Document | None:
        """The document that is the result; None, and a problem, if there is none."""
        if self._final is None:
            self._final = self._find_final()
        return self._final

    def _find_final(self) -> Document | None:
        if not self.documents:
            self.fault("R107", Place(self.file or "", None, None, ""), "the recipe is empty")
            return None
        if len(self.documents) == 1:
            return self.documents[0]
        unnamed = []
        for document in self.documents:
            name = Node(document, document.data).get("name")
            if name is None or not isinstance(name.data, str):
                unnamed.append(document)
            elif name.data in self.named:
                self.fault("R107", name.place, f"two documents have the name {shown(name.data)}", "rename one")
            else:
                self.named[name.data] = document
        for document in unnamed[1:]:
            hint = "give all but one a `name:`, by which others refer to them"
            self.fault("R107", document.place(()), "a second document without a name", hint)
        return unnamed[0] if unnamed else self.documents[-1]

    def read(self, final: Document, place: Place) -> Recipe | None:
        """The final recipe, asked for at `place`; the documents that it does not use are checked as well."""
        name = next((name for name, document in self.named.items() if document is final), "")
        recipe = self.enter((self.key, name), Node(final, final.data), place)
        unused = []
        for other, document in self.named.items():
            if document is not final and (self.key, other) not in self.session.done:
                self.enter((self.key, other), Node(document, document.data), document.place(()))
                unused.append(f"the document {other!r} is used by no other")
        return replace(recipe, notes=(*recipe.notes, *unused)) if recipe is not None and unused else recipe

    def enter(self, key: tuple[str, str], root: Node, place: Place) -> Recipe | None:
        """Reads a recipe once; `place` is where it was asked for."""
        session = self.session
        if key in session.open:
            circle = " -> ".join(name or os.path.basename(file) or "recipe" for file, name in [*session.open, key])
            self.fault("R108", place, f"the recipe contains itself: {circle}", "break the circle")
            return None
        if key in session.done:
            recipe, size = session.done[key]
            session.count += size
            return None if self.too_many(place) else recipe
        before = session.count
        session.open.append(key)
        recipe = self.descend(root, place)
        session.open.pop()
        session.done[key] = (recipe, session.count - before)
        return recipe

    def descend(self, root: Node, place: Place) -> Recipe | None:
        """Reads the recipe at `root`, within the limits on recipes inside recipes."""
        session = self.session
        session.count += 1
        if self.too_many(place):
            return None
        session.depth += 1
        context = Context(session.methods, session.faults, self, self.file, self.folder, self.named)
        recipe = read_recipe(root, context)
        session.depth -= 1
        return None if recipe is None else replace(recipe, notes=(*recipe.notes, *shadowed(recipe)))

    def too_many(self, place: Place) -> bool:
        """True, and a problem, beyond the limits on recipes inside recipes."""
        if self.session.count > MAX_RECIPES:
            self.fault("R105", place, f"more than {MAX_RECIPES} recipes inside one another")
        elif self.session.depth >= MAX_RECIPE_DEPTH:
            self.fault("R105", place, f"recipes inside one another more than {MAX_RECIPE_DEPTH} deep")
        else:
            return False
        return True

    def include(self, path: str, node: Node) -> Recipe | None:
        """The recipe in another file, its path relative to this one's folder."""
        full = path if self.folder in (None, os.curdir) else os.path.join(str(self.folder), path)
        key, sheets = os.path.realpath(full), self.session.sheets
        if key == self.key:
            sheets[key] = self
        elif key not in sheets:
            sheets[key] = self.opened(full, node.place)
        sheet = sheets[key]
        final = sheet.final() if sheet is not None else None
        if sheet is None or final is None:
            return None
        recipe = sheet.read(final, node.place)
        return None if recipe is None else rebased(recipe, self.folder)

    def opened(self, path: str, place: Place) -> _Sheet | None:
        """The sheet of a file that is named at `place`; None after a problem."""
        try:
            documents = compose(read_text(path, place), path, self.session.faults)
        except RecipeError as error:
            self.session.faults.extend(error.problems)
            return None
        return _Sheet(self.session, documents, path, os.path.dirname(path) or os.curdir)

    def document(self, name: str, node: Node) -> Recipe | None:
        """The document of that name in this file."""
        target = self.named[name]
        return self.enter((self.key, name), Node(target, target.data), node.place)

    def inline(self, node: Node) -> Recipe | None:
        """The recipe written in place of a model."""
        return self.descend(node, node.place)

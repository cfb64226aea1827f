"""What lies beside the weights: config, tokenizer and generation files, copied as data, never loaded or run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from eutectic.checkpoint.extents import unreadable
from eutectic.checkpoint.folder import inside
from eutectic.checkpoint.source import Spec
from eutectic.checkpoint.storage import REAL, Storage
from eutectic.checkpoint.templates import CONFIG, NAMED_TEMPLATES, named_templates, with_template
from eutectic.checkpoint.tied import HEAD, embedding_of_head
from eutectic.checkpoint.vocabulary import json_of, json_text
from eutectic.errors import CheckpointError, Problem, listed

_OF_TOKENIZERS = (".model", ".tiktoken", ".vocab", ".spm", ".bpe")
_SUFFIXES = (".json", ".txt", ".jinja", *_OF_TOKENIZERS)
_LICENCES = ("license", "notice", "usage_policy", "use_policy")
_TOKENIZER = (
    "tokeniz",
    "tekken",
    "special_tokens",
    "added_tokens",
    "vocab",
    "merges",
    "chat_template",
    "spiece",
    "sentencepiece",
)
_LIMIT = 256 << 20
# Weight indexes and training state say things that are not true of a merge.
_NEVER = (".index.json", "trainer_state.json", "training_args.json", "eutectic.json", "all_results.json")


@dataclass
class Companions:
    """Files for the output (relative name → bytes) and what the user should be told about them."""

    files: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def companions(
    folder: str | None,
    dtype: str | None,
    tokenizer_folder: str | None = None,
    storage: Storage = REAL,
    *,
    specs: Mapping[str, Spec] | None = None,
    chat_template: str | None = None,
) -> Companions:
    """The files of `folder` (and its direct subfolders) that belong to a model, with `dtype` corrected in config.json.

    Args:
        folder: the donor's; None copies nothing but the tokenizer.
        dtype: the output's floating dtype if it has one, for `torch_dtype` and `dtype` in config.json.
        tokenizer_folder: where tokenizer files come from instead.
        storage: the file system.
        specs: the output's tensors, by which ties are corrected.
        chat_template: a Jinja text that the tokenizer gets in place of its own; never run.

    Raises `CheckpointError` (C221) for a file that cannot be read, or cannot hold a template.
    """
    found = Companions()
    model = "" if folder is None else os.path.basename(os.path.normpath(folder))
    apart = tokenizer_folder is not None and tokenizer_folder != folder
    if folder is None:
        lacking = "config" if apart else "config or tokenizer"
        found.notes.append(f"no {lacking} files: the weights do not come from a model folder")
    else:
        _gather(found, folder, storage, lambda name: not (apart and _is_tokenizer(name)))
        if "config.json" not in found.files:
            lost = "transformers will not load the output by itself"
            found.notes.append(f"no config.json beside {model}'s weights: {lost}")
    if apart:
        _gather(found, str(tokenizer_folder), storage, _is_tokenizer)
    if "config.json" in found.files:
        found.files["config.json"] = _corrected(found, dtype, specs or {}, model)
    if chat_template is not None:
        _refuse_config(found.files, tokenizer_folder or folder)
        if left := named_templates(found.files):
            found.notes.append(f"chat_template is the only one: templates with names are left out ({listed(left)})")
        found.files = with_template(found.files, chat_template)
    return found


def files_named(folder: str | None, names: Iterable[str], label: str, storage: Storage = REAL) -> dict[str, bytes]:
    """Those of the files that a model's folder has; none without a folder.

    Raises `CheckpointError` for a file that cannot be read (C221) or that a link leads out of the folder (C208).
    """
    found = {}
    for name in files_there(folder, names, label, storage):
        path = inside(str(folder), name, label)
        try:
            found[name] = storage.read_bytes(path, _LIMIT)
        except OSError as error:
            raise unreadable(error, os.path.join(str(folder), name), label) from error
    return found


def files_there(folder: str | None, names: Iterable[str], label: str, storage: Storage = REAL) -> list[str]:
    """The names of those. Raises `CheckpointError` (C221) where the folder cannot be looked into."""
    try:
        return [name for name in names if folder is not None and storage.exists(os.path.join(folder, name))]
    except OSError as error:
        raise unreadable(error, str(folder), label) from error


def _refuse_config(files: Mapping[str, bytes], folder: str | None) -> None:
    """A plan has looked already, but files change, and JSON that is nested deep is read where the stack allows it."""
    if not isinstance(json_of(files.get(CONFIG, b"{}")), dict):
        message = f"{CONFIG} is no valid JSON object and can hold no chat template"
        raise CheckpointError(Problem("C221", message, hint="mend it", file=os.path.join(folder or "", CONFIG)))


def has_tokenizer(folder: str | None, storage: Storage = REAL) -> bool:
    """Whether a model has files that are copied as its tokenizer. Raises `CheckpointError` as `companions` does."""
    found = Companions()
    if folder is not None:
        _gather(found, folder, storage, _is_tokenizer)
    return bool(found.files)


def _is_tokenizer(name: str) -> bool:
    low = os.path.basename(name).lower()
    return low.startswith(_TOKENIZER) or low.endswith(_OF_TOKENIZERS) or name.startswith(NAMED_TEMPLATES)


def _gather(found: Companions, folder: str, storage: Storage, takes: Callable[[str], bool]) -> None:
    try:
        _collect(found, folder, "", storage, takes)
    except OSError as error:
        raise unreadable(error, error.filename or folder, os.path.basename(folder)) from error


def _collect(found: Companions, home: str, prefix: str, storage: Storage, takes: Callable[[str], bool]) -> None:
    """Takes the files in the subfolder `prefix` of the model's folder; one that links lead out of it is refused."""
    code = []
    for name in storage.listdir(os.path.join(home, prefix)):
        path = os.path.join(home, prefix, name)
        if os.path.isdir(path):
            if not prefix and not name.startswith(".") and not name.startswith("checkpoint-"):
                _collect(found, home, f"{name}/", storage, takes)
            continue
        if not takes(prefix + name):
            continue
        low = name.lower()
        if low.endswith(".py"):
            code.append(prefix + name)
        wanted = low.endswith(_SUFFIXES) or low.startswith(_LICENCES)
        if not wanted or low.endswith(_NEVER) or low.startswith("."):
            continue
        if prefix and not low.endswith((".json", ".txt", ".model")) and prefix != NAMED_TEMPLATES:
            continue
        inside(home, prefix + name, os.path.basename(home))
        if storage.stat_path(path).st_size > _LIMIT:
            found.notes.append(f"{prefix}{name} is larger than {_LIMIT >> 20} MiB and was not copied")
            continue
        found.files[prefix + name] = storage.read_bytes(path, _LIMIT)
    if code:
        found.notes.append(
            f"Python files are never copied ({', '.join(code)}); the model may need them from its source"
        )


def _corrected(found: Companions, dtype: str | None, specs: Mapping[str, Spec], model: str) -> bytes:
    """config.json with the dtype and the ties that the weights have; everything else stays, in its order."""
    text = found.files["config.json"]
    config = json_of(text)
    if not isinstance(config, dict):
        found.notes.append(
            f"config.json of {model} is no valid JSON object and is copied as it is: transformers will not load the "
            "output until it is mended"
        )
        return text
    changes: dict[str, object] = {key: dtype for key in ("torch_dtype", "dtype") if dtype is not None and key in config}
    if HEAD in specs and embedding_of_head(config, specs) is not None:
        changes["tie_word_embeddings"] = False
        found.notes.append(f"{HEAD} is not tied in every model, so it is merged by itself and config.json unties it")
    if all(config[key] == value for key, value in changes.items()):
        return text
    return json_text(config | changes)

"""Models named by a hub id: found in the local cache, or downloaded into it by `huggingface_hub`."""

from __future__ import annotations

import glob
import importlib
import os
from typing import Any

from eutectic.checkpoint.folder import weight_files
from eutectic.errors import CheckpointError, Problem

_TEXT = ("*.json", "*.txt", "*.model", "*.jinja")


def fetch(repo_id: str, revision: str | None) -> str:
    """The folder of a hub model's snapshot, downloaded if it is not in the local cache.

    A cached snapshot whose weights are complete is used without asking the hub, also for a branch that may have
    moved since: name a commit to be sure, and the manifest tells which one it was. Otherwise configuration,
    tokenizer and weights are downloaded, torch files only where there are no safetensors. `HF_HOME`,
    `HF_HUB_CACHE`, `HF_HUB_OFFLINE` and the stored token are honoured by the hub's client. Raises `CheckpointError`.
    """
    try:
        hub = importlib.import_module("huggingface_hub")
        errors = importlib.import_module("huggingface_hub.errors")
    except ImportError:
        message = f"{repo_id!r} is a hub id, and huggingface_hub is not installed"
        raise CheckpointError(Problem("C250", message, hint="pip install 'eutectic[hub]', or name a folder")) from None
    try:
        return _cached(hub, errors, repo_id, revision) or _download(hub, repo_id, revision)
    except CheckpointError:
        raise
    except Exception as error:  # the client lets through the errors of whichever HTTP library it uses
        raise CheckpointError(_refusal(errors, f"{repo_id}@{revision}" if revision else repo_id, error)) from error


def _cached(hub: Any, errors: Any, repo_id: str, revision: str | None) -> str | None:
    try:
        # With this pattern the client does not insist on files that no merge reads.
        found = hub.snapshot_download(repo_id, revision=revision, local_files_only=True, allow_patterns=["config.json"])
    except errors.LocalEntryNotFoundError:
        return None
    folder = str(found)
    return folder if _complete(folder, repo_id) else None


def _complete(folder: str, repo_id: str) -> bool:
    """True unless weights are still to be downloaded. Whether they are any good is seen when they are opened."""
    try:
        return all(os.path.exists(os.path.join(folder, name)) for name in weight_files(folder, repo_id))
    except CheckpointError as error:
        return error.problems[0].code != "C201"


def _download(hub: Any, repo_id: str, revision: str | None) -> str:
    info = hub.HfApi().model_info(repo_id, revision=revision)
    names = [file.rfilename for file in info.siblings or () if "/" not in file.rfilename]
    weights = [name for name in names if name.endswith(".safetensors")]
    weights = weights or [name for name in names if name.endswith(".bin") and "pytorch_model" in name]
    if not weights:
        message = f"the hub model {repo_id!r} holds no safetensors or torch weights"
        raise CheckpointError(Problem("C201", message, hint="name a repository that holds the model itself"))
    patterns = [*_TEXT, *(glob.escape(name) for name in weights)]
    return str(hub.snapshot_download(repo_id, revision=revision, allow_patterns=patterns))


def _refusal(errors: Any, name: str, error: Exception) -> Problem:
    """What the hub's client said, as a problem. The order matters: gated is a kind of not found."""
    if isinstance(error, errors.GatedRepoError):
        hint = "accept its conditions on its page, then log in with `hf auth login`"
        return Problem("C252", f"the hub model {name!r} is gated and this account has no access", hint=hint)
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        hint = (
            "check the spelling; if it is private, log in with `hf auth login`; if a folder was meant, it is not there"
        )
        return Problem("C251", f"there is no hub model {name!r}", hint=hint)
    if isinstance(error, errors.RevisionNotFoundError):
        return Problem("C251", f"the hub model {name!r} has no such revision", hint="name a branch, a tag or a commit")
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        hint = "download it where there is a network; if a folder was meant, it is not there"
        return Problem(
            "C253", f"the hub model {name!r} is not in the local cache and the hub cannot be asked", hint=hint
        )
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return Problem("C254", f"the hub model {name!r} could not be had: {reason}", hint="try again, or name a folder")

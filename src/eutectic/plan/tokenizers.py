"""Whose tokenizer the output has, and its chat template: from the small files beside the models, which are data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from eutectic.checkpoint.companions import files_named, files_there, has_tokenizer
from eutectic.checkpoint.templates import CONFIG, TEMPLATE_FILES, template_of
from eutectic.checkpoint.vocabulary import VOCABULARY_FILES, differing, json_of, same_numbers, tokens_of
from eutectic.errors import CheckpointError, listed, several
from eutectic.plan.findings import Findings
from eutectic.plan.model import PlanInput
from eutectic.recipe import Recipe
from eutectic.recipe.located import shown
from eutectic.recipe.tokenizers import AUTO, TEMPLATES, UNION

# How a recipe may say whose tokenizer it wants.
_KEYS = ("tokenizer_source", "tokenizer.source", "tokenizer")
_NAME_ONE = "name the model whose to take: `tokenizer_source: MODEL`"
_AS_NUMBERED = "rows of the embeddings are merged as they are numbered"
# With less than this share of the smaller one's tokens in both, two vocabularies are told of by what they share.
_COMMON = 0.5
# Tokens that a message names.
_SHOWN = 3


def place_of_source(recipe: Recipe) -> str:
    """The path in the recipe where it says whose tokenizer it wants."""
    return next((key for key in _KEYS if key in recipe.places), _KEYS[0])


class Numberings:
    """How the tokenizers of models differ: found once for all plans that share their inputs."""

    def __init__(self) -> None:
        self._found: dict[tuple[str | None, str | None], str] = {}

    def difference(self, first: PlanInput, other: PlanInput) -> str:
        """What differs between the numbers that two models give to tokens; empty if nothing does.

        Raises `CheckpointError` for files that cannot be read.
        """
        key = first.tokenizer_folder(), other.tokenizer_folder()
        if key not in self._found:
            # No more than two at a time are held: they may have tens of megabytes each.
            one, two = (files_named(item.tokenizer_folder(), VOCABULARY_FILES, item.label) for item in (first, other))
            self._found[key] = _difference(one, two)
        return self._found[key]


def check_numbers(
    recipe: Recipe, models: Sequence[PlanInput], taken: PlanInput, numberings: Numberings, findings: Findings
) -> None:
    """Where the recipe says whose tokenizer to take: do all number their tokens alike?

    P315 under `union`, as rows of the embeddings would mean different tokens; else a note.

    Args:
        recipe: a recipe with `tokenizer_source`.
        models: what is merged, and the base.
        taken: whose tokenizer the output gets.
        numberings: what is known of them already.
        findings: where it is told.
    """
    union, where = recipe.tokenizer_source == UNION, place_of_source(recipe)
    if not (union or has_tokenizer(taken.tokenizer_folder())):
        message = f"{taken.label} has no tokenizer files that could be taken"
        findings.say("P315", message, "copy them beside its weights, or name another model", where)
    silent = list(dict.fromkeys(item.label for item in (taken, *models) if not _numbered(item)))
    if union and silent:
        verb = "has" if len(silent) == 1 else "have"
        message = f"{listed(silent)} {verb} no tokenizer files, so nothing says which token has which number"
        findings.say("P315", message, f"copy them beside the weights, or {_NAME_ONE}", where)
    differ = list(_differing(models, taken, numberings))
    for told in differ:
        if union:
            hint = "rows of the embeddings mean other tokens: give all models one tokenizer first, or, where these "
            findings.say("P315", told, f"{hint}tokens do not matter, {_NAME_ONE}", where)
        else:
            findings.notes.append(f"{told}; {_AS_NUMBERED}")
    if union and not silent and not differ:
        findings.notes.append(f"tokenizer_source: union is the tokenizer of {taken.label}: all have the same tokens")


def note_numbers(models: Sequence[PlanInput], taken: PlanInput, numberings: Numberings, findings: Findings) -> None:
    """Where the recipe does not say whose tokenizer to take: notes which models number their tokens in another way.

    The arguments are those of `check_numbers`. Nobody asked, so tokenizers that cannot be read refuse nothing.
    """
    try:
        for told in _differing(models, taken, numberings):
            advice = "unless these tokens do not matter, give all models one tokenizer first"
            findings.notes.append(f"{told}; {_AS_NUMBERED}: {advice}")
    except CheckpointError as error:
        findings.notes.append(f"the tokenizers were not compared: {error.problems[0].message}")


def _differing(models: Sequence[PlanInput], taken: PlanInput, numberings: Numberings) -> Iterator[str]:
    """How each tokenizer that numbers its tokens otherwise than the one taken differs from it, in words."""
    for item in models if _numbered(taken) else ():
        if item is not taken and _numbered(item) and (how := numberings.difference(taken, item)):
            yield f"the tokenizers of {taken.label} and {item.label} differ: {how}"


def _numbered(item: PlanInput) -> bool:
    """Whether it has files, beside the config, that say which token has which number."""
    return any(name != CONFIG for name in files_there(item.tokenizer_folder(), VOCABULARY_FILES, item.label))


def _difference(first: Mapping[str, bytes], other: Mapping[str, bytes]) -> str:
    if same_numbers(first, other):
        return ""
    one, two = tokens_of(first), tokens_of(other)
    if not (one and two):
        names = sorted(name for name in first.keys() | other.keys() if first.get(name) != other.get(name))
        return f"{listed(names)}, which cannot be compared by token"
    return how_tokens_differ(one, two)


def how_tokens_differ(first: Mapping[str, int], other: Mapping[str, int]) -> str:
    """How two vocabularies differ, in words, with a few of the tokens; empty if they do not."""
    moved, extra = differing(first, other)
    common, sizes = len(first.keys() & other.keys()), sorted((len(first), len(other)))
    said = []
    if moved:
        pairs = [f"{shown(token)} {shown(first[token])} and {shown(other[token])}" for token in moved]
        said.append(f"{several(len(moved), 'token', 'has', 'have')} other numbers ({listed(pairs, _SHOWN)})")
    if extra:
        told = f"{several(len(extra), 'token', 'is', 'are')} in one only"
        if common < _COMMON * sizes[0]:
            told = f"only {common:,} of {several(sizes[1], 'token')} are in both"
        said.append(f"{told} ({listed([*map(shown, extra)], _SHOWN)})")
    return ", ".join(said)


def chat_template(recipe: Recipe, models: Sequence[PlanInput], taken: PlanInput, findings: Findings) -> str | None:
    """The Jinja text that the output's tokenizer gets; None to leave its files as they are.

    The arguments are those of `check_numbers`; of equally many models the first decides. P316 where the files cannot
    hold a template.
    """
    wanted = recipe.chat_template
    if wanted is None:
        return taken.chat_template
    folder, label = taken.tokenizer_folder(), taken.label
    if not files_there(folder, VOCABULARY_FILES, label):
        message = f"{label} has no tokenizer files that could hold a chat template"
        findings.say("P316", message, f"remove it, or {_NAME_ONE}", "chat_template")
    elif not isinstance(json_of(files_named(folder, [CONFIG], label).get(CONFIG, b"{}")), dict):
        message = f"{CONFIG} of {label} is no valid JSON object and can hold no chat template"
        findings.say("P316", message, f"mend it, or {_NAME_ONE}", "chat_template")
    if wanted != AUTO:
        return TEMPLATES.get(wanted, wanted)
    found = [(text, item.label) for item in models if (text := _template_of(item)) is not None]
    if not found:
        findings.notes.append("chat_template: auto has no effect: no model has a chat template")
        return None
    text, count = Counter(text for text, _ in found).most_common(1)[0]
    verb = "has" if count == 1 else "have"
    findings.notes.append(
        f"chat_template: auto is that of {dict(reversed(found))[text]}, which {count} of {len(models)} models {verb}"
    )
    return taken.chat_template if text == _template_of(taken) else text


def _template_of(item: PlanInput) -> str | None:
    if item.chat_template is not None:
        return item.chat_template.strip()
    return template_of(files_named(item.tokenizer_folder(), TEMPLATE_FILES, item.label))

"""The chat template among a tokenizer's files: found and replaced as text, never run."""

from __future__ import annotations

from collections.abc import Mapping

from eutectic.checkpoint.vocabulary import json_of, json_text

# `transformers` keeps the template in the config, in older checkpoints, or in a file of its own, which wins.
CONFIG, JINJA = "tokenizer_config.json", "chat_template.jinja"
TEMPLATE_FILES = (CONFIG, JINJA)
# Where it keeps further ones, each by a name.
NAMED_TEMPLATES = "additional_chat_templates/"
# A processor's own copy, a JSON object as well.
_PROCESSOR = "chat_template.json"
_KEY = "chat_template"


def template_of(files: Mapping[str, bytes]) -> str | None:
    """The chat template that a tokenizer has by default, without the space around it; None if it has none."""
    if JINJA in files:
        text: object = files[JINJA].decode(errors="replace")
    else:
        text = _by_name(files).get("default")
    return text.strip() or None if isinstance(text, str) else None


def named_templates(files: Mapping[str, bytes]) -> list[str]:
    """Names of the templates that a tokenizer has besides its default one."""
    apart = {name.removeprefix(NAMED_TEMPLATES).removesuffix(".jinja") for name in files if _is_named(name)}
    return sorted((apart | _by_name(files).keys()) - {"default"})


def with_template(files: Mapping[str, bytes], text: str) -> dict[str, bytes]:
    """The files of a tokenizer whose one chat template is `text`: in its config, and wherever else it has one.

    The config must be a JSON object, or not be there; it is made then.
    """
    made = {name: data for name, data in files.items() if not _is_named(name)}
    for name in (CONFIG, _PROCESSOR):
        table = json_of(made.get(name, b"{}"))
        if name == CONFIG or (name in made and isinstance(table, dict)):
            made[name] = json_text({**table, _KEY: text})
    if JINJA in made:
        made[JINJA] = text.encode(errors="replace")
    return made


def _is_named(name: str) -> bool:
    return name.startswith(NAMED_TEMPLATES)


def _by_name(files: Mapping[str, bytes]) -> dict[str, object]:
    """Templates in the config, which holds one or a list of them with names."""
    config = json_of(files.get(CONFIG))
    found = config.get(_KEY) if isinstance(config, dict) else None
    if isinstance(found, list):
        return {str(one.get("name")): one.get("template") for one in found if isinstance(one, dict)}
    return {} if found is None else {"default": found}

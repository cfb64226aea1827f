"""What a recipe says of the tokenizer: whose it is, by `tokenizer_source` or in `tokenizer`, and its chat template."""

from __future__ import annotations

from eutectic.errors import did_you_mean
from eutectic.recipe.located import Faults, Node, shown
from eutectic.recipe.references import written_at

BASE, UNION, AUTO = "base", "union", "auto"
# Formats of which one form is published, as Jinja texts that render to it. Nothing here ever runs a template.
TEMPLATES = {
    # OpenAI's ChatML: the role, a line break and the content between two markers, and a line break.
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    # Meta's Llama 3: a header with the role, an empty line, the content without space around it, an end of turn.
    "llama3": (
        "{{ bos_token }}"
        "{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
        "{{ (message['content'] | trim) + '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
}
# Names that mergekit has as well, and why one text does not say what they mean.
_SEVERAL = {
    "alpaca": "it is published for one instruction, not for a conversation",
    "exaone": "its versions differ",
    "mistral": "its versions differ in their spaces",
}
_SURGERY = {
    "tokens": ("giving tokens embeddings of their own", "remove it: rows of the embeddings are merged as they stand"),
    "pad_to_multiple_of": ("padding a vocabulary", "remove it: the vocabulary has the size that the models' have"),
}


def read_source(root: Node, faults: Faults) -> tuple[Node, str] | None:
    """Where a recipe says whose tokenizer the output has, and the model or word there; None if it does not say.

    `tokenizer: {source: ...}` is mergekit's other form of `tokenizer_source`; its source is `union` if it names none.
    """
    node, table = root.get("tokenizer_source"), root.get("tokenizer")
    if table is None:
        return None if node is None else _named(node, faults)
    if node is not None:
        message = "a recipe has either tokenizer_source or tokenizer, not both"
        faults.add("R107", table.key_place, message, "remove one")
        return None
    if not isinstance(table.data, dict):
        hint = f"write `tokenizer_source: {table.data}`" if isinstance(table.data, str) else ""
        faults.add("R112", table.place, f"must be a mapping with the key source, not {shown(table.data)}", hint)
        return None
    for key, item in table.items():
        if key in _SURGERY and item.data:
            what, hint = _SURGERY[key]
            faults.add("R113", item.key_place, f"{what} is not supported yet", hint)
        elif key not in ("source", *_SURGERY):
            known = ("source", *_SURGERY)
            faults.add("R110", item.key_place, "unknown key", did_you_mean(key, known) or f"known: {', '.join(known)}")
    source = table.get("source")
    return (table, UNION) if source is None else _named(source, faults)


def _named(node: Node, faults: Faults) -> tuple[Node, str] | None:
    name = written_at(node, faults)
    # Old recipes of mergekit write `model:` before the name.
    return None if name is None else (node, name.removeprefix("model:"))


def read_template(root: Node, faults: Faults) -> str | None:
    """The chat template as written: `auto`, a name of `TEMPLATES`, or a Jinja text; None without one."""
    node = root.get("chat_template")
    if node is None:
        return None
    text = node.data
    if isinstance(text, str) and (text == AUTO or text in TEMPLATES or "{{" in text or "{%" in text):
        return text
    names = (AUTO, *TEMPLATES)
    if isinstance(text, str) and text in _SEVERAL:
        message = f"the chat template {text!r} has no one form: {_SEVERAL[text]}"
        hint = "paste its Jinja text, or write `auto` for the one that most of the models have"
        faults.add("R113", node.place, message, hint)
    else:
        message = f"must be {', '.join(names)} or a Jinja text, not {shown(text)}"
        near = did_you_mean(text, [*names, *_SEVERAL]) if isinstance(text, str) else ""
        faults.add("R112", node.place, message, near or "a Jinja text has {{ or {% in it")
    return None

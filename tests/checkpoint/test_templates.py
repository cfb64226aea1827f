"""Chat templates among a tokenizer's files: read as transformers reads them, replaced wherever they stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eutectic.checkpoint.companions import companions
from eutectic.checkpoint.templates import named_templates, template_of, with_template
from eutectic.recipe.tokenizers import TEMPLATES
from eutectic.testing import tiny_llama

CONFIG = "tokenizer_config.json"
TALK = [("system", "Be brief."), ("user", " What? \n"), ("assistant", "This."), ("user", "Why?")]
TURNS = {"messages": [{"role": role, "content": content} for role, content in TALK]}


def config(template: Any) -> dict[str, bytes]:
    return {CONFIG: json.dumps({"chat_template": template}).encode()}


@pytest.mark.parametrize(
    ("files", "default", "named"),
    [
        ({}, None, []),
        ({CONFIG: b"[]"}, None, []),
        (config(7), None, []),
        (config(" x\n"), "x", []),
        (config(""), None, []),
        (config([{"name": "default", "template": "x"}, {"name": "rag", "template": "y"}, 3]), "x", ["rag"]),
        (config([{"name": "rag", "template": "y"}]), None, ["rag"]),
        (config("x") | {"chat_template.jinja": b"y\n"}, "y", []),
        ({"chat_template.jinja": "é".encode()}, "é", []),
        (config("x") | {"additional_chat_templates/tool_use.jinja": b"y"}, "x", ["tool_use"]),
    ],
)
def test_a_template_is_found(files: dict[str, bytes], default: str | None, named: list[str]) -> None:
    assert (template_of(files), named_templates(files)) == (default, named)


@pytest.mark.parametrize(
    "files",
    [
        {},
        config("old"),
        config([{"name": "default", "template": "old"}, {"name": "rag", "template": "y"}]),
        config("old") | {"chat_template.jinja": b"older", "additional_chat_templates/rag.jinja": b"y"},
        {CONFIG: '{"b": 1, "a": "é"}'.encode(), "chat_template.json": b'{"chat_template": "old", "x": 1}'},
        {CONFIG: b"{}", "chat_template.json": b"broken"},
    ],
)
def test_one_template_is_left_and_all_else_stays(files: dict[str, bytes]) -> None:
    new = "{{ 'é' }}\n"
    made = with_template({**files, "tokenizer.json": b"data"}, new)
    assert template_of(made) == new.strip() and named_templates(made) == []
    assert with_template(made, new) == made
    assert made["tokenizer.json"] == b"data"
    kept = json.loads(files.get(CONFIG, b"{}")) | {"chat_template": new}
    assert list(json.loads(made[CONFIG]).items()) == list(kept.items())
    assert ("chat_template.jinja" in made) == ("chat_template.jinja" in files)
    if files.get("chat_template.json") != b"broken" and "chat_template.json" in files:
        assert json.loads(made["chat_template.json"]) == {"chat_template": new, "x": 1}
    else:
        assert made.get("chat_template.json") == files.get("chat_template.json")


def test_named_templates_that_are_left_out_are_told(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "m")
    (tmp_path / "m" / "additional_chat_templates").mkdir()
    (tmp_path / "m" / "additional_chat_templates" / "rag.jinja").write_text("y")
    assert companions(str(tmp_path / "m"), None).notes == []
    found = companions(str(tmp_path / "m"), None, chat_template="{{ 1 }}")
    assert found.notes == ["chat_template is the only one: templates with names are left out (rag)"]
    assert not any(name.startswith("additional") for name in found.files)


# OpenAI's and Meta's formats, as they are published.
CHATML = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n What? \n<|im_end|>\n"
    "<|im_start|>assistant\nThis.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
)
LLAMA3 = (
    "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWhat?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nThis.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
)


@pytest.mark.parametrize(
    ("name", "turns", "prompt"),
    [
        ("chatml", CHATML, "<|im_start|>assistant\n"),
        ("llama3", LLAMA3, "<|start_header_id|>assistant<|end_header_id|>\n\n"),
    ],
)
@pytest.mark.parametrize("layout", ["config", "jinja"])
def test_transformers_renders_the_formats_as_they_are_published(
    name: str, turns: str, prompt: str, layout: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    tiny_llama(tmp_path / "m")
    if layout == "jinja":
        (tmp_path / "m" / "chat_template.jinja").write_text("{{ 'old' }}")
    for file, data in companions(str(tmp_path / "m"), None, chat_template=TEMPLATES[name]).files.items():
        (tmp_path / "m" / file).write_bytes(data)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m", local_files_only=True)
    said = TURNS["messages"]
    assert tokenizer.apply_chat_template(said, tokenize=False) == turns
    assert tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True) == turns + prompt

"""Config and tokenizer files: copied as data, never run, from inside the folder only."""

from __future__ import annotations

import json

import pytest

from eutectic.checkpoint.companions import companions, has_tokenizer
from eutectic.errors import CheckpointError
from eutectic.testing import tiny_llama


def copied(folder, dtype=None, tokenizer=None):
    return companions(str(folder), dtype, str(tokenizer) if tokenizer else None)


def test_what_belongs_to_a_model_is_copied_and_nothing_else(tmp_path):
    wanted = {
        "config.json",
        "tokenizer.json",
        "vocab.txt",
        "tokenizer.model",
        "chat_template.jinja",
        "LICENSE",
        "NOTICE.md",
        "1_Pooling/config.json",
        "additional_chat_templates/rag.jinja",
    }
    others = {
        "model.safetensors.index.json",
        "trainer_state.json",
        "eutectic.json",
        "model.safetensors",
        "pytorch_model.bin",
        "README.md",
        "optimizer.pt",
        ".hidden.json",
        ".git/config.json",
        "checkpoint-5/config.json",
        "1_Pooling/deep/config.json",
        "1_Pooling/LICENSE",
        "1_Pooling/x.jinja",
        "run.sh",
    }
    for name in wanted | others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert set(copied(tmp_path).files) == wanted


def test_python_files_are_named_and_left(tmp_path):
    (tmp_path / "modeling_evil.py").write_text("raise SystemExit")
    found = copied(tmp_path)
    assert not found.files
    assert found.notes[:1] == [
        "Python files are never copied (modeling_evil.py); the model may need them from its source"
    ]


def test_bytes_are_kept_and_only_the_dtype_is_corrected(tmp_path):
    text = '{"b": 1,   "torch_dtype": "float32", "a": "é"}'
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff not json")
    assert copied(tmp_path, "float32").files["config.json"] == text.encode()
    found = copied(tmp_path, "bfloat16")
    assert list(json.loads(found.files["config.json"]).items()) == [("b", 1), ("torch_dtype", "bfloat16"), ("a", "é")]
    assert found.files["tokenizer.json"] == b"\xff not json"


@pytest.mark.parametrize("text", ["[]", "not json", "3", "[" * 100_000])
def test_a_config_that_is_none_is_copied_as_it_is(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    found = copied(tmp_path, "bfloat16")
    assert found.files["config.json"] == text.encode()
    assert found.notes == [
        f"config.json of {tmp_path.name} is no valid JSON object and is copied as it is: transformers will not load "
        "the output until it is mended"
    ]


def test_what_json_escapes_and_utf8_cannot_hold_stays_escaped(tmp_path):
    (tmp_path / "config.json").write_text('{"dtype": "float32", "a": "\\ud800é"}')
    data = copied(tmp_path, "bfloat16").files["config.json"]
    assert json.loads(data) == {"dtype": "bfloat16", "a": "\ud800é"} and "é".encode() in data


def test_the_tokenizer_may_come_from_another_model(tmp_path):
    tiny_llama(tmp_path / "a")
    tiny_llama(tmp_path / "b", vocab=50)
    for name in "ab":
        (tmp_path / name / "additional_chat_templates").mkdir()
        (tmp_path / name / "additional_chat_templates" / f"{name}.jinja").write_text(name)
    found = copied(tmp_path / "a", tokenizer=tmp_path / "b").files
    assert {name for name in found if "additional" in name} == {"additional_chat_templates/b.jinja"}
    assert found["tokenizer.json"] == (tmp_path / "b" / "tokenizer.json").read_bytes()
    assert json.loads(found["config.json"])["vocab_size"] == 96


def test_a_model_without_a_folder_has_none():
    found = companions(None, "bfloat16")
    assert not found.files
    assert found.notes == ["no config or tokenizer files: the weights do not come from a model folder"]


def test_a_folder_without_a_config_is_named(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    note = "no config.json beside model's weights: transformers will not load the output by itself"
    assert copied(f"{tmp_path}/model/").notes == [note]
    (tmp_path / "model" / "config.json").write_text("{}")
    assert copied(tmp_path / "model").notes == []


def test_links_out_of_the_folder_are_refused(tmp_path):
    (tmp_path / "secret.json").write_text("secret")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(CheckpointError, match="C208"):
        copied(tmp_path / "model")


def test_a_linked_folder_is_refused_like_a_linked_file(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.json").write_text("secret")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="C208"):
        copied(tmp_path / "model")


def test_a_folder_that_is_gone_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"C221 .*No such file"):
        copied(tmp_path / "gone")


def test_a_huge_file_is_left_and_named(tmp_path):
    with open(tmp_path / "huge.json", "wb") as file:
        file.truncate((256 << 20) + 1)
    found = copied(tmp_path)
    assert not found.files
    assert found.notes[:1] == ["huge.json is larger than 256 MiB and was not copied"]


def test_a_tokenizer_may_be_copied_beside_weights_without_a_folder(tmp_path):
    tiny_llama(tmp_path / "b")
    found = companions(None, "bfloat16", str(tmp_path / "b"), chat_template="{{ 1 }}")
    assert set(found.files) == {"tokenizer.json", "tokenizer_config.json"}
    assert json.loads(found.files["tokenizer_config.json"])["chat_template"] == "{{ 1 }}"
    assert found.notes == ["no config files: the weights do not come from a model folder"]


def test_what_is_left_of_the_other_tokenizer_is_told(tmp_path):
    tiny_llama(tmp_path / "a")
    tiny_llama(tmp_path / "b")
    (tmp_path / "a" / "tokenization_a.py").write_text("")
    (tmp_path / "b" / "tokenization_b.py").write_text("")
    (tmp_path / "b" / "modeling_b.py").write_text("")
    for name, size in (("a/vocab.json", 257), ("b/merges.txt", 258), ("b/log.json", 259)):
        with open(tmp_path / name, "wb") as file:
            file.truncate(size << 20)
    found = copied(tmp_path / "a", tokenizer=tmp_path / "b")
    assert found.notes == [
        "merges.txt is larger than 256 MiB and was not copied",
        "Python files are never copied (tokenization_b.py); the model may need them from its source",
    ]


@pytest.mark.parametrize("name", ["qwen.tiktoken", "source.spm", "tekken.json", "Tokenizer.Model"])
def test_tokenizers_of_every_kind_go_with_their_model(tmp_path, name):
    for model in "ab":
        (tmp_path / model).mkdir()
        (tmp_path / model / "config.json").write_text(model)
    (tmp_path / "a" / name).write_text("a")
    assert not has_tokenizer(str(tmp_path / "b")) and has_tokenizer(str(tmp_path / "a"))
    assert set(copied(tmp_path / "a", tokenizer=tmp_path / "b").files) == {"config.json"}
    assert copied(tmp_path / "b", tokenizer=tmp_path / "a").files == {name: b"a", "config.json": b"b"}


@pytest.mark.parametrize("text", ["[]", "", "{" * 100_000])
def test_a_config_that_changed_to_something_else_is_refused_as_the_plan_does(tmp_path, text):
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"C221 .*can hold no chat template"):
        companions(str(tmp_path), None, chat_template="{{ 1 }}")

"""What is passed over, or not said, when statistics are collected and used in the wrong way."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from collected_nets import mlp

import eutectic
from eutectic import statistics
from eutectic.errors import EutecticError
from eutectic.recipe import Recipe
from eutectic.statistics import Options, collect

pytest.importorskip("transformers")
Run = Callable[..., Result]


def code_of(call: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(EutecticError) as caught:
        call()
    return caught.value.problems[0].code, str(caught.value)


def test_fewer_sequences_than_asked_for_and_empty_documents_are_told(run: Run, here: Path) -> None:
    (here / "gaps.jsonl").write_text('{"text": "w3 w4 w5"}\n{"text": "  "}\n{"text": ""}\n')
    said = run("gram", "model", "out", "--data", "gaps.jsonl", "--samples", "9").output
    assert "left out: 2 documents without text" in said
    assert "the data have 1 sequence, not 9" in said


@pytest.mark.parametrize(
    ("task", "hint"),
    [
        ("task: perplexity\ndata: ../text.jsonl\nblock: 16\n", "name its data, text.jsonl"),
        ("task: perplexty\ndata: ../text.jsonl\n", "name its data, text.jsonl"),
        ("task: call\nfunction: mine:f\n", "name a file of text"),
    ],
)
def test_a_task_file_is_no_text(run: Run, here: Path, task: str, hint: str) -> None:
    (here / "tasks").mkdir()
    (here / "tasks" / "general.yml").write_text(task)
    for kind in ("fisher", "gram", "activations"):
        code, said = code_of(lambda kind=kind: collect(kind, "model", "tasks/general.yml", "out"))  # type: ignore[misc]
        assert code == "F108" and said.endswith(f"data: this is a task file and no text; {hint}")
    assert not (here / "out").exists()


@pytest.mark.parametrize("text", ["w3: w4 w5 w6\n", "- w3 w4\n- w5 w6\n", "w3 w4 w5 [w6\n", "task: [w3, w4, w5]\n"])
def test_text_that_looks_like_yaml_is_text(run: Run, here: Path, text: str) -> None:
    (here / "notes.yml").write_text(text)
    assert "from 1 sample" in run("gram", "model", "out", "--data", "notes.yml").output


def test_nan_leaves_nothing_behind(here: Path) -> None:
    module = mlp()
    batches = [torch.ones(2, 7), torch.full((2, 7), torch.nan)]
    assert code_of(lambda: collect("gram", module, batches, "out"))[0] == "F102"
    assert not [name for name in os.listdir() if name.startswith("out")]


def test_a_format_of_the_future_is_refused(here: Path) -> None:
    collect("gram", mlp(), [torch.ones(2, 7)], "out")
    path = here / "out" / "statistics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    said = code_of(lambda: statistics.merge(["out", "out"], "both"))
    assert said[0] == "C261"
    assert "format 2" in said[1]


@pytest.mark.parametrize(
    ("code", "call"),
    [
        ("F108", lambda: statistics.gram("model", [torch.ones(1, 7)])),  # type: ignore[arg-type]
        ("F108", lambda: statistics.fisher(mlp(), 5)),  # type: ignore[arg-type]
        ("F110", lambda: statistics.gram(mlp(), [torch.ones(2, 6)])),
        ("F110", lambda: statistics.gram(mlp(), [torch.ones(2, 7, dtype=torch.long)])),
        ("F110", lambda: statistics.gram(mlp(), [{"image": torch.ones(2, 7)}])),
        ("F103", lambda: statistics.fisher(mlp(), [(torch.ones(2, 7), torch.tensor([0, 99]))], labels="data")),
    ],
)
def test_what_a_module_cannot_take(code: str, call: Callable[[], Any]) -> None:
    assert code_of(call)[0] == code


class Tags(torch.nn.Module):
    """A classifier of tokens: logits of a shape like those of a language model."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, 4)
        self.head = torch.nn.Linear(4, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (samples, positions, 3)."""
        logits: torch.Tensor = self.head(self.embed(input_ids))
        return logits


def test_a_classifier_of_tokens_is_no_language_model() -> None:
    batch = {"input_ids": torch.tensor([[4, 30, 49]])}
    code, said = code_of(lambda: statistics.fisher(Tags(), [batch]))
    assert code == "F103"
    assert "3 classes" in said


def test_a_mask_that_does_not_tell_padding_is_refused() -> None:
    batch = {"input_ids": torch.tensor([[4, 30]]), "attention_mask": torch.ones(1, 1, 2, 2).tril()}
    assert code_of(lambda: statistics.gram(Tags(), [batch]))[0] == "F104"


@pytest.mark.parametrize(("spoil", "why"), [("triangle", "not symmetric"), ("negative", "negative squares")])
def test_a_gram_that_is_none_is_refused(here: Path, spoil: str, why: str) -> None:
    from safetensors.torch import load_file, save_file

    recipe: dict[str, Any] = {"merge_method": "regmean", "models": []}
    for seed in range(2):
        torch.manual_seed(seed)
        module = mlp()
        collect("gram", module, [torch.randn(8, 7)], f"grams{seed}", options=Options(seed=seed))
        os.makedirs(f"m{seed}")
        save_file(module.state_dict(), f"m{seed}/model.safetensors")
        recipe["models"].append({"model": f"m{seed}", "statistics": f"grams{seed}"})
    grams = load_file("grams1/model.safetensors")
    name = next(iter(grams))
    grams[name] = grams[name].tril() if spoil == "triangle" else -grams[name]
    save_file(grams, "grams1/model.safetensors")
    code, said = code_of(lambda: eutectic.merge(recipe, "merged"))
    assert code == "N506"
    assert why in said
    assert not (here / "merged").exists()


def test_the_log_of_learning_is_another_file(here: Path) -> None:
    recipe: Recipe | dict[str, Any] = {
        "merge_method": "task_arithmetic",
        "base_model": "model",
        "models": [{"model": "other"}],
    }
    code, _ = code_of(lambda: eutectic.learn(recipe, "learned.yml", data="text.jsonl", log="./learned.yml"))
    assert code == "M603"

"""Perplexity, multiple choice and exact match against oracles that run one text at a time, unpadded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import eutectic
from eutectic.evaluate import Choice, ExactMatch, Perplexity, Score
from eutectic.evaluate.perplexity import windows_of

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("here")


def score(model: Any, task: Any, **settings: Any) -> Score:
    return eutectic.evaluate(model, task, cache=False, **settings)


def loaded(folder: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def log_probabilities(model: Any, tokens: list[int]) -> np.ndarray[Any, Any]:
    """log p of each token but the first, given all before it."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([tokens[:-1]])).logits[0].float()
    logs = torch.log_softmax(logits, -1).double().numpy()
    return np.asarray(logs[np.arange(len(tokens) - 1), tokens[1:]])


def ids(text: str) -> list[int]:
    return [int(word[1:]) for word in text.split()]


def texts() -> list[str]:
    return [json.loads(line)["text"] for line in Path("text.jsonl").read_text().splitlines()]


def oracle_nll(model: Any, tokens: list[int], block: int, stride: int) -> float:
    """Each token is predicted from the window that scores it: the first of `block` tokens, then steps of `stride`."""
    total = 0.0
    sequence = [1, *tokens]
    for at in range(1, len(sequence)):
        step = 0 if at <= block else -(-(at - block) // stride)
        end = min(len(sequence) - 1, block + step * stride)  # the window's last target
        start = max(0, end - block)
        total -= log_probabilities(model, sequence[start : at + 1])[-1]
    return total


@pytest.mark.parametrize(("block", "stride"), [(100, None), (16, None), (16, 5), (16, 1), (2, 1)])
def test_perplexity(block: int, stride: int | None) -> None:
    found = score("a", Perplexity("text.jsonl", block=block, stride=stride, dtype="float32"))
    model = loaded("a", torch.float32)
    tokens = [ids(text) for text in texts()]
    losses = np.array([oracle_nll(model, one, block, stride or block) for one in tokens])
    counts = np.array([len(one) for one in tokens])
    np.testing.assert_allclose(found.items, losses / counts, rtol=1e-5)
    assert found.weights.tolist() == counts.tolist()
    assert found.value == pytest.approx(np.exp(losses.sum() / counts.sum()), rel=1e-5)
    size = sum(len(text) for text in texts())
    assert found.details["bits_per_byte"] == pytest.approx(losses.sum() / np.log(2) / size, rel=1e-5)
    bits = score("a", Perplexity("text.jsonl", block=block, stride=stride, dtype="float32", metric="bits_per_byte"))
    assert bits.value == pytest.approx(found.details["bits_per_byte"], rel=1e-12)
    assert bits.items.tolist() == pytest.approx(
        (losses / np.log(2) / [len(text) for text in texts()]).tolist(), rel=1e-5
    )


@pytest.mark.parametrize("length", [2, 3, 8, 9, 10, 17, 100])
@pytest.mark.parametrize(("block", "stride"), [(8, 8), (8, 3), (2, 1), (200, 1)])
@pytest.mark.parametrize("first", [1, 2])
def test_every_token_is_scored_once(length: int, block: int, stride: int, first: int) -> None:
    tokens = list(range(length))
    if first >= length:
        return
    scored = [token for row in windows_of(tokens, block, stride, first) for token in row.tokens[row.first :]]
    assert scored == tokens[first:]
    for row in windows_of(tokens, block, stride, first):
        assert len(row.tokens) - 1 <= max(block, first) and row.first >= 1
        assert list(row.tokens) == list(range(row.tokens[0], row.tokens[-1] + 1))


def test_one_text_has_its_windows_for_items() -> None:
    found = score("a", Perplexity("text.txt", block=16))
    assert len(found.items) == 7 and found.weights.tolist() == [16.0] * 6 + [4.0]
    assert found.interval is not None and found.interval[0] < found.value < found.interval[1]
    assert score("a", Perplexity("text.txt", block=16, metric="bits_per_byte")).interval is None


def test_a_limit_of_one_text_is_on_its_windows() -> None:
    whole = score("a", Perplexity("text.txt", block=16))
    few = score("a", Perplexity("text.txt", block=16), limit=3)
    assert len(few.items) == 3 and all(np.isclose(whole.items, item, rtol=0.02).any() for item in few.items)
    share = few.details["tokens"] / whole.details["tokens"]
    assert few.details["bytes"] == pytest.approx(share * whole.details["bytes"])


def test_a_limit_of_one_document_of_many_is_on_documents() -> None:
    assert len(score("a", Perplexity("text.jsonl", block=16), limit=1).items) == 1


def oracle_choices(model: Any) -> list[tuple[list[float], int, list[str]]]:
    """The log-likelihood of each choice after its question."""
    found = []
    for line in Path("choice.jsonl").read_text().splitlines():
        row = json.loads(line)
        question = ids(row["question"])
        logs = [
            float(log_probabilities(model, question + ids(choice))[len(question) - 1 :].sum())
            for choice in row["choices"]
        ]
        found.append((logs, row["answer"], row["choices"]))
    return found


def test_choice() -> None:
    wanted = oracle_choices(loaded("a"))
    found = score("a", Choice("choice.jsonl"))
    assert found.items.tolist() == [float(np.argmax(logs) == answer) for logs, answer, _ in wanted]
    normal = score("a", Choice("choice.jsonl", metric="acc_norm"))
    each = [
        float(np.argmax([v / len(c) for v, c in zip(logs, texts, strict=True)]) == answer)
        for logs, answer, texts in wanted
    ]
    assert normal.items.tolist() == each
    assert found.details["acc_norm"] == normal.value and normal.details["acc"] == found.value
    assert 0 < found.value < 1


def test_a_question_without_words_begins_as_a_text_does(here: Path) -> None:
    (here / "empty.jsonl").write_text(json.dumps({"context": "", "choices": ["w5", "w6"], "answer": "w6"}) + "\n")
    found = score("a", Choice("empty.jsonl"))
    logs = [log_probabilities(loaded("a"), [1, token])[0] for token in (5, 6)]
    assert found.items.tolist() == [float(np.argmax(logs) == 1)]
    assert found.details["nll"] == pytest.approx(-logs[1], rel=1e-6)


def test_what_a_tokenizer_puts_behind_a_text_is_no_part_of_its_beginning(here: Path) -> None:
    tasks = (Perplexity("text.jsonl", block=16), Choice("choice.jsonl"), ExactMatch("match.jsonl", max_new_tokens=3))
    before = [score("a", task) for task in tasks]
    path = here / "a" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    ends = {name: {"id": name, "ids": [number], "tokens": [name]} for number, name in ((1, "<s>"), (2, "</s>"))}
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    for closing in ([], [{"SpecialToken": {"id": "</s>", "type_id": 0}}]):
        processor = {"type": "TemplateProcessing", "single": single + closing, "pair": [], "special_tokens": ends}
        path.write_text(json.dumps(tokenizer | {"post_processor": processor}))
        if not closing:
            begun = [score("a", task) for task in tasks]
    ended = [score("a", task) for task in tasks]
    assert [one.value for one in ended] == [one.value for one in begun]
    assert ended[0].items.tolist() == before[0].items.tolist()  # which began with <s> anyway


def test_exact_match(here: Path) -> None:
    model = loaded("a")
    rows = [json.loads(line) for line in (here / "match.jsonl").read_text().splitlines()]
    for row in rows:
        tokens = ids(row["prompt"])
        for _ in range(3):
            with torch.inference_mode():
                tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
        made = tokens[len(ids(row["prompt"])) :]
        row["answer"] = " ".join(f"w{token}" for token in (made[: made.index(2)] if 2 in made else made))
    rows[0]["answer"] = "W0 and more"
    (here / "right.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = score("a", ExactMatch("right.jsonl", max_new_tokens=3))
    assert found.items.tolist() == [0.0] + [1.0] * (len(rows) - 1)


@pytest.mark.parametrize(
    ("normalise", "written", "answer", "right"),
    [
        ("none", " w5", "w5", False),
        ("strip", " w5\n", "w5", True),
        ("strip", "W5", "w5", False),
        ("words", " The W5,  w6!", "the w5 w6", True),
        ("words", "w5 w6", "w5w6", False),
    ],
)
def test_what_counts_as_the_same(normalise: str, written: str, answer: str, right: bool) -> None:
    task = ExactMatch("match.jsonl", normalise=normalise)
    assert (task._normal(written) == task._normal(answer)) == right


def test_stop_texts_cut() -> None:
    task = ExactMatch("match.jsonl", stop=("\n", "###"))
    assert [task._cut(text) for text in ("a\nb", "a###b\n", "ab", "\nab")] == ["a", "a", "ab", ""]


@pytest.mark.parametrize("task", ["perplexity", "choice", "match"])
def test_batches_change_nothing_but_rounding(task: str) -> None:
    tasks = {
        "perplexity": Perplexity("text.jsonl", block=16, dtype="float32"),
        "choice": Choice("choice.jsonl", dtype="float32"),
        "match": ExactMatch("match.jsonl", max_new_tokens=3, dtype="float32"),
    }
    one, three, many = (score("a", tasks[task], batch=batch) for batch in (1, 3, 64))
    np.testing.assert_allclose(one.items, three.items, rtol=1e-4)
    np.testing.assert_allclose(one.items, many.items, rtol=1e-4)
    assert score("a", tasks[task], batch=3).as_json(items=True) == three.as_json(items=True)


def test_a_limit_draws_items_by_the_seed() -> None:
    task = Perplexity("text.jsonl", block=16, dtype="float32")
    whole = score("a", task)
    few = score("a", task, limit=4)
    assert len(few.items) == 4
    assert all(np.isclose(whole.items, item).any() for item in few.items)
    assert score("a", task, limit=4).items.tolist() == few.items.tolist()
    assert score("a", task, limit=4, seed=1).weights.tolist() != few.weights.tolist()
    assert len(score("a", task, limit=1000).items) == len(whole.items)


def test_white_space_is_no_document(here: Path) -> None:
    lines = (here / "text.jsonl").read_text().splitlines()
    (here / "gaps.jsonl").write_text("\n".join([lines[0], '{"text": "  "}', "", lines[1]]) + "\n")
    found = score("a", Perplexity("gaps.jsonl", block=16))
    assert len(found.items) == 2

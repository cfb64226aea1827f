"""Similarity, classification and functions of one's own, against oracles."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from items import words, write_lines

import eutectic
from eutectic.errors import EutecticError
from eutectic.evaluate import Call, Classification, Similarity, paired
from eutectic.evaluate.classification import calibration_error
from eutectic.evaluate.opening import opened
from eutectic.evaluate.similarity import spearman

transformers = pytest.importorskip("transformers")


def refusal(call: Any) -> str:
    with pytest.raises(EutecticError) as caught:
        call()
    return str(caught.value)


@pytest.fixture
def encoders(here: Path) -> Path:
    """Two small BERTs with the tiny tokenizer, and pairs of sentences."""
    config = transformers.BertConfig(
        vocab_size=96, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=40,
    )  # fmt: skip
    for seed, name in enumerate(("e1", "e2")):
        torch.manual_seed(seed)
        transformers.BertModel(config).save_pretrained(here / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (here / name / file).write_bytes((here / "a" / file).read_bytes())
    draw = np.random.default_rng(1)
    rows = [(words(draw, 1 + i % 9), words(draw, 1 + i % 4), float(draw.integers(0, 6))) for i in range(25)]
    lines = ["genre\tsentence1\tsentence2\tscore", *(f"g\t{a}\t{b}\t{score}" for a, b, score in rows)]
    (here / "pairs.tsv").write_text("\n".join(lines) + "\n")
    write_lines(here / "pairs.jsonl", ({"sentence1": a, "sentence2": b, "score": s} for a, b, s in rows))
    return here


def oracle_cosines(folder: str, rows: list[tuple[str, str]], pooling: str) -> np.ndarray[Any, Any]:
    model = transformers.BertModel.from_pretrained(folder).eval()

    def embedded(text: str) -> np.ndarray[Any, Any]:
        ids = torch.tensor([[int(word[1:]) for word in text.split()]])
        with torch.inference_mode():
            states = model(input_ids=ids).last_hidden_state[0].double().numpy()
        return np.asarray(states[0] if pooling == "cls" else states.mean(0))

    pairs = [(embedded(a), embedded(b)) for a, b in rows]
    return np.array([float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in pairs])


def oracle_spearman(a: Any, b: Any) -> float:
    """Pearson's correlation of ranks, each the mean of the places that equal values take."""
    ranks = [[np.mean([j for j, w in enumerate(sorted(v)) if w == x]) for x in v] for v in (a, b)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


@pytest.mark.parametrize("pooling", ["mean", "cls", "auto"])
def test_similarity(encoders: Path, pooling: str) -> None:
    rows = [json.loads(line) for line in (encoders / "pairs.jsonl").read_text().splitlines()]
    cosines = oracle_cosines("e1", [(row["sentence1"], row["sentence2"]) for row in rows], pooling)
    found = eutectic.evaluate("e1", Similarity("pairs.tsv", pooling=pooling), cache=False)
    np.testing.assert_allclose(found.items, cosines, rtol=1e-5)
    assert found.value == pytest.approx(oracle_spearman(cosines, [row["score"] for row in rows]), abs=1e-9)
    lines = eutectic.evaluate("e1", Similarity("pairs.jsonl", pooling=pooling), cache=False, batch=3)
    assert lines.value == pytest.approx(found.value, abs=1e-6)
    assert found.interval is not None and found.interval[0] < found.value < found.interval[1]
    assert len(found.replicates) == 1000


def test_similarities_are_paired_by_the_same_resamples(encoders: Path) -> None:
    task = Similarity("pairs.tsv")
    a, b = (eutectic.evaluate(name, task, cache=False) for name in ("e1", "e2"))
    found = paired(a, b)
    assert found.value == a.value - b.value
    assert found.stderr == pytest.approx(np.std(a.replicates - b.replicates, ddof=1))
    with pytest.raises(EutecticError, match="E909"):
        paired(a, eutectic.evaluate("e2", task, cache=False, seed=1))


def test_a_live_merge_of_encoders_scores_as_written(encoders: Path) -> None:
    recipe = {"merge_method": "slerp", "base_model": "e1", "models": ["e1", "e2"], "parameters": {"t": 0.4}}
    out = eutectic.merge(recipe, encoders / "out").path
    live, written = (eutectic.evaluate(one, "similarity:pairs.tsv", cache=False) for one in (recipe, out))
    assert live.as_json(items=True) == written.as_json(items=True)


@pytest.mark.parametrize(
    ("modules", "own", "pooling"),
    [
        (
            ["Transformer", "Pooling", "Normalize"],
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
            "cls",
        ),
        (["Transformer", "Pooling"], {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        (["Transformer", "Pooling"], {"pooling_mode": "cls"}, "cls"),
        (["Transformer", "Pooling"], {"pooling_mode_max_tokens": True}, None),
        (["Transformer", "Pooling"], {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, None),
        (["Transformer", "Pooling", "Dense"], {"pooling_mode_mean_tokens": True}, None),
    ],
)
def test_pooling_as_the_model_says(
    encoders: Path, modules: list[str], own: dict[str, Any], pooling: str | None
) -> None:
    parts = [{"idx": i, "type": f"sentence_transformers.models.{name}"} for i, name in enumerate(modules)]
    (encoders / "e1" / "modules.json").write_text(json.dumps(parts))
    (encoders / "e1" / "1_Pooling").mkdir()
    (encoders / "e1" / "1_Pooling" / "config.json").write_text(json.dumps(own))
    if pooling is None:
        assert "which is not understood here" in refusal(lambda: eutectic.evaluate("e1", Similarity("pairs.tsv")))
        return
    found = eutectic.evaluate("e1", Similarity("pairs.tsv"), cache=False)
    assert found.value == eutectic.evaluate("e1", Similarity("pairs.tsv", pooling=pooling), cache=False).value


@pytest.mark.parametrize("damage", ["", "{", "[]", "3", "{}", '["x"]'])
def test_damaged_settings_of_pooling_are_none(encoders: Path, damage: str) -> None:
    (encoders / "e1" / "1_Pooling").mkdir()
    for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"):
        (encoders / "e1" / name).write_text(damage)
    found = eutectic.evaluate("e1", Similarity("pairs.tsv"), cache=False)
    assert found.value == eutectic.evaluate("e1", Similarity("pairs.tsv", pooling="mean"), cache=False).value


def test_an_encoder_whose_positions_begin_at_two(encoders: Path) -> None:
    config = transformers.RobertaConfig(
        vocab_size=96, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=34, pad_token_id=1,
    )  # fmt: skip
    transformers.RobertaModel(config).save_pretrained(encoders / "r")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (encoders / "r" / file).write_bytes((encoders / "a" / file).read_bytes())
    write_lines(
        encoders / "long.jsonl",
        ({"sentence1": "w5 " * (30 + i * 7), "sentence2": "w6 w7", "score": i} for i in range(5)),
    )
    assert np.isfinite(eutectic.evaluate("r", Similarity("long.jsonl"), cache=False).value)


def test_long_sentences_are_cut_where_the_encoder_ends(encoders: Path) -> None:
    write_lines(
        encoders / "long.jsonl",
        ({"sentence1": "w5 " * (30 + i * 7), "sentence2": "w6 w7", "score": i} for i in range(5)),
    )
    assert np.isfinite(eutectic.evaluate("e1", Similarity("long.jsonl"), cache=False).value)


@pytest.mark.parametrize("seed", range(5))
def test_spearman_with_ties(seed: int) -> None:
    draw = np.random.default_rng(seed)
    a, b = draw.integers(0, 5, 30).astype(float), draw.normal(size=30).round(1)
    assert spearman(a, b) == pytest.approx(oracle_spearman(a, b))
    assert (
        spearman(a, np.zeros(30)) == 0 and spearman(a, a) == pytest.approx(1) and spearman(a, -a) == pytest.approx(-1)
    )


def test_calibration() -> None:
    draw = np.random.default_rng(0)
    confidence = np.concatenate([draw.random(500), [0.0, 1.0, 1 / 15, 0.2]])
    right = (draw.random(504) < confidence).astype(float)
    wanted = 0.0
    for bin_ in range(15):
        low, high = bin_ / 15, (bin_ + 1) / 15
        inside = (confidence > low) & (confidence <= high) | ((bin_ == 0) & (confidence == 0))
        if inside.any():
            wanted += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration_error(confidence, right, 15) == pytest.approx(wanted)
    assert calibration_error(np.full(10, 0.9), np.ones(10), 15) == pytest.approx(0.1)


def test_classification(here: Path) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 3), torch.nn.Dropout(0.5))
    inputs, labels = torch.randn(50, 2, 3), torch.randint(0, 3, (50,))
    data = torch.utils.data.TensorDataset(inputs, labels)
    ordered = torch.utils.data.DataLoader(data, batch_size=7)
    found = eutectic.evaluate(net, Classification(ordered))
    logits = (inputs.reshape(50, 6) @ net[1].weight.T + net[1].bias).double().detach()
    assert found.items.tolist() == (logits.argmax(1) == labels).double().tolist()
    loss = torch.nn.functional.cross_entropy(logits, labels)
    assert found.details["cross_entropy"] == pytest.approx(float(loss), rel=1e-6)
    least = eutectic.evaluate(net, Classification(ordered, metric="cross_entropy"))
    assert least.value == pytest.approx(float(loss), rel=1e-6) and not least.higher_is_better
    assert eutectic.evaluate(net, Classification(ordered), limit=10).items.tolist() == found.items[:10].tolist()
    # One that shuffles shows every model the same order.
    shuffled = torch.utils.data.DataLoader(data, batch_size=7, shuffle=True)
    a, b = (eutectic.evaluate(net, Classification(shuffled)) for _ in "ab")
    assert a.items.tolist() == b.items.tolist() and paired(a, b).value == 0
    with pytest.raises(EutecticError, match="E909"):
        paired(a, found)


def test_classification_of_a_merge_takes_dicts_and_tuples(here: Path) -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 2)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
            return type("Out", (), {"logits": self.layer(torch.cat([x, y], 1))})

    torch.manual_seed(1)
    recipe = {"merge_method": "linear", "models": [Two().state_dict(), Two().state_dict()]}
    x, y, labels = torch.randn(6, 2), torch.randn(6, 2), torch.tensor([0, 1, 0, 1, 1, 0])
    found = [
        eutectic.evaluate(recipe, Classification([(inputs, labels)], metric="cross_entropy"), module=Two).items.tolist()
        for inputs in ((x, y), {"x": x, "y": y})
    ]
    assert found[0] == found[1]


def test_a_classifier_of_nan(here: Path) -> None:
    net = torch.nn.Linear(2, 2)
    with torch.no_grad():
        net.weight[0] = torch.nan
    loader = [(torch.ones(3, 2), torch.tensor([0, 1, 1]))]
    said = refusal(lambda: eutectic.evaluate(net, Classification(loader, name="digits")))
    assert said.startswith("E908 digits: item 1 scores nan with model 'Linear', and so do 2 more")
    assert refusal(lambda: eutectic.evaluate(net, Classification([]))).startswith("E904 loader: the loader of")
    assert refusal(lambda: eutectic.evaluate(net, Classification(3))).startswith("E902 loader: must give pairs")


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ((torch.ones(2, 5), torch.tensor([0, 1])), "batch 2 of 'digits' cannot be run: RuntimeError: mat1 and mat2"),
        (torch.ones(3, 4), "batch 2 of 'digits' cannot be run: ValueError: too many values to unpack"),
        ((torch.ones(2, 4), torch.tensor([0, -1])), "batch 2 of 'digits' has the label -1, and the module 3 classes"),
        ((torch.ones(2, 4), torch.tensor([0, 3])), "batch 2 of 'digits' has the label 3, and the module 3 classes"),
        ((torch.ones(2, 4), [0, 1, 2]), "batch 2 of 'digits' gives logits of shape (2, 3) for 3 labels"),
        ((torch.ones(2, 2, 4), torch.tensor([0, 1])), "batch 2 of 'digits' gives logits of shape (2, 2, 3) for 2"),
        ((torch.ones(2, 4), torch.eye(3)[:2]), "batch 2 of 'digits' has labels of float32 and shape (2, 3)"),
        ((torch.ones(2, 4), torch.tensor([0.7, 1.2])), "batch 2 of 'digits' has labels of float32 and shape (2,)"),
    ],
)
def test_batches_that_cannot_be_scored(here: Path, batch: Any, said: str) -> None:
    loader = [(torch.ones(2, 4), torch.tensor([0, 2])), batch]
    found = refusal(lambda: eutectic.evaluate(torch.nn.Linear(4, 3), Classification(loader, name="digits")))
    assert found.startswith(f"E904 loader: {said}")


def test_functions(here: Path) -> None:
    (here / "mine.py").write_text(
        "import numpy as np\n"
        "def names(source):\n    return float(len(source))\n"
        "def norms(source):\n    return [float(source[n].float().norm()) for n in source]\n"
        "def head(model):\n    return model.lm_head.weight.float().abs().mean()\n"
        "def bad(source):\n    return float('nan')\n"
        "def none(source):\n    return []\n"
        "def broken(source):\n    raise KeyError('x')\n"
        "thing = 3\n"
    )
    source = eutectic.open("a")
    assert eutectic.evaluate("a", "call:mine:names").value == len(source)
    found = eutectic.evaluate("a", Call("mine:norms", metric="norm", higher_is_better=False))
    assert found.items.tolist() == [float(source[name].float().norm()) for name in source]
    head = eutectic.evaluate("a", Call("mine:head", takes="causal"))
    assert head.value == pytest.approx(float(source["lm_head.weight"].float().abs().mean()))
    assert eutectic.evaluate("a", Call(lambda s: 2.5, name="two")).value == 2.5
    assert (
        eutectic.evaluate(torch.nn.Linear(2, 2), Call(lambda m: m.weight.numel(), name="n", takes="module")).value == 4
    )
    for call, said in (
        ("call:mine:nams", "E911 function: 'mine:nams' cannot be imported: AttributeError"),
        ("call:min:names", "E911 function: 'min:names' cannot be imported: ModuleNotFoundError"),
        ("call:mine:thing", "E911 'mine:thing' is a int, not a function"),
        ("call:mine:bad", "E908 bad: item 1 scores nan with model 'a'"),
        ("call:mine:none", "E911 none: it returned no number for model 'a'"),
        ("call:mine:broken", "E911 broken: it failed with model 'a': KeyError: 'x'"),
        ("call:mine", "E902 function: must be module:function, not 'mine'"),
    ):
        assert refusal(lambda call=call: eutectic.evaluate("a", call)).startswith(said)


def test_functions_in_two_folders(here: Path) -> None:
    """Of the same module's name, as files beside task files tend to be."""
    for number in (1, 2):
        (here / f"f{number}").mkdir()
        (here / f"f{number}" / "mine.py").write_text(f"def f(source):\n    return {number}.0\n")
        (here / f"f{number}" / "t.yml").write_text("task: call\nfunction: mine:f\n")
    before = list(sys.path)
    assert [eutectic.evaluate("a", f"f{number}/t.yml").value for number in (1, 2)] == [1.0, 2.0]
    assert sys.path == before


def test_a_function_and_a_recipe_behind_a_link(here: Path) -> None:
    """`..` after a link is the folder above the one that it leads to."""
    (here / "far" / "deep").mkdir(parents=True)
    (here / "link").symlink_to("far/deep")
    (here / "far" / "mine.py").write_text("def f(source):\n    return 3.0\n")
    assert eutectic.evaluate("a", Call("mine:f", folder="link/..")).value == 3.0
    (here / "far" / "r.yml").write_text("merge_method: linear\nmodels: [a, b]\n")
    with opened(["link/../r.yml"]) as (merge,):
        assert merge.path == str(here / "link" / ".." / "r")


def test_a_function_beside_a_dataclass(here: Path) -> None:
    """Which looks its own module up while it is imported."""
    (here / "mine.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Pair:\n    left: int = 1\n    right: int = 2\n"
        "def f(source):\n    return Pair().left + Pair().right\n"
    )
    before = dict(sys.modules)
    assert eutectic.evaluate("a", "call:mine:f").value == 3
    assert "mine" not in sys.modules.keys() - before.keys()


def test_a_task_of_ones_own(here: Path) -> None:
    """Any object with the six of the protocol is a task."""
    from eutectic.evaluate import Score, Settings, Task, score_of

    class Count:
        name, metric, higher_is_better = "count", "tensors", True

        def identity(self) -> dict[str, Any]:
            return {"count": 1}

        def check(self, source: eutectic.Source, run: Settings) -> None:
            pass

        def score(self, source: eutectic.Source, run: Settings) -> Score:
            return score_of(self, source, run, [len(source)])

    task: Task = Count()
    assert eutectic.evaluate("a", task).value == len(eutectic.open("a"))
    assert refusal(lambda: eutectic.evaluate("a", 3)).startswith("E901 task: a int is no task")

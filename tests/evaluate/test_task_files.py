"""Tasks as users write them, and what they get wrong: every problem at once, with its place, before any weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import eutectic
from eutectic.errors import EutecticError, RecipeError
from eutectic.evaluate import Cache, Call, Choice, ExactMatch, Perplexity, Settings, evaluate_models, task_of
from eutectic.evaluate.opening import opened

pytestmark = pytest.mark.usefixtures("here")


def said(call: Any) -> str:
    with pytest.raises(EutecticError) as caught:
        call()
    return str(caught.value)


def in_file(text: str) -> str:
    Path("task.yml").write_text(text)
    return said(lambda: task_of("task.yml"))


def test_a_task_file(here: Path) -> None:
    (here / "tasks").mkdir()
    (here / "tasks" / "t.yml").write_text(
        "task: perplexity\nname: held out\ndata: ../text.jsonl\nblock: 16\nstride: 4\n"
        "metric: bits_per_byte\ndtype: float32\n"
    )
    found = task_of("tasks/t.yml")
    assert found == Perplexity(
        "text.jsonl", name="held out", block=16, stride=4, metric="bits_per_byte", dtype="float32"
    )
    assert (found.name, found.metric, found.higher_is_better) == ("held out", "bits_per_byte", False)
    (here / "tasks" / "m.yml").write_text("task: exact_match\ndata: ../match.jsonl\nstop: ['.', ';']\n")
    assert task_of("tasks/m.yml") == ExactMatch("match.jsonl", name="m", stop=(".", ";"))
    (here / "tasks" / "c.yml").write_text("task: call\nfunction: mine:f\nhigher_is_better: false\n")
    assert task_of("tasks/c.yml") == Call("mine:f", name="c", higher_is_better=False, folder="tasks")


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("task: perplexity\ndata: text.jsonl", "text"),
        ("task: choice\ndata: choice.jsonl", "choice"),
        ("task: call\nfunction: 'os:getcwd'", "getcwd"),
        ("task: harness\nharness: arc_easy", "arc_easy"),
    ],
)
def test_a_task_is_called_by_its_file_unless_it_has_a_name(here: Path, text: str, short: str) -> None:
    (here / "tasks").mkdir()
    (here / "tasks" / "a.general.yml").write_text(text.replace("data: ", "data: ../"))
    (here / "named.yml").write_text(f"{text}\nname: mine\n")
    assert [task_of(path).name for path in ("tasks/a.general.yml", "named.yml")] == ["a.general", "mine"]
    kind, (key, data) = text.split("\n")[0][6:], text.split("\n")[1].split(": ")
    assert task_of(f"{kind}:{data.strip(chr(39))}").name == short
    assert task_of({"task": kind, key: data.strip(chr(39))}).name == short


def test_the_name_of_a_task_is_no_part_of_its_score(here: Path) -> None:
    (here / "general.yml").write_text("task: perplexity\ndata: text.jsonl\nblock: 16\n")
    found = [eutectic.evaluate("a", task, cache="kept") for task in ("general.yml", Perplexity("text.jsonl", block=16))]
    assert [one.task for one in found] == ["general", "text"] and found[0].value == found[1].value
    with opened(["a"]) as [source]:
        keys = [
            Cache("kept").key(source, task_of(task), Settings())
            for task in ("general.yml", Perplexity("text.jsonl", block=16))
        ]
    assert keys[0] == keys[1] is not None


def test_data_behind_a_link(here: Path) -> None:
    (here / "far" / "deep").mkdir(parents=True)
    (here / "far" / "choice.jsonl").write_text("{}")
    (here / "link").symlink_to("far/deep")
    (here / "link" / "t.yml").write_text("task: choice\ndata: ../choice.jsonl\n")
    assert task_of("link/t.yml") == Choice("link/../choice.jsonl", name="t")


def test_other_ways_to_write_a_task(here: Path) -> None:
    assert task_of("choice:choice.jsonl") == Choice("choice.jsonl")
    assert task_of({"task": "choice", "data": "choice.jsonl"}) == Choice("choice.jsonl")
    assert task_of("perplexity:notes.yml") == Perplexity("notes.yml")
    task = Choice("choice.jsonl")
    assert task_of(task) is task and task.name == "choice"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "E901 task.yml: holds 0 documents"),
        ("task: choice\n---\ntask: choice\n", "E901 task.yml: holds 2 documents"),
        ("- a\n", "E901 task.yml:1:1: a task is a mapping with the key task, not a list"),
        ("data: x\n", "E901 task.yml:1:1: has no key `task`; the kinds are perplexity"),
        (
            "task: perplexty\n",
            "E901 task.yml:1:7 task: there is no kind of task 'perplexty'; did you mean",
        ),
        ("task: [choice]\n", "E901 task.yml:1:7 task: there is no kind of task a list"),
        ("task: choice\n", "E902 task.yml:1:1: choice needs 'data'"),
        ("task: choice\ndata: ''\n", "E902 task.yml:2:1 data: must be text, not ''"),
        ("task: choice\ndata: x\nmetric: f1\n", "E902 task.yml:3:1 metric: must be one of acc, acc_norm, not 'f1'"),
        ("task: perplexity\ndata: x\nblock: 1\n", "E902 task.yml:3:1 block: must be a whole number from 2 on, not 1"),
        ("task: perplexity\ndata: x\nblock: true\n", "block: must be a whole number from 2 on, not true"),
        (
            "task: perplexity\ndata: x\nblock: 8\nstride: 9\n",
            "task.yml:4:1 stride: must be at most block, 8",
        ),
        (
            "task: perplexity\ndata: x\ndtype: int8\n",
            "dtype: must be one of bfloat16, float16,",
        ),
        ("task: exact_match\ndata: x\nstop: a\n", "E902 task.yml:3:1 stop: must be a list of text, not 'a'"),
        ("task: call\nfunction: f\n", "E902 task.yml:2:1 function: must be module:function, not 'f'"),
        ("task: call\nfunction: m:f\nhigher_is_better: 3\n", "higher_is_better: must be true or false, not 3"),
        ("task: choice\ntask: choice\n", "R103 task.yml:2:1 task: the key stands twice"),
        ("task: [\n", "R102 task.yml"),
        ("task: !!python/object:os.system x\n", "R104 task.yml"),
    ],
)
def test_mistakes_in_a_file(text: str, wanted: str) -> None:
    assert wanted in in_file(text)


def test_all_mistakes_are_told_at_once() -> None:
    problems = in_file("task: perplexity\nblok: 3\nstride: x\nfield: 3\n").splitlines()
    assert [problem.split("; ")[0] for problem in problems] == [
        "E902 task.yml:1:1: perplexity needs 'data'",
        "E902 task.yml:2:1 blok: perplexity has no option 'blok'",
        "E902 task.yml:3:1 stride: must be a whole number from 1 on, not 'x'",
        "E902 task.yml:4:1 field: must be text, not 3",
    ]
    assert problems[1].endswith("did you mean 'block'?")


@pytest.mark.parametrize(
    ("task", "wanted"),
    [
        ("choice", "E901 task: 'choice' is no task; write KIND:DATA or name a .yml file"),
        ("choice:", "E901 task: 'choice:' is no task"),
        ("choise:x", "E901 task: 'choise:x' is no task; did you mean 'choice'?"),
        ("nowhere.yml", "E901 nowhere.yml: the task cannot be read: No such file"),
        ("recipe.yaml", "did you mean 'recipe.yml'?"),
        ("recipe.yml", "E901 recipe.yml:1:1: this is a recipe and no task; name it with the models"),
    ],
)
def test_mistakes_in_short(task: str, wanted: str) -> None:
    assert wanted in said(lambda: task_of(task))


def test_a_file_that_is_there_and_cannot_be_read_is_not_taken_for_another() -> None:
    Path("t2.yml").write_bytes(b"\xff")
    Path("t3.yml").write_text("task: perplexity\n")
    assert said(lambda: task_of("t2.yml")).endswith("it is not UTF-8")


def test_mistakes_in_python() -> None:
    text = said(lambda: Perplexity("x", block=0, stride="a", metric="ppl"))  # type: ignore[arg-type]
    assert text.splitlines() == [
        "E902 block: must be a whole number from 2 on, not 0",
        "E902 stride: must be a whole number from 1 on, not 'a'",
        "E902 metric: must be one of perplexity, bits_per_byte, not 'ppl'",
    ]
    assert said(lambda: Settings(batch=0, limit=-1, seed=True)).count("M603") == 3
    assert said(lambda: Settings(batch=2.5)).startswith("M603 batch")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "content", "wanted"),
    [
        ("choice:d.jsonl", None, "E903 d.jsonl data: the data cannot be read: No such file"),
        ("choice:d.jsonl", b"\xff\xfe", "E904 d.jsonl data: byte 0 is not UTF-8"),
        ("choice:d.jsonl", b"", "E904 d.jsonl data: there is no item in it"),
        ("choice:d.jsonl", b"{", "E904 d.jsonl:1:1: not JSON"),
        ("choice:d.jsonl", b"3", "E904 d.jsonl:1:1: must be an object, not 3"),
        ("choice:d.jsonl", b'{"choices": ["a", "b"], "answer": 0}', "has no 'context' or 'question'; it has 'choices'"),
        ("choice:d.jsonl", b'{"question": "q", "answer": 0}', "two texts or more, not nothing"),
        ("choice:d.jsonl", b'{"question": "q", "choices": ["a"], "answer": 0}', "must be a list of two texts"),
        ("choice:d.jsonl", b'{"question": "q", "choices": ["a", ""], "answer": 0}', "must be a list of two texts"),
        ("choice:d.jsonl", b'{"question": "q", "choices": ["a", "b"], "answer": 2}', "'answer' must be one of"),
        ("choice:d.jsonl", b'{"question": "q", "choices": ["a", "b"], "answer": "c"}', "number from 0, not 'c'"),
        ("choice:d.jsonl", b'{"question": "q", "choices": ["a", "b"], "answer": true}', "number from 0, not true"),
        ("exact_match:d.jsonl", b'{"prompt": "q"}', "'answer' must be text or a list of texts, not nothing"),
        ("exact_match:d.jsonl", b'{"prompt": " ", "answer": "a"}', "'prompt' must be text, not ' '"),
        ("similarity:d.tsv", b"sentence1\tsentence2\tscore\na\tb\n", "E904 d.tsv:2:1: has 2 columns, the first"),
        ("similarity:d.tsv", b"sentence1\tsentence2\tscore\na\tb\tx\n", "d.tsv:2:1: 'score' must be a number, not 'x'"),
        ("similarity:d.tsv", b"sentence1\tsentence2\tscore\na\tb\tnan\n", "'score' must be a number"),
        ("similarity:d.tsv", b"s1\tsentence2\tscore\na\tb\t1\n", "has no 'sentence1'; it has 's1'"),
        ("similarity:d.tsv", b"sentence1\tsentence2\tscore\na\tb\t1\nc\td\t1\n", "every pair has the same score"),
        ("perplexity:d.txt", b" \n ", "E904 d.txt data: there is no text in it"),
        ("perplexity:d.jsonl", b'{"txt": "a"}', "has no 'text'; it has 'txt'"),
    ],
)  # fmt: skip
def test_data_that_are_wrong(task: str, content: bytes | None, wanted: str) -> None:
    path = Path(task.partition(":")[2])
    if content is not None:
        path.write_bytes(content)
    assert wanted in said(lambda: eutectic.evaluate("a", task, cache=False))


def test_a_file_of_a_similar_name_is_suggested() -> None:
    Path("dev.jsonl").write_text('{"text": "w5"}\n')
    assert said(lambda: eutectic.evaluate("a", "perplexity:dve.jsonl")).endswith("did you mean 'dev.jsonl'?")
    assert "own folder" in said(lambda: eutectic.evaluate("a", "perplexity:nowhere/dev.jsonl"))
    Path("texts").mkdir()
    assert said(lambda: eutectic.evaluate("a", "perplexity:texts")).endswith("Is a directory; name one file")


def test_what_is_wrong_with_many_lines_is_told_once() -> None:
    Path("d.jsonl").write_text("3\n" * 50 + "4\n")
    assert said(lambda: eutectic.evaluate("a", "choice:d.jsonl", cache=False)).splitlines() == [
        "E904 d.jsonl:1:1: must be an object, not 3; and so in 49 more lines: 2, 3, 4, 5 and 45 more",
        "E904 d.jsonl:51:1: must be an object, not 4",
    ]


def test_lines_that_are_wrong_in_many_ways_are_counted() -> None:
    Path("d.jsonl").write_text("".join(f"{n}\n{n}\n" for n in range(50)))
    problems = said(lambda: eutectic.evaluate("a", "choice:d.jsonl", cache=False)).splitlines()
    assert problems[9] == "E904 d.jsonl:19:1: must be an object, not 9; and so in 1 more line: 20"
    assert problems[10:] == ["E904 d.jsonl: and 80 more lines are wrong"]


def test_everything_is_checked_before_a_weight_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    reads: list[str] = []
    from eutectic.checkpoint.extents import FileSource

    real = FileSource.read_into
    monkeypatch.setattr(FileSource, "read_into", lambda self, *rest: (reads.append(self.label), real(self, *rest))[1])
    Path("a/tokenizer.json").unlink()
    Path("a/tokenizer_config.json").unlink()
    text = said(
        lambda: evaluate_models(
            ["b", "a"], [Perplexity("text.jsonl", block=16), "choice:d.jsonl", Perplexity("text.jsonl")]
        )
    )
    codes = [problem.split()[0] for problem in text.splitlines()]
    assert sorted(set(codes)) == ["E903", "E906", "E907"] and reads == []


def test_models_that_cannot_be_opened() -> None:
    task = "choice:choice.jsonl"
    text = said(lambda: evaluate_models(["nowhere", "neither", "a"], [task]))
    assert text.count("C200") == 2
    Path("bad.yml").write_text("merge_method: linaer\nmodels: [a]\n")
    assert said(lambda: eutectic.evaluate("bad.yml", task)).startswith("R120 bad.yml:1:15")
    assert said(lambda: evaluate_models(["a"], [])).startswith("E901 tasks: there is no task")
    assert said(lambda: eutectic.evaluate("a", task, device="tpu")).startswith("M602")


def test_a_sweep_is_several_models() -> None:
    pytest.importorskip("transformers")
    Path("sweep.yml").write_text(
        "merge_method: slerp\nbase_model: a\nmodels: [a, b]\nparameters: {t: {sweep: [0, 0.5, 1]}}\n"
    )
    task = Perplexity("text.jsonl", block=16)
    found = evaluate_models(["sweep.yml", "a", "b"], [task], cache=False)
    assert found.models == ("t=0", "t=0.5", "t=1", "a", "b")
    scores = found.scores["text"]
    assert scores["t=0"].value == scores["a"].value and scores["t=1"].value == scores["b"].value
    assert said(lambda: eutectic.evaluate("sweep.yml", task)).startswith("R128 the recipe sweeps a parameter")
    with opened(["sweep.yml"]) as merges:
        read = {id(one.source) for merge in merges for one in merge.plan.inputs}
        assert (len(merges), len(read)) == (3, 2), "they share their open inputs"


def test_the_best_and_the_others() -> None:
    pytest.importorskip("transformers")
    tasks = [Perplexity("text.jsonl", block=16), Perplexity("text.jsonl", block=8)]
    found = evaluate_models(["a", "b", "a"], tasks, cache=False)
    assert found.models == ("a", "b", "a#2") and found.tasks == ("text", "text#2")
    scores = found.scores["text"]
    best = min(scores, key=lambda label: scores[label].value)
    assert found.best("text") == best and found.to_best("text")[best] is None
    for label, gap in found.to_best("text").items():
        assert gap is None or gap.value == scores[label].value - scores[best].value >= 0
    data = found.as_json()
    assert [row["model"] for row in data["tasks"][0]["scores"]] == ["a", "b", "a#2"]
    assert data["tasks"][1]["best"] == found.best("text#2")


def test_models_with_other_tokens_are_not_paired() -> None:
    transformers = pytest.importorskip("transformers")
    assert transformers
    path = Path("b/tokenizer.json")
    path.write_text(path.read_text().replace('"w5":', '"w5 w6":').replace('"WhitespaceSplit"', '"Whitespace"'))
    found = evaluate_models(["a", "b"], [Perplexity("text.jsonl", block=16)], cache=False)
    assert all(gap is None or gap.better is None for gap in found.to_best("text").values())
    with pytest.raises(RecipeError):
        eutectic.evaluate("a", Perplexity("nowhere.jsonl"))

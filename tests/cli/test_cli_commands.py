"""Every command and option: what it prints, what it leaves, how it ends."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from commanding import Run
from safetensors import safe_open

import eutectic


def parsed(result: Result, code: int = 0) -> Any:
    """The JSON on standard output, which has nothing else; standard error is empty."""
    assert (result.exit_code, result.stderr) == (code, "")
    return json.loads(result.stdout)


def dtypes_of(folder: Path) -> set[str]:
    return {spec.dtype for spec in eutectic.open(folder).specs.values()}


def test_help_and_version(run: Run) -> None:
    assert run("--version").stdout == f"eutectic {eutectic.__version__}\n"
    text = run("--help").stdout
    for command in ("merge", "plan", "verify", "inspect", "methods", "explain"):
        assert command in text
        assert run(command, "--help").exit_code == 0
        assert run(command, "-h").stdout == run(command, "--help").stdout
    assert "Usage" in run().output


def test_plan_says_what_a_merge_would_do(run: Run, here: Path) -> None:
    result = run("plan", "dare.yml", "--threads", 1)
    assert (result.exit_code, result.stderr) == (0, "")
    said = " ".join(result.stdout.split())
    for part in ("method dare_linear", "base base 12 tensors", "model a", "model b", "12 merged", "reads", "writes"):
        assert part in said
    assert "with 1 thread; needs" in said and "at least seed 0" in said
    assert not (here / "out").exists()


def test_plan_shows_no_peak_below_what_is_needed(run: Run) -> None:
    said = " ".join(run("plan", "dare.yml", "--threads", 1).stdout.split())
    figures = re.search(r"peak about (\d+) MiB with 1 thread; needs (\d+) MiB at least", said)
    assert figures is not None and int(figures[1]) >= int(figures[2])


def test_plan_lists_tensors(run: Run) -> None:
    lines = run("plan", "r.yml", "--tensors").stdout.splitlines()
    row = next(line for line in lines if "model.norm.weight" in line)
    assert row.split() == [
        "model.norm.weight",
        "bfloat16",
        "[16]",
        "merged",
        "weight:",
        "a=1",
        "b=3;",
        "normalize:",
        "true",
    ]
    head = next(line for line in lines if line.startswith("tensor "))
    assert head.split("  ")[0] == "tensor" and "parameters or reason" in head


def test_a_plan_speaks_in_the_recipes_order(run: Run, here: Path) -> None:
    """The inputs have an order of their own, so that the bytes do not depend on the recipe's."""
    text = "merge_method: ties\nbase_model: base\nmodels:\n"
    text += "".join(f"  - {{model: ./{m}, parameters: {{weight: {w}}}}}\n" for m, w in (("b", 0.123456789), ("a", 1)))
    (here / "t.yml").write_text(text + "parameters: {density: 0.2}\ntokenizer_source: ./a\n")
    lines = run("plan", "t.yml", "--tensors").stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["base", "base"],
        ["model", "b"],
        ["model", "a"],
        ["tokenizer", "a"],
    ]
    for template, told in (("chatml", "chatml"), ("'{{ messages }}'", "the recipe's own, 14 characters")):
        assert f"template {told}" in " ".join(run("plan", "t.yml", "--set", f"chat_template={template}").stdout.split())
    said = [" ".join(line.split()) for line in lines]
    others = "normalize: true; rescale: false; lambda: 1"
    assert f"parameters weight: b=0.123456789 a=1; density: 0.2; {others}" in said
    assert f"lm_head.weight bfloat16 [96, 16] merged weight: b=0.123456789 a=1; density: b=0.2 a=0.2; {others}" in said
    differing = run("plan", "t.yml", "--set", "parameters.lambda=[0, 1]").stdout
    assert "lambda differs between tensors; plan --tensors lists them" in " ".join(differing.split())
    assert [item["label"] for item in parsed(run("plan", "t.yml", "--json"))["inputs"]] == ["base", "a", "b"]


def test_a_plan_names_recipes_within_it_in_order(run: Run, here: Path) -> None:
    (here / "n.yml").write_text(
        "name: zz\nmerge_method: linear\nmodels: [a, b]\n---\nmerge_method: linear\nmodels: [zz, base]\nseed: 3\n"
    )
    rows = [line.split()[:2] for line in run("plan", "n.yml").stdout.splitlines()]
    assert rows[1:3] == [["model", "zz"], ["model", "base"]]


def test_a_plan_says_what_is_not_merged(run: Run, here: Path) -> None:
    import torch

    from eutectic.testing import write_safetensors

    step = {"step": torch.tensor([7])}
    more = {f"extra{i}": torch.ones(2) for i in range(5)}
    write_safetensors(here / "x.safetensors", {"w": torch.ones(2, dtype=torch.bfloat16), **step, **more})
    write_safetensors(here / "y.safetensors", {"w": torch.ones(2, dtype=torch.float16), "step": torch.tensor([8])})
    (here / "c.yml").write_text(
        "merge_method: linear\nmodels: [y.safetensors, x.safetensors]\nmissing: copy\nbuffers_from: x.safetensors\n"
    )
    said = [" ".join(line.split()) for line in run("plan", "c.yml").stdout.splitlines()]
    assert "dtype float32 (from bfloat16, float16 and float32)" in said
    assert "copied step (buffers_from)" in said
    assert "copied extra1 (not in y.safetensors; taken from x.safetensors)" in said
    assert "and 3 more (plan --tensors lists them)" in said
    assert "dropped step of y.safetensors (buffers_from is x.safetensors)" in said
    rows = [" ".join(line.split()) for line in run("plan", "c.yml", "--tensors").stdout.splitlines()]
    assert "extra4 float32 [2] copied not in y.safetensors; taken from x.safetensors" in rows
    assert "step int64 [1] dropped of y.safetensors: buffers_from is x.safetensors" in rows


def test_plan_as_json(run: Run) -> None:
    found = parsed(run("plan", "dare.yml", "--json", "--seed", 5, "--threads", 1))
    assert found.keys() == {
        *("method", "fingerprint", "seed", "inputs", "bytes_in", "bytes_out", "threads", "peak_bytes", "tensors"),
        *("least_bytes", "gpu_bytes", "tokenizer", "chat_template"),
        *("tied", "dropped", "notes", "problems"),
    }
    assert (found["method"], found["seed"], found["threads"], found["problems"]) == ("dare_linear", 5, 1, [])
    assert (found["tokenizer"], found["chat_template"]) == ("base", None)
    assert [(item["role"], item["label"]) for item in found["inputs"]] == [
        ("base", "base"),
        ("model", "a"),
        ("model", "b"),
    ]
    assert found["tensors"][0]["parameters"]["density"] == [0.5, 0.5]
    assert found["tensors"][0]["inputs"][2] == {"model": "b", "tensor": "model.embed_tokens.weight"}


def test_problems_as_json(run: Run, here: Path) -> None:
    (here / "wrong.yml").write_text("merge_method: linear\nmodels: [a, b]\nparameters: {wieght: 1}\nseeed: 1\n")
    for arguments in (["plan", "wrong.yml"], ["merge", "wrong.yml", "out"]):
        found = parsed(run(*arguments, "--json"), code=2)
        assert found.keys() == {"problems"}
        assert [(p["code"], p["line"], p["hint"]) for p in found["problems"]] == [
            ("R121", 3, "did you mean 'weight'?"),
            ("R110", 4, "did you mean 'seed'?"),
        ]
    found = parsed(run("inspect", "nowhere", "--json"), code=1)
    assert [p["code"] for p in found["problems"]] == ["C200"]


def test_merge_verify_and_the_second_time(run: Run, here: Path) -> None:
    result = run("merge", "r.yml", "out")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "method" in result.stdout and "merged 12 tensors" in result.stdout
    assert "verified 12 tensors and 4 files as written, 12 merged again and equal" in run("verify", "out").stdout
    assert "nothing to do" in run("merge", "r.yml", "out").stdout


def test_merge_as_json(run: Run) -> None:
    found = parsed(run("merge", "r.yml", "out", "--json"))
    assert found.keys() == {
        *("path", "method", "tensors", "bytes_in", "bytes_out", "seconds", "resumed", "already_complete"),
        *("nonfinite", "seed", "notes"),
    }
    assert (found["tensors"], found["already_complete"]) == (12, False)
    assert parsed(run("merge", "r.yml", "out", "--json"))["already_complete"] is True


def test_quiet_prints_nothing(run: Run) -> None:
    for arguments in (["merge", "r.yml", "out"], ["merge", "r.yml", "out"], ["verify", "out"]):
        assert run(*arguments, "--quiet").output == ""
        assert run(*arguments, "-q").output == ""


def test_quiet_still_says_what_is_wrong(run: Run) -> None:
    assert "R101" in run("merge", "none.yml", "out", "--quiet").stderr


def test_verify_as_json(run: Run, here: Path) -> None:
    run("merge", "r.yml", "out", "-q")
    found = parsed(run("verify", "out", "--json"))
    counts = {"stored": 12, "derived": 12, "near": 0, "files": 4}
    assert found == {"path": "out", "ok": True, **counts, "added": [], "problems": []}
    assert parsed(run("verify", "out", "--json", "--stored-only"))["derived"] == 0
    assert parsed(run("verify", "out", "--json", "--sample", 3))["derived"] == 3


def test_verify_finds_a_flipped_bit(run: Run, here: Path) -> None:
    run("merge", "r.yml", "out", "-q")
    path = here / "out" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    result = run("verify", "out")
    assert result.exit_code == 1
    assert "V702 lm_head.weight: has other bytes than were written" in result.stderr
    found = parsed(run("verify", "out", "--json"), code=1)
    assert (found["ok"], [p["code"] for p in found["problems"]]) == (False, ["V702"])


def test_set_changes_the_recipe(run: Run) -> None:
    changes = ["--set", "models[1].parameters.weight=1", "--set", "parameters.normalize=false"]
    found = parsed(run("plan", "r.yml", "--json", *changes))
    assert found["tensors"][0]["parameters"] == {"weight": [1.0, 1.0], "normalize": False}


def test_dtype_seed_and_shards(run: Run, here: Path) -> None:
    assert run("merge", "dare.yml", "one", "-q", "--dtype", "float16", "--seed", 1).exit_code == 0
    assert dtypes_of(here / "one") == {"float16"}
    assert json.loads((here / "one" / "config.json").read_text())["torch_dtype"] == "float16"
    assert run("merge", "dare.yml", "two", "-q", "--seed", 2, "--shard-size", "3kB").exit_code == 0
    assert len(list((here / "two").glob("model-*-of-*.safetensors"))) > 1
    assert run("merge", "dare.yml", "three", "-q", "--seed", 2, "--threads", 2, "--memory", "3GiB").exit_code == 0
    one, two, three = (eutectic.open(here / name) for name in ("one", "two", "three"))
    name = "model.embed_tokens.weight"
    assert (two[name] == three[name]).all() and (one[name] != two[name]).any()


def test_replace(run: Run, here: Path) -> None:
    run("merge", "r.yml", "out", "-q")
    result = run("merge", "dare.yml", "out", "-q")
    assert result.exit_code == 2 and "W401" in result.stderr and "--replace" in result.stderr
    assert run("merge", "dare.yml", "out", "-q", "--replace").exit_code == 0
    assert json.loads((here / "out" / "eutectic.json").read_text())["method"] == "dare_linear"


def test_a_changed_tokenizer_is_another_merge(run: Run, here: Path) -> None:
    run("merge", "r.yml", "out", "-q")
    (here / "a" / "generation_config.json").write_text("{}")
    assert "W401" in run("merge", "r.yml", "out", "-q").stderr


def test_nonfinite(run: Run, here: Path) -> None:
    import torch

    from eutectic.testing import write_safetensors

    for label, values in (("x", [1.0, float("nan")]), ("y", [1.0, 2.0])):
        write_safetensors(here / f"{label}.safetensors", {"w": torch.tensor(values)})
    (here / "n.yml").write_text("merge_method: linear\nmodels: [x.safetensors, y.safetensors]\n")
    result = run("merge", "n.yml", "out", "-q")
    assert result.exit_code == 1 and "N501 w: 1 value of x.safetensors is NaN" in result.stderr
    result = run("merge", "n.yml", "out", "--nonfinite", "count")
    assert result.exit_code == 0 and "1 NaN or infinite value in the inputs" in result.stdout


def test_inspect(run: Run, here: Path) -> None:
    said = " ".join(run("inspect", "b").stdout.split())
    for part in (
        "model b",
        "tensors 12 (12 bfloat16)",
        "largest model.embed_tokens.weight [96, 16]",
        "model.layers × 1",
    ):
        assert part in said
    rows = run("inspect", "b", "--tensors").stdout.splitlines()
    assert sum("model.layers.0." in row for row in rows) == 9
    found = parsed(run("inspect", "b", "--json"))
    assert found.keys() == {"identity", "metadata", "tensors", "tied"}
    assert found["tensors"]["model.norm.weight"] == {"dtype": "bfloat16", "shape": [16]}
    assert [file["name"] for file in found["identity"]["files"]] == [
        f"model-0000{i}-of-00002.safetensors" for i in (1, 2)
    ]


def test_inspect_counts_layers_that_hold_tensors(run: Run, here: Path) -> None:
    from eutectic.testing import write_safetensors

    names = ("0.weight", "2.weight", "2.bias", "4.weight", "net.blocks.1.w", "net.blocks.2.w", "head.weight")
    write_safetensors(here / "net.safetensors", {name: torch.zeros(1) for name in names})
    (row,) = [line for line in run("inspect", "net.safetensors").stdout.splitlines() if line.startswith("layers")]
    assert row.split(maxsplit=1)[1] == "3 (numbered 0 to 4), net.blocks × 2"


def test_what_is_piped_has_no_blanks_at_the_ends_of_its_lines(run: Run, here: Path) -> None:
    for command in ("plan r.yml --tensors", "inspect b --tensors", "methods", "methods ties"):
        lines = run(*command.split()).stdout.splitlines()
        assert lines and lines == [line.rstrip() for line in lines]


def test_inspect_an_empty_file_of_weights(run: Run, here: Path) -> None:
    from eutectic.testing import write_safetensors

    write_safetensors(here / "none.safetensors", {})
    said = " ".join(run("inspect", "none.safetensors", "--tensors").stdout.split())
    assert "tensors 0" in said and "layers none" in said


def test_methods(run: Run) -> None:
    text = run("methods").stdout
    found = parsed(run("methods", "--json"))
    assert {method["name"] for method in found} >= {
        *("linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties")
    }
    for method in found:
        assert method["name"] in text
        page = run("methods", method["name"]).stdout
        assert "merge_method:" in page
        assert method["family"] == "after a method" or "Differs from the paper" in page
        assert parsed(run("methods", method["name"], "--json")) == method
    ties = next(method for method in found if method["name"] == "ties")
    assert ties["scopes"] == ["tensor", "model"]
    assert ties["parameters"]["density"] == {
        "kind": "float",
        "per_model": True,
        "required": False,
        "default": 0.2,
        "allowed": "(0, 1]",
        "choices": [],
    }


def test_explain(run: Run) -> None:
    result = run("explain", "c250")
    assert result.exit_code == 0
    assert result.stdout.startswith("C250 huggingface_hub is not installed")
    assert "pip install 'eutectic[hub]'" in result.stdout
    found = parsed(run("explain", "p302", "--json"))
    assert found.keys() == {"code", "title", "text"} and found["code"] == "P302"


@pytest.mark.parametrize("text", ["1GiB", "1.5g", "1500MB", "2000000000", "1 gib"])
def test_sizes(run: Run, text: str) -> None:
    assert run("plan", "r.yml", "--memory", text).exit_code == 0


def test_outputs_open_in_safetensors(run: Run, here: Path) -> None:
    run("merge", "r.yml", "out", "-q")
    with safe_open(here / "out" / "model.safetensors", "pt") as file:
        assert len(file.keys()) == 12


def test_a_plan_lines_up_and_lists_models_of_one_name_as_the_recipe_does(run: Run, here: Path) -> None:
    for name in ("a", "b", "base"):
        (here / "runs" / name).mkdir(parents=True)
        (here / name).rename(here / "runs" / name / "final")
    listed = ["runs/b/final", "runs/a/final"]
    made = {"merge_method": "dare_linear", "base_model": "runs/base/final", "models": listed}
    (here / "r.yml").write_text(json.dumps(made))
    lines = [line for line in run("plan", "r.yml").stdout.splitlines() if "tensors," in line]
    assert [line.split()[1] for line in lines[:3]] == ["base/final", "b/final", "a/final"]
    assert len({line.index(" tensors,") for line in lines[:3]}) == 1
    inputs = json.loads(run("plan", "r.yml", "--json").stdout)["inputs"]
    assert {one["label"]: one["path"] for one in inputs} == {
        f"{name}/final": str(here / "runs" / name / "final") for name in ("a", "b", "base")
    }

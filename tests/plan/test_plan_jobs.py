"""Which tensors an output has, of which dtype, and from where."""

from __future__ import annotations

from typing import Any

import pytest
from planning import Header, linear, llama, plan_of, ties_of

from eutectic.checkpoint import Spec
from eutectic.plan import Job


def test_every_tensor_is_one_job_in_the_order_of_the_donor() -> None:
    a, b = llama("a"), Header("b", {name: (s.dtype, *s.shape) for name, s in reversed(llama("b").specs.items())})
    plan = plan_of(linear("b", "a"), a, b)
    assert [job.name for job in plan.jobs] == list(b.specs)
    assert {job.action for job in plan.jobs} == {"merge"}
    assert plan.specs == a.specs
    assert plan.donor.label == "b"
    assert [item.label for item in plan.inputs] == ["a", "b"]
    assert plan.bytes_out == sum(spec.nbytes for spec in a.specs.values())
    assert plan.bytes_in == 2 * plan.bytes_out


def test_a_job_can_be_printed() -> None:
    job = plan_of(ties_of("base", "a"), llama("base"), llama("a")).jobs[0]
    assert job == Job(
        "model.embed_tokens.weight",
        Spec("float32", (8, 4)),
        "merge",
        ((0, "model.embed_tokens.weight"), (1, "model.embed_tokens.weight")),
        {"weight": [1.0], "density": [0.2], "normalize": True, "rescale": False, "lambda": 1.0},
    )


def test_a_plan_prints_as_a_line() -> None:
    plan = plan_of(ties_of("base", "a", "b"), llama("base"), llama("a"), llama("b"))
    assert repr(plan) == "<Plan ties of base, a, b: 9 tensors, 656 bytes>"


def test_a_donor_that_is_not_merged_is_closed_with_the_others() -> None:
    base, a, b = llama("base"), llama("a"), llama("b")
    with plan_of(linear("a", "b", base_model="base"), base, a, b) as plan:
        assert plan.donor.label == "base" and "base" not in [item.label for item in plan.inputs]
    assert (base.closed, a.closed, b.closed) == (1, 1, 1)


def test_what_is_ranked_together_is_computed_in_one_dtype() -> None:
    wide = {"specs": {"model.norm.weight": ("float64", 4)}}
    plan = plan_of(ties_of("a", "b"), llama("a", **wide), llama("b"))
    assert sorted(set(plan.working)) == ["float32", "float64"] and plan.working.count("float64") == 1
    plan = plan_of(ties_of("a", "b", parameters={"scope": "model"}), llama("a", **wide), llama("b"))
    assert set(plan.working) == {"float64"}


def test_files_beside_a_nested_recipe_are_those_of_its_donor() -> None:
    a = llama("a")
    a.beside = {"config.json": b"{}"}.get  # type: ignore[assignment]
    inner = {"merge_method": "slerp", "base_model": "a", "models": ["b"], "parameters": {"t": 0.5}}
    (item,) = plan_of(linear(inner), a, llama("b")).inputs
    assert item.beside("config.json") == b"{}" and item.beside("tokenizer.json") is None


def test_roles() -> None:
    plan = plan_of(ties_of("base", "b", "a"), llama("base"), llama("a"), llama("b"))
    assert [(item.label, item.role) for item in plan.inputs] == [("base", "base"), ("a", "model"), ("b", "model")]
    assert plan.donor.label == "base"
    slerp = {"merge_method": "slerp", "base_model": "b", "models": ["a", "b"], "parameters": {"t": 0.5}}
    plan = plan_of(slerp, llama("a"), llama("b"))
    assert [(item.label, item.role) for item in plan.inputs] == [("b", "base"), ("a", "model")]
    plan = plan_of(linear("a", "b", base_model="b"), llama("a"), llama("b"))
    assert plan.donor.label == "b"


@pytest.mark.parametrize(
    ("dtypes", "asked", "out"),
    [
        (("bfloat16", "bfloat16"), {}, "bfloat16"),
        (("bfloat16", "float16"), {}, "float32"),
        (("bfloat16", "float32"), {}, "float32"),
        (("float16", "float64"), {}, "float64"),
        (("float32", "float32"), {"dtype": "bfloat16"}, "bfloat16"),
        (("float32", "float32"), {"out_dtype": "float16"}, "float16"),
        (("float32", "float32"), {"dtype": "float32", "out_dtype": "float16"}, "float16"),
    ],
)
def test_dtype(dtypes: tuple[str, str], asked: dict[str, str], out: str) -> None:
    a, b = (Header(label, {"w": (dtype, 2)}) for label, dtype in zip("ab", dtypes, strict=True))
    assert plan_of(linear("a", "b", **asked), a, b).specs == {"w": Spec(out, (2,))}


def test_integers_keep_their_dtype() -> None:
    specs: dict[str, Any] = {"w": ("float32", 2), "ids": ("int64", 3), "mask": ("bool", 3)}
    plan = plan_of(linear("a", "b", dtype="bfloat16"), Header("a", specs), Header("b", specs))
    jobs = {job.name: job for job in plan.jobs}
    assert (jobs["ids"].action, jobs["ids"].spec) == ("copy", Spec("int64", (3,)))
    assert jobs["ids"].inputs == ((0, "ids"), (1, "ids"))
    assert (jobs["ids"].reason, jobs["mask"].reason) == ("int64 buffer", "bool buffer")


def test_a_buffer_that_some_models_lack_is_copied() -> None:
    name = "embeddings.position_ids"
    a, b = Header("a", {"w": ("float32", 2)}), Header("b", {"w": ("float32", 2), name: ("int64", 1, 5)})
    job = plan_of(linear("a", "b"), a, b).jobs[-1]
    assert (job.name, job.action, job.inputs) == (name, "copy", ((1, name),))
    assert job.reason == "int64 buffer, not in a"


def test_the_donor_of_buffers_comes_first() -> None:
    specs: dict[str, Any] = {"w": ("float32", 2), "ids": ("int64", 3)}
    plan = plan_of(linear("b", "a"), Header("a", specs), Header("b", specs))
    assert plan.jobs[1].inputs == ((1, "ids"), (0, "ids"))


@pytest.mark.parametrize(("wanted", "taken"), [("base", 0), ("a", 1), ("./b", 2)])
def test_buffers_from(wanted: str, taken: int) -> None:
    models = [Header(label, {"w": ("float32", 2), "ids": ("int64", size)}) for label, size in (("m", 1), ("a", 2))]
    models.append(Header("b", {"w": ("float32", 2), "ids": ("int32", 7)}))
    plan = plan_of(ties_of("m", "a", "b", buffers_from=wanted), *models)
    job = plan.jobs[1]
    assert (job.inputs, job.spec, job.reason) == (((taken, "ids"),), models[taken].specs["ids"], "buffers_from")
    # The fate of every tensor is told.
    left = [label for label in "mab" if label != models[taken].label]
    assert plan.dropped == tuple((label, "ids", f"buffers_from is {models[taken].label}") for label in left)


def test_buffers_from_a_model_without_the_buffer_takes_the_others() -> None:
    a, b = Header("a", {"w": ("float32", 2)}), Header("b", {"w": ("float32", 2), "ids": ("int64", 5)})
    assert plan_of(linear("a", "b", buffers_from="a"), a, b).jobs[1].inputs == ((1, "ids"),)


def test_missing_copy_takes_the_donor_or_the_first_that_has_it() -> None:
    w = {"w": ("float32", 2)}
    head = {"head": ("float16", 3)}
    a, b, c = Header("a", w), Header("b", {**w, **head}), Header("c", {**w, **head})
    plan = plan_of(linear("a", "b", "c", missing="copy"), a, b, c)
    job = plan.jobs[-1]
    assert (job.action, job.inputs, job.spec) == ("copy", ((1, "head"),), Spec("float16", (3,)))
    assert job.reason == "not in a; taken from b"
    assert plan.dropped == (("c", "head", "not in a"),)
    job = plan_of(linear("c", "b", "a", missing="copy", out_dtype="bfloat16"), a, b, c).jobs[-1]
    assert (job.inputs, job.spec.dtype) == (((2, "head"),), "bfloat16")


def test_a_recipe_inside_a_recipe() -> None:
    inner = linear("a", "b", name="soup")
    plan = plan_of(ties_of("base", inner, "c"), *map(llama, ("base", "a", "b", "c")))
    assert [item.label for item in plan.inputs] == ["base", "c", "soup"]
    nested = plan.inputs[2].plan
    assert nested is not None and [item.label for item in nested.inputs] == ["a", "b"]
    # Four models are read, each once.
    assert plan.bytes_in == 4 * plan.bytes_out
    assert plan.inputs[2].identity() == {
        "label": "soup",
        "recipe": {"name": "soup", "merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}]},
        "fingerprint": nested.fingerprint,
    }
    plan.close()
    assert all(item.source.closed == 1 for item in nested.inputs if isinstance(item.source, Header))


def test_nested_recipes_without_a_name_say_what_they_are() -> None:
    plan = plan_of(linear(linear("a", "b"), "c"), *map(llama, "abc"))
    assert [item.label for item in plan.inputs] == ["c", "linear of a, b"]


def test_seeds_of_nested_recipes() -> None:
    def dare(model: Any, **more: Any) -> dict[str, Any]:
        return {"merge_method": "dare_linear", "base_model": "base", "models": [{"model": model}], **more}

    def seeds(recipe: dict[str, Any]) -> list[int]:
        plan = plan_of(recipe, llama("base"), llama("a"))
        inner = plan.inputs[1].plan
        assert inner is not None
        return [plan.seed, inner.seed]

    assert seeds(dare(dare("a"), seed=7)) == [7, 7]
    assert seeds(dare(dare("a", seed=5), seed=7)) == [7, 5]
    assert seeds(dare(dare("a"))) == [0, 0]


def test_what_nested_plans_say_is_handed_on() -> None:
    inner = ties_of("base", "a", missing="copy", name="inner")
    head: dict[str, Any] = {"w": ("float32", 2), "head": ("float32", 2)}
    models = Header("base", {"w": ("float32", 2)}), Header("a", head), Header("b", head)
    plan = plan_of(linear(inner, "b"), *models)
    assert plan.notes == ("inner: density is not given: 0.2, the paper's, is used (mergekit would use 1.0)",)
    inner["models"].append({"model": "b"})
    plan = plan_of(linear(inner, "base", missing="copy"), *models)
    assert ("inner: b", "head", "not in base") in plan.dropped


def test_groups() -> None:
    specs: dict[str, Any] = {"v": ("float32", 2), "ids": ("int64", 3), "w": ("float32", 2)}
    models = Header("base", specs), Header("a", specs)
    assert plan_of(ties_of("base", "a"), *models).groups() == [[0], [1], [2]]
    assert plan_of(ties_of("base", "a", parameters={"scope": "model"}), *models).groups() == [[0, 2], [1]]

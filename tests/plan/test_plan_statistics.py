"""Statistics beside models: what a plan makes of them before a weight is read, and everything that it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from planning import Header, plan_of

from eutectic.errors import CheckpointError, RecipeError, ResourceError
from eutectic.run.budget import make_budget

F32 = "float32"
MODEL = {"up.weight": (F32, 4, 3), "up.bias": (F32, 4), "head.weight": (F32, 2, 4), "norm": (F32, 4)}
GRAM = {"up.weight": (F32, 4, 4), "head.weight": (F32, 4, 4)}
FISHER = {name: MODEL[name] for name in ("up.weight", "up.bias", "head.weight", "norm")}


class Artefact(Header):
    """Statistics that are nothing but headers; `about` is changed by keywords, None leaves out the file."""

    def __init__(self, label: str, specs: Any, measured: str, **changes: Any) -> None:
        super().__init__(label, specs)
        bias = {"up.weight": "up.bias"} if measured == "gram" else {}
        self.text = json.dumps({"kind": measured, "samples": 4, "bias": bias, **changes}).encode()

    def beside(self, name: str) -> bytes | None:
        return self.text if name == "statistics.json" and self.text else None


def grams(label: str, changes: Any = None, **about: Any) -> Artefact:
    specs = {**GRAM, **(changes or {})}
    return Artefact(label, {name: spec for name, spec in specs.items() if spec is not None}, "gram", **about)


def asked(method: str = "regmean", **keys: Any) -> dict[str, Any]:
    models = [{"model": "a", "statistics": "sa"}, {"model": "b", "statistics": "sb"}]
    return {"merge_method": method, "models": models, **keys}


def models() -> tuple[Header, Header]:
    return Header("a", MODEL), Header("b", MODEL)


def refused(recipe: Any, *given: Header) -> list[str]:
    with pytest.raises((RecipeError, CheckpointError)) as caught:
        plan_of(recipe, *given)
    assert all(model.closed for model in given), "a refused plan leaves nothing open"
    return str(caught.value).splitlines()


def test_jobs_name_what_they_read() -> None:
    with plan_of(asked(), *models(), grams("sa"), grams("sb")) as plan:
        jobs = {job.name: job for job in plan.jobs}
    up, bias = jobs["up.weight"], jobs["up.bias"]
    assert up.beside == ((2, "up.weight"), (3, "up.weight"), (0, "up.bias"), (1, "up.bias"))
    assert bias.beside == ((2, "up.weight"), (3, "up.weight"), (0, "up.weight"), (1, "up.weight"))
    assert (up.layer and up.layer.part, bias.layer and bias.layer.part) == ("weight", "bias")
    assert jobs["head.weight"].reason == "solved"
    assert jobs["norm"].beside == ()
    assert jobs["norm"].parameters["solve"] is False
    assert plan.notes == ("averaged: no Gram matrix (norm)",)
    assert [item.role for item in plan.inputs] == ["model", "model", "statistics", "statistics"]


def test_what_decides_the_bytes_is_in_the_fingerprint() -> None:
    def fingerprint(**about: Any) -> str:
        square = dict.fromkeys(("w", "v"), (F32, 4, 4))
        given = Header("a", square), Header("b", square)
        with plan_of(
            asked(), *given, *(Artefact(x, square, "gram", **{"bias": {}, **about}) for x in ("sa", "sb"))
        ) as p:
            return p.fingerprint

    same = fingerprint()
    others = [fingerprint(transposed=["w"]), fingerprint(shared={"v": "w"}), fingerprint(counts={"w": 0})]
    assert same == fingerprint()
    assert len({same, *others}) == 4


def test_a_tied_head_is_averaged() -> None:
    specs = {"embed.weight": (F32, 8, 4), "norm": (F32, 4)}
    ties = {"lm_head.weight": "embed.weight"}
    given = Header("a", specs, ties=ties), Header("b", specs, ties=ties)
    artefacts = [Artefact(x, {"embed.weight": (F32, 4, 4)}, "gram", bias={}) for x in ("sa", "sb")]
    with pytest.raises(RecipeError, match="no tensor that is merged has a Gram matrix"):
        plan_of(asked(), *given, *artefacts)


def test_everything_wrong_with_the_artefacts_is_told_at_once() -> None:
    broken = grams("sb")
    broken.text = b"{"
    assert refused(asked(), *models(), broken, *[Header("sa", GRAM)]) == [
        "C260 models[0].statistics: 'sa' has no statistics.json, so it holds no statistics; "
        "name a folder that `eutectic collect` made",
        "C261 models[1].statistics: statistics.json of 'sb' is no JSON: Expecting property name enclosed in double "
        "quotes: line 1 column 2 (char 1); was it edited? collect the statistics again",
    ]
    assert refused(asked(), *models(), grams("sa")) == ["C200 models[1].statistics: 'sb' does not exist"]


def test_what_was_opened_is_closed_again_whatever_is_refused() -> None:
    a, b = models()
    said = refused(asked(), a, grams("sa"), grams("sb"))
    assert said == ["C200 models[1]: 'b' does not exist"]
    broken = grams("sb")
    broken.text = b"[]"
    said = refused(asked(), a, b, grams("sa"), broken)
    assert said == [
        "C261 models[1].statistics: statistics.json of 'sb' is no mapping; was it edited? collect the statistics again"
    ]


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"kind": "grams"}, "has the kind 'grams', which is none of fisher, gram, activations"),
        ({"format": 99}, "has the format 99, and this version reads 1"),
        ({"samples": None}, "has None samples"),
        ({"samples": True}, "has True samples"),
        ({"norm": -1}, "has the norm -1"),
        ({"counts": {"up.weight": "many"}}, "has no table of names under 'counts'"),
        ({"bias": ["up.weight"]}, "has no table of names under 'bias'"),
        ({"transposed": {"up.weight": 1}}, "has no list of names under 'transposed'"),
    ],
)
def test_a_statistics_json_that_was_edited(about: dict[str, Any], message: str) -> None:
    hint = "was it edited? collect the statistics again"
    said = refused(asked(), *models(), grams("sa", **about), grams("sb"))
    assert said == [f"C261 models[0].statistics: statistics.json of 'sa' {message}; {hint}"]


TYPO = "are these the statistics of this model? `eutectic collect` makes them"


@pytest.mark.parametrize(
    ("first", "messages"),
    [
        (
            Artefact("sa", FISHER, "fisher"),
            ["P314 models[0].statistics: sa holds fisher statistics, not gram; `eutectic collect gram` makes them"],
        ),
        (
            grams("sa", samples=0),
            ["P314 models[0].statistics: sa was measured on no samples; collect the statistics again, with data"],
        ),
        (
            grams("sa", {"down.weight": (F32, 4, 4)}),
            [f"P314 models[0].statistics: sa has down.weight, which a does not have; {TYPO}"],
        ),
        (
            grams("sa", {"head.weight": None}),
            ["P314 sa has no Gram matrix of head.weight; collect the statistics of all models alike"],
        ),
        (
            grams("sa", {"up.weight": (F32, 3, 3)}),
            [f"P314 up.weight: the Gram matrix [3, 3] in sa does not fit the tensor [4, 3]; {TYPO}"],
        ),
        (
            grams("sa", bias={}),
            [
                "P314 up.weight: the statistics do not agree on how it is stored; collect them alike",
                "P314 up.bias: only some of the statistics have it as the bias of up.weight; collect them alike",
            ],
        ),
    ],
)
def test_statistics_that_do_not_fit(first: Artefact, messages: list[str]) -> None:
    first.closed = 0
    assert refused(asked(), *models(), first, grams("sb")) == messages


def test_a_bias_that_a_model_lacks() -> None:
    less = Header("b", {name: spec for name, spec in MODEL.items() if name != "up.bias"})
    said = refused(asked(), Header("a", MODEL), less, grams("sa"), grams("sb"))
    assert said == [
        f"P314 models[1].statistics: sb has up.bias, which b does not have; {TYPO}",
        f"P314 up.weight: up.bias, which is solved with it, is not in every model; {TYPO}",
        "P302 up.bias: is missing from b but is in a; set `missing: copy` to copy such tensors",
    ]


def test_a_weight_that_a_model_lacks_is_told_as_in_any_merge() -> None:
    less = Header("b", {name: spec for name, spec in MODEL.items() if name != "head.weight"})
    said = refused(asked(), Header("a", MODEL), less, grams("sa"), grams("sb", {"head.weight": None}))
    assert said == ["P302 head.weight: is missing from b but is in a; set `missing: copy` to copy such tensors"]


def test_tensors_without_fisher_information_are_averaged() -> None:
    fisher = {name: spec for name, spec in FISHER.items() if name != "norm"}
    pair = Artefact("sa", fisher, "fisher"), Artefact("sb", fisher, "fisher")
    with plan_of(asked("fisher"), *models(), *pair) as plan:
        (job,) = [job for job in plan.jobs if job.name == "norm"]
    assert (job.beside, job.reason) == ((), "averaged: no Fisher")
    assert plan.notes == ("averaged: no Fisher (norm)",)


def test_a_bias_that_is_none() -> None:
    bias = {"up.weight": "norm"}
    odd = {**MODEL, "norm": (F32, 7)}
    given = Header("a", odd), Header("b", odd)
    said = refused(asked(), *given, grams("sa", bias=bias), grams("sb", bias=bias))
    assert said == [
        f"P314 norm: is not as long as up.weight has outputs, whose bias the statistics call it; {TYPO}",
    ]


def test_fisher_needs_the_shapes_of_the_model_and_a_norm_if_it_is_asked_for() -> None:
    wrong = Artefact("sa", {**FISHER, "norm": (F32, 5)}, "fisher")
    said = refused(asked("fisher"), *models(), wrong, Artefact("sb", FISHER, "fisher"))
    assert said == [f"P314 norm: the Fisher [5] in sa does not fit the tensor [4]; {TYPO}"]
    pair = Artefact("sa", FISHER, "fisher"), Artefact("sb", FISHER, "fisher", norm=0.0)
    said = refused(asked("fisher", parameters={"norm": "global"}), *models(), *pair)
    assert said == [
        "P314 models[0].statistics: sa does not say its norm, which `norm: global` divides by; "
        "give numbers under `norm`",
        "P314 models[1].statistics: sb is zero everywhere, which `norm: global` divides by; give numbers under `norm`",
    ]
    pair = Artefact("sa", FISHER, "fisher", norm=2.0), Artefact("sb", FISHER, "fisher", norm=0.5)
    with plan_of(asked("fisher", parameters={"norm": "global"}), *models(), *pair) as plan:
        assert {tuple(job.parameters["norm"]) for job in plan.jobs} == {(2.0, 0.5)}


def test_all_weights_zero_are_refused() -> None:
    said = refused(asked(parameters={"weight": 0}), *models(), grams("sa"), grams("sb"))
    assert said == ["P313 parameters: every model has the weight 0; `eutectic methods regmean` says what goes"]


def test_what_is_left_out_may_have_any_shape() -> None:
    other = Header("b", {**MODEL, "head.weight": (F32, 9, 4)})
    keys = {"leave_out": "/^head/"}
    with plan_of(asked(**keys), Header("a", MODEL), other, grams("sa"), grams("sb")) as plan:
        (job,) = [job for job in plan.jobs if job.name == "head.weight"]
    assert (job.action, job.inputs, job.reason) == (
        "copy",
        ((0, "head.weight"),),
        "left out by the rule '/^head/'; taken from a",
    )
    assert plan.dropped == (("b", "head.weight", "left out by the rule '/^head/'"),)
    assert plan.recipe.to_dict()["leave_out"] == ["/^head/"]


def test_leave_out_that_matches_nothing() -> None:
    said = refused(asked(leave_out=["haed"]), *models(), grams("sa"), grams("sb"))
    assert said == ["P303 leave_out: the filter 'haed' matches no tensor; did you mean 'head'?"]


def test_the_memory_of_a_solve_is_planned() -> None:
    big = {"w": ("bfloat16", 4096, 8192)}
    given = Header("a", big), Header("b", big)
    artefacts = [Artefact(x, {"w": (F32, 8192, 8192)}, "gram", bias={}) for x in ("sa", "sb")]
    with plan_of(asked(), *given, *artefacts) as plan, pytest.raises(ResourceError) as caught:
        make_budget(plan, memory=1 << 30, threads=1)
    (problem,) = caught.value.problems
    assert "for the whole of w [4096, 8192]" in problem.message
    assert problem.hint.endswith("or leave large tensors out of regmean by filters on `solve`")


def test_what_decides_what_is_read_is_not_swept() -> None:
    from eutectic import methods
    from eutectic.recipe import load_sweep

    for values in ({"sweep": [True, False]}, [{"filter": "up", "value": {"sweep": [True, False]}}]):
        with pytest.raises(RecipeError, match=r"R128 .*cannot be swept: it decides what is read; merge once for each"):
            load_sweep(asked(parameters={"solve": values}), methods=methods)

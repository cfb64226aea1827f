"""What a comparison measures, against numpy on whole tensors; and that it is the same however it is computed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import eutectic
from eutectic.adviser import Place, Sums, statistics
from eutectic.kernels import effective_rank, fused_compare

SHAPES = {
    "model.embed_tokens.weight": (96, 8),
    "model.layers.0.self_attn.q_proj.weight": (33, 17),
    "model.layers.0.mlp.up_proj.weight": (5, 1030),
    "model.layers.0.input_layernorm.weight": (64,),
    "model.layers.1.mlp.experts.weight": (3, 7, 9),
    "model.layers.1.self_attn.bias": (1,),
    "model.scale": (),
    "model.none": (0,),
    "lm_head.weight": (2000, 1),
}


def models(dtype: str = "bfloat16", count: int = 4, noise: float = 0.003) -> list[dict[str, Tensor]]:
    """A base and its fine-tunes; every model keeps some entries, and one keeps a whole tensor."""
    generator = torch.Generator().manual_seed(7)
    base = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    made = [base]
    for number in range(1, count):
        tuned = {}
        for name, tensor in base.items():
            moved = (torch.rand(tensor.shape, generator=generator) < 0.7) * noise * number
            tuned[name] = tensor + moved * torch.randn(tensor.shape, generator=generator)
        made.append(tuned)
    made[1]["lm_head.weight"] = base["lm_head.weight"]
    return [{name: tensor.to(getattr(torch, dtype)) for name, tensor in one.items()} for one in made]


def arrays(tensors: list[Tensor]) -> list[np.ndarray[Any, Any]]:
    return [tensor.reshape(-1).double().numpy() for tensor in tensors]


def deltas_of(tensors: list[Tensor]) -> list[np.ndarray[Any, Any]]:
    base, *rest = arrays(tensors)
    return [(one - base).astype(np.float32).astype(np.float64) for one in rest]


def bfloat16(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return torch.from_numpy(values.astype(np.float32)).to(torch.bfloat16).float().numpy()


def lost(base: np.ndarray[Any, Any], delta: np.ndarray[Any, Any]) -> float:
    half = base.astype(np.float32) + np.float32(0.5) * delta.astype(np.float32)
    gone = bfloat16(half) == bfloat16(base)
    return float(np.abs(delta)[gone].sum())


def largest(delta: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Entries of at least the magnitude of the k-th largest, in their upper 16 bits."""
    cut = np.abs(delta).astype(np.float32).view(np.uint32) >> 16
    wanted = int(np.ceil(statistics.TOP * len(delta)))
    return (cut >= np.sort(cut)[-wanted]) & (delta != 0) if wanted else delta != 0


def check(sums: Sums, named: list[list[Tensor]]) -> None:
    """Every statistic of `sums` against numpy over the tensors it is made of."""
    deltas = [np.concatenate(parts) for parts in zip(*map(deltas_of, named), strict=True)]
    base = np.concatenate([arrays(tensors)[0] for tensors in named])
    tops = [np.concatenate(parts) for parts in zip(*([largest(d) for d in deltas_of(t)] for t in named), strict=True)]
    near = lambda value: pytest.approx(value, rel=1e-9, abs=1e-12)  # noqa: E731
    assert sums.entries == len(base)
    for i, a in enumerate(deltas):
        if base.any():
            assert sums.change(i) == near(np.linalg.norm(a) / np.linalg.norm(base))
        else:
            assert sums.change(i) is None
        assert sums.share_changed(i) == near(np.mean(a != 0))
        assert sums.mean_change(i) == near(np.abs(a).mean())
        if np.abs(a).sum():
            assert sums.lost(i) == near(lost(base, a) / np.abs(a).sum())
        for j, b in enumerate(deltas):
            both = (a != 0) & (b != 0)
            if both.any():
                assert sums.opposed(i, j) == near(np.mean((a * b < 0)[both]))
                assert sums.opposed_by_size(i, j) == near(np.abs(a * b)[a * b < 0].sum() / np.abs(a * b).sum())
                assert sums.cosine(i, j) == near(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            if tops[i].any() and tops[j].any():
                size = np.sqrt(tops[i].sum() * tops[j].sum())
                assert sums.overlap(i, j) == near((tops[i] & tops[j]).sum() / size)
            norms = np.linalg.norm(base + a) * np.linalg.norm(base + b)
            if norms:
                apart = np.linalg.norm(a - b) / np.sqrt(norms)
                assert sums.relative_distance(i + 1, j + 1) == pytest.approx(apart, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_statistics_are_numpys(dtype: str) -> None:
    made = models(dtype)
    found = eutectic.compare(made[1:], base=made[0])
    assert found.whole is not None
    assert found.matrices is not None
    check(found.whole, [[one[name] for one in made] for name in SHAPES])
    check(found.matrices, [[one[name] for one in made] for name, shape in SHAPES.items() if len(shape) > 1])
    cells = {
        Place("", -1, "embedding"): ["model.embed_tokens.weight"],
        Place("", -1, "head"): ["lm_head.weight"],
        Place("", -1, "other"): ["model.scale", "model.none"],
        Place("model.layers", 0, "attention"): ["model.layers.0.self_attn.q_proj.weight"],
        Place("model.layers", 0, "mlp"): ["model.layers.0.mlp.up_proj.weight"],
        Place("model.layers", 0, "norm"): ["model.layers.0.input_layernorm.weight"],
        Place("model.layers", 1, "attention"): ["model.layers.1.self_attn.bias"],
        Place("model.layers", 1, "mlp"): ["model.layers.1.mlp.experts.weight"],
    }
    assert found.cells.keys() == cells.keys()
    for place, names in cells.items():
        check(found.cells[place], [[one[name] for one in made] for name in names])
    label = found.models[0]
    assert "lm_head.weight" in found.untouched[label]


def test_dtypes_may_differ() -> None:
    kinds = ("bfloat16", "float32", "float16")
    made = [models(kind)[row] for row, kind in enumerate(kinds)]
    found = eutectic.compare(made[1:], base=made[0])
    assert found.whole is not None
    check(found.whole, [[one[name].float() for one in made] for name in SHAPES])


EXTREMES = {
    "zeros": (torch.zeros(40, 50), torch.zeros(40, 50)),
    "one entry": (torch.zeros(40, 50), torch.eye(40, 50) * (torch.arange(50) == 3)),
    "ties": (torch.ones(40, 50), torch.ones(40, 50) * 0.5),
    "huge": (torch.full((40, 50), 1e37), torch.randn(40, 50, generator=torch.Generator().manual_seed(1)) * 1e37),
    "denormal": (torch.full((40, 50), 1e-40), torch.full((40, 50), -3e-41)),
    "signs of zero": (torch.full((40, 50), -0.0), torch.zeros(40, 50)),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_tensors(name: str) -> None:
    base, change = EXTREMES[name]
    row = [base, base + change, base - change / 4]
    found = eutectic.compare([{"w": one} for one in row[1:]], base={"w": row[0]})
    assert found.whole is not None
    check(found.whole, [row])
    # Valid JSON: nothing is NaN or infinite, what is not defined is null.
    json.dumps(found.as_json(), allow_nan=False)


def test_numbers_do_not_depend_on_threads_or_on_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    made = models("float32")
    small = eutectic.compare(made, threads=1).as_json()
    assert eutectic.compare(made, threads=3).as_json() == small
    monkeypatch.setattr(statistics, "HELD", 0)
    assert eutectic.compare(made, threads=2).as_json() == small


def test_blocks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks change the order of additions and nothing else."""
    made = models("float32")
    monkeypatch.setattr(statistics, "BLOCK", 100)
    found = eutectic.compare(made[1:], base=made[0])
    assert found.whole is not None
    check(found.whole, [[one[name] for one in made] for name in SHAPES])


def test_progress_tells_every_byte(tmp_path: Any) -> None:
    made = models("float32")
    total, seen = [], []
    eutectic.compare(made[1:], base=made[0], on_start=total.append, progress=seen.append)
    assert total == [sum(seen)] == [4 * 4 * sum(tensor.numel() for tensor in made[0].values())]


# Effective rank


def participation(matrix: np.ndarray[Any, Any]) -> tuple[float, float]:
    """As estimated from the sketch, and as it is."""
    matrix = matrix.astype(np.float32)
    probes = effective_rank.signs(matrix.shape[1], fused_compare.PROBES)
    out = np.zeros_like(probes)
    fused_compare.sketch(np.zeros(matrix.size, np.float32), matrix.reshape(-1), probes, out)
    square = float((matrix.astype(np.float64) ** 2).sum())
    found = effective_rank.participation(out.astype(np.float64), probes, square, min(matrix.shape))
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False) ** 2
    assert found is not None
    return found, float(values.sum() ** 2 / (values**2).sum())


@pytest.mark.parametrize("rank", [1, 2, 5, 8])
def test_low_ranks_are_exact(rank: int) -> None:
    rng = np.random.default_rng(rank)
    found, true = participation(rng.standard_normal((70, rank)) @ rng.standard_normal((rank, 101)) * 1e-3)
    assert found == pytest.approx(true, rel=1e-4)


@pytest.mark.parametrize(("rows", "columns"), [(200, 300), (301, 120), (64, 64)])
def test_high_ranks_are_estimated(rows: int, columns: int) -> None:
    rng = np.random.default_rng(rows)
    found, true = participation(rng.standard_normal((rows, columns)) * 1e-3)
    assert found == pytest.approx(true, rel=0.2)
    spectrum = np.linalg.qr(rng.standard_normal((rows, rows)))[0][:, :60] * np.arange(1.0, 61.0) ** -0.7
    found, true = participation(spectrum @ np.linalg.qr(rng.standard_normal((columns, columns)))[0][:60])
    assert found == pytest.approx(true, rel=0.25)


def test_the_rank_of_nothing_and_of_one_column() -> None:
    zeros = np.zeros((7, 16), np.float32)
    assert effective_rank.participation(zeros, effective_rank.signs(7, 16), 0.0, 3) is None
    assert participation(np.ones((5, 1)))[0] == 1.0


def test_ranks_of_a_comparison() -> None:
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(60, 80, generator=generator)
    low = torch.outer(torch.randn(60, generator=generator), torch.randn(80, generator=generator))
    full = torch.randn(60, 80, generator=generator)
    found = eutectic.compare([{"w": base + 0.01 * low}, {"w": base + 0.01 * full}], base={"w": base})
    assert found.whole is not None
    one, other = found.whole.rank(0), found.whole.rank(1)
    assert one is not None and other is not None
    assert one == pytest.approx(1 / 60, rel=0.02)
    assert other > 0.4
    vectors = eutectic.compare([{"w": base[0]}, {"w": full[0]}], base={"w": low[0]}).whole
    assert vectors is not None
    assert vectors.rank(0) is None

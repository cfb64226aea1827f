"""Live tensors as a source."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from eutectic import dtypes
from eutectic.checkpoint import MemorySource
from eutectic.errors import CheckpointError


@pytest.mark.parametrize("name", sorted(dtypes.BY_NAME))
def test_every_dtype_bit_for_bit(name: str) -> None:
    dtype = dtypes.BY_NAME[name]
    raw = torch.arange(12 * dtype.itemsize, dtype=torch.uint8) % (2 if name == "bool" else 251)
    tensor = raw.view(getattr(torch, name)).reshape(3, 4)
    source = MemorySource("m", {"x": tensor, "t": tensor.T, "s": tensor[1, 2]})
    assert source.specs["t"].shape == (4, 3) and source.specs["s"].shape == ()
    whole = bytes(tensor.T.contiguous().reshape(-1).view(torch.uint8).tolist())
    for start, stop in [(0, 12), (5, 9), (11, 12), (7, 7)]:
        for key, expected in (("x", bytes(raw.tolist())), ("t", whole)):
            out = bytearray((stop - start) * dtype.itemsize)
            source.read_into(key, start, stop, memoryview(out))
            assert out == expected[start * dtype.itemsize : stop * dtype.itemsize]
    assert source["s"].dtype == tensor.dtype


def test_numpy_arrays() -> None:
    plain = np.arange(6, dtype=np.float32).reshape(2, 3)
    frozen = plain.copy()
    frozen.flags.writeable = False
    source = MemorySource(
        "m",
        {
            "plain": plain,
            "T": plain.T,
            "big": plain.astype(">f4"),
            "frozen": frozen,
            "again": plain,
            "scalar": np.array(3),
        },
    )
    assert source.ties == {"again": "plain"}
    for name, expected in (("plain", plain), ("T", plain.T), ("big", plain), ("frozen", plain), ("again", plain)):
        assert np.array_equal(source[name].numpy(), expected)
    assert source["scalar"].item() == 3 and source.specs["scalar"].dtype == "int64"


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(4)


def test_a_module_and_its_ties() -> None:
    module = Tied()
    source = MemorySource("m", module)
    assert source.ties == {"head.weight": "embed.weight"}
    assert set(source) == set(module.state_dict())
    other = Tied()
    other.load_state_dict(dict(source))
    assert torch.equal(other.head.weight, module.embed.weight)
    with torch.no_grad():
        module.embed.weight.fill_(7)
    assert source["head.weight"].unique().tolist() == [7]
    assert source.identity() == {"label": "m"} and source.folder() is None


def test_views_of_one_storage_are_no_ties() -> None:
    flat = torch.arange(12.0)
    square = flat[:9].reshape(3, 3)
    empty = torch.empty(0)
    source = MemorySource("m", {"flat": flat, "part": flat[:9], "sq": square, "T": square.T, "e": empty, "f": empty})
    assert not source.ties
    assert torch.equal(source["T"], square.T) and source["f"].shape == (0,)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("text", "a str where"),
        (None, "a NoneType where"),
        (torch.zeros(2, dtype=torch.complex64), "dtype torch.complex64"),
        (torch.zeros(2).to_sparse(), "a tensor of layout torch.sparse_coo where a dense tensor was due"),
        (torch.zeros(2, device="meta"), "a tensor on the meta device where a dense tensor was due"),
        (np.array(["a"]), "where a dense tensor was due"),
    ],
)
def test_what_is_no_tensor(value: object, words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        MemorySource("m", {"x.y": value})
    assert str(caught.value).startswith("C240 x.y: model 'm' holds a ") and words in str(caught.value)


def test_names_are_strings() -> None:
    with pytest.raises(CheckpointError, match="C216 1 in model 'm' is not a tensor name"):
        MemorySource("m", {1: torch.zeros(1)})  # type: ignore[dict-item]
    with pytest.raises(CheckpointError, match="C216 '' in model 'm' is not a tensor name"):
        MemorySource("m", {"": torch.zeros(1)})


def test_a_view_of_negated_numbers_is_read_as_its_values() -> None:
    negated = torch.complex(torch.ones(3), torch.arange(3.0)).conj().imag
    assert negated.is_neg()
    assert MemorySource("m", {"x": negated})["x"].tolist() == [0, -1, -2]


@pytest.mark.gpu
def test_tensors_on_a_gpu_are_copied_on_read() -> None:
    tensor = torch.arange(12, dtype=torch.bfloat16, device="cuda").reshape(3, 4)
    source = MemorySource("m", {"x": tensor, "t": tensor.T, "again": tensor})
    assert source.ties == {"again": "x"}
    assert torch.equal(source["t"], tensor.T.cpu())

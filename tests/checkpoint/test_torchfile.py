"""torch files: what `torch.save` writes is found and read back bit for bit, and what cannot be merged is refused."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict
from typing import Any

import pytest
import torch

from eutectic import dtypes
from eutectic.checkpoint.extents import FileSource
from eutectic.checkpoint.storage import REAL
from eutectic.checkpoint.torchfile import CODES, TorchIndex, read_torch_index
from eutectic.errors import CheckpointError

DTYPES = [*dtypes.BY_NAME]


@pytest.fixture
def path(tmp_path: Any) -> str:
    return str(tmp_path / "pytorch_model.bin")


def saved(value: object, path: str, **options: Any) -> TorchIndex:
    torch.save(value, path, **options)
    return read_torch_index(REAL, path)


def assert_reads_as(index: TorchIndex, tensors: dict[str, torch.Tensor]) -> None:
    """Every tensor, tied ones included, has the same dtype, shape and bits as in `tensors`."""
    source = FileSource("model", index.extents, ties=index.ties)
    assert set(source) == set(tensors)
    for name, tensor in tensors.items():
        read = source[name]
        assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape), name
        bits = [each.detach().contiguous().reshape(-1).view(torch.uint8) for each in (read, tensor)]
        assert torch.equal(*bits), name
    source.close()


def refused(value: object, path: str, code: str, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        saved(value, path, **options)
    (problem,) = caught.value.problems
    assert problem.code == code
    assert problem.file == path
    assert problem.hint
    return f"{problem.where}: {problem.message}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_read_bit_for_bit(dtype: str, path: str) -> None:
    bits = torch.arange(48, dtype=torch.uint8)
    tensor = (bits % 2).bool() if dtype == "bool" else bits.view(getattr(torch, dtype)).reshape(2, -1)
    index = saved({"w": tensor}, path)
    assert index.extents["w"].spec.dtype == dtype
    assert_reads_as(index, {"w": tensor})


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_every_pickle_protocol_that_torch_can_write(protocol: int, path: str) -> None:
    state = torch.nn.Linear(3, 2).state_dict()
    index = saved({"model": state, "big": 2**40, "flag": True, "rate": 0.5}, path, pickle_protocol=protocol)
    assert_reads_as(index, state)


def test_state_dict_of_a_module_with_buffers_keeps_its_order(path: str) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Embedding(5, 2))
    state = module.state_dict()
    index = saved(state, path)
    assert list(index.extents) == list(state)
    assert_reads_as(index, state)
    assert len(index.digest) == 32


def test_digest_names_the_pickle(path: str) -> None:
    first = saved({"w": torch.zeros(2)}, path).digest
    assert saved({"w": torch.zeros(2)}, path).digest == first
    assert saved({"w": torch.zeros(3)}, path).digest != first


def test_parameters_with_and_without_attributes(path: str) -> None:
    plain, marked = torch.nn.Parameter(torch.randn(3)), torch.nn.Parameter(torch.randn(2, 2))
    marked.partition_dim = 0
    assert_reads_as(saved({"plain": plain, "marked": marked}, path), {"plain": plain, "marked": marked})


def test_tied_weights_are_stored_once_under_the_first_name(path: str) -> None:
    weight = torch.randn(4, 3)
    state = {"embed": weight, "other": torch.randn(2), "head": weight, "view": weight[:2], "copy": weight.clone()}
    index = saved(state, path)
    assert index.ties == {"head": "embed"}
    assert list(index.extents) == ["embed", "other", "view", "copy"]
    assert_reads_as(index, state)


def test_same_storage_read_in_another_way_is_no_tie(path: str) -> None:
    weight = torch.randn(4, 4)
    state = {"w": weight, "transposed": weight.t(), "flat": weight.view(-1)}
    index = saved(state, path)
    assert not index.ties
    assert index.extents["transposed"].strides == (1, 4)
    assert_reads_as(index, state)


def test_views_of_a_larger_storage(path: str) -> None:
    large = torch.randn(6, 8, 5)
    state = {
        "rows": large[2:4],
        "column": large[:, 3],
        "steps": large[::2, 1::3, ::4],
        "permuted": large.permute(2, 0, 1),
        "diagonal": torch.randn(5, 5).diagonal(),
        "singleton": large[:, 2:3, 1:2],
    }
    index = saved(state, path)
    assert index.extents["rows"].strides is None
    assert_reads_as(index, state)


def test_empty_and_scalar_tensors(path: str) -> None:
    state = {"scalar": torch.tensor(1.5), "none": torch.empty(0), "flat": torch.empty(3, 0, 2), "one": torch.ones(1, 1)}
    index = saved(state, path)
    assert index.extents["scalar"].spec.shape == ()
    assert_reads_as(index, state)


def test_dimensions_of_one_may_have_any_stride(path: str) -> None:
    tensor = torch.arange(3.0).as_strided((1, 3, 1), (0, 1, 77))
    index = saved({"w": tensor}, path)
    assert index.extents["w"].strides is None
    assert_reads_as(index, {"w": tensor})


PLAIN = {
    "epoch": 3,
    "rate": 1e-3,
    "name": "run\n7",
    "nothing": None,
    "flags": [True, False],
    "pair": (1, "x"),
    "nested": {"a": {"b": [1, {"c": 2}]}, 4: "four"},
    "shape": torch.Size([1, 2]),
    "dtype": torch.float16,
    "complex": torch.complex64,
    "layout": torch.strided,
    "order": OrderedDict(a=1),
    "large": 2**63,
}


@pytest.mark.parametrize("keys", [(), ("state_dict",), ("model",), ("model_state_dict",), ("checkpoint", "model")])
def test_the_mapping_is_found_among_plain_values(keys: tuple[str, ...], path: str) -> None:
    state = {"a.weight": torch.randn(2), "a.bias": torch.randn(1)}
    value: dict[str, Any] = {**state, "version": 1}
    for key in reversed(keys):
        value = {**PLAIN, key: value}
    assert_reads_as(saved(value, path), state)


def test_one_mapping_under_two_names_is_one_mapping(path: str) -> None:
    state = {"w": torch.randn(2)}
    assert_reads_as(saved({"model": state, "ema": state}, path), state)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"model": {"w": torch.ones(1)}, "ema": {"w": torch.ones(1)}}, "several places: model, ema"),
        ({"w": torch.ones(1), "ema": {"w": torch.ones(1)}}, "several places: the top level, ema"),
        ({"model": {"w": torch.ones(1)}, "optimizer": {"state": {0: {"m": torch.ones(1)}}}}, "optimizer.state.0"),
        ({str(i): {"w": torch.ones(1)} for i in range(6)}, "0, 1, 2, 3 and 2 more"),
        ({"losses": [torch.ones(1)]}, "losses: the tensors of this file stand in a list"),
        (torch.ones(1), "no mapping"),
        ({"epoch": 3}, "no mapping"),
        ([], "no mapping"),
        ({0: torch.ones(1)}, "not a tensor name"),
        ({"a\x1b[31m": torch.ones(1)}, r"not a tensor name (1 to 4096 printable characters): 'a\x1b[31m'"),
        ({"": torch.ones(1)}, "not a tensor name"),
        ({"s": torch.ones(1).untyped_storage()}, "s is a bare storage"),
    ],
)
def test_what_is_not_one_mapping_of_tensors_is_refused(value: object, message: str, path: str) -> None:
    assert message in refused(value, path, "C236")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.ones(2, dtype=torch.complex64), "complex numbers (torch.ComplexFloatStorage)"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "a quantised tensor"),
        (lambda: torch.eye(2).to_sparse(), "a sparse tensor"),
        (lambda: torch.eye(2).to_sparse_csr(), "a sparse tensor"),
        (lambda: torch.empty(2, device="meta"), "without values"),
        (lambda: torch.ones(2, dtype=torch.float8_e4m3fnuz), "float8_e4m3fnuz"),
        (lambda: torch.view_as_complex(torch.ones(2, 2)).conj().imag, "conjugated or negated"),
    ],
)
def test_kinds_of_tensors_that_cannot_be_merged(make: Any, message: str, path: str) -> None:
    assert message in refused({"w": make()}, path, "C234")


def test_tensors_with_attributes_are_refused(path: str) -> None:
    tensor = torch.ones(2)
    tensor.note = "mine"
    assert "attributes" in refused({"w": tensor}, path, "C234")


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(1).expand(4), torch.ones(2, 1).expand(2, 3), torch.ones(4).as_strided((3, 2), (1, 1))],
)
def test_views_whose_elements_share_their_place_are_refused(tensor: torch.Tensor, path: str) -> None:
    assert "w: elements share their place" in refused({"w": tensor}, path, "C235")


def test_formats_before_the_archive_are_refused_with_advice(path: str) -> None:
    message = refused({"w": torch.ones(2)}, path, "C232", _use_new_zipfile_serialization=False)
    assert "bare pickle" in message


@pytest.mark.parametrize("checksums", [True, False])
def test_torch_may_be_told_to_write_no_checksums(checksums: bool, path: str) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(checksums)
    try:
        index = saved({"w": torch.arange(3.0)}, path)
    finally:
        torch.serialization.set_crc32_options(before)
    assert_reads_as(index, {"w": torch.arange(3.0)})


def test_a_missing_file_and_a_folder_are_named(tmp_path: Any) -> None:
    for place in (tmp_path / "none.bin", tmp_path):
        with pytest.raises(CheckpointError, match="C221"):
            read_torch_index(REAL, str(place))


def test_objects_beside_the_weights_are_refused_by_name(path: str) -> None:
    message = refused({"model": {"w": torch.ones(1)}, "device": torch.device("cpu")}, path, "C230")
    assert "this pickle names torch.device" in message


def test_reading_needs_no_torch(path: str) -> None:
    torch.save({"w": torch.ones(2)}, path)
    code = (
        "import sys\nfrom eutectic.checkpoint.storage import REAL\n"
        "from eutectic.checkpoint.torchfile import read_torch_index\n"
        "read_torch_index(REAL, sys.argv[1])\nassert not {'torch', 'numpy', 'numba'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, path], check=True)


def test_every_code_is_explained() -> None:
    assert list(CODES) == [f"C{number}" for number in range(230, 237)]
    assert all(title and explanation.endswith(".") for title, explanation in CODES.values())

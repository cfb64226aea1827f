"""The tiny llama is a real checkpoint, and `check_source` rejects sources that break their promises."""

from __future__ import annotations

import json
import time

import pytest
import torch

from eutectic.checkpoint.source import Source, Spec
from eutectic.testing import ContractError, check_source, tiny_llama, write_safetensors


def read_all(folder):
    load_file = pytest.importorskip("safetensors.torch").load_file
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


# The writer


def test_written_tensors_are_read_by_the_safetensors_package(tmp_path):
    tensors = {
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 3),
        "view": torch.arange(12.0).reshape(3, 4).t()[1:],
        "half": torch.randn(3).bfloat16(),
        "flags": torch.tensor([True, False]),
        "counts": torch.tensor([2**40]),
    }
    write_safetensors(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    found = read_all(tmp_path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


# The tiny llama


@pytest.mark.parametrize(("tied", "shards", "dtype"), [(False, 1, "bfloat16"), (True, 3, "float32")])
def test_transformers_loads_a_tiny_llama(tmp_path, tied, shards, dtype):
    transformers = pytest.importorskip("transformers")
    folder = tiny_llama(tmp_path / "m", tied=tied, shards=shards, dtype=dtype)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert str(model.dtype) == f"torch.{dtype}"
    stored = read_all(tmp_path / "m")
    assert ("lm_head.weight" in stored) != tied
    for name, tensor in stored.items():
        assert torch.equal(model.state_dict()[name], tensor)
    tokens = transformers.AutoTokenizer.from_pretrained(folder)("w3 w95 nonsense").input_ids
    assert tokens == [3, 95, 0]
    assert bool(model(torch.tensor([tokens])).logits.isfinite().all())


def test_shards_have_an_index_that_names_every_tensor(tmp_path):
    tiny_llama(tmp_path, shards=2)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    stored = read_all(tmp_path)
    assert index["weight_map"].keys() == stored.keys()
    assert set(index["weight_map"].values()) == {file.name for file in tmp_path.glob("*.safetensors")}
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in stored.values())


def test_a_seed_makes_the_same_model_and_another_seed_another(tmp_path):
    first, same, other = (tiny_llama(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    stored = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert stored[0] == stored[1] != stored[2]
    assert [first, same, other] == [str(tmp_path / name) for name in "abc"]


def test_a_fine_tune_is_its_base_plus_noise(tmp_path):
    tiny_llama(tmp_path / "base", hidden=16, intermediate=48, dtype="float32", extra={"ids": torch.arange(5)})
    tiny_llama(tmp_path / "tune", seed=1, base=tmp_path / "base", noise=0.01, shards=2, dtype="float32")
    base, tune = read_all(tmp_path / "base"), read_all(tmp_path / "tune")
    assert base.keys() == tune.keys()
    assert torch.equal(tune["ids"], base["ids"])
    deltas = torch.cat([(tune[n] - base[n]).reshape(-1) for n in base if n != "ids"])
    assert float(deltas.std()) == pytest.approx(0.01, rel=0.05)
    assert json.loads((tmp_path / "tune" / "config.json").read_text())["hidden_size"] == 16


def test_extra_tensors_are_written_as_they_are(tmp_path):
    tiny_llama(tmp_path, extra={"model.position_ids": torch.arange(8)})
    assert torch.equal(read_all(tmp_path)["model.position_ids"], torch.arange(8))


# Sources, right and wrong


class Memory(Source):
    """A right source: bytes of a few tensors in memory."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.tensors = {
            "embed": torch.randn(12, 4, generator=generator).bfloat16(),
            "bias": torch.randn(7, generator=generator),
            "scale": torch.tensor(3.0, dtype=torch.float64),
            "none": torch.empty(0, 2),
            "ids": torch.arange(9),
        }
        self.label = "memory"
        self.specs = {n: Spec(str(t.dtype).removeprefix("torch."), tuple(t.shape)) for n, t in self.tensors.items()}
        self.ties = {"head": "embed"}
        self.metadata = {}
        self.closed = False

    def stored(self, name):
        return bytes(self.tensors[name].reshape(-1).view(torch.uint8).numpy())

    def read_into(self, name, start, stop, out):
        size = self.tensors[name].element_size()
        out[:] = self.stored(name)[start * size : stop * size]


class OtherShape(Memory):
    def __getitem__(self, name):
        return super().__getitem__(name).reshape(-1)


class AbsoluteLabel(Memory):
    def __init__(self):
        super().__init__()
        self.label = "/models/memory"


class IgnoresStart(Memory):
    def read_into(self, name, start, stop, out):
        out[:] = self.stored(name)[: len(out)]


class StopsShort(Memory):
    def read_into(self, name, start, stop, out):
        if stop - start > 4:
            stop -= 1
        size = self.tensors[name].element_size()
        out[: (stop - start) * size] = self.stored(name)[start * size : stop * size]


class ForgetsTies(Memory):
    def __iter__(self):
        return iter(self.specs)


class TiesToNothing(Memory):
    def __init__(self):
        super().__init__()
        self.ties = {"head": "embedding"}


class InventsTensors(Memory):
    def __getitem__(self, name):
        return super().__getitem__(name) if name in (*self.specs, *self.ties) else torch.zeros(1)


class GivesItsOwnMemory(Memory):
    def __getitem__(self, name):
        return (
            self.tensors[self.ties.get(name, name)] if name in (*self.specs, *self.ties) else super().__getitem__(name)
        )


class SharesOneCursor(Memory):
    """Seek, then read: two threads that do so at once read at each other's place."""

    def read_into(self, name, start, stop, out):
        self.cursor = name
        time.sleep(0.0005)
        super().read_into(self.cursor, start, stop, out)


class CrashesAfterClose(Memory):
    def read_into(self, name, start, stop, out):
        if self.closed:
            raise OSError(9, "bad file descriptor")
        super().read_into(name, start, stop, out)

    def close(self):
        self.closed = True


class ClosesOnce(Memory):
    def close(self):
        if self.closed:
            raise ValueError("already closed")
        self.closed = True


def test_a_right_source_keeps_the_contract():
    check_source(Memory())


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        (OtherShape, "specs_equal_tensors"),
        (AbsoluteLabel, "specs_equal_tensors"),
        (IgnoresStart, "ranges_are_slices"),
        (StopsShort, "ranges_are_slices"),
        (ForgetsTies, "mapping_holds_ties"),
        (TiesToNothing, "mapping_holds_ties"),
        (InventsTensors, "mapping_holds_ties"),
        (GivesItsOwnMemory, "reads_repeat"),
        (SharesOneCursor, "threads_read_the_same"),
        (CrashesAfterClose, "closing_is_final"),
        (ClosesOnce, "closing_is_final"),
    ],
)
def test_a_wrong_source_is_rejected_by_the_property_it_breaks(wrong, name):
    with pytest.raises(ContractError) as caught:
        check_source(wrong())
    assert caught.value.property == name

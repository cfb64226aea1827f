"""The strict header reader against hand-made and fuzzed files, and the writer against the reference library."""

from __future__ import annotations

import json
import random
import time
import tracemalloc
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from eutectic import dtypes
from eutectic.checkpoint import REAL, Header, Spec, Storage, read_header, write_header
from eutectic.checkpoint.safetensors import MAX_HEADER
from eutectic.errors import CheckpointError


class Bytes(Storage):
    """One file, in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def stat(self, fd: int) -> Any:
        return SimpleNamespace(st_size=len(self.data))

    def read_into(self, fd: int, buffer: memoryview, offset: int) -> None:
        part = self.data[offset : offset + len(buffer)]
        if len(part) < len(buffer):
            raise OSError(5, "the file ended early")
        buffer[:] = part


def parse(data: bytes) -> Header:
    return read_header(Bytes(data), 0, "m.safetensors")


def file(header: str | bytes, data: int = 0) -> bytes:
    raw = header.encode() if isinstance(header, str) else header
    return len(raw).to_bytes(8, "little") + raw + bytes(data)


def entry(dtype: str = "F32", shape: str = "[2]", offsets: str = "[0,8]") -> str:
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}'


@pytest.mark.parametrize(
    ("data", "message", "hint"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer, not", "run `git lfs pull`"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "a web page (HTML), not", "download the file itself"),
        (b"\n <HTML>\n<head>", "a web page (HTML), not", "download the file itself"),
    ],
)
def test_what_was_stored_in_place_of_weights_is_named(data: bytes, message: str, hint: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse(data)
    (problem,) = caught.value.problems
    assert problem.code == "C210" and message in problem.message and hint in problem.hint


def test_reads_what_the_reference_library_writes() -> None:
    tensors = {"b": torch.ones(2, 3, dtype=torch.bfloat16), "a": torch.tensor(3), "z": torch.zeros(0, 4)}
    data = save(tensors, metadata={"format": "pt", "x": "b"})
    header = parse(data)
    assert {name: extent.spec for name, extent in header.entries.items()} == {
        "b": Spec("bfloat16", (2, 3)),
        "a": Spec("int64", ()),
        "z": Spec("float32", (0, 4)),
    }
    start = header.entries["a"].offset
    assert data[start : start + 8] == (3).to_bytes(8, "little")
    assert header.metadata == {"format": "pt", "x": "b"}
    assert len(header.digest) == 32 and header.digest == parse(data).digest


REFUSED = {
    "empty file": (b"", "C210"),
    "seven bytes": (bytes(7), "C210"),
    "length 2^63-1": ((2**63 - 1).to_bytes(8, "little") + b"{}", "C210"),
    "length 2^64-1": ((2**64 - 1).to_bytes(8, "little") + b"{}", "C210"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "C210"),
    "no header": (bytes(8), "C212"),
    "leading space": (file(" {}"), "C212"),
    "byte order mark": (file("\ufeff{}"), "C212"),
    "trailing newline": (file("{}\n"), "C212"),
    "an array": (file("[]"), "C212"),
    "not JSON": (file("{'a':1}"), "C212"),
    "not UTF-8": (file(b'{"\xff":1}'), "C212"),
    "nested deeply": (file('{"a":' + "[" * 200_000 + "]" * 200_000 + "}"), "C212"),
    "twice the same name": (file(f'{{"a":{entry()},"a":{entry()}}}', 8), "C212"),
    "twice the same field": (file('{"a":{"dtype":"I32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 8), "C212"),
    "twice the same metadata": (file('{"__metadata__":{"a":"1","a":"2"}}'), "C212"),
    "minus zero": (file(f'{{"a":{entry(offsets="[-0,8]")}}}', 8), "C212"),
    "negative offset": (file(f'{{"a":{entry(offsets="[-8,0]")}}}', 8), "C212"),
    "a float": (file(f'{{"a":{entry(shape="[2.0]")}}}', 8), "C212"),
    "NaN": (file(f'{{"a":{entry(shape="[NaN]")}}}', 8), "C212"),
    "thousands of digits": (file(f'{{"a":{entry(shape="[" + "9" * 9000 + "]")}}}', 8), "C212"),
    "true for one": (file(f'{{"a":{entry(shape="[true]", offsets="[0,4]")}}}', 4), "C213"),
    "unknown field": (file('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}}', 8), "C213"),
    "missing field": (file('{"a":{"dtype":"F32","shape":[2]}}', 8), "C213"),
    "entry is a list": (file('{"a":[]}'), "C213"),
    "shape overflows": (file(f'{{"a":{entry(shape="[4294967296,4294967296]", offsets="[0,0]")}}}'), "C213"),
    "huge dimension beside zero": (file(f'{{"a":{entry(shape="[0,9223372036854775807]", offsets="[0,0]")}}}'), "C213"),
    "too many dimensions": (file(f'{{"a":{entry(shape=str([1] * 17), offsets="[0,4]")}}}', 4), "C213"),
    "offsets reversed": (file(f'{{"a":{entry(offsets="[8,0]")}}}', 8), "C213"),
    "three offsets": (file(f'{{"a":{entry(offsets="[0,8,8]")}}}', 8), "C213"),
    "size does not fit": (file(f'{{"a":{entry(offsets="[0,12]")}}}', 12), "C213"),
    "metadata not strings": (file('{"__metadata__":{"a":1}}'), "C213"),
    "half a surrogate pair": (file('{"__metadata__":{"a":"\\ud800"}}'), "C213"),
    "unknown dtype": (file(f'{{"a":{entry(dtype="BF17")}}}', 8), "C214"),
    "dtype not a string": (file('{"a":{"dtype":[],"shape":[2],"data_offsets":[0,8]}}', 8), "C214"),
    "hole": (file(f'{{"a":{entry(offsets="[4,12]")}}}', 12), "C215"),
    "overlap": (file(f'{{"a":{entry()},"b":{entry(offsets="[4,12]")}}}', 12), "C215"),
    "the same bytes twice": (file(f'{{"a":{entry()},"b":{entry()}}}', 8), "C215"),
    "trailing bytes": (file(f'{{"a":{entry()}}}', 9), "C215"),
    "cut short": (file(f'{{"a":{entry()}}}', 7), "C215"),
    "data without tensors": (file("{}", 1), "C215"),
    "empty name": (file(f'{{"":{entry()}}}', 8), "C216"),
    "escape in a name": (file(f'{{"\\u001b[31m":{entry()}}}', 8), "C216"),
    "bidi override in a name": (file(f'{{"a\\u202eb":{entry()}}}', 8), "C216"),
    "surrogate in a name": (file(f'{{"\\udc00":{entry()}}}', 8), "C216"),
    "long name": (file(f'{{"{"a" * 4097}":{entry()}}}', 8), "C216"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    data, code = REFUSED[case]
    with pytest.raises(CheckpointError) as caught:
        parse(data)
    (problem,) = caught.value.problems
    assert problem.code == code
    assert problem.file == "m.safetensors" and problem.hint
    assert str(problem).isprintable() and len(str(problem)) < 500


def test_messages_name_the_tensor_and_the_dtype_that_was_meant() -> None:
    with pytest.raises(CheckpointError) as caught:
        parse(file(f'{{"a.b":{entry(dtype="BF61")}}}', 8))
    assert str(caught.value).startswith("C214 m.safetensors a.b: unknown dtype 'BF61'; did you mean 'BF16'?")


def test_fp8_is_recognised() -> None:
    assert parse(file(f'{{"a":{entry("F8_E4M3", offsets="[0,2]")}}}', 2)).entries["a"].spec.dtype == "float8_e4m3fn"


def test_a_false_length_allocates_nothing() -> None:
    data = (MAX_HEADER + 1).to_bytes(8, "little") + b"{" + b" " * (MAX_HEADER + 1)
    for source in (data, b"\xff" * 7 + b"\x7f{}"):
        tracemalloc.start()
        with pytest.raises(CheckpointError):
            parse(source)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100_000


@pytest.mark.parametrize("unit", ["[],", "{},", '{"":0},', '"",', "0,", '[["a"]],'])
def test_hostile_json_costs_time_and_memory_in_proportion(unit: str) -> None:
    data = file('{"a":[' + unit * (500_000 // len(unit)) + "0]}")
    tracemalloc.start()
    began = time.perf_counter()
    with pytest.raises(CheckpointError):
        parse(data)
    assert time.perf_counter() - began < 60
    assert tracemalloc.get_traced_memory()[1] < 60 * len(data)
    tracemalloc.stop()


def test_a_read_error_names_the_file(tmp_path: Any) -> None:
    path = tmp_path / "a"
    path.write_bytes(file("{}"))
    fd = REAL.open_read(str(path))

    class Failing(Storage):
        def read_into(self, fd: int, buffer: memoryview, offset: int) -> None:
            raise OSError(5, "Input/output error")

    with pytest.raises(CheckpointError, match=r"C221 .*a: .*Input/output error"):
        read_header(Failing(), fd, str(path))
    REAL.close(fd)


# Fuzzing

_NUMBERS = ["-1", "-0", "0", "1", "8", "1e3", "1.0", "true", "null", '"5"', "NaN", str(2**31), str(2**32), str(2**48)]
_NUMBERS += [str(2**63 - 1), str(2**63), str(2**64 - 1), str(2**64), "9" * 30, "[]", "{}", "01", "+1", "Infinity"]
_NAMES = ['""', '"a"', '"__metadata__"', '"\\u0000"', '"\\ud800"', '"é"', '"../../x"', '"' + "n" * 5000 + '"', "a", "1"]
_FIELDS = ["dtype", "shape", "data_offsets"]


def random_file(rng: random.Random) -> tuple[list[list[Any]], int]:
    """A well-formed table `[name, [[field, text], …]]` and its data size."""
    table: list[list[Any]] = []
    place = 0
    for i in range(rng.randrange(5)):
        code = rng.choice(list(dtypes.BY_CODE))
        shape = [rng.choice([0, 1, 1, 2, 3, 5]) for _ in range(rng.randrange(4))]
        end = place + Spec(dtypes.BY_CODE[code].name, tuple(shape)).nbytes
        table.append([f'"t{i}"', [["dtype", f'"{code}"'], ["shape", str(shape)], ["data_offsets", f"[{place},{end}]"]]])
        place = end
    rng.shuffle(table)
    return table, place


def mutate_table(rng: random.Random, table: list[list[Any]]) -> None:
    if not table:
        return
    row = rng.choice(table)
    kind = rng.randrange(8)
    if kind == 0:
        row[0] = rng.choice(_NAMES)
    elif kind == 1:
        table.append([row[0], [list(pair) for pair in row[1]]])
    elif kind == 2:
        row[1].append([rng.choice([*_FIELDS, "x", ""]), rng.choice(_NUMBERS)])
    elif kind == 3 and row[1]:
        row[1].pop(rng.randrange(len(row[1])))
    elif kind == 4 and row[1]:
        rng.choice(row[1])[1] = rng.choice([*_NUMBERS, '"F32"', '"U8"', '"F4"', "[0,4]", "[4,0]", "[1]", "[0,0,0]"])
    elif row[1]:
        pair = rng.choice(row[1])
        parts = pair[1].strip("[]").split(",")
        parts[rng.randrange(len(parts))] = rng.choice(_NUMBERS)
        pair[1] = f"[{','.join(parts)}]"


def mutate_bytes(rng: random.Random, raw: bytes) -> bytes:
    kind, at = rng.randrange(6), rng.randrange(len(raw))
    if kind == 0:
        return raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :]
    if kind == 1:
        return raw[:at] + raw[at + 1 :]
    if kind == 2:
        return rng.choice([b" ", b"\n", b"\xef\xbb\xbf"]) + raw
    if kind == 3:
        return raw + rng.choice([b" ", b"        ", b"\n", b"\0", b"}", b"{}"])
    if kind == 4:
        return raw[:at] + raw[at:][: rng.randrange(8)] + raw[at:]
    return raw[:at] + rng.choice([b"[" * 2000, b"\\u", b'"', b"{", b","]) + raw[at:]


def fuzzed(rng: random.Random) -> bytes:
    table, size = random_file(rng)
    for _ in range(rng.choice([0, 1, 1, 1, 2])):
        mutate_table(rng, table)
    rows = [name + ":{" + ",".join(f'"{key}":{text}' for key, text in pairs) + "}" for name, pairs in table]
    if rng.random() < 0.1:
        rows.insert(0, '"__metadata__":' + rng.choice(["{}", '{"a":"b"}', '{"a":1}', "[]", '{"a":"x","a":"y"}', '""']))
    raw = ("{" + ",".join(rows) + "}").encode()
    if rng.random() < 0.3:
        raw = mutate_bytes(rng, raw)
    length = len(raw) if rng.random() < 0.95 else rng.choice([0, 1, len(raw) - 1, len(raw) + 1, 2**63 - 1, 2**64 - 1])
    size = max(0, size + (rng.choice([-1, 1, 8]) if rng.random() < 0.05 else 0))
    return length.to_bytes(8, "little") + raw + bytes(size)


def check_against_reference(data: bytes) -> bool:
    """True if we accept; then the reference must too, and understand the same."""
    try:
        ours = parse(data)
    except CheckpointError:
        return False
    theirs = dict(safetensors.deserialize(data))
    assert {name: (dtypes.BY_NAME[e.spec.dtype].code, list(e.spec.shape)) for name, e in ours.entries.items()} == {
        name: (entry["dtype"], entry["shape"]) for name, entry in theirs.items()
    }
    return True


@pytest.mark.parametrize("seed", range(10))
def test_fuzzed_headers(seed: int) -> None:
    rng = random.Random(seed)
    accepted = sum(check_against_reference(fuzzed(rng)) for _ in range(10_000))
    assert 1_000 < accepted < 9_000


# Writing

SPECS = st.dictionaries(
    st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20).filter(str.isprintable),
    st.builds(Spec, st.sampled_from(sorted(dtypes.BY_NAME)), st.lists(st.integers(0, 5), max_size=4).map(tuple)),
    max_size=8,
)


@given(SPECS, st.dictionaries(st.text(max_size=8), st.text(max_size=8).filter(lambda t: t.isprintable()), max_size=3))
def test_round_trip(specs: dict[str, Spec], metadata: dict[str, str]) -> None:
    if any(not key.isprintable() for key in metadata):
        metadata = {}
    raw, offsets = write_header(specs, metadata)
    data = raw + bytes(sum(spec.nbytes for spec in specs.values()))
    header = parse(data)
    assert list(header.entries) == list(specs) and list(offsets) == list(specs)
    assert {name: extent.spec for name, extent in header.entries.items()} == specs
    assert {name: extent.offset for name, extent in header.entries.items()} == offsets
    assert header.metadata == metadata
    assert len(raw) % 8 == 0
    assert check_against_reference(data)


def test_the_reference_library_loads_what_was_written(tmp_path: Any) -> None:
    raw, offsets = write_header({"w": Spec("float32", (2,)), "n": Spec("int64", ())}, {"format": "pt"})
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw + torch.tensor([1.0, 2.0]).numpy().tobytes() + (7).to_bytes(8, "little"))
    assert offsets["n"] == offsets["w"] + 8
    with safetensors.safe_open(path, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert opened.get_tensor("w").tolist() == [1.0, 2.0]
        assert opened.get_tensor("n").item() == 7


@pytest.mark.parametrize("name", ["", "__metadata__", "a\nb", "a\x1b"])
def test_names_that_cannot_be_stored(name: str) -> None:
    with pytest.raises(CheckpointError, match="C216"):
        write_header({name: Spec("float32", ())}, {})


def test_metadata_that_cannot_be_stored() -> None:
    with pytest.raises(CheckpointError, match="C213"):
        write_header({}, {"a": "\ud800"})


def test_a_header_too_large_to_read_is_not_written() -> None:
    with pytest.raises(CheckpointError, match="C211"):
        write_header({f"{i:03000}": Spec("float32", ()) for i in range(3400)}, {})


def test_data_begins_where_the_header_says() -> None:
    raw, offsets = write_header({"a": Spec("uint8", (3,)), "b": Spec("float32", (1,))}, {})
    assert offsets == {"a": len(raw), "b": len(raw) + 3}
    assert json.loads(raw[8:])["b"]["data_offsets"] == [3, 7]

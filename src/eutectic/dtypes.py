"""The dtypes a checkpoint may hold: their names here, in safetensors headers and in numpy, and their sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class DType:
    """`name` is torch's (`bfloat16`); `code` is safetensors' (`BF16`); `bits` is the numpy dtype of the stored bits."""

    name: str
    code: str
    itemsize: int
    bits: str
    kind: str  # "float", "integer" or "fp8"


_ALL = (
    DType("bfloat16", "BF16", 2, "uint16", "float"),
    DType("float16", "F16", 2, "uint16", "float"),
    DType("float32", "F32", 4, "uint32", "float"),
    DType("float64", "F64", 8, "uint64", "float"),
    DType("int64", "I64", 8, "int64", "integer"),
    DType("int32", "I32", 4, "int32", "integer"),
    DType("int16", "I16", 2, "int16", "integer"),
    DType("int8", "I8", 1, "int8", "integer"),
    DType("uint64", "U64", 8, "uint64", "integer"),
    DType("uint32", "U32", 4, "uint32", "integer"),
    DType("uint16", "U16", 2, "uint16", "integer"),
    DType("uint8", "U8", 1, "uint8", "integer"),
    DType("bool", "BOOL", 1, "uint8", "integer"),
    # Recognised so that they are refused by name: without their scales the numbers mean nothing.
    DType("float8_e4m3fn", "F8_E4M3", 1, "uint8", "fp8"),
    DType("float8_e5m2", "F8_E5M2", 1, "uint8", "fp8"),
)

BY_NAME: dict[str, DType] = {d.name: d for d in _ALL}
BY_CODE: dict[str, DType] = {d.code: d for d in _ALL}
FLOATS: tuple[str, ...] = tuple(d.name for d in _ALL if d.kind == "float")
# What people call them elsewhere: for suggestions, not accepted.
ALSO = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
    "fp32": "float32",
    "f32": "float32",
    "float": "float32",
    "single": "float32",
    "fp64": "float64",
    "f64": "float64",
    "double": "float64",
}


def named(value: Any) -> Any:
    """The name of a torch dtype; anything else as it is. Needs no torch."""
    kind = type(value)
    return str(value).removeprefix("torch.") if (kind.__module__, kind.__name__) == ("torch", "dtype") else value


def itemsize(name: str) -> int:
    """Bytes an element of the dtype called `name`."""
    return BY_NAME[name].itemsize


def is_float(name: str) -> bool:
    """True for the dtypes that are merged; integers and booleans are copied."""
    return BY_NAME[name].kind == "float"


def promote(names: list[str]) -> str:
    """The smallest of our float dtypes that holds all of `names` (bf16 with fp16 gives fp32, as in torch)."""
    kinds = set(names)
    if len(kinds) == 1:
        return names[0]
    return "float64" if "float64" in kinds else "float32"

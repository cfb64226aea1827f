"""Reads the pickle of a torch checkpoint as data: an interpreter of its own for the few instructions that tensors need.

Nothing is imported by name and nothing is called. `pickletools` cuts the stream into instructions; the machine here
knows how to build plain values, and knows a dozen names (`torch._utils._rebuild_tensor_v2`, `torch.FloatStorage`, …)
as labels without a meaning of their own. Every other name and every other instruction ends the reading.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from eutectic import dtypes
from eutectic.checkpoint.safetensors import MAX_DIMS
from eutectic.errors import CheckpointError, Problem

# Some 24 instructions describe a tensor, so this is room for 80,000 of them in one file.
MAX_INSTRUCTIONS = 2_000_000
_HINT = "open it with torch where you trust it, and save its state dict as safetensors"


@dataclass(frozen=True, slots=True, eq=False)
class StorageRef:
    """A storage that the pickle refers to: the key of its record, its dtype (None: raw bytes) and its size in bytes."""

    key: str
    dtype: str | None
    nbytes: int


@dataclass(frozen=True, slots=True, eq=False)
class TensorRef:
    """A tensor as the pickle describes it; `offset` and `strides` count elements. Not checked against its record."""

    storage: StorageRef
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Symbol:
    """A known name. Only a label: there is no function behind it."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class _StorageType:
    dtype: str | None


@dataclass(frozen=True, slots=True, eq=False)
class _DTypeName:
    name: str


_STORAGES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
}
# dtypes that may be mentioned as a value; a tensor must be of one that `dtypes` knows.
_OTHER_DTYPES = ("complex32", "complex64", "complex128", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")

_KNOWN: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): _Symbol("OrderedDict"),
    ("torch", "Size"): _Symbol("Size"),
    ("torch._utils", "_rebuild_tensor_v2"): _Symbol("tensor_v2"),
    ("torch._utils", "_rebuild_tensor_v3"): _Symbol("tensor_v3"),
    ("torch._utils", "_rebuild_parameter"): _Symbol("parameter"),
    ("torch._utils", "_rebuild_parameter_with_state"): _Symbol("parameter_with_state"),
    ("torch.serialization", "_get_layout"): _Symbol("layout"),
    ("torch.storage", "UntypedStorage"): _StorageType(None),
    **{("torch", f"{name}Storage"): _StorageType(dtype) for name, dtype in _STORAGES.items()},
    **{("torch", name): _DTypeName(name) for name in (*dtypes.BY_NAME, *_OTHER_DTYPES)},
}
_UNSUPPORTED: dict[tuple[str, str], str] = {
    **{("torch", f"Complex{width}Storage"): "complex numbers" for width in ("Float", "Double")},
    **{
        ("torch", f"{name}Storage"): "quantised numbers"
        for name in ("QInt8", "QUInt8", "QInt32", "QUInt4x2", "QUInt2x4")
    },
    ("torch._utils", "_rebuild_qtensor"): "a quantised tensor",
    ("torch._utils", "_rebuild_sparse_tensor"): "a sparse tensor",
    ("torch._utils", "_rebuild_sparse_csr_tensor"): "a sparse tensor",
    ("torch._utils", "_rebuild_nested_tensor"): "a nested tensor",
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): "a tensor without values (of the meta device)",
    ("torch._utils", "_rebuild_wrapper_subclass"): "a tensor of a class of its own",
    ("torch._tensor", "_rebuild_from_type_v2"): "a tensor of a class of its own, or one with attributes",
}


def shown(text: str, limit: int = 80) -> str:
    """Text from a file, made fit for a message: clipped, with control and bidirectional characters escaped."""
    clipped = text if len(text) <= limit else f"{text[:limit]}…"
    return clipped if clipped.isprintable() else ascii(clipped)


def read_pickle(data: bytes, path: str) -> object:
    """What the pickle `data` describes: plain values, `TensorRef`s and `StorageRef`s in dicts, lists and tuples.

    Containers may share parts and may even contain themselves, as the pickle says. `path` is for messages.
    Raises `CheckpointError`: C230 for a name or an instruction that tensors do not need, C233 for a broken stream or
    one that is too large, C234 for kinds of tensors that cannot be merged.
    """
    return _Machine(path).run(data)


def _kind(value: object) -> str:
    """What a value is, without showing what is in it: containers may be huge or contain themselves."""
    return type(value).__name__.lstrip("_")


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _are_counts(values: object) -> bool:
    return isinstance(values, tuple) and len(values) <= MAX_DIMS and all(map(_is_count, values))


class _Machine:
    """A stack, marks on it, and a memo, as the pickle protocol describes them."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> object:
        stream = io.BytesIO(data)
        for count, (name, argument) in enumerate(self._instructions(stream)):
            if count >= MAX_INSTRUCTIONS:
                self._broken(f"it has more than {MAX_INSTRUCTIONS:,} instructions")
            operation = _OPERATIONS.get(name)
            if operation is None:
                self._unsafe(f"this pickle uses the instruction {name}")
            operation(self, argument)
        if len(self._stack) != 1 or self._marks:
            self._broken(f"it ends with {len(self._stack)} values in place of one")
        if stream.tell() != len(data):
            self._broken(f"{len(data) - stream.tell()} bytes follow its end")
        return self._stack[0]

    def _instructions(self, stream: io.BytesIO) -> Iterator[tuple[str, Any]]:
        instructions = pickletools.genops(stream)
        while True:
            try:
                opcode, argument, _ = next(instructions)
            except StopIteration:
                return
            # Warning: invalid escapes in a name warn, and warnings may have been made errors.
            except (ValueError, AssertionError, Warning) as error:
                self._broken(shown(str(error).lower(), 120))
            yield opcode.name, argument

    # Refusals

    def _unsafe(self, what: str) -> NoReturn:
        message = f"{what}, which a checkpoint of tensors does not need; nothing of it was executed"
        raise CheckpointError(Problem("C230", message, file=self._path, hint=_HINT))

    def _broken(self, what: str) -> NoReturn:
        message = f"the pickle in this checkpoint cannot be read: {what}"
        raise CheckpointError(Problem("C233", message, file=self._path, hint="fetch or save the file again"))

    def _unsupported(self, what: str) -> NoReturn:
        raise CheckpointError(Problem("C234", f"this checkpoint holds {what}", file=self._path, hint=_HINT))

    # The stack

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        self.peek()
        return self._stack.pop()

    def peek(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            self._broken("a value is taken where there is none")
        return self._stack[-1]

    def mark(self, _: None) -> None:
        self._marks.append(len(self._stack))

    def pop_to_mark(self) -> list[Any]:
        if not self._marks:
            self._broken("values are taken up to a mark, and there is no mark")
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    # Instructions for plain values

    def protocol(self, version: int) -> None:
        if version > 5:
            self._broken(f"it is of protocol {version}, and 5 is the latest known")

    def integer(self, value: int) -> None:
        if not -(2**63) <= value < 2**64:
            self._broken(f"it holds an integer of {value.bit_length()} bits, more than 64")
        self.push(value)

    def tuple_of(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(values)))

    def append(self, values: list[Any]) -> None:
        target = self.peek()
        if not isinstance(target, list):
            self._broken(f"values are appended to a {_kind(target)}")
        target.extend(values)

    def set_items(self, items: list[Any]) -> None:
        target = self.peek()
        if not isinstance(target, dict):
            self._broken(f"items are set in a {_kind(target)}")
        if len(items) % 2:
            self._broken("a key has no value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing anything else could be made slow on purpose, or recurse without end.
            if not isinstance(key, str | bytes | int | float | None):
                self._broken(f"a {_kind(key)} is used as a key")
            if key in target:
                self._broken(f"the key {shown(str(key))} is set twice in one dictionary")
            target[key] = value

    def put(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self.peek()

    def get(self, index: int) -> None:
        if index not in self._memo:
            self._broken(f"it refers to entry {index} of its memo, which was not written")
        self.push(self._memo[index])

    # Names, and what stands for calling them

    def name(self, module: str, name: str) -> None:
        if reason := _UNSUPPORTED.get((module, name)):
            self._unsupported(f"{reason} ({module}.{name})")
        known = _KNOWN.get((module, name))
        if known is None:
            self._unsafe(f"this pickle names {shown(f'{module}.{name}')}")
        self.push(known)

    def stack_global(self, _: None) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(module, str) and isinstance(name, str)):
            self._broken(f"a name is given by a {_kind(module)} and a {_kind(name)}")
        self.name(module, name)

    def instance(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._unsafe(f"this pickle makes an instance of {shown(f'{module}.{name}')}")

    def reduce(self, _: None) -> None:
        arguments, function = self.pop(), self.pop()
        builder = _BUILDERS.get(function.name) if isinstance(function, _Symbol) else None
        if builder is None:
            self._unsafe(f"this pickle calls a {_kind(function)}")
        if not isinstance(arguments, tuple):
            self._broken(f"a {_kind(arguments)} is passed as arguments")
        self.push(builder(self, arguments))

    def build(self, _: None) -> None:
        """An ordered dictionary with attributes: `state_dict()` notes versions of modules in `_metadata`."""
        state, target = self.pop(), self.peek()
        if not (isinstance(target, dict) and isinstance(state, dict) and all(key == "_metadata" for key in state)):
            self._unsafe(f"this pickle sets the state of a {_kind(target)}")

    def persistent(self, _: None) -> None:
        match self.pop():
            case ("storage", _StorageType() as kind, str() as key, str(), int() as count) if _is_count(count):
                width = dtypes.itemsize(kind.dtype) if kind.dtype else 1
                self.push(StorageRef(key, kind.dtype, count * width))
            case other:
                self._unsafe(f"this pickle refers to a {_kind(other)} outside it that is no storage")

    def ordered_dict(self, arguments: tuple[Any, ...]) -> dict[Any, Any]:
        if arguments:
            self._broken("an ordered dictionary is made with arguments")
        return {}

    def size(self, arguments: tuple[Any, ...]) -> tuple[int, ...]:
        match arguments:
            case (tuple() as shape,) if _are_counts(shape):
                return shape
        self._broken("a shape is not made of non-negative integers")

    def layout(self, arguments: tuple[Any, ...]) -> str:
        match arguments:
            case (str() as layout,):
                return layout
        self._broken("a layout is not given by its name")

    def tensor_v2(self, arguments: tuple[Any, ...]) -> TensorRef:
        if len(arguments) not in (6, 7):
            self._broken(f"a tensor is described by {len(arguments)} values")
        storage, *_ = arguments
        if not isinstance(storage, StorageRef) or storage.dtype is None:
            self._broken(f"a tensor is made of a {_kind(storage)} without a dtype")
        return self._tensor(storage.dtype, arguments[:6], arguments[6:])

    def tensor_v3(self, arguments: tuple[Any, ...]) -> TensorRef:
        if len(arguments) not in (7, 8) or not isinstance(arguments[6], _DTypeName):
            self._broken(f"a tensor is described by {len(arguments)} values, or its dtype is none")
        dtype = arguments[6].name
        if dtype not in dtypes.BY_NAME:
            self._unsupported(f"a tensor of {dtype}, which is not supported")
        return self._tensor(dtype, arguments[:6], arguments[7:])

    def _tensor(self, dtype: str, arguments: tuple[Any, ...], metadata: tuple[Any, ...]) -> TensorRef:
        storage, offset, shape, strides, _, hooks = arguments
        if not isinstance(storage, StorageRef):
            self._broken(f"a tensor is made of a {_kind(storage)}")
        if not (_is_count(offset) and _are_counts(shape) and _are_counts(strides) and len(shape) == len(strides)):
            self._broken("the offset, shape and strides of a tensor are not lists of non-negative integers that match")
        if hooks:
            self._unsafe("this pickle attaches hooks to a tensor")
        if any(metadata):
            self._unsupported("a tensor to be conjugated or negated on loading")
        return TensorRef(storage, dtype, offset, shape, strides)

    def parameter(self, arguments: tuple[Any, ...]) -> TensorRef:
        match arguments:
            case (TensorRef() as tensor, _, hooks) if not hooks:
                return tensor
        self._broken("a parameter is not made of a tensor")

    def parameter_with_state(self, arguments: tuple[Any, ...]) -> TensorRef:
        """Python attributes of a parameter are dropped, as loading a state dict into a module drops them."""
        return self.parameter(arguments[:3])


_Builder = Callable[[_Machine, tuple[Any, ...]], object]
_BUILDERS: dict[str, _Builder] = {
    "OrderedDict": _Machine.ordered_dict,
    "Size": _Machine.size,
    "layout": _Machine.layout,
    "tensor_v2": _Machine.tensor_v2,
    "tensor_v3": _Machine.tensor_v3,
    "parameter": _Machine.parameter,
    "parameter_with_state": _Machine.parameter_with_state,
}

_Operation = Callable[[_Machine, Any], None]
_OPERATIONS: dict[str, _Operation] = {
    "PROTO": _Machine.protocol,
    "FRAME": lambda machine, _: None,
    "STOP": lambda machine, _: None,
    "MARK": _Machine.mark,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"), _Machine.integer),
    **dict.fromkeys(("BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _Machine.push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES"), _Machine.push),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
    "GLOBAL": lambda machine, argument: machine.name(*argument.partition(" ")[::2]),
    "STACK_GLOBAL": _Machine.stack_global,
    "INST": _Machine.instance,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}

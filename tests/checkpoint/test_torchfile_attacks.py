"""Pickles from strangers: what tensors do not need is refused, and nothing in it happens."""

from __future__ import annotations

import os
import pickle
import random
import time
import warnings
from typing import Any

import pytest
import torch
from hostile import (
    TENSOR,
    archive,
    genuine,
    in_dictionary,
    mutated,
    nothing_happens,
    pickle_in,
    problem_of,
    read,
    tensor,
    text,
)

from eutectic.checkpoint import pickle_reader
from eutectic.errors import CheckpointError


class Gadget:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.made = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.made


class Sly:
    def __setstate__(self, state: Any) -> None:
        os.system(state)


TOUCH = "touch sentinel"


def gadget(function: Any, *arguments: Any, protocol: int = 2, **more: Any) -> bytes:
    return pickle.dumps({"w": Gadget(function, *arguments, **more)}, protocol)


def gadgets() -> dict[str, bytes]:
    """Pickles that name what tensors do not need; each would run something in an ordinary unpickler."""
    by_protocol = {f"system_protocol_{p}": gadget(os.system, TOUCH, protocol=p) for p in range(1, 6)}
    command = b"(" + text(TOUCH)
    return by_protocol | {
        "exec": gadget(exec, "open('sentinel', 'w')"),
        "eval": gadget(eval, "open('sentinel', 'w')", protocol=4),
        "getattr": b"cbuiltins\ngetattr\n(cos\nsystem\n" + text("x") + b"tR.",
        "import": gadget(__import__, "antigravity"),
        "open": gadget(open, "sentinel", "w"),
        "compile": gadget(compile, "1", "f", "exec"),
        "popen": gadget(__import__("subprocess").Popen, ["touch", "sentinel"]),
        "runpy": b"crunpy\nrun_path\n" + command + b"tR.",
        "torch_load": gadget(torch.load, "evil.bin"),
        "torch_hub": b"ctorch.hub\nload\n" + command + b"tR.",
        "torch_jit": b"ctorch.jit\nload\n" + command + b"tR.",
        "torch_module": b"ctorch.nn.modules.linear\nLinear\n)\x81}b.",
        "numpy": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR.",
        "numpy_scalar": b"cnumpy.core.multiarray\nscalar\n)R.",
        "numpy_load": b"cnumpy\nload\n" + command + b"tR.",
        "codecs": b"c_codecs\nencode\n(" + text("a") + text("latin1") + b"tR.",
        "set": pickle.dumps({"w": {1}}, 2),
        "bytearray": pickle.dumps({"w": bytearray(3)}, 2),
        "partial": b"cfunctools\npartial\n(cos\nsystem\n" + text(TOUCH) + b"tR)R.",
        "attrgetter": b"coperator\nattrgetter\n(" + text("system") + b"tR.",
        "setstate": gadget(Sly, state=TOUCH),
        "dotted": b"\x80\x04" + text("collections") + text("OrderedDict.__init__") + b"\x93.",
        "dotted_module": b"\x80\x04" + text("torch._utils.sys.modules") + text("get") + b"\x93.",
        "near_name": b"ctorch\nFloatStorage2\n.",
        "utils_import": b"ctorch._utils\n_import_dotted_name\n(" + text("os") + b"tR.",
        "stack_global": b"\x80\x04" + text("posix") + text("system") + b"\x93" + command + b"tR.",
        "inst": command + b"iposix\nsystem\n.",
        "inst_known": b"(icollections\nOrderedDict\n.",
    }


GADGETS = gadgets()
INSTRUCTIONS = {
    "persid_text": b"Pstorage\n.",
    "obj": b"(cos\nsystem\n" + text(TOUCH) + b"o.",
    "obj_known": b"(ccollections\nOrderedDict\no.",
    "newobj_known": b"ccollections\nOrderedDict\n)\x81.",
    "newobj_ex": b"\x80\x04ccollections\nOrderedDict\n)}\x92.",
    "ext1": b"\x82\x01)R.",
    "ext2": b"\x83\x01\x00)R.",
    "ext4": b"\x84\x01\x00\x00\x00)R.",
    "build_list": b"]}b.",
    "build_other_state": b"}}" + text("__class__") + b"K\x01sb.",
    "build_tensor": TENSOR + b"}" + text("data") + b"K\x01sb.",
    "build_global": b"ccollections\nOrderedDict\n}" + text("__init__") + b"K\x01sb.",
    "call_text": text("os.system") + b")R.",
    "call_storage_type": b"ctorch\nFloatStorage\nK\x05\x85R.",
    "call_dtype": b"ctorch\nfloat32\n)R.",
    "call_result": b"ccollections\nOrderedDict\n)R)R.",
    "persid_other": text("module") + b"\x85Q.",
    "persid_nested": b"(" + text("storage") + b"(" + text("storage") + b"tQ" + text("0") + text("cpu") + b"K\x06tQ.",
    "persid_negative": b"("
    + text("storage")
    + b"ctorch\nFloatStorage\n"
    + text("0")
    + text("cpu")
    + b"J\xff\xff\xff\xfftQ.",
    "pop": b"NN0.",
    "dup": b"N2.",
    "next_buffer": b"\x80\x05\x97.",
    "frozenset": b"\x80\x04(\x91.",
    "string": b"S'a'\n.",
    "hooks": TENSOR.replace(b"\x89}t", b"\x89}" + text("hook") + b"K\x01st") + b".",
}


@pytest.mark.parametrize("name", GADGETS)
def test_names_that_tensors_do_not_need(name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    problem = problem_of(archive(GADGETS[name]))
    assert problem.code == "C230"
    assert "this pickle names" in problem.message or "makes an instance of" in problem.message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_instructions_that_tensors_do_not_need(name: str) -> None:
    assert problem_of(archive(INSTRUCTIONS[name])).code == "C230"


def test_the_refusal_names_the_function_and_says_what_to_do() -> None:
    problem = problem_of(archive(GADGETS["system_protocol_2"]))
    assert problem.message == (
        "this pickle names posix.system, which a checkpoint of tensors does not need; nothing of it was executed"
    )
    assert problem.hint == "open it with torch where you trust it, and save its state dict as safetensors"


def test_names_are_escaped_in_messages() -> None:
    problem = problem_of(archive(b"c\x1b[31mevil\nname" + b"x" * 5000 + b"\n."))
    assert "\x1b" not in problem.message
    assert len(problem.message) < 250


BROKEN = {
    "empty": b"",
    "nothing": b".",
    "no_stop": b"N",
    "two_values": b"NN.",
    "open_mark": b"(N.",
    "after_the_end": b"N.N.",
    "protocol": b"\x80\x06N.",
    "unknown_opcode": b"\xffN.",
    "cut_text": b"X\xff\xff\x00\x00abc.",
    "negative_long": b"\x8b\xff\xff\xff\xff.",
    "huge_length": b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
    "larger_length": b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc.",
    "huge_long": b"\x8b\x40\x42\x0f\x00" + b"\x7f" * 1_000_000 + b".",
    "huge_decimal": b"L" + b"9" * 100_000 + b"L\n.",
    "bad_utf8": b"X\x01\x00\x00\x00\xff.",
    "memo_unwritten": b"h\x07.",
    "memo_far": b"j\xff\xff\xff\xff.",
    "memo_of_nothing": b"q\x00.",
    "memoize_below_mark": b"N(\x94.",
    "pop_below_mark": b"N(\x85.",
    "tuple_without_mark": b"Nt.",
    "append_to_dict": b"}Na.",
    "set_in_list": b"]NNs.",
    "odd_items": b"}(Nu.",
    "twice": b"}NNsNNs.",
    "key_of_list": b"}]Ns.",
    "key_of_tuple": b"}N\x85Ns.",
    "stack_global_of_numbers": b"K\x01K\x02\x93.",
    "arguments_no_tuple": b"ctorch\nSize\n]R.",
    "ordered_dict_arguments": b"ccollections\nOrderedDict\n]\x85R.",
    "size_of_text": b"ctorch\nSize\n" + text("a") + b"\x85\x85R.",
    "layout_of_number": b"ctorch.serialization\n_get_layout\nK\x01\x85R.",
    "parameter_of_nothing": b"ctorch._utils\n_rebuild_parameter\nN\x89}\x87R.",
    "tensor_of_nothing": b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))\x89}tR.",
    "tensor_of_little": b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "tensor_v3_without_dtype": TENSOR.replace(b"v2", b"v3") + b".",
    "tensor_v3_of_nothing": b"ctorch._utils\n_rebuild_tensor_v3\n(NK\x00))\x89}ctorch\nuint16\ntR.",
    "negative_offset": tensor(offset=b"J\xff\xff\xff\xff"),
    "negative_stride": tensor(strides=b"J\xff\xff\xff\xff\x85"),
    "boolean_shape": tensor(shape=b"\x88\x85"),
    "list_as_shape": tensor(shape=b"]"),
    "strides_missing": tensor(strides=b")"),
    "many_dimensions": tensor(shape=b"(" + b"K\x01" * 40 + b"t", strides=b"(" + b"K\x01" * 40 + b"t"),
    "deep_tuples": b")" + b"\x85" * 100_000 + b".",
    "deep_dicts": in_dictionary((b"}" + text("a")) * 50_000 + b"N" + b"s" * 50_000),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_pickles(name: str) -> None:
    assert problem_of(archive(BROKEN[name])).code == "C233"


@pytest.mark.parametrize(("action", "code"), [("ignore", "C230"), ("error", "C233")])
def test_names_that_python_warns_of(action: Any, code: str) -> None:
    with warnings.catch_warnings(action=action):
        assert problem_of(archive(b"ctorch\\q\nSize\n.")).code == code


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (tensor(shape=b"K\x07\x85"), "ends at byte 28 of a storage of 24"),
        (tensor(offset=b"K\x01"), "ends at byte 28"),
        (tensor(shape=b"K\x00\x85", offset=b"K\x07"), "ends at byte 28"),
        (tensor(strides=b"K\x02\x85"), "ends at byte 44"),
        (tensor(shape=b"J\x00\x00\x00\x40\x85"), "ends at byte 4,294,967,296"),
        (tensor(shape=b"\x8a\x08" + b"\xff" * 7 + b"\x7f\x85"), "more than 281474976710656 elements"),
        (tensor(shape=b"K\x00\x8a\x08" + b"\xff" * 7 + b"\x7f\x86", strides=b"K\x01K\x01\x86"), "more than"),
        (tensor(strides=b"K\x00\x85"), "share their place"),
        (tensor(shape=b"J\x00\x00\x00\x40\x85", strides=b"K\x00\x85"), "share their place"),
        (tensor(storage=b"K\x07"), "has 28 bytes, and the record of it 24"),
        (tensor(storage=b"\x8a\x08" + b"\xff" * 7 + b"\x7f"), "and the record of it 24"),
    ],
)
def test_tensors_that_do_not_fit_their_storage(stream: bytes, message: str) -> None:
    problem = problem_of(archive(stream))
    assert (problem.code, problem.where) == ("C235", "w")
    assert message in problem.message


def test_containers_that_share_or_contain_themselves_are_walked_once() -> None:
    laughs = b"]q\x00" + b"".join(b"](" + b"h%c" % i * 10 + b"eq%c" % (i + 1) for i in range(60))
    assert problem_of(archive(b"(" + laughs + b"t.")).code == "C236"
    itself = b"]q\x00h\x00a."
    assert problem_of(archive(itself)).code == "C236"


def test_instructions_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_reader, "MAX_INSTRUCTIONS", 1000)
    problem = problem_of(archive(b"(" + b"}" * 5000 + b"t."))
    assert "more than 1,000 instructions" in problem.message


def test_a_pickle_larger_than_any_checkpoint_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eutectic.checkpoint.torchfile.MAX_PICKLE", 1000)
    assert problem_of(archive(b"N" * 2000)).code == "C231"


def test_five_thousand_mutated_pickles() -> None:
    large = {"model": torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict(), "epoch": 3}
    parameters = {
        "p": torch.nn.Parameter(torch.ones(2)),
        "q": torch.ones(3, dtype=torch.uint16),
        "t": torch.ones(2, 3).t(),
    }
    seeds = [pickle_in(genuine(value)) for value in (None, large, parameters)] + [
        tensor(),
        *GADGETS.values(),
        *INSTRUCTIONS.values(),
    ]
    dice = random.Random(20240601)
    refused, began = 0, time.monotonic()
    with nothing_happens():
        for number in range(5000):
            stream = mutated(seeds[0] if number % 2 else dice.choice(seeds), dice)
            try:
                read(archive(stream))
            except CheckpointError:
                refused += 1
    assert refused > 4000
    assert time.monotonic() - began < 120

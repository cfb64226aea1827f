"""Tiny real checkpoints for tests, and the contract of a `Source`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eutectic import dtypes
from eutectic.checkpoint.memory import MemorySource
from eutectic.checkpoint.source import Source, Spec
from eutectic.errors import EutecticError
from eutectic.testing.contract import ContractError, PropertyError

AnyPath = str | os.PathLike[str]


# Tiny checkpoints


def write_safetensors(path: AnyPath, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors, any dtype of `eutectic.dtypes` and any strides, as one safetensors file in the given order."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    data = bytearray()
    for name, tensor in tensors.items():
        code = dtypes.BY_NAME[str(tensor.dtype).removeprefix("torch.")].code
        start = len(data)
        data += _stored(tensor)
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [start, len(data)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    Path(path).write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_statistics(
    folder: AnyPath, kind: str, tensors: Mapping[str, Tensor], *, of: Mapping[str, Tensor] | None = None, **about: Any
) -> str:
    """Writes statistics by hand, as `eutectic collect` measures them; returns the folder's path.

    `kind` is `fisher` or `gram`, `tensors` have the names of the model's. `of` are the model's own tensors, whose
    digests are then in `statistics.json`; `about` is what else stands there (`samples`, 8 if not given, `bias`, …).
    """
    home = Path(folder)
    home.mkdir(parents=True, exist_ok=True)
    write_safetensors(home / "model.safetensors", tensors, {"format": "pt"})
    digests = {name: MemorySource("model", {name: tensor}).digest(name) for name, tensor in (of or {}).items()}
    _write_json(home / "statistics.json", {"kind": kind, "samples": 8, "digests": digests, **about})
    return str(home)


def tiny_llama(
    folder: AnyPath,
    *,
    seed: int = 0,
    dtype: str = "bfloat16",
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate: int = 64,
    vocab: int = 96,
    tied: bool = False,
    shards: int = 1,
    base: AnyPath | None = None,
    noise: float = 0.01,
    extra: Mapping[str, Tensor] | None = None,
) -> str:
    """Writes a Hugging Face folder that `transformers` loads as a `LlamaForCausalLM`; returns its path.

    Weights are normal numbers of standard deviation 0.02 (norm gains 1 ± 0.02), made from `seed`. With `base`, the
    folder of another tiny llama, they are its weights plus normal `noise`: a fine-tune of it, of the base's sizes
    (the size arguments are then ignored). `extra` tensors are written as they are. With `tied` there is no
    `lm_head.weight`; with `shards` above 1 there is an index. `folder` is made if it is missing.
    """
    home = Path(folder)
    home.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    if base is None:
        config = _llama_config(hidden, layers, heads, kv_heads, intermediate, vocab, tied)
        start, deviation = _llama_means(config), 0.02
    else:
        config = json.loads((Path(base) / "config.json").read_text())
        start, deviation = _read(Path(base)), noise
    made = {name: _moved(tensor, deviation, dtype, generator) for name, tensor in start.items()}
    _write_shards(home, {**made, **(extra or {})}, shards)
    _write_json(home / "config.json", {**config, "torch_dtype": dtype})
    _write_json(home / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    _write_tokenizer(home, config["vocab_size"])
    return str(home)


def _llama_config(
    hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, vocab: int, tied: bool
) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "intermediate_size": intermediate,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _llama_means(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Every tensor of the model at the value that its random weights lie around: norm gains 1, all others 0."""
    hidden, intermediate, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(config["num_hidden_layers"]):
        inside = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (intermediate, hidden),
            "mlp.up_proj": (intermediate, hidden),
            "mlp.down_proj": (hidden, intermediate),
        }
        shapes |= {f"model.layers.{layer}.{part}.weight": shape for part, shape in inside.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    return {name: torch.full(shape, float("norm" in name)) for name, shape in shapes.items()}


def _moved(tensor: Tensor, deviation: float, dtype: str, generator: torch.Generator) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    return (tensor.double() + deviation * noise).to(getattr(torch, dtype))


def _write_shards(home: Path, tensors: Mapping[str, Tensor], shards: int) -> None:
    """One file, or as many as asked, each with consecutive tensors, and their index."""
    if shards == 1:
        write_safetensors(home / "model.safetensors", tensors, {"format": "pt"})
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        write_safetensors(home / file, {name: tensors[name] for name in part}, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(home / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_tokenizer(home: Path, vocab: int) -> None:
    """A word-level tokenizer: `<unk>`, `<s>`, `</s>`, then w3, w4 and so on, split at white space."""
    words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(3, vocab))]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": words[i], **flags} for i in range(3)],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "<unk>"},
    }
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    _write_json(home / "tokenizer.json", tokenizer)
    _write_json(home / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special})


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")


def _read(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder that `tiny_llama` wrote."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        raw = bytearray(file.read_bytes())
        start = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:start])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            first, last = (start + offset for offset in entry["data_offsets"])
            spec = Spec(dtypes.BY_CODE[entry["dtype"]].name, tuple(entry["shape"]))
            tensors[name] = _tensor(raw[first:last], spec)
    return tensors


def _stored(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


def _tensor(stored: bytearray, spec: Spec) -> Tensor:
    dtype = getattr(torch, spec.dtype)
    flat = torch.frombuffer(stored, dtype=dtype) if stored else torch.empty(0, dtype=dtype)
    return flat.reshape(spec.shape)


# The contract of a source


def specs_equal_tensors(source: Source) -> None:
    """dtype, shape and number of bytes are what the header says; dtypes are known ones; the rest is plain data."""
    for name, spec in source.specs.items():
        tensor = source[name]
        found = Spec(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        _require(spec.dtype in dtypes.BY_NAME, f"{name!r}: unknown dtype {spec.dtype!r}")
        _require(found == spec, f"{name!r}: {spec} is declared, {found} is read")
    _require(not os.path.isabs(source.label), f"the label {source.label!r} is a path of this machine")
    json.dumps(source.identity())
    source.check_unchanged()


def ranges_are_slices(source: Source) -> None:
    """Elements `start:stop` are those of the whole tensor, and every byte of the buffer is written."""
    for name, spec in source.specs.items():
        whole, n, size = _stored(source[name]), spec.numel, dtypes.itemsize(spec.dtype)
        for start, stop in {(0, n), (0, n // 2), (n // 3, n), (n // 2, n // 2 + 1), (n - 1, n)}:
            if not 0 <= start < stop <= n:
                continue
            for filler in (0x00, 0xFF):
                found = _read_range(source, name, start, stop, filler)
                _require(found == whole[start * size : stop * size], f"{name!r}: elements {start}:{stop} differ")


def mapping_holds_ties(source: Source) -> None:
    """Stored and tied names, each once; a tied name gives its stored tensor; an unknown one raises `KeyError`."""
    names = list(source)
    _require(len(names) == len(set(names)) == len(source), f"{len(source)} names, {len(set(names))} different ones")
    _require(set(names) == {*source.specs, *source.ties}, "the names are not those of specs and ties")
    for other, stored in source.ties.items():
        _require(stored in source.specs, f"{other!r} is tied to {stored!r}, which is not stored")
        _require(other not in source.specs, f"{other!r} is both stored and tied")
        _require(_stored(source[other]) == _stored(source[stored]), f"{other!r} differs from {stored!r}")
    try:
        source["no such tensor"]
    except KeyError:
        return
    raise PropertyError("an unknown name gives a tensor")


def reads_repeat(source: Source) -> None:
    """A second read gives the same bytes, in memory of its own."""
    for name in source.specs:
        first = source[name]
        before = _stored(first)
        if first.numel():
            first.reshape(-1).view(torch.uint8).bitwise_not_()
        _require(_stored(source[name]) == before, f"{name!r}: the second read differs, or the first gave shared memory")


def threads_read_the_same(source: Source) -> None:
    """Eight threads that read all tensors at once, in different orders, get what one thread gets."""
    names = list(source.specs)
    alone = {name: _stored(source[name]) for name in names}

    def differing(turn: int) -> list[str]:
        shift = turn * len(names) // 8
        return [name for name in names[shift:] + names[:shift] if _stored(source[name]) != alone[name]]

    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(differing, range(8)):
            _require(not found, f"{', '.join(found[:1])!r}: read differently by several threads")


def closing_is_final(source: Source) -> None:
    """Closing twice is no error; what is read afterwards is refused with a `EutecticError`, or right."""
    before = {name: _stored(source[name]) for name in source.specs}
    source.close()
    source.close()
    for name, stored in before.items():
        try:
            found = _stored(source[name])
        except EutecticError:
            continue
        _require(found == stored, f"{name!r}: another value after the source was closed")


def _read_range(source: Source, name: str, start: int, stop: int, filler: int) -> bytes:
    size = dtypes.itemsize(source.specs[name].dtype)
    buffer = bytearray([filler]) * ((stop - start) * size)
    source.read_into(name, start, stop, memoryview(buffer))
    return bytes(buffer)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise PropertyError(otherwise)


SOURCE_PROPERTIES: dict[str, Callable[[Source], None]] = {
    check.__name__: check
    for check in (
        specs_equal_tensors,
        ranges_are_slices,
        mapping_holds_ties,
        reads_repeat,
        threads_read_the_same,
        closing_is_final,
    )
}


def check_source(source: Source) -> None:
    """Checks a source against the contract of `eutectic.checkpoint.source.Source`; closes it at the end.

    Specs equal the tensors read; a range is a slice; every byte asked for is written; the mapping holds stored and
    tied names; reading again, and from eight threads, gives the same; a closed source gives a `EutecticError` or the
    same bytes. Reads every tensor several times: meant for small ones.
    Raises `ContractError` (an `AssertionError`) that names the first property broken and the tensor.
    """
    for name, check in SOURCE_PROPERTIES.items():
        try:
            check(source)
        except Exception as error:
            found = str(error) if isinstance(error, PropertyError) else f"{type(error).__name__}: {error}"
            raise ContractError(f"source {source.label!r}", name, found) from error

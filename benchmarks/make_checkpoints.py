"""Makes the checkpoints that the benchmarks merge: a base in llama layout and three fine-tunes of it.

    python benchmarks/make_checkpoints.py                  # four bf16 checkpoints of 0.66 G parameters, 1.32 GB each
    python benchmarks/make_checkpoints.py --size quarter   # the same at a quarter of the size
    python benchmarks/make_checkpoints.py --fisher         # and a Fisher diagonal of two fine-tunes, 2.64 GB each

The weights are seeded noise: N(0, 0.02) for the base, and for a fine-tune the base plus N(0, sd), rounded to the stored
dtype as a real fine-tune is, so that deltas are quantised and magnitudes have ties. Memory stays under 200 MB.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

Array = np.ndarray
CHUNK = 1 << 20  # elements drawn at a time: 4 MiB of float32
SEED = 20240


@dataclass(frozen=True)
class Size:
    """A llama layout, the dtype it is stored in, and the standard deviation of each fine-tune's delta."""

    hidden: int
    intermediate: int
    layers: int
    vocab: int
    head: int = 128
    dtype: str = "BF16"
    deltas: tuple[float, ...] = (3e-4, 6e-4, 1e-3)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every tensor, in file order."""
        square, wide = (self.hidden, self.hidden), (self.intermediate, self.hidden)
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, self.hidden)}
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            found[prefix + "input_layernorm.weight"] = (self.hidden,)
            for part in "qkvo":
                found[f"{prefix}self_attn.{part}_proj.weight"] = square
            found[prefix + "post_attention_layernorm.weight"] = (self.hidden,)
            found[prefix + "mlp.gate_proj.weight"] = wide
            found[prefix + "mlp.up_proj.weight"] = wide
            found[prefix + "mlp.down_proj.weight"] = wide[::-1]
        found["model.norm.weight"] = (self.hidden,)
        found["lm_head.weight"] = (self.vocab, self.hidden)
        return found

    def elements(self) -> int:
        """Number of parameters."""
        return sum(math.prod(shape) for shape in self.tensors().values())

    def config(self) -> dict[str, object]:
        """What `config.json` says, enough for `transformers` and mergekit."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // self.head,
            "num_key_value_heads": self.hidden // self.head,
            "head_dim": self.head,
            "vocab_size": self.vocab,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "torch_dtype": {"BF16": "bfloat16", "F32": "float32"}[self.dtype],
        }


SIZES = {
    "full": Size(hidden=2048, intermediate=5888, layers=10, vocab=32000),
    "quarter": Size(hidden=1024, intermediate=2688, layers=8, vocab=32000),
    "small": Size(hidden=256, intermediate=640, layers=4, vocab=4000),
    # Float32 and far from the base, so that two programs can be compared number by number.
    "pico": Size(hidden=64, intermediate=160, layers=5, vocab=256, head=16, dtype="F32", deltas=(0.01, 0.015, 0.02)),
}
MODELS = ("base", "tuned-1", "tuned-2", "tuned-3")
# Of these there is a Fisher diagonal.
MEASURED = MODELS[1:3]
ITEMSIZE = {"BF16": 2, "F32": 4}


def stored(values: Array, dtype: str) -> Array:
    """Float32 values as stored bits: uint16 for bfloat16 (rounded to nearest, ties to even), uint32 for float32."""
    bits = values.view(np.uint32)
    if dtype == "F32":
        return bits
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def loaded(bits: Array, dtype: str) -> Array:
    """Stored bits as float32 values."""
    return bits.view(np.float32) if dtype == "F32" else (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def shards_of(size: Size, count: int) -> list[dict[str, tuple[int, ...]]]:
    """The tensors in file order, cut into `count` files of about equal size (fewer if there are fewer tensors)."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    goal, done = size.elements() / count, 0
    for name, shape in size.tensors().items():
        if done >= goal * len(shards) and len(shards) < count:
            shards.append({})
        shards[-1][name] = shape
        done += math.prod(shape)
    return shards


def shard_names(count: int) -> list[str]:
    """File names as the hub has them."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{index + 1:05d}-of-{count:05d}.safetensors" for index in range(count)]


def header(shapes: dict[str, tuple[int, ...]], dtype: str) -> bytes:
    """The safetensors header of tensors laid out one after the other, padded to 8 bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + math.prod(shape) * ITEMSIZE[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def draws(size: Size, tensor: int, name: str, count: int) -> Iterator[list[Array]]:
    """One tensor in chunks: the stored bits of the base and of each fine-tune."""
    makers = [
        np.random.Generator(np.random.Philox(np.random.SeedSequence([SEED, model, tensor])))
        for model in range(1 + len(size.deltas))
    ]
    centre = np.float32(1.0 if name.endswith("norm.weight") else 0.0)
    for start in range(0, count, CHUNK):
        length = min(CHUNK, count - start)
        drawn = [maker.standard_normal(length, dtype=np.float32) for maker in makers]
        base = stored(centre + drawn[0] * np.float32(0.02), size.dtype)
        centre_of_tuned = loaded(base, size.dtype)
        tuned = [centre_of_tuned + noise * np.float32(sd) for noise, sd in zip(drawn[1:], size.deltas, strict=True)]
        yield [base, *(stored(values, size.dtype) for values in tuned)]


def write_weights(folders: list[Path], size: Size, shards: int) -> None:
    """Writes the weight files of all models in one pass over the tensors."""
    layout = shards_of(size, shards)
    number = 0
    for file_name, shapes in zip(shard_names(len(layout)), layout, strict=True):
        with ExitStack() as stack:
            files: list[BinaryIO] = [stack.enter_context(open(folder / file_name, "wb")) for folder in folders]
            for file in files:
                file.write(header(shapes, size.dtype))
            for name, shape in shapes.items():
                for chunk in draws(size, number, name, math.prod(shape)):
                    for file, bits in zip(files, chunk, strict=True):
                        file.write(bits.tobytes())
                number += 1
    if len(layout) > 1:
        for folder in folders:
            write_index(folder, size, layout)


def write_index(folder: Path, size: Size, layout: list[dict[str, tuple[int, ...]]]) -> None:
    """The index of a sharded checkpoint."""
    places = {
        name: file for file, shapes in zip(shard_names(len(layout)), layout, strict=True) for name in sorted(shapes)
    }
    index = {"metadata": {"total_size": size.elements() * ITEMSIZE[size.dtype]}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def make(root: Path, size_name: str = "full", shards: int = 1) -> list[Path]:
    """Makes the base and the fine-tunes under `root/SIZE` unless they are there; returns their folders, base first.

    `config.json` is written last: a folder that has it is complete, one that has not is made again. Other `shards`
    than 1 go into a folder of their own.
    """
    size = SIZES[size_name]
    parent = root / (size_name if shards == 1 else f"{size_name}-{shards}-shards")
    folders = [parent / model for model in MODELS]
    if all((folder / "config.json").is_file() for folder in folders):
        return folders
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    write_weights(folders, size, shards)
    for folder in folders:
        (folder / "config.json").write_text(json.dumps(size.config(), indent=2))
    return folders


def make_fishers(root: Path, size_name: str) -> list[Path]:
    """Makes float32 folders of statistics beside the fine-tunes, squares of noise as a Fisher diagonal is."""
    size = SIZES[size_name]
    folders = [root / size_name / f"fisher-{model}" for model in MEASURED]
    for number, folder in enumerate(folders):
        if (folder / "statistics.json").is_file():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence([SEED, 100 + number])))
        with open(folder / "model.safetensors", "wb") as file:
            file.write(header(size.tensors(), "F32"))
            for shape in size.tensors().values():
                count = math.prod(shape)
                for start in range(0, count, CHUNK):
                    noise = random.standard_normal(min(CHUNK, count - start), dtype=np.float32)
                    file.write((np.float32(1e-6) * noise * noise).tobytes())
        (folder / "statistics.json").write_text(json.dumps({"format": 1, "kind": "fisher", "samples": 1}))
    return folders


def main() -> None:
    """Makes the checkpoints that the command line asks for and prints where they are."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--dir", type=Path, default=Path("runs/bench"), help="where to put them (default runs/bench)")
    parser.add_argument("--size", choices=SIZES, default="full", help="full: 0.66 G parameters (default)")
    parser.add_argument("--shards", type=int, default=1, help="files a checkpoint (default 1)")
    parser.add_argument("--fisher", action="store_true", help="also make Fisher diagonals")
    arguments = parser.parse_args()
    if arguments.shards < 1:
        parser.error(f"--shards must be at least 1, not {arguments.shards}")
    for folder in make(arguments.dir, arguments.size, arguments.shards):
        print(folder)
    if arguments.fisher:
        for folder in make_fishers(arguments.dir, arguments.size):
            print(folder)


if __name__ == "__main__":
    main()

"""Times weight matching of two ResNet-50-sized models, and of two Llama-1B-sized ones beside what was predicted."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from time import perf_counter, process_time

import torch

from eutectic.alignment import match_weights, random_moves
from eutectic.alignment.costs import predict
from eutectic.alignment.families import declared
from eutectic.checkpoint import MemorySource
from eutectic.checkpoint.symmetry import Symmetries

Shape = tuple[int, ...]
# Bytes kept between reads.
KEPT = 1 << 30


def resnet50() -> Iterator[tuple[str, Shape]]:
    """Names and shapes of torchvision's ResNet-50."""
    yield from _convolution("conv1", "bn1", (64, 3, 7, 7))
    width = 64
    for stage, (blocks, inner) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            yield from _convolution(f"{name}.conv1", f"{name}.bn1", (inner, width, 1, 1))
            yield from _convolution(f"{name}.conv2", f"{name}.bn2", (inner, inner, 3, 3))
            yield from _convolution(f"{name}.conv3", f"{name}.bn3", (4 * inner, inner, 1, 1))
            if block == 0:
                yield from _convolution(f"{name}.downsample.0", f"{name}.downsample.1", (4 * inner, width, 1, 1))
            width = 4 * inner
    yield from (("fc.weight", (1000, width)), ("fc.bias", (1000,)))


def _convolution(name: str, norm: str, shape: Shape) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", shape
    yield from ((f"{norm}.{kind}", shape[:1]) for kind in ("weight", "bias", "running_mean", "running_var"))


def llama_1b(layers: int = 16) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of Llama-3.2-1B, or of fewer layers: tied head, 32 query heads on 8 of keys."""
    yield "model.embed_tokens.weight", (128256, 2048)
    for layer in range(layers):
        name = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{name}.{norm}.weight", (2048,)
        for map_, shape in {"q": (2048, 2048), "k": (512, 2048), "v": (512, 2048), "o": (2048, 2048)}.items():
            yield f"{name}.self_attn.{map_}_proj.weight", shape
        for map_, shape in {"gate": (8192, 2048), "up": (8192, 2048), "down": (2048, 8192)}.items():
            yield f"{name}.mlp.{map_}_proj.weight", shape
    yield "model.norm.weight", (2048,)


LLAMA = {"model_type": "llama", "hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 8}
LLAMA |= {"head_dim": 64, "num_hidden_layers": 16, "tie_word_embeddings": True, "vocab_size": 128256}
LLAMA |= {"intermediate_size": 8192, "hidden_act": "silu"}
TIED = {"lm_head.weight": "model.embed_tokens.weight"}
MODELS = {
    "resnet50": (resnet50, None, torch.float32),
    "llama-1b": (llama_1b, LLAMA, torch.bfloat16),
    "llama-1b-layer": (partial(llama_1b, 1), LLAMA | {"num_hidden_layers": 1}, torch.bfloat16),
}


def weights(shapes: Iterator[tuple[str, Shape]], seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Normal weights of the usual sizes; gains and variances near 1."""
    draw = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in shapes:
        noise = torch.randn(shape, generator=draw)
        gain = len(shape) == 1 and not name.endswith(("bias", "running_mean"))
        made[name] = (1 + noise.abs() / 8 if gain else noise / math.prod(shape[1:]) ** 0.5).to(dtype)
    return made


def models(name: str, kind: str) -> tuple[MemorySource, MemorySource, Symmetries]:
    """Two models with their table: the second `apart` from the first, or the first `scrambled`."""
    shapes, config, dtype = MODELS[name]
    a = MemorySource("a", weights(shapes(), 0, dtype))
    table = declared(a.specs, config, tied={} if config is None else TIED)
    assert table is not None
    if kind == "apart":
        return a, MemorySource("b", weights(shapes(), 1, dtype)), table
    element = random_moves(table, 1)
    return a, MemorySource("b", {name: table.made(name, a.__getitem__, element).to(dtype) for name in a.specs}), table


def peak(*, reset: bool = False) -> int:
    """Bytes of the most memory that was resident since the last reset (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main() -> None:
    """Prints what was predicted and what a match took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--pair", choices=("apart", "scrambled"), default="apart")
    parser.add_argument("--sweeps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    a, b, table = models(options.model, options.pair)
    cost = predict(a.specs, table)
    print(
        f"predicted: {cost.flops / 1e9:,.0f} GFLOP and {cost.read / 1e9:.1f} GB a sweep, assignments {cost.assignments}"
    )
    before = peak(reset=True)
    wall, cpu = perf_counter(), process_time()
    found = match_weights(a, b, table, sweeps=options.sweeps, memory=KEPT)
    wall, cpu = perf_counter() - wall, process_time() - cpu
    print(f"{options.model}, {options.pair}: {wall:.1f} s ({cpu:.1f} of the CPU) with {options.threads} threads")
    print(f"{len(found.objective)} sweeps, ‖A - B‖² less by {found.gain:.2%}")
    print(f"memory {(peak() - before) / 2**20:,.0f} MiB, at most {(cost.memory + KEPT) / 2**20:,.0f} predicted")


if __name__ == "__main__":
    main()

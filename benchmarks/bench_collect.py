"""What does collecting cost beside the passes it needs? Gram beside forward, Fisher beside forward and backward.

    OMP_NUM_THREADS=1 python benchmarks/bench_collect.py [--net cnn|llama] [--layers N] [--rounds N]

CPU time of one process, the least of several rounds in which all four take turns. The language model has random weights
and the shape of SmolLM2-135M (30 layers, or as many as `--layers` says; its head is tied). Needs transformers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from eutectic.statistics.batches import Batch
from eutectic.statistics.fisher import FisherCollector
from eutectic.statistics.inputs import GramCollector
from eutectic.statistics.labels import likelihood
from eutectic.statistics.layers import Names, still

Case = tuple[nn.Module, Any, Callable[[Any], Tensor]]


def cnn() -> Case:
    """Five 3×3 convolutions with batch normalisation, 64 images of 32×32, 100 classes (so that labels are drawn)."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    labels = torch.randint(0, 100, (64,))
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 100))
    return module, torch.randn(64, 3, 32, 32), lambda output: functional.cross_entropy(output, labels)


def llama(layers: int) -> Case:
    """Two sequences of 512 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 576, "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True}
    module = LlamaForCausalLM(
        LlamaConfig(**shape, num_hidden_layers=layers, num_attention_heads=9, num_key_value_heads=3)
    )
    ids = torch.randint(3, 49152, (2, 512))

    def loss(output: Any) -> Tensor:
        return functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    return module, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}, loss


def measured(case: Case, rounds: int) -> dict[str, float]:
    """CPU seconds of each."""
    module, value, loss = case
    batch = Batch.of(value)
    with still(module.eval()):
        gram = GramCollector(module, Names(module), batch)
        fisher = FisherCollector(module, Names(module), batch, likelihood())
        gram.start(gram.layout.units, "cpu")
        fisher.start(fisher.layout.units, "cpu")

        def forward() -> None:
            with torch.no_grad():
                batch.run(module)

        def backward() -> None:
            module.zero_grad()
            loss(batch.run(module)).backward()

        steps = {
            "forward": forward,
            "gram": lambda: gram.add(batch),
            "forward and backward": backward,
            "fisher": lambda: fisher.add(batch),
        }
        least = dict.fromkeys(steps, float("inf"))
        for _ in range(rounds + 1):  # the first is a trial
            for name, step in steps.items():
                start = time.process_time()
                step()
                least[name] = min(least[name], time.process_time() - start)
    return least


def main() -> None:
    """Prints a row a network."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--net", choices=("cnn", "llama"), action="append")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.manual_seed(0)
    print("| network | forward | Gram | ratio | forward and backward | Fisher | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name in given.net or ("cnn", "llama"):
        found = measured(cnn() if name == "cnn" else llama(given.layers), given.rounds)
        one, gram, both, fisher = found.values()
        row = (f"{one:.3f} s", f"{gram:.3f} s", f"{gram / one:.2f}", f"{both:.3f} s", f"{fisher:.3f} s")
        print(f"| {name} | {' | '.join(row)} | {fisher / both:.2f} |")


if __name__ == "__main__":
    main()

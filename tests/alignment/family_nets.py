"""Tiny networks of many families, with nothing at its initial value, and how they are proved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn

from eutectic.alignment.families import Attempt, attempt
from eutectic.checkpoint.source import Spec

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
TOKENS = {"input_ids": torch.randint(3, 40, (2, 9), generator=torch.Generator().manual_seed(0))}


def drawn(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in float64, each parameter and statistic drawn anew: gains near 1, biases not 0."""
    draw = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not tensor.is_floating_point() or "inv_freq" in name:
            continue
        gain = tensor.dim() == 1 and name.endswith(("weight", "running_var", "gamma"))
        noise = torch.randn(tensor.shape, generator=draw, dtype=torch.float64) * 0.2
        tensor.data.copy_(noise.abs() + 0.7 if gain else noise)
    return module


def transformer(kind: str, head: str = "AutoModelForCausalLM", **sizes: Any) -> Any:
    """A tiny module of transformers, of one of its model types."""
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **sizes})
    made = getattr(transformers, head).from_config(config, attn_implementation="eager", experts_implementation="eager")
    return drawn(made)


def specs_of(module: nn.Module) -> dict[str, Spec]:
    """Every name of a module's tensors, tied ones too."""
    return {name: Spec("float64", tuple(tensor.shape)) for name, tensor in module.state_dict().items()}


def config_of(module: Any) -> Mapping[str, Any]:
    """What the config.json of a module of transformers says."""
    return {**module.config.to_dict(), "architectures": [type(module).__name__]}


def tried(module: nn.Module, config: Mapping[str, Any] | None = None) -> Attempt:
    """What is declared for a module."""
    return attempt(specs_of(module), config_of(module) if hasattr(module, "config") else config)

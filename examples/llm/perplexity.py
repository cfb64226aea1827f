"""Perplexity of a causal language model on held-out text, with its standard error over windows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from domains import held_out
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH, LENGTH = 4, 256  # windows a forward pass, tokens a window


@torch.inference_mode()
def perplexities(folder: Path, domains: Iterable[str], windows: int) -> dict[str, dict[str, float]]:
    """Domain → `perplexity` and `error`, one standard error of it (first order, over `windows` windows of 256 tokens).

    The windows lie at even distances in the held-out text and are the same for every model of one tokenizer, so
    differences between models are surer than the errors suggest. Arithmetic in bfloat16 on float32 weights.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    results = {}
    for domain in domains:
        tokens = tokenizer(held_out(domain), return_tensors="pt", verbose=False)["input_ids"][0]
        starts = torch.linspace(0, len(tokens) - LENGTH, min(windows, len(tokens) // LENGTH)).long().tolist()
        chosen = torch.stack([tokens[start : start + LENGTH] for start in starts])
        losses = torch.cat([_losses(model, batch) for batch in chosen.split(BATCH)])
        perplexity = float(losses.mean().exp())
        results[domain] = {"perplexity": perplexity, "error": perplexity * float(losses.std() / len(losses) ** 0.5)}
    return results


def _losses(model: torch.nn.Module, windows: torch.Tensor) -> torch.Tensor:
    """Mean loss of each window, nats a token: `(windows,)`."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=windows).logits
    predicted, actual = logits[:, :-1].float().transpose(1, 2), windows[:, 1:]
    return torch.nn.functional.cross_entropy(predicted, actual, reduction="none").mean(dim=1)

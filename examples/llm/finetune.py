"""Fine-tunes all weights of a causal language model on one domain, in float32 on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from dequantise import save
from domains import training
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH, LENGTH = 4, 128  # windows a step, tokens a window
LEARNING_RATE = 1e-4


def finetune(base: Path, domain: str, out: Path, steps: int, seed: int = 0) -> Iterator[float]:
    """Trains `base` for `steps` steps on `domain`, yields the loss of each (nats a token), then writes folder `out`.

    AdamW without weight decay, learning rate 1e-4 falling to zero along a cosine; each step takes random windows of the
    domain's training text, chosen by `seed` and `domain`.
    """
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(base, local_files_only=True, dtype=torch.float32).train()
    tokens = tokenizer(training(domain), return_tensors="pt", verbose=False)["input_ids"][0]
    random = torch.Generator().manual_seed(seed + sum(domain.encode()))
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps)
    for _ in range(steps):
        starts = torch.randint(len(tokens) - LENGTH, (BATCH,), generator=random)
        windows = torch.stack([tokens[start : start + LENGTH] for start in starts.tolist()])
        loss = model(input_ids=windows, labels=windows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        yield float(loss.detach())
    save(model, tokenizer, out)

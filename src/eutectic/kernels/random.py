"""(seed, model, tensor, index) -> random words: Philox4x32-7, a counter-based generator (Salmon et al. 2011).

A mask is a function of its key and the entry's flat index, so it does not depend on threads, chunks, shards, the
order of tensors or models, or the device.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from eutectic.kernels.sums import one_a_model
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

# Each entry has a 32-bit word, made byte by byte. Byte p (0 the highest) of entry i is byte i mod 8 of 64-bit half
# (i mod 256) div 128 of counter 16 (i div 256) + (i mod 128) div 8, whose two top bits are p; the lowest byte of a half
# is its first. So 256 entries share 16 counters, which vector instructions serve side by side. The lower bytes are only
# computed where the higher ones do not decide. Part of the output format; never change it.
ENTRIES_A_BLOCK = 256
COUNTERS_A_BLOCK = 16

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
ROUNDS = 7


@dataclass(frozen=True, slots=True)
class Rng:
    """What a random method is keyed by. `models` are stable labels (never positions); missing ones are numbered."""

    seed: int = 0
    tensor: str = ""
    models: tuple[str, ...] = ()

    def key(self, model: int) -> tuple[int, int, int, int]:
        """Two 32-bit key words and two counter words for one model's mask."""
        label = self.models[model] if self.models else str(model)
        parts = (str(self.seed), "mask", label, self.tensor)
        text = b"".join(struct.pack("<I", len(p.encode())) + p.encode() for p in parts)
        a, b, c, d = struct.unpack("<4I", hashlib.blake2b(text, digest_size=16).digest())
        return a, b, c, d


def keep_threshold(density: float) -> int:
    """Words below this keep their entry: an integer comparison, the same on every device. 2³² keeps all."""
    return round(density * 2**32)


def bound_of(keep: int) -> int:
    """What the highest byte of a word is below if the word is below `keep`, equal bytes being settled beforehand."""
    high = keep >> 24
    return max(high, 1) if keep & 0xFFFFFF else high


def random_words(count: int, key: tuple[int, int, int, int], device: torch.device | str = "cpu") -> Tensor:
    """The 32-bit words of entries `0:count` as int64 in torch: the reference, and the path on a GPU."""
    blocks = -(-count // ENTRIES_A_BLOCK)
    counter = torch.arange(blocks * COUNTERS_A_BLOCK, dtype=torch.int64, device=device)
    place = torch.arange(4, dtype=torch.int64, device=device).reshape(4, 1)
    mask = 0xFFFFFFFF
    x0, x1 = (counter & mask).expand(4, -1), (counter >> 32) | (place << 30)
    x2, x3 = torch.full_like(x0, key[2]), torch.full_like(x0, key[3])
    k0, k1 = key[0], key[1]
    for _ in range(ROUNDS):
        # The 64-bit products wrap as signed integers; masks after the shift recover the unsigned halves.
        p0, p1 = x0 * _M0, x2 * _M1
        x0, x1, x2, x3 = ((p1 >> 32) & mask) ^ x1 ^ k0, p1 & mask, ((p0 >> 32) & mask) ^ x3 ^ k1, p0 & mask
        k0, k1 = (k0 + _W0) & mask, (k1 + _W1) & mask
    # Counter by counter the lowest byte first, two halves of eight; entries are numbered through the first halves.
    halves = torch.stack([x0 | (x1 << 32), x2 | (x3 << 32)], dim=2).reshape(4, blocks, COUNTERS_A_BLOCK, 2)
    ordered = halves.transpose(2, 3).reshape(4, 2 * len(counter))
    octets = ordered.contiguous().view(torch.uint8)[:, :count].long()
    return (octets << torch.tensor([24, 16, 8, 0], device=device).reshape(4, 1)).sum(dim=0)


def drop(deltas: Tensor, density: float | Sequence[float], rng: Rng) -> Tensor:
    """Keeps each entry with probability `density`, independently; the rest become zero. `(K, *shape)` in and out."""
    kept = []
    for model, (delta, share) in enumerate(zip(deltas, one_a_model(density, len(deltas)), strict=True)):
        words = random_words(delta.numel(), rng.key(model), delta.device).reshape(delta.shape)
        kept.append(torch.where(words < keep_threshold(share), delta, torch.zeros_like(delta)))
    return torch.stack(kept) if kept else deltas


def rescale(deltas: Tensor, density: float | Sequence[float]) -> Tensor:
    """δ · (1 / density) a model: makes a random drop unbiased. The reciprocal is rounded to the deltas' dtype first."""
    factors = torch.tensor(
        [1.0 / d for d in one_a_model(density, len(deltas))], dtype=deltas.dtype, device=deltas.device
    )
    return deltas * factors.reshape(-1, *([1] * (deltas.dim() - 1)))


def uint32_key(key: tuple[int, int, int, int]) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    """The key as the array that compiled kernels take."""
    return np.array(key, dtype=np.uint32)

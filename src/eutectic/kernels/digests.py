"""bytes of a tensor -> its digest, on a fixed grid, so that blocks can be hashed in any order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from xxhash import xxh3_128_digest, xxh3_128_hexdigest

# Entries a block: the grid on which sums are formed and bytes are hashed, so neither depends on memory or threads.
BLOCK = 1 << 20


def block_digest(data: Any) -> bytes:
    """XXH3-128 of the stored bytes of one block."""
    return bytes(xxh3_128_digest(data))


def digest_of(blocks: Sequence[bytes]) -> str:
    """A tensor's digest: XXH3-128 over the digests of its blocks in order, as hexadecimal.

    It finds any accident to the bytes; it is no protection against somebody who forges them.
    """
    return str(xxh3_128_hexdigest(b"".join(blocks)))


def tensor_digest(numel: int, itemsize: int, read: Callable[[int, int, memoryview], None]) -> str:
    """The digest of a tensor of `numel` entries of `itemsize` bytes, held a block at a time.

    `read(start, stop, view)` fills `view` with the stored bytes of entries `start:stop`.
    """
    blocks = []
    buffer = bytearray(min(numel, BLOCK) * itemsize)
    for first in range(0, numel, BLOCK):
        stop = min(first + BLOCK, numel)
        view = memoryview(buffer)[: (stop - first) * itemsize]
        read(first, stop, view)
        blocks.append(block_digest(view))
    return digest_of(blocks)

"""One small classifier, its fine-tunes, and data to choose by."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIZE, CLASSES = 6, 3


class Net(nn.Module):
    """Two layers, numbered as a merge knows layers by, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(SIZE, SIZE) for _ in range(2))
        self.head = nn.Linear(SIZE, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x).relu()
        found: Tensor = self.head(x)
        return found


def items(seed: int, count: int = 64) -> list[tuple[Tensor, Tensor]]:
    """Batches of inputs and their classes, which a fixed linear map decides."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(SIZE, CLASSES, generator=torch.Generator().manual_seed(0))
    x = torch.randn(count, SIZE, generator=generator)
    return list(zip(x.split(16), (x @ truth).argmax(1).split(16), strict=True))


def trained(seed: int, steps: int, noise: float = 0.0) -> dict[str, Tensor]:
    """A fine-tune of the net that seed 0 gives, then shaken."""
    torch.manual_seed(0)
    net = Net()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(steps):
        for x, labels in items(100 * seed + step + 1, 32):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x), labels).backward()
            optimiser.step()
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (value + noise * torch.randn(value.shape, generator=generator)).detach()
        for name, value in net.state_dict().items()
    }

"""One task in four domains: digits turned, moved, behind stripes or dimmed; a base, and a specialist of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import digits
import glyphs
import mnist
import torch
from torch import Tensor, nn

WIDTH, BATCH = 256, 64
RATES = {"base": 1e-3, "specialist": 3e-4}
HANDWRITTEN, MNIST, FONT = "Handwritten digits", "MNIST", "Digits of a font"
EPOCHS = {HANDWRITTEN: 30, MNIST: 8, FONT: 8}

Weights = dict[str, Tensor]
Labelled = tuple[Tensor, Tensor]


def turned(x: Tensor) -> Tensor:
    """By 20°."""
    c, s = math.cos(math.radians(20)), math.sin(math.radians(20))
    turn = torch.tensor([[c, -s, 0.0], [s, c, 0.0]]).expand(len(x), -1, -1)
    grid = nn.functional.affine_grid(turn, [*x.shape], align_corners=False)
    return nn.functional.grid_sample(x, grid, align_corners=False)


def moved(x: Tensor) -> Tensor:
    """To the right by an eighth of the side."""
    return x.roll(x.shape[-1] // 8, -1)


def striped(x: Tensor) -> Tensor:
    """Eight columns, every other one lit."""
    side = x.shape[-1]
    return torch.maximum(x, 0.6 * (torch.arange(side) * 8 // side % 2))


def dimmed(x: Tensor) -> Tensor:
    """Light grey on grey."""
    return 0.5 + 0.3 * x


DOMAINS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "turned": turned, "moved": moved, "striped": striped, "dimmed": dimmed,
}  # fmt: skip


def seen(x: Tensor, domain: str) -> Tensor:
    """Images as rows, as they are in a domain."""
    side = math.isqrt(x.shape[1])
    return DOMAINS[domain](x.view(-1, 1, side, side)).flatten(1)


def network(inputs: int) -> nn.Sequential:
    """Three hidden layers of 256 units."""
    layers: list[nn.Module] = []
    for width in (inputs, WIDTH, WIDTH):
        layers += [nn.Linear(width, WIDTH), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, digits.CLASSES))


def live(weights: Mapping[str, Tensor]) -> nn.Sequential:
    """The network with these weights."""
    model = network(weights["0.weight"].shape[1])
    model.load_state_dict(dict(weights))
    return model


def train(start: Weights | None, parts: Sequence[Labelled], *, rate: float, epochs: int, seed: int) -> Weights:
    """Adam, each step on a batch of every part."""
    torch.manual_seed(seed)
    model = network(parts[0][0].shape[1]) if start is None else live(start)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(epochs):
        for rows in torch.randperm(len(parts[0][0]), generator=generator).split(BATCH):
            optimiser.zero_grad()
            x, y = torch.cat([x[rows] for x, _ in parts]), torch.cat([y[rows] for _, y in parts])
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@torch.no_grad()
def accuracies(weights: Mapping[str, Tensor], parts: Sequence[Labelled]) -> list[float]:
    """In per cent, of each part."""
    model = live(weights)
    return [100 * float((model(x).argmax(1) == y).float().mean()) for x, y in parts]


@dataclass(frozen=True)
class World:
    """Images of every domain, a base that knows none of them, a specialist of each, and one trained on all of them."""

    train: list[Labelled]
    test: list[Labelled]
    base: Weights
    specialists: list[Weights]
    together: Weights


def load(title: str, seed: int) -> digits.Split:
    """The images of one seed."""
    if title == FONT:
        return digits.split(*glyphs.images("plain", 1500, torch.Generator().manual_seed(seed)), seed, 0.0)
    return digits.load(seed) if title == HANDWRITTEN else mnist.load(seed)


def world(title: str, seed: int, epochs: int | None = None) -> World:
    """Trains everything. `epochs`: instead of those of `EPOCHS`."""
    data = load(title, seed)
    own = [(seen(data.x, domain), data.y) for domain in DOMAINS]
    test = [(seen(data.x_test, domain), data.y_test) for domain in DOMAINS]
    passes = epochs or EPOCHS[title]
    base = train(None, [(data.x, data.y)], rate=RATES["base"], epochs=passes, seed=10 * seed)

    def tune(number: int, parts: Sequence[Labelled]) -> Weights:
        return train(base, parts, rate=RATES["specialist"], epochs=passes, seed=10 * seed + number)

    specialists = [tune(number, [part]) for number, part in enumerate(own, 1)]
    return World(own, test, base, specialists, tune(9, own))

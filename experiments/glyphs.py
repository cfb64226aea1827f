"""A toy world for merging: the ten digits of a 5 × 7 font on noisy 10 × 10 images, seen through different glasses.

A *domain* is a fixed change of every image (turned, inverted, over a chequerboard, …); a network that reads one domain
well may be at a loss in the next. Everything is made from seeds, so that nothing needs to be downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor, nn

SIDE = 10
FONT = (  # rows of five bits, top to bottom
    "0E 11 13 15 19 11 0E", "04 0C 04 04 04 04 0E", "0E 11 01 02 04 08 1F", "1F 02 04 02 01 11 0E",
    "02 06 0A 12 1F 02 02", "1F 10 1E 01 01 11 0E", "06 08 10 1E 11 11 0E", "1F 01 02 04 08 08 08",
    "0E 11 11 0E 11 11 0E", "0E 11 11 0F 01 02 0C",
)  # fmt: skip
GLYPHS = torch.tensor([[[int(row, 16) >> (4 - i) & 1 for i in range(5)] for row in rows.split()] for rows in FONT])
ROWS, COLUMNS = (torch.randperm(SIDE, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
PLACE = torch.arange(SIDE)
CHEQUERS = ((PLACE[:, None] + PLACE) % 2).float()
STRIPES = (PLACE % 2).float()

Domain = Callable[[Tensor], Tensor]
Weights = dict[str, Tensor]
DOMAINS: Mapping[str, Domain] = {
    "plain": lambda x: x,
    "turned": lambda x: x.rot90(1, (1, 2)),
    "inverted": lambda x: 1 - x,
    "chequered": lambda x: (CHEQUERS - x).abs(),
    "rows shuffled": lambda x: x[:, ROWS],
    "columns shuffled": lambda x: x[:, :, COLUMNS],
    "barred": lambda x: (STRIPES - x).abs(),
    "lined": lambda x: (STRIPES[:, None] - x).abs(),
    "rolled": lambda x: x.roll((5, 5), (1, 2)),
}
SKILLS = tuple(DOMAINS)[1:]
LIGHT, MEDIUM, HEAVY = ({"steps": s, "rate": r} for s, r in ((100, 1e-4), (200, 3e-4), (400, 1e-3)))
FLEET = (1e-4, 2e-4, 3e-4, 5e-4, 7e-4, 1e-3, 1.5e-3, 2e-3)


def images(domain: str, count: int, generator: torch.Generator, noise: float = 0.3) -> tuple[Tensor, Tensor]:
    """Images of random digits at random places, and what they show."""
    labels = torch.randint(10, (count,), generator=generator)
    x = torch.zeros(count, SIDE, SIDE)
    down, right = (torch.randint(2, (count,), generator=generator) + first for first in (1, 2))
    at = torch.arange(count)[:, None, None]
    x[at, down[:, None, None] + PLACE[:7, None], right[:, None, None] + PLACE[:5]] = GLYPHS[labels].float()
    x = DOMAINS[domain](x * (0.6 + 0.6 * torch.rand(count, 1, 1, generator=generator)))
    return (x + noise * torch.randn(x.shape, generator=generator)).flatten(1), labels


class Reader(nn.Module):
    """Four layers and a head; the names are those that a merge knows layers by."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(SIDE * SIDE if i == 0 else width, width) for i in range(4))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        out: Tensor = self.head(x)
        return out


def train(
    start: Weights | None, domains: Sequence[str], *, steps: int, rate: float, seed: int, batch: int = 128
) -> Weights:
    """Weights after Adam at a rate that falls to zero, each step on a batch of equal parts of the domains."""
    torch.manual_seed(seed)
    model, generator = Reader(), torch.Generator().manual_seed(seed)
    if start is not None:
        model.load_state_dict(start)
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    for _ in range(steps):
        parts = [images(domain, batch // len(domains), generator) for domain in domains]
        x, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimiser.step()
        schedule.step()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@cache
def held_out(domain: str, part: str) -> tuple[Tensor, Tensor]:
    """2000 images to choose values on (`tune`) or to report (`test`)."""
    return images(domain, 2000, torch.Generator().manual_seed({"tune": 888_888_888, "test": 999_999_999}[part]))


def accuracy(weights: Mapping[str, Tensor], domains: Iterable[str], part: str = "test") -> float:
    """Mean accuracy over the domains, in per cent."""
    model, right = Reader(), []
    model.load_state_dict(dict(weights))
    with torch.no_grad():
        for domain in domains:
            x, labels = held_out(domain, part)
            right.append(float((model(x).argmax(1) == labels).float().mean()))
    return 100 * sum(right) / len(right)


def distance(weights: Weights, base: Weights) -> float:
    """‖τ‖ / ‖θ₀‖ over the whole network."""
    change = sum(float((weights[name] - base[name]).square().sum()) for name in base)
    return float((change / sum(float(base[name].square().sum()) for name in base)) ** 0.5)


@dataclass
class Seed:
    """One base and its fine-tunes; each is trained when a claim first asks for it."""

    number: int
    made: dict[str, Weights] = field(default_factory=dict)

    @property
    def base(self) -> Weights:
        """Reads the plain domain well and the others somewhat, as a pre-trained model would."""
        return self._once("base", None, ["plain"] * len(SKILLS) + list(SKILLS), steps=600, rate=1e-3)

    @property
    def skill(self) -> str:
        return SKILLS[self.number % len(SKILLS)]

    @property
    def others(self) -> list[str]:
        return [domain for domain in DOMAINS if domain != self.skill]

    def tuned(self, how: Mapping[str, float]) -> Weights:
        return self._once(f"tuned {how}", self.base, [self.skill], **how)

    def specialists(self) -> list[Weights]:
        return [self._once(f"specialist {skill}", self.base, [skill], **MEDIUM) for skill in SKILLS]

    def fleet(self) -> list[Weights]:
        """Fine-tunes on the same two domains that differ in learning rate and seed."""
        return [self._once(f"fleet {rate}", self.base, SKILLS[:2], steps=200, rate=rate) for rate in FLEET]

    def _once(self, key: str, start: Weights | None, domains: Sequence[str], **how: float) -> Weights:
        if key not in self.made:
            seed = 1000 * self.number + len(self.made)
            self.made[key] = train(start, domains, steps=int(how["steps"]), rate=how["rate"], seed=seed)
        return self.made[key]

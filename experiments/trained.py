"""Small networks of images, trained from seeds of their own and kept under `runs/rebasin`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import digits
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

KEPT = Path(__file__).resolve().parents[1] / "runs" / "rebasin"
MOMENTUM = 0.9


@dataclass(frozen=True)
class Recipe:
    """How to train: SGD with momentum or Adam, at a rate that falls to zero along a cosine.

    `start`: standard deviation of the first weights, in units of He's √(2 / inputs); PyTorch's own are uniform of 0.41.
    """

    optimiser: str
    rate: float
    decay: float
    epochs: int
    batch: int
    start: float = 1.0


@dataclass(frozen=True)
class Net:
    """Which network: `kind` of `KINDS`, units or channels of its first hidden layer, hidden layers or blocks."""

    kind: str
    width: int
    depth: int
    classes: int = digits.CLASSES

    def build(self, inputs: int) -> nn.Module:
        """With random weights, for images of so many pixels."""
        return KINDS[self.kind](self, inputs)


def mlp(net: Net, inputs: int) -> nn.Sequential:
    """Hidden layers of one width."""
    widths = (inputs, *(net.width,) * net.depth)
    hidden = [part for size in widths[:-1] for part in (nn.Linear(size, net.width), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(net.width, net.classes))


def vgg(net: Net, inputs: int, normalised: bool = False) -> nn.Sequential:
    """Pairs of 3 × 3 convolutions, twice as many channels after each halving of the image."""
    side, channels = math.isqrt(inputs), 1
    layers: list[nn.Module] = [nn.Unflatten(1, (1, side, side))]
    for block in range(net.depth):
        width = net.width << block
        for entering in (channels, width):
            layers.append(nn.Conv2d(entering, width, 3, padding=1))
            layers += [nn.BatchNorm2d(width)] * normalised + [nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        side, channels = side // 2, width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side * side, net.classes))


class Block(nn.Module):
    """Two normalised convolutions beside a shortcut, which is a projection where the width changes."""

    def __init__(self, entering: int, width: int) -> None:
        super().__init__()
        stride = 1 if entering == width else 2
        self.conv1 = nn.Conv2d(entering, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(entering, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(inner + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, three stages of `depth` blocks, a mean over the places, a head."""

    def __init__(self, net: Net, inputs: int) -> None:
        super().__init__()
        self.side = math.isqrt(inputs)
        self.conv = nn.Conv2d(1, net.width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(net.width)
        blocks, entering = [], net.width
        for stage in range(3):
            for _ in range(net.depth):
                blocks.append(Block(entering, net.width << stage))
                entering = net.width << stage
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(entering, net.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv(x.view(-1, 1, self.side, self.side))))
        return self.head(self.blocks(x).mean((2, 3)))


KINDS: dict[str, Callable[[Net, int], nn.Module]] = {
    "mlp": mlp,
    "vgg": vgg,
    "vgg-bn": lambda net, inputs: vgg(net, inputs, normalised=True),
    "resnet": ResNet,
}


def trained(data: digits.Split, images: str, net: Net, recipe: Recipe, seed: int) -> nn.Module:
    """The network of a seed, trained unless an earlier run did it; in evaluation mode.

    Args:
        data: what to train on.
        images: what names it, with the seed of its split.
        net: which network.
        recipe: how to train.
        seed: of the initialisation and of the order of the data.
    """
    named = hashlib.sha256(repr((images, net, recipe, seed)).encode()).hexdigest()[:16]
    place = KEPT / f"{net.kind}-{net.width}-{net.depth}-{named}.safetensors"
    torch.manual_seed(seed)
    model = net.build(data.x.shape[1])
    if place.exists():
        model.load_state_dict(load_file(place))
        return model.eval()
    start(model, recipe.start)
    train(model, data, recipe, seed)
    KEPT.mkdir(parents=True, exist_ok=True)
    new = place.with_suffix(".new")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, new)
    new.replace(place)
    return model.eval()


def start(model: nn.Module, scale: float) -> None:
    """Draws the weights of linear maps and convolutions anew from a normal distribution (arXiv:1502.01852)."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.normal_(layer.weight, std=scale * math.sqrt(2 / layer.weight[0].numel()))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def train(model: nn.Module, data: digits.Split, recipe: Recipe, seed: int) -> None:
    """Trains in place."""
    generator = torch.Generator().manual_seed(seed)
    chosen = {"lr": recipe.rate, "weight_decay": recipe.decay}
    if recipe.optimiser == "sgd":
        optimiser: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), momentum=MOMENTUM, **chosen)
    else:
        optimiser = torch.optim.Adam(model.parameters(), **chosen)
    steps, done = recipe.epochs * (len(data.x) // recipe.batch), 0
    model.train().to(memory_format=torch.channels_last)
    while done < steps:
        for rows in torch.randperm(len(data.x), generator=generator).split(recipe.batch):
            if len(rows) < recipe.batch or done == steps:
                break
            for group in optimiser.param_groups:
                group["lr"] = recipe.rate * (1 + math.cos(math.pi * done / steps)) / 2
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(data.x[rows]), data.y[rows]).backward()
            optimiser.step()
            done += 1
    model.to(memory_format=torch.contiguous_format)

"""Networks by the names that torchvision, timm and everybody else give them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

VECTORS = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Features(nn.Module):
    """As torchvision's VGG: convolutions, a flatten with places left, a classifier."""

    def __init__(self, norm: Callable[[int], nn.Module] | None) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for into, out in ((3, 6), (6, 8)):
            norms = [norm(out)] if norm else []
            layers += [nn.Conv2d(into, out, 3, padding=1), *norms, nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(8 * 4, 10), nn.ReLU(), nn.Dropout(), nn.Linear(10, 7), nn.ReLU(), nn.Linear(7, 4)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(images), 1))


class Named(nn.Module):
    """`conv1 bn1 conv2 bn2 fc1 out`."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(10, 4)
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)
        self.fc1 = nn.Linear(6 * 16, 10)

    def forward(self, images: Tensor) -> Tensor:
        made = functional.gelu(self.bn1(self.conv1(images)))
        made = functional.gelu(self.bn2(self.conv2(made)))
        return self.out(torch.tanh(self.fc1(made.flatten(1))))


def mlp(norm: Callable[[int], nn.Module] | None = None, act: type[nn.Module] = nn.GELU) -> nn.Module:
    """6 → 8 → 7 → 4."""
    layers: list[nn.Module] = []
    for into, out in ((6, 8), (8, 7)):
        layers += [nn.Linear(into, out), *([norm(out)] if norm else []), act()]
    return nn.Sequential(*layers, nn.Linear(7, 4))


class Block(nn.Module):
    """As torchvision's blocks; `sizes` are those of the kernels."""

    def __init__(
        self, into: int, inner: int, out: int, norm: Callable[[int], nn.Module], sizes: tuple[int, ...]
    ) -> None:
        super().__init__()
        widths = [into, *[inner] * (len(sizes) - 1), out]
        for place, size in enumerate(sizes):
            layer = nn.Conv2d(widths[place], widths[place + 1], size, padding=size // 2, bias=False)
            self.add_module(f"conv{place + 1}", layer)
            self.add_module(f"bn{place + 1}", norm(widths[place + 1]))
        self.count = len(sizes)
        self.downsample = nn.Sequential(nn.Conv2d(into, out, 1, bias=False), norm(out)) if into != out else None

    def forward(self, images: Tensor) -> Tensor:
        made = images
        for place in range(1, self.count + 1):
            made = self.get_submodule(f"bn{place}")(self.get_submodule(f"conv{place}")(made))
            made = functional.relu(made) if place < self.count else made
        return functional.relu(made + (images if self.downsample is None else self.downsample(images)))


class ResNet(nn.Module):
    """As torchvision's."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, sizes: tuple[int, ...] = (3, 3)) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1, bias=False), norm(6)
        self.layer1 = nn.Sequential(Block(6, 4, 6, norm, sizes), Block(6, 6, 6, norm, sizes))
        self.layer2 = nn.Sequential(Block(6, 8, 10, norm, sizes), Block(10, 8, 10, norm, sizes))
        self.fc = nn.Linear(10, 4)

    def forward(self, images: Tensor) -> Tensor:
        made = functional.relu(self.bn1(self.conv1(images)))
        return self.fc(self.layer2(self.layer1(made)).mean((2, 3)))


class Norm2d(nn.LayerNorm):
    """A layer norm over channels alone, at each place."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.movedim(1, -1)).movedim(-1, 1)


class TimmBlock(nn.Module):
    """As timm's, with a layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(12, 36), "proj": nn.Linear(12, 12)})
        self.mlp = nn.Sequential(OrderedDict(fc1=nn.Linear(12, 20), act=nn.GELU(), fc2=nn.Linear(20, 12)))
        self.ls1, self.ls2 = (nn.ParameterDict({"gamma": torch.ones(12)}) for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        pieces = self.attn["qkv"](self.norm1(tokens)).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(*pieces).transpose(1, 2).flatten(2)
        tokens = tokens + self.ls1["gamma"] * self.attn["proj"](attended)
        return tokens + self.ls2["gamma"] * self.mlp(self.norm2(tokens))


class Timm(nn.Module):
    """A vision transformer by timm's names."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token, self.pos_embed = nn.Parameter(torch.ones(1, 1, 12)), nn.Parameter(torch.ones(1, 5, 12))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, 12, 4, 4)})
        self.blocks = nn.Sequential(TimmBlock(), TimmBlock())
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embed["proj"](images).flatten(2).mT
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(tokens))[:, 0])


class TorchvisionBlock(nn.Module):
    """As torchvision's."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.self_attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Dropout(), nn.Linear(20, 12))

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.ln_1(tokens)
        tokens = tokens + self.self_attention(normed, normed, normed)[0]
        return tokens + self.mlp(self.ln_2(tokens))


class Torchvision(nn.Module):
    """A vision transformer by torchvision's names."""

    def __init__(self) -> None:
        super().__init__()
        self.class_token, self.conv_proj = nn.Parameter(torch.ones(1, 1, 12)), nn.Conv2d(3, 12, 4, 4)
        self.encoder = nn.Module()
        self.encoder.pos_embedding = nn.Parameter(torch.ones(1, 5, 12))
        blocks = [(f"encoder_layer_{number}", TorchvisionBlock()) for number in range(2)]
        self.encoder.layers, self.encoder.ln = nn.Sequential(OrderedDict(blocks)), nn.LayerNorm(12)
        self.heads = nn.Sequential(OrderedDict(head=nn.Linear(12, 5)))

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv_proj(images).flatten(2).mT
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], 1) + self.encoder.pos_embedding
        return self.heads(self.encoder.ln(self.encoder.layers(tokens))[:, 0])


RELU = {"hidden_act": "relu"}
NETS: list[tuple[Callable[[], nn.Module], Mapping[str, Any], Tensor, dict[str, str]]] = [
    (mlp, {}, VECTORS, {"0": "", "2": ""}),
    (lambda: mlp(act=nn.ReLU), RELU, VECTORS, {"0": "positive", "2": "positive"}),
    (lambda: mlp(nn.LayerNorm), {}, VECTORS, {"0": "", "3": ""}),
    (lambda: mlp(nn.BatchNorm1d, nn.ReLU), RELU, VECTORS, {"0": "positive", "3": "positive"}),
    (
        lambda: nn.Sequential(OrderedDict(fc2=nn.Linear(6, 5), act=nn.Tanh(), fc10=nn.Linear(5, 4))),
        {},
        VECTORS,
        {"fc2": ""},
    ),
    (Named, {}, IMAGES, {"conv1": "", "conv2": "", "fc1": ""}),
    (lambda: Features(None), RELU, IMAGES, dict.fromkeys(("features.0", "features.3"), "positive")),
    (lambda: Features(nn.BatchNorm2d), {}, IMAGES, dict.fromkeys(("features.0", "features.4", "classifier.3"), "")),
    (lambda: Features(Norm2d), {"num_groups": 1}, IMAGES, {"features.0": ""}),
    (
        lambda: Features(lambda channels: nn.GroupNorm(2, channels)),
        {"num_groups": 2, **RELU},
        IMAGES,
        {"features.0": "positive", "features.0.norm": "", "classifier.0": "positive"},
    ),
    (ResNet, {}, IMAGES, {"conv1": "", "layer1.0.conv1": "", "layer2": "", "layer2.1.conv1": ""}),
    (lambda: ResNet(sizes=(1, 3, 1)), RELU, IMAGES, {"layer2": "positive", "layer2.1.conv2": "positive"}),
    (lambda: ResNet(Norm2d), {"num_groups": 1}, IMAGES, {"layer2": ""}),
    (
        lambda: ResNet(lambda channels: nn.GroupNorm(2, channels)),
        {"num_groups": 2},
        IMAGES,
        {"layer2": "", "layer2.norm": ""},
    ),
]

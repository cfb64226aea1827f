"""Small networks of many kinds, for what is traced in their graphs."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import relu


class Mlp(nn.Module):
    """Two hidden layers, with tied names."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.three(torch.tanh(self.two(relu(self.one(x)))))


Norm = Callable[[int], nn.Module]


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Basic(nn.Module):
    """The basic block of a ResNet."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), norm(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), norm(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        made = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        return relu(made + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Two stages of two blocks."""

    def __init__(self, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1, self.bn1, self.maxpool = nn.Conv2d(3, 4, 3, 1, 1, bias=False), norm(4), nn.MaxPool2d(2)
        self.layer1 = nn.Sequential(Basic(4, 4, 1, norm), Basic(4, 4, 1, norm))
        self.layer2 = nn.Sequential(Basic(4, 8, 2, norm), Basic(8, 8, 1, norm))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layer2(self.layer1(x))), 1))


class Vgg(nn.Module):
    """Convolutions, then dense layers on channels x places."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()
        )
        self.avgpool = nn.AdaptiveAvgPool2d((2, 3))
        self.classifier = nn.Sequential(nn.Linear(36, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class Dense(nn.Module):
    """A dense block: each layer reads what all before it made."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(6), nn.BatchNorm2d(8)])
        self.convs = nn.ModuleList([nn.Conv2d(4, 2, 3, padding=1), nn.Conv2d(6, 2, 3, padding=1)])
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        made = [self.first(x)]
        for norm, conv in zip(self.norms, self.convs, strict=False):
            made.append(conv(relu(norm(torch.cat(made, 1)))))
        return self.fc(relu(self.norms[2](torch.cat(made, 1))).mean((2, 3)))


class Separable(nn.Module):
    """Depthwise and grouped convolutions, and squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise, self.pointwise = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 6, 1)
        self.squeeze, self.excite = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1)
        self.grouped, self.fc = nn.Conv2d(6, 4, 3, groups=2), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(
            self.pointwise(functional.relu6(self.depthwise(functional.hardswish(self.bn(self.stem(x))))))
        )
        x = x * torch.sigmoid(self.excite(relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.fc(self.grouped(x).flatten(2).mean(-1))


class UNet(nn.Module):
    """Down, up, and a skip that is concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, 2, 1)
        self.up, self.wide = nn.ConvTranspose2d(6, 5, 2, 2), nn.ConvTranspose2d(6, 4, 2, 2, groups=2)
        self.after, self.leave = nn.Conv2d(4 + 5 + 4, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = relu(self.enter(x))
        low = functional.leaky_relu(self.down(first))
        joined = torch.cat([first, self.up(low), self.wide(low)], 1)
        return self.leave(
            functional.interpolate(functional.elu(self.after(functional.pad(joined, (1, 1)))), scale_factor=2.0)
        )


class Attention(nn.Module):
    """Self-attention, with fused or separate projections, by hand or by torch."""

    def __init__(self, width: int, heads: int, form: str) -> None:
        super().__init__()
        self.heads, self.form = heads, form
        if form == "mha":
            self.mha = nn.MultiheadAttention(width, heads, batch_first=True)
        elif form == "separate":
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        else:
            self.qkv = nn.Linear(width, 3 * width)
        if form != "mha":
            self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "mha":
            return self.mha(x, x, x, need_weights=True)[0]
        batch, length, width = x.shape
        if self.form == "unbind":
            qkv = self.qkv(x).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            q, k, v = qkv.unbind(0)
        elif self.form == "items":
            qkv = self.qkv(x).view(batch, length, 3, self.heads, -1).chunk(3, 2)
            q, k, v = (one.squeeze(2).transpose(1, 2) for one in qkv)
        else:
            three = (self.q(x), self.k(x), self.v(x)) if self.form == "separate" else self.qkv(x).chunk(3, -1)
            q, k, v = (one.view(batch, length, self.heads, -1).transpose(1, 2) for one in three)
        if self.form == "einsum":
            weights = (torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[-1])).softmax(-1)
            made = torch.einsum("bhij,bhjd->bhid", weights, v)
        elif self.form == "separate":
            made = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v
        else:
            made = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(made.transpose(1, 2).reshape(batch, length, width))


class Vit(nn.Module):
    """Patches, a class token, positions, blocks before whose parts there is a norm."""

    def __init__(self, form: str = "unbind", blocks: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 2, 2)
        self.cls, self.pos = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(8),
                    "attn": Attention(8, 2, form),
                    "norm2": nn.LayerNorm(8),
                    "mlp": nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)),
                }
            )
            for _ in range(blocks)
        )
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.pos
        for block in self.blocks:
            x = x + block["attn"](block["norm1"](x))
            x = x + block["mlp"](block["norm2"](x))
        return self.head(self.norm(x)[:, 0])


class Grouped(nn.Module):
    """Grouped-query attention with rotary positions, gated units, RMS norms, and a head tied to the embedding."""

    def __init__(self, width: int = 16, heads: int = 4, kv: int = 2, hidden: int = 6, *, repeats: bool = True) -> None:
        super().__init__()
        self.heads, self.kv, self.size, self.repeats = heads, kv, width // heads, repeats
        self.embed = nn.Embedding(11, width)
        self.norm1, self.norm2, self.norm = (nn.RMSNorm(width) for _ in range(3))
        self.qkv = nn.Linear(width, (heads + 2 * kv) * self.size, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        self.gate_up, self.down = nn.Linear(width, 2 * hidden, bias=False), nn.Linear(hidden, width, bias=False)
        self.head = nn.Linear(width, 11, bias=False)
        self.head.weight = self.embed.weight

    def turned(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[2])[:, None] / 10.0 ** (torch.arange(self.size // 2) * 2 / self.size)
        one, other = x.chunk(2, -1)
        return x * torch.cat([angles, angles], -1).cos() + torch.cat([-other, one], -1) * angles.repeat(1, 2).sin()

    def forward(self, ids: Tensor) -> Tensor:
        batch, length = ids.shape
        x = self.embed(ids)
        sizes = [self.heads * self.size, self.kv * self.size, self.kv * self.size]
        q, k, v = (
            one.view(batch, length, -1, self.size).transpose(1, 2) for one in self.qkv(self.norm1(x)).split(sizes, -1)
        )
        q, k = self.turned(q), self.turned(k)
        if self.repeats:
            many = self.heads // self.kv
            k, v = (
                one[:, :, None].expand(batch, self.kv, many, length, self.size).reshape(batch, -1, length, self.size)
                for one in (k, v)
            )
        made = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=not self.repeats)
        x = x + self.o(made.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return self.head(self.norm(x + self.down(functional.silu(gate) * up)))


class Mixer(nn.Module):
    """An MLP-Mixer block: units of channels and units of places."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm = nn.Linear(3, 8), nn.LayerNorm(8)
        self.tokens = nn.Sequential(nn.Linear(6, 7), nn.GELU(), nn.Linear(7, 6))
        self.channels = nn.Sequential(nn.Conv1d(8, 5, 1), nn.GELU(), nn.Conv1d(5, 8, 1))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(x.transpose(1, 2)).transpose(1, 2)
        return self.head(x.amax(1))

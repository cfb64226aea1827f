"""Small networks of every kind that statistics are collected of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class TiedText(nn.Module):
    """An embedding that is the head too, positions shared by all samples, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6, padding_idx=1)
        self.place = nn.Embedding(12, 6)
        self.twice = nn.Linear(6, 6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids) + self.place(torch.arange(ids.shape[1])[None])
        return self.head(self.twice(torch.tanh(self.twice(h)).tanh())).mean(1)


class Experts(nn.Module):
    """Each position goes to one expert; none goes to the last."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(5, 3)
        self.experts = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))
        self.head = nn.Linear(5, 4)
        nn.init.constant_(self.router.bias[2:], -100)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        shares = self.router(flat).softmax(-1)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            rows = (shares.argmax(-1) == number).nonzero()[:, 0]
            if len(rows):
                out = out.index_add(0, rows, expert(flat[rows]) * shares[rows, number : number + 1])
        out = out.reshape(x.shape)
        out = out if attention_mask is None else out * attention_mask[..., None]
        return self.head(out.mean(1))


class Transformer(nn.Module):
    """torch's own attention uses weights of layers that it does not call; a class token belongs to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.token.expand(len(x), 1, 8), self.embed(x)], 1)
        return self.head(self.layer(h)[:, 0])


class Reused(nn.Module):
    """A layer's weight is used once more by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.linear(self.layer(x).tanh(), self.layer.weight).tanh())


class Scale(nn.Module):
    """A norm of nobody's library."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Frozen(nn.Module):
    """A part runs without a graph; another keeps none, and runs again when it goes backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.again, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.frozen(x)
        h = checkpoint(self.again, checkpoint(self.again, x.requires_grad_(), use_reentrant=False), use_reentrant=False)
        return self.head(h)


class Places(nn.Module):
    """Positions without an axis for the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place, self.head = nn.Embedding(9, 6), nn.Embedding(12, 6), nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head((self.embed(ids) + self.place(torch.arange(ids.shape[1]))).tanh()).mean(1)


class Recurrent(nn.Module):
    """A leaf that returns no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][:, -1])


def mlp() -> nn.Module:
    """With a norm, dropout, and an activation in place."""
    return nn.Sequential(
        nn.Linear(7, 9), nn.LayerNorm(9), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(9, 5, bias=False)
    )


def cnn() -> nn.Module:
    """Strided, dilated, grouped, with every padding; norms with statistics of their own."""
    found = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, groups=4, dilation=2, padding="same", padding_mode="reflect"),
        nn.GroupNorm(2, 8),
        nn.Conv2d(8, 6, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )
    with torch.no_grad():
        found[1].running_mean += 0.3
        found[1].running_var += 0.5
    return found


def waves() -> nn.Module:
    """In one dimension, and with a transposed convolution."""
    return nn.Sequential(
        nn.Conv1d(3, 8, 3, padding=1, stride=2, padding_mode="circular"),
        nn.BatchNorm1d(8),
        nn.ConvTranspose1d(8, 4, 3),
        nn.Flatten(),
        nn.Linear(32, 4),
    )


def floats(*shape: int) -> Callable[[int], Tensor]:
    """Makes so many samples of a shape."""
    return lambda count: torch.randn(count, *shape)


# Name → how to make it, and its inputs.
NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "mlp": (mlp, floats(7)),
    "cnn": (cnn, floats(3, 12, 12)),
    "waves": (waves, floats(3, 12)),
    "tied": (TiedText, lambda count: torch.randint(0, 9, (count, 7))),
    "experts": (Experts, floats(6, 5)),
    "transformer": (Transformer, floats(6, 5)),
    "reused": (Reused, floats(4)),
    "scale": (lambda: nn.Sequential(nn.Linear(4, 6), Scale(), nn.RMSNorm(6), nn.Linear(6, 3)), floats(4)),
    "frozen": (Frozen, floats(4)),
    "recurrent": (Recurrent, floats(6, 4)),
}

"""ResNets as torchvision, the usual CIFAR code and transformers name them, with norms of any kind."""

from __future__ import annotations

import re
from itertools import groupby

from eutectic.alignment.families.blocks import modules, normed
from eutectic.alignment.families.reading import Model
from eutectic.alignment.families.rules import Layout

_NORMS = ("bn", "norm", "gn", "ln")
_HEADS = ("fc", "linear", "head", "classifier")
# How transformers' names say what torchvision's do.
_RENAMED = (
    (re.compile(r"^resnet\."), ""),
    (re.compile(r"^embedder\.embedder\."), "layer."),
    (re.compile(r"encoder\.stages\.(\d+)\.layers\.(\d+)\."), r"layer\1.\2."),
    (re.compile(r"shortcut\.convolution\."), "downsample.0."),
    (re.compile(r"shortcut\.normalization\."), "downsample.1."),
    (re.compile(r"layer\.(\d*)\.?convolution\."), r"conv\1."),
    (re.compile(r"layer\.(\d*)\.?normalization\."), r"bn\1."),
    (re.compile(r"^(conv|bn)\."), r"\g<1>1."),
    (re.compile(r"^classifier\.1\."), "classifier."),
)
_CONV = re.compile(r"layer(\d+)\.(\d+)\.conv(\d+)\.weight")


def _usual(name: str) -> str:
    for pattern, usual in _RENAMED:
        name = pattern.sub(usual, name)
    return name


def is_resnet(model: Model) -> bool:
    """Whether the tensors are called as in a ResNet with a norm behind each convolution."""
    names = {_usual(name) for name in model.specs}
    stem = "conv1.weight" in names and any(f"{norm}1.weight" in names for norm in _NORMS)
    return stem and any(_CONV.fullmatch(name) for name in names)


def resnet(model: Model, kind: str) -> Layout:
    """The layout of such a model: a group for the channels that blocks of a stage add to, one inside each block.

    A stage goes on with the channels before it until a block has a convolution in its shortcut. Norms without
    statistics are over `num_groups` groups of channels (1: layer norm), of which config.json must tell.
    """
    names = {_usual(name): name for name in model.specs}
    rules = _normed_convolution("conv1", _NORMS, "1", "conv1", "-")
    stream, groups = "conv1", ["conv1"]
    found = sorted({tuple(map(int, match.groups())) for name in names if (match := _CONV.fullmatch(name))})
    for (stage, number), block in groupby(found, key=lambda at: at[:2]):
        at = f"layer{stage}.{number}."
        into = stream
        for shortcut in ("downsample", "shortcut"):
            if f"{at}{shortcut}.0.weight" in names:
                stream = f"layer{stage}" if f"layer{stage}" not in groups else f"layer{stage}.{number}"
                groups.append(stream)
                rules |= _normed_convolution(f"{at}{shortcut}.0", (f"{shortcut}.",), "1", stream, f"<{into}", at)
        read, numbers = into, [one for *_, one in block]
        for one in numbers:
            units = stream if one == numbers[-1] else f"{at}conv{one}"
            groups.append(units)
            rules |= _normed_convolution(f"{at}conv{one}", _NORMS, str(one), units, f"<{read}", at)
            read = units
    rules |= modules(dict.fromkeys(_HEADS, f"- <{stream}*"))
    return Layout(
        kind,
        {name: rules[usual] for usual, name in names.items() if usual in rules},
        scales=dict.fromkeys(groups, model.behind_relu()),
        parts=dict.fromkeys(groups, 1 if model.has(".running_mean") else model.number("num_groups")),
        fixed=frozenset(() if any(f"{head}.weight" in names for head in _HEADS) else (stream,)),
    )


def _normed_convolution(
    name: str, norms: tuple[str, ...], number: str, units: str, read: str, at: str = ""
) -> dict[str, str]:
    """Rules of a convolution, whose scale the norm behind it takes away, and of that norm."""
    found = modules({name: f"={units} {read} - -"})
    for norm in norms:
        found |= normed(f"{at}{norm}{number}", units)
    return found

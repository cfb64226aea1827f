"""Networks that tensors' names and shapes tell apart: layers in a row, ResNets, vision transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

from family_nets import drawn, specs_of, transformer, tried
from named_nets import IMAGES, NETS, Named, Timm, Torchvision

from eutectic.alignment.families import attempt
from eutectic.alignment.finding import symmetries_of
from eutectic.alignment.proof import check
from eutectic.checkpoint import open_source


@pytest.mark.parametrize(("net", "config", "inputs", "due"), NETS)
def test_networks_known_by_their_names(
    net: Callable[[], nn.Module], config: Mapping[str, Any], inputs: Tensor, due: dict[str, str]
) -> None:
    torch.manual_seed(0)
    module = drawn(net())
    found = tried(module, config)
    assert found.symmetries is not None, found.problems
    groups = {name: group.scale for name, group in found.symmetries.groups.items()}
    assert groups.items() >= due.items()
    proof = check(module, found.symmetries, inputs)
    assert proof.error < 1e-11, proof


def test_the_order_of_tensors_does_not_matter() -> None:
    module = Named()
    specs = specs_of(module)
    table = attempt(specs).symmetries
    other = attempt(dict(sorted(specs.items()))).symmetries
    assert table is not None and other is not None
    assert table.axes == {name: other.axes[name] for name in table.axes}


@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
@pytest.mark.parametrize(("head", "free"), [("ForImageClassification", True), ("", False)])
def test_resnets_of_transformers(layer_type: str, head: str, free: bool) -> None:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [2, 2], "layer_type": layer_type}
    module = transformer("resnet", f"AutoModel{head}", **sizes)
    table = tried(module).symmetries
    assert table is not None
    assert ("layer1" in table.groups) is free
    assert table.groups["conv1"].scale == "positive"
    assert check(module, table, {"pixel_values": IMAGES}).error < 1e-11


@pytest.mark.parametrize(("head", "free"), [("ForImageClassification", True), ("", False)])
@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_vision_transformers_of_transformers(kind: str, head: str, free: bool) -> None:
    # DeiT has two classes with heads.
    named = {"architectures": ["DeiTForImageClassification"]} if kind == "deit" and head else {}
    module = transformer(kind, f"AutoModel{head}", image_size=8, patch_size=4, **named)
    table = tried(module).symmetries
    assert table is not None
    assert ("residual" in table.groups) is free
    assert check(module, table, {"pixel_values": IMAGES}).error < 1e-11


@pytest.mark.parametrize("net", [Timm, Torchvision])
def test_vision_transformers_by_other_names(net: Callable[[], nn.Module]) -> None:
    module = drawn(net())
    table = tried(module, {"num_heads": 3}).symmetries
    assert table is not None
    names = {name.rpartition(".")[2] for name in [*table.groups, *table.gauges]}
    assert names == {"residual", "heads", "mlp", "keys", "values"}
    assert check(module, table, IMAGES).error < 1e-11
    assert [(one.code, one.where) for one in tried(module).problems] == [("G161", "config.json")]


@pytest.mark.parametrize(
    ("kind", "head", "sizes"),
    [
        ("vit", "ForImageClassification", {"image_size": 8, "patch_size": 4}),
        ("bert", "ForMaskedLM", {"max_position_embeddings": 20}),
        ("gpt2", "ForCausalLM", {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 20}),
        ("llama", "ForCausalLM", {"tie_word_embeddings": True}),
        ("phi3", "ForCausalLM", {}),
        ("mixtral", "ForCausalLM", {"num_local_experts": 4}),
        ("qwen3_moe", "ForCausalLM", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}),
        ("resnet", "ForImageClassification", {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 2]}),
    ],
)
def test_files_that_transformers_writes(tmp_path: Path, kind: str, head: str, sizes: Mapping[str, Any]) -> None:
    module = transformer(kind, f"AutoModel{head}", **sizes)
    module.save_pretrained(tmp_path)
    live, stored = tried(module).symmetries, symmetries_of(open_source(tmp_path))
    assert live is not None
    ends = [sorted(name.rpartition(".")[2] for name in table.groups) for table in (live, stored)]
    assert ends[0] == ends[1]
    assert len(stored.gauges) == len(live.gauges)

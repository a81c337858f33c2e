"""A LoRA of another base model is refused by the headers of the base's files alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from optbench.lora.initial_weights import check_layers, initial_weights_of
from optbench.lora.network import build_network
from optbench.models.files.lora_sites import lora_sites
from tests.builders.lora_files import write_lora
from tests.builders.random_base import base_options, load, write_base
from tests.builders.small_training import NETWORK


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("random"))


def test_a_lora_of_another_base_is_refused_without_loading_one(
    folder: Path, tmp_path: Path
) -> None:
    options = replace(NETWORK, conv_dim=2, conv_alpha=1.0)
    network = build_network(load(folder).lora_targets(), options, seed=1)
    tensors = network.state_dict()

    def check(name: str) -> list[str]:
        path = write_lora(tmp_path / name, tensors)
        asked = replace(options, weights=str(path))
        start = initial_weights_of(asked)
        assert start is not None
        return [
            problem.found
            for problem in check_layers(lora_sites(base_options(folder)), "random", asked, start)
        ]

    assert check("fits") == []
    key = next(key for key in tensors if "attn2_to_k.lora_down" in key)
    tensors[key] = torch.cat([tensors[key]] * 2, dim=1)
    (unlike,) = check("wide")
    assert "attn2_to_k" in unlike
    tensors = {key.replace("down_blocks_0", "input_blocks_4"): one for key, one in tensors.items()}
    assert any("input_blocks_4" in found for found in check("sdxl"))


def test_layers_of_other_sizes_are_refused_by_block_without_loading_a_base(
    folder: Path, tmp_path: Path
) -> None:
    sites = lora_sites(base_options(folder))
    by_block = replace(NETWORK, train_text_encoder=False, block_dims=(3,) * 25)
    network = build_network(load(folder).lora_targets(), by_block, seed=1)
    path = write_lora(tmp_path / "a.safetensors", network.state_dict())

    def found(**changes: Any) -> list[str]:
        options = replace(by_block, weights=str(path), **changes)
        initial = initial_weights_of(options)
        assert initial is not None
        return [problem.found for problem in check_layers(sites, "random", options, initial)]

    assert found() == []
    (dims,) = found(block_dims=(3,) * 12 + (4,) + (3,) * 12)
    assert "other dims in a.safetensors" in dims
    assert "mid_block" in dims
    (left_out,) = found(mid_lr_weight=0.0)
    assert "layers in a.safetensors that the network has not" in left_out
    (absent,) = found(conv_dim=2, conv_alpha=1.0)
    assert "no weights in a.safetensors for" in absent
    assert found(block_dims=None, dim_from_weights=True) == []

"""Block weights: kohya's places, what they multiply, and what is refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from optbench.config.build import check_value, config_tree
from optbench.errors import ConfigError
from optbench.lora.blocks import (
    check_block_sizes,
    check_block_weights,
    distinct_weights,
    network_notices,
    sized_sites,
    spelled_blocks,
)
from optbench.lora.network import build_network
from optbench.models.files.families import FAMILIES
from optbench.records import LoraTarget, Part
from optbench.schema import NetworkOptions
from tests.builders.network_options import PLAIN_NETWORK

OPTIONS = PLAIN_NETWORK
SD15, SDXL = FAMILIES["sd15"], FAMILIES["sdxl"]
# How many layers of SD1.x a LoRA on convolutions has in each of kohya's 25 places, the first of
# which is none (shared facts, executed on the real architecture).
SD1_COUNTS = (
    "1:15 2:15 3:1 4:16 5:15 6:1 7:16 8:15 9:1 10:3 11:3 12:18 13:4 14:4 15:5 16:16 17:16 18:17 "
    "19:16 20:16 21:17 22:16 23:16 24:16"
)
NAMES = {
    "lora_te_text_model_encoder_layers_0_mlp_fc1": "text_encoder",
    "lora_unet_down_blocks_0_attentions_0_proj_in": "unet",  # down, number 1
    "lora_unet_down_blocks_0_attentions_1_proj_in": "unet",  # down, number 2
    "lora_unet_mid_block_attentions_0_proj_in": "unet",
    "lora_unet_up_blocks_1_attentions_0_proj_in": "unet",  # up, number 3
}


def layer_names(unet: nn.Module) -> list[str]:
    """Return the layers inside the four kinds of modules kohya's trainer looks into."""
    kinds = ("Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D")
    inside = [name for name, module in unet.named_modules() if type(module).__name__ in kinds]
    return [
        f"lora_unet_{name}".replace(".", "_")
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        and any(name.startswith(f"{one}.") for one in inside)
    ]


def test_places_of_a_real_unet_are_kohyas() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    counts: Counter[int] = Counter()
    for name in layer_names(unet):
        block = SD15.block_of(name)
        assert block is not None
        counts[block.index] += 1
    expected = {int(one): int(many) for one, many in (p.split(":") for p in SD1_COUNTS.split())}
    assert counts == expected


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("lora_unet_input_blocks_4_1_proj_in", ("down", 4, 5)),
        ("lora_unet_middle_block_1_proj_in", ("mid", 1, 11)),
        ("lora_unet_output_blocks_0_1_transformer_blocks_0_attn1_to_q", ("up", 0, 13)),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", None),
    ],
)
def test_places_of_sdxl(name: str, block: tuple[str, int, int] | None) -> None:
    found = SDXL.block_of(name)
    assert (None if found is None else (found.side, found.number, found.index)) == block


def targets() -> tuple[LoraTarget, ...]:
    parts: dict[str, Part] = {
        name: "text_encoder" if part == "text_encoder" else "unet" for name, part in NAMES.items()
    }
    return tuple(
        LoraTarget(
            name=name,
            module=nn.Linear(6, 5),
            part=part,
            needs_conv_dim=False,
            block=SD15.block_of(name),
        )
        for name, part in parts.items()
    )


def listed(size: int, **changed: float) -> tuple[float, ...]:
    return tuple(changed.get(f"at{number}", 1.0) for number in range(size))


def test_weights_multiply_the_rates_of_their_blocks_and_zero_leaves_a_block_out() -> None:
    options = replace(
        OPTIONS,
        down_lr_weight=listed(12, at1=0.25, at2=0.0),
        mid_lr_weight=0.25,
        up_lr_weight=listed(12, at3=0.5),
    )
    network = build_network(targets(), options, seed=1)
    keys = [key.removesuffix(".alpha") for key in network.state_dict() if key.endswith(".alpha")]
    assert keys == [name for name in NAMES if "attentions_1" not in name]
    groups = {one.name: (one.part, len(one.parameters)) for one in network.parameter_groups()}
    assert groups == {
        "text_encoder": ("text_encoder", 2),
        "unet_x0.25": ("unet", 4),
        "unet_x0.5": ("unet", 2),
    }


def test_no_weights_and_weights_of_one_are_the_same_network() -> None:
    plain = build_network(targets(), OPTIONS, seed=1)
    ones = build_network(targets(), replace(OPTIONS, up_lr_weight=listed(12)), seed=1)
    assert [one.name for one in ones.parameter_groups()] == ["text_encoder", "unet"]
    assert all(
        torch.equal(tensor, plain.state_dict()[key]) for key, tensor in ones.state_dict().items()
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("cosine", [1, 0.7071, 0]),  # at the first, the middle and the last of nine or twelve
        ("sine", [0, 0.7071, 1]),
        ("linear", [0, 0.5, 1]),
        ("reverse_linear+0.25", [1.25, 0.75, 0.25]),
        ("zeros+.5", [0.5, 0.5, 0.5]),
        (0.3, [0.3, 0.3, 0.3]),
    ],
)
def test_named_shapes_are_kohyas(given: str | float, expected: list[float]) -> None:
    names = [f"lora_unet_output_blocks_{number}_1_proj_in" for number in (0, 4, 8)]
    sites = [
        LoraTarget(
            name=name,
            module=nn.Linear(2, 2),
            part="unet",
            needs_conv_dim=False,
            block=SDXL.block_of(name),
        )
        for name in names
    ]
    weights = [one.lr_weight for one in sized_sites(sites, replace(OPTIONS, up_lr_weight=given))]
    assert weights == pytest.approx(expected, abs=1e-4)
    assert [weight == 0 for weight in weights] == [weight == 0 for weight in expected]


def test_weights_up_to_the_threshold_count_as_zero() -> None:
    options = replace(OPTIONS, mid_lr_weight=0.1, block_lr_zero_threshold=0.1)
    (mid,) = (layer for layer in sized_sites(targets(), options) if "mid" in layer.site.name)
    assert mid.lr_weight == 0
    assert distinct_weights(options, SD15.unet_blocks) == {1.0}


def test_weights_that_reach_no_layer_are_refused() -> None:
    with pytest.raises(ConfigError, match="no layer"):
        build_network(targets(), replace(OPTIONS, up_lr_weight=listed(12, at9=0.5)), seed=1)


@pytest.mark.parametrize(
    ("changes", "family", "said"),
    [
        ({"up_lr_weight": (1.0,) * 9}, "sd15", "9 weights"),
        ({"up_lr_weight": (1.0,) * 12}, "sdxl", "12 weights"),
        ({"mid_lr_weight": -0.5}, "sd15", "-0.5"),
        ({"mid_lr_weight": float("inf")}, "sd15", "inf"),
        ({"down_lr_weight": "cosines"}, "sd15", "'cosines'"),
        ({"block_lr_zero_threshold": 0.1}, "sd15", "no block has a weight"),
        ({"mid_lr_weight": 0.5, "train_unet": False}, "sd15", "train_unet=false"),
    ],
)
def test_impossible_and_ineffective_weights_are_refused(
    changes: dict[str, Any], family: str, said: str
) -> None:
    options = replace(OPTIONS, **changes)
    wrong = check_value(NetworkOptions, config_tree(options), "network")
    (problem,) = wrong or check_block_weights(options, FAMILIES[family].unet_blocks)
    assert said in problem.found


def test_good_weights_are_no_problem() -> None:
    options = replace(OPTIONS, down_lr_weight="sine", mid_lr_weight=(0.5,), up_lr_weight=0.0)
    assert check_block_weights(options, SD15.unet_blocks) == []


def sizes_of(**changes: Any) -> dict[str, tuple[tuple[int, ...], float]]:
    """Return the shape of every down weight, and the alpha, of a network on all kinds of layers."""
    kinds: dict[str, nn.Module] = {
        "lora_te_text_model_encoder_layers_0_mlp_fc1": nn.Linear(6, 5),
        "lora_unet_down_blocks_0_attentions_0_proj_in": nn.Linear(6, 5),
        "lora_unet_down_blocks_0_resnets_1_conv1": nn.Conv2d(6, 5, 3),
        "lora_unet_down_blocks_0_resnets_1_time_emb_proj": nn.Linear(6, 5),
        "lora_unet_mid_block_attentions_0_proj_in": nn.Conv2d(6, 5, 1),
    }
    targets = [
        LoraTarget(
            name=name,
            module=module,
            part="text_encoder" if name.startswith("lora_te") else "unet",
            needs_conv_dim="resnets" in name,
            block=SD15.block_of(name),
        )
        for name, module in kinds.items()
    ]
    state = build_network(targets, replace(OPTIONS, **changes), seed=1).state_dict()
    stems = [key.removesuffix(".alpha") for key in state if key.endswith(".alpha")]
    return {
        stem.rpartition("_blocks_")[2] or stem: (
            tuple(state[f"{stem}.lora_down.weight"].shape),
            float(state[f"{stem}.alpha"]),
        )
        for stem in stems
    }


def at(size: int, **changed: float) -> tuple[Any, ...]:
    return tuple(changed.get(f"at{number}", 9) for number in range(size))


def test_blocks_have_the_dims_listed_and_the_text_encoder_has_its_own() -> None:
    found = sizes_of(block_dims=at(25, at1=3, at2=5, at12=0))
    assert [shape[0] for shape, _ in found.values()] == [4, 3]  # text encoder, down 1
    assert {alpha for _, alpha in found.values()} == {2.0}
    conv = sizes_of(
        block_dims=at(25, at1=3, at2=5, at12=7),
        block_alphas=at(25, at1=1.5, at2=2.5, at12=3.5),
        conv_block_dims=at(25, at2=6),
    )
    assert [(shape[0], alpha) for shape, alpha in conv.values()] == [
        (4, 2.0),
        (3, 1.5),
        (6, 1.0),  # kohya's alpha where none is given
        (5, 2.5),
        (7, 3.5),
    ]


def test_a_conv_dim_for_all_goes_with_dims_by_block() -> None:
    found = sizes_of(block_dims=at(25, at2=5), conv_dim=8, conv_alpha=4.0)
    assert found["0_resnets_1_conv1"] == ((8, 6, 3, 3), 4.0)
    assert found["0_resnets_1_time_emb_proj"] == ((5, 6), 2.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"block_dims": (4,) * 23}, "23 numbers"),
        ({"block_dims": (-1,) * 25}, "-1"),
        ({"block_alphas": (1.0,) * 25}, "network.block_dims is null"),
        ({"block_dims": (4,) * 25, "block_alphas": (0.0,) * 25}, "0.0"),
        ({"conv_block_dims": (4,) * 25, "train_unet": False}, "train_unet is false"),
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, Any], said: str) -> None:
    options = replace(OPTIONS, **changes)
    wrong = check_value(NetworkOptions, config_tree(options), "network")
    (problem, *_) = wrong or check_block_sizes(options, SD15.unet_blocks)
    assert said in problem.found


def test_sizes_of_sdxl_count_its_own_blocks() -> None:
    assert check_block_sizes(replace(OPTIONS, block_dims=(4,) * 23), SDXL.unet_blocks) == []


def test_weights_are_spelled_as_kohya_spells_them() -> None:
    options = replace(OPTIONS, down_lr_weight=(0.0, 0.5), up_lr_weight="cosine")
    assert spelled_blocks(options) == {"down_lr_weight": "0,0.5", "up_lr_weight": "cosine"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"conv_block_dims": (4,) * 25}, "kohya's trainer passes it over"),
        ({"conv_block_dims": (4,) * 25, "block_dims": (4,) * 25}, ""),
        ({"conv_block_dims": (4,) * 25, "mid_lr_weight": (1.0,)}, ""),
        ({"dim_from_weights": True}, ""),
        ({"dim_from_weights": True, "rank_dropout": 0.1}, "kohya's trainer drops nothing"),
        ({"rank_dropout": 0.1}, ""),
    ],
)
def test_what_kohyas_trainer_leaves_undone_is_said(changes: dict[str, Any], words: str) -> None:
    sentences = network_notices(replace(PLAIN_NETWORK, **changes))
    assert len(sentences) == bool(words)
    assert all(words in sentence for sentence in sentences)

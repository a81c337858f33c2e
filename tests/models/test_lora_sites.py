"""The layers that may carry a LoRA, read from headers, are those of the loaded base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from optbench.models import sd2, sd15, sdxl
from optbench.models.files.families import FAMILIES
from optbench.models.files.lora_sites import lora_sites
from optbench.models.files.unet_names import diffusers_name, unet_name
from optbench.models.key_maps import unet_sources
from optbench.models.lora_targets import text_targets, unet_targets
from optbench.records import LoraTarget
from tests.builders.checkpoint_files import _TEXT_SOURCES, options
from tests.models.test_files import write_header

UNETS: dict[str, Any] = {"sd15": sd15.UNET, "sd2": sd2.UNET, "sdxl": sdxl.UNET}
TEXT_ENCODERS: dict[str, list[tuple[Any, Any]]] = {
    "sd15": [(CLIPTextModel, sd15.TEXT_ENCODER)],
    "sd2": [(CLIPTextModel, sd2.TEXT_ENCODER)],
    "sdxl": [
        (CLIPTextModel, sd15.TEXT_ENCODER),
        (CLIPTextModelWithProjection, sdxl.TEXT_ENCODER_2),
    ],
}


def architecture(family: str) -> dict[str, Any]:
    """Return unet and text encoders as published, by folder, without their weights."""
    with torch.device("meta"):
        models: dict[str, Any] = {"unet": UNet2DConditionModel(**UNETS[family])}
        encoders = zip(FAMILIES[family].text_encoders, TEXT_ENCODERS[family], strict=True)
        for folder, (kind, config) in encoders:
            models[folder] = kind(CLIPTextConfig(**config))
    return models


def targets_of(family: str, models: dict[str, Any]) -> list[LoraTarget]:
    facts = FAMILIES[family]
    text = [
        target
        for number, folder in enumerate(facts.text_encoders)
        for target in text_targets(models[folder], facts, number=number)
    ]
    return [*text, *unet_targets(models["unet"], facts)]


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def write_folder(place: Path, models: dict[str, Any]) -> Path:
    for folder, model in models.items():
        (place / folder).mkdir()
        write_header(place / folder / "model.safetensors", shapes_of(model))
    models["unet"].save_config(place / "unet")
    return place


def write_file(place: Path, family: str, models: dict[str, Any]) -> Path:
    origins = [unet_sources(models["unet"].config), *_TEXT_SOURCES[family]]
    shapes: dict[str, tuple[int, ...]] = {}
    for model, origins_of in zip(models.values(), origins, strict=True):
        for name, shape in shapes_of(model).items():
            origin = origins_of(name)[0]
            is_third = origin.third is not None
            shapes[origin.name] = (3 * shape[0], *shape[1:]) if is_third else shape
    if family == "sd2":
        # As published: linear layers into and out of transformers, which are loaded as
        # convolutions, and the last layer of OpenCLIP, which no model has.
        shapes = {
            name: shape[:2] if ".proj_" in name and len(shape) == 4 else shape
            for name, shape in shapes.items()
        }
        last = "cond_stage_model.model.transformer.resblocks.23."
        shapes[last + "mlp.c_fc.weight"] = (4096, 1024)
        shapes[last + "attn.in_proj_weight"] = (3072, 1024)
    return write_header(place / "model.safetensors", shapes)


@pytest.mark.parametrize("layout", ["folder", "file"])
@pytest.mark.parametrize("family", FAMILIES)
def test_headers_tell_what_the_loaded_model_offers(
    tmp_path: Path, family: str, layout: str
) -> None:
    models = architecture(family)
    if layout == "folder":
        path = write_folder(tmp_path, models)
    else:
        path = write_file(tmp_path, family, models)
    sites = lora_sites(options(family, path))
    targets = targets_of(family, models)
    assert {
        name: (site.part, site.needs_conv_dim, site.shape, site.block)
        for name, site in sites.items()
    } == {
        target.name: (target.part, target.needs_conv_dim, target.shape, target.block)
        for target in targets
    }
    blocks = {site.block.index for site in sites.values() if site.block}
    assert blocks <= set(range(FAMILIES[family].unet_blocks.num_listed))


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_names_of_the_unets_layers_come_back_from_the_original_layout(family: str) -> None:
    unet = architecture(family)["unet"]
    names = [
        target.diffusers_path.removeprefix("unet.")
        for target in unet_targets(unet, FAMILIES[family])
    ]
    assert len(names) > 200
    for name in names:
        assert diffusers_name(unet_name(name, unet.config)) == name
    assert diffusers_name("input_blocks.0.0") is None
    assert diffusers_name("time_embed.0") is None


def test_where_headers_do_not_tell_nothing_is_claimed(tmp_path: Path) -> None:
    assert lora_sites(options("sd15", tmp_path)) == {}
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "a.safetensors").write_bytes(b"\xff" * 20)
    assert lora_sites(options("sd15", tmp_path)) == {}
    shapes = {"down_blocks.0.attentions.0.proj_in.weight": (4, 4)}
    write_header(tmp_path / "unet" / "a.safetensors", shapes)
    assert lora_sites(options("sd15", tmp_path)) == {}  # without a text encoder

"""Loading a Stable Diffusion: what is refused, and which layers may carry a LoRA, as kohya says."""

from __future__ import annotations

import copy
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from optbench import contracts
from optbench.errors import BaseError
from optbench.models import sd15
from optbench.models.compute import text_model
from optbench.models.diffusion import STABLE_DIFFUSION_SCHEDULE
from optbench.models.latent_diffusion import Name, Parts
from optbench.models.stable_diffusion import StableDiffusion
from optbench.records import LoraTarget
from tests.builders.random_base import (
    LATENT_CHANNELS,
    PIXELS_PER_LATENT,
    TEXT_WIDTH,
    load,
    write_base,
)

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def base(whole: Path) -> StableDiffusion:
    return load(whole)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """Return a copy of the base to break."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_json(path: Path, **changes: Any) -> None:
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    kept = {key: value for key, value in content.items() if value is not ...}
    path.write_text(json.dumps(kept), encoding="utf-8")


def change_weights(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    path.unlink()
    save_file(tensors, path)


def refusal(folder: Path, *, vae: Path | None = None) -> str:
    """Return what was found, of the one problem that loading must raise, whole and placed."""
    with pytest.raises(BaseError) as caught:
        load(folder, vae=vae)
    (problem,) = caught.value.problems
    assert problem.where.startswith("base.")
    assert str(folder if vae is None else vae) in problem.where + problem.found
    assert problem.expected
    assert problem.fix
    return problem.found


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "vae", "unet", "scheduler"])
def test_a_missing_part_is_refused_by_its_path(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    assert str(folder / part) in refusal(folder)


def test_a_missing_folder_is_refused_by_its_path(tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_part_without_weights_is_refused_by_its_path(folder: Path, part: str) -> None:
    (folder / part / WEIGHTS[part]).unlink()
    assert str(folder / part) in refusal(folder)


@pytest.mark.parametrize(
    "name",
    [
        f"unet/{WEIGHTS['unet']}",
        f"vae/{WEIGHTS['vae']}",
        f"text_encoder/{WEIGHTS['text_encoder']}",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "unet/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_half_a_file_is_refused_by_its_folder(folder: Path, name: str) -> None:
    halve(folder / name)
    assert str((folder / name).parent) in refusal(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_weight_of_another_shape_is_refused_by_name(folder: Path, part: str) -> None:
    path = folder / part / WEIGHTS[part]
    name = min(load_file(path))
    change_weights(path, lambda tensors: tensors.update({name: torch.ones(3, 5)}))
    found = refusal(folder)
    assert name in found or str(folder / part) in found


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_missing_weight_is_refused(folder: Path, part: str) -> None:
    change_weights(folder / part / WEIGHTS[part], lambda tensors: tensors.pop(min(tensors)))
    assert refusal(folder)


@pytest.mark.parametrize("key", ["beta_start", "beta_schedule", "num_train_timesteps"])
def test_a_schedule_without_its_numbers_is_refused(folder: Path, key: str) -> None:
    change_json(folder / "scheduler" / "scheduler_config.json", **{key: ...})
    assert key in refusal(folder)


@pytest.mark.parametrize("kind", ["sample", "flow_prediction"])
def test_a_target_nobody_trains_towards_is_refused(folder: Path, kind: str) -> None:
    change_json(folder / "scheduler" / "scheduler_config.json", prediction_type=kind)
    assert kind in refusal(folder)


def replace_unet(folder: Path, **changes: Any) -> None:
    config = UNet2DConditionModel.load_config(folder / "unet")
    shutil.rmtree(folder / "unet")
    UNet2DConditionModel.from_config({**config, **changes}).save_pretrained(folder / "unet")


def replace_vocabulary(folder: Path, num_tokens: int) -> None:
    config = CLIPTextConfig.from_pretrained(folder / "text_encoder")
    config.vocab_size = num_tokens
    shutil.rmtree(folder / "text_encoder")
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


@pytest.mark.parametrize("difference", [-1, 1])
def test_a_text_encoder_of_another_vocabulary_is_refused(folder: Path, difference: int) -> None:
    num_tokens = len(CLIPTokenizer.from_pretrained(folder / "tokenizer"))
    replace_vocabulary(folder, num_tokens + difference)
    found = refusal(folder)
    assert f"tokenizer of {num_tokens} tokens" in found
    assert f"text encoder of {num_tokens + difference}" in found


def test_a_unet_for_another_text_encoder_is_refused(folder: Path) -> None:
    replace_unet(folder, cross_attention_dim=64)
    found = refusal(folder)
    assert "a unet that reads 64 numbers per token" in found
    assert f"a text encoder that writes {TEXT_WIDTH}" in found


def test_a_unet_of_sdxl_is_refused(folder: Path) -> None:
    replace_unet(
        folder,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    assert refusal(folder) == "Stable Diffusion XL"


@pytest.mark.parametrize("num_channels", [4, 9])
def test_a_unet_for_other_latents_is_refused(folder: Path, num_channels: int) -> None:
    """Inpainting models have 9 channels, and SD1.5's autoencoder writes 4."""
    replace_unet(folder, in_channels=num_channels)
    assert str(num_channels) in refusal(folder)


def test_loaded_parts_are_frozen_and_in_evaluation_mode(whole: Path) -> None:
    base: contracts.BaseModel = load(whole, dtype=torch.bfloat16)
    assert isinstance(base, StableDiffusion)
    for part in (base.unet, base.text_encoder, base.vae):
        assert not any(module.training for module in part.modules())
        assert not any(weight.requires_grad for weight in part.parameters())
    assert base.dtype == base.unet.dtype == base.text_encoder.dtype == torch.bfloat16
    assert base.vae.dtype == torch.float32  # in 16 bit it gives black pictures now and then
    assert base.pixels_per_latent == PIXELS_PER_LATENT


def test_a_separate_autoencoder_takes_the_place_of_the_own_one(
    whole: Path, base: StableDiffusion, tmp_path: Path
) -> None:
    vae = AutoencoderKL(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=2,
    )
    vae.save_pretrained(tmp_path / "vae")
    other = load(whole, vae=tmp_path / "vae")
    assert other.pixels_per_latent == 2
    assert other.fingerprint == base.fingerprint
    assert other.vae_fingerprint != base.vae_fingerprint
    assert str(tmp_path / "gone") in refusal(whole, vae=tmp_path / "gone")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_fingerprints_change_with_the_weights_they_name(
    base: StableDiffusion, folder: Path, part: str
) -> None:
    same = load(folder)
    assert same.fingerprint == base.fingerprint
    assert same.vae_fingerprint == base.vae_fingerprint
    change_weights(folder / part / WEIGHTS[part], lambda tensors: tensors[min(tensors)].add_(1))
    other = load(folder)
    assert other.fingerprint != base.fingerprint
    assert (other.vae_fingerprint != base.vae_fingerprint) == (part == "vae")


def test_weights_that_the_fingerprint_does_not_see_are_refused(folder: Path) -> None:
    path = folder / "unet" / WEIGHTS["unet"]
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    assert refusal(folder)


# --- layers that may carry a LoRA ---


@pytest.fixture(scope="module", name="real_sd15")
def _real_sd15(base: StableDiffusion) -> StableDiffusion:
    """Return SD1.5 without its weights."""
    with torch.device("meta"):
        text_encoder = CLIPTextModel(CLIPTextConfig(**sd15.TEXT_ENCODER))
        unet = UNet2DConditionModel(**sd15.UNET)
    parts = Parts(
        tokenizers=base.tokenizers,
        text_encoders=(text_encoder,),
        vae=base.vae,
        unet=unet,
        schedule=STABLE_DIFFUSION_SCHEDULE,
    )
    return StableDiffusion(
        parts, Name(name="sd15", family="sd15", fingerprint="0", vae_fingerprint="0")
    )


def kind(target: LoraTarget) -> str:
    layer = target.module
    if isinstance(layer, nn.Linear):
        return "linear"
    assert isinstance(layer, nn.Conv2d)
    return f"{layer.kernel_size[0]}x{layer.kernel_size[1]}"


def test_sd15_has_as_many_layers_as_kohya_counts(real_sd15: StableDiffusion) -> None:
    targets = real_sd15.lora_targets()
    for found in ({target.name for target in targets}, {id(target.module) for target in targets}):
        assert len(found) == len(targets)
    # Counted in sd-scripts itself on the same architecture: 72, 192, and 278 with convolutions.
    counted = Counter((target.part, target.needs_conv_dim, kind(target)) for target in targets)
    assert counted == {
        ("text_encoder", False, "linear"): 72,
        ("unet", False, "linear"): 160,
        ("unet", False, "1x1"): 32,
        ("unet", True, "linear"): 22,
        ("unet", True, "1x1"): 14,
        ("unet", True, "3x3"): 50,
    }


def lora_size(targets: Sequence[LoraTarget], *, dim: int, conv_dim: int) -> int:
    total = 0
    for target in targets:
        rank = conv_dim if kind(target) == "3x3" else dim
        weight = target.module.get_parameter("weight")
        total += rank * (weight[0].numel() + weight.shape[0])
    return total


def test_sd15s_lora_has_the_size_of_kohyas(real_sd15: StableDiffusion) -> None:
    targets = real_sd15.lora_targets()
    text = [target for target in targets if target.part == "text_encoder"]
    unet = [target for target in targets if target.part == "unet"]
    plain = [target for target in unet if not target.needs_conv_dim]
    # The sizes of networks that sd-scripts built: dim 8, and conv_dim 4.
    assert lora_size(text, dim=8, conv_dim=4) == 1_327_104
    assert lora_size(plain, dim=8, conv_dim=4) == 3_391_488
    assert lora_size(unet, dim=8, conv_dim=4) == 6_230_528


@pytest.mark.parametrize(
    ("name", "needs_conv_dim"),
    [
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", False),
        ("lora_te_text_model_encoder_layers_11_self_attn_out_proj", False),
        ("lora_te_text_model_encoder_layers_11_mlp_fc2", False),
        ("lora_unet_down_blocks_0_attentions_0_proj_in", False),
        ("lora_unet_down_blocks_2_attentions_1_transformer_blocks_0_attn1_to_q", False),
        ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0", False),
        ("lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_ff_net_0_proj", False),
        ("lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_2", False),
        ("lora_unet_up_blocks_3_attentions_2_proj_out", False),
        ("lora_unet_down_blocks_0_resnets_0_conv1", True),
        ("lora_unet_down_blocks_1_resnets_0_conv_shortcut", True),
        ("lora_unet_down_blocks_2_downsamplers_0_conv", True),
        ("lora_unet_mid_block_resnets_1_time_emb_proj", True),
        ("lora_unet_up_blocks_0_upsamplers_0_conv", True),
    ],
)
def test_sd15s_layers_have_kohyas_names(
    real_sd15: StableDiffusion, name: str, needs_conv_dim: bool
) -> None:
    (target,) = (one for one in real_sd15.lora_targets() if one.name == name)
    assert target.needs_conv_dim == needs_conv_dim


def test_kohya_never_touches_the_ends_of_the_unet(real_sd15: StableDiffusion) -> None:
    targets = {id(target.module) for target in real_sd15.lora_targets()}
    unet = real_sd15.unet
    for layer in (unet.conv_in, unet.conv_out, *unet.time_embedding.modules()):
        assert id(layer) not in targets
    parts = [target.part for target in real_sd15.lora_targets()]
    assert parts == sorted(parts)  # the text encoder's first, as in kohya's files


def test_names_do_not_depend_on_how_transformers_nests_the_text_encoder(
    base: StableDiffusion,
) -> None:
    """Before version 5 the layers sat one attribute deeper."""
    nested = copy.copy(base)
    nested.text_encoders = (nn.Module(),)
    nested.text_encoder.text_model = text_model(base.text_encoder)
    names = [target.name for target in base.lora_targets()]
    assert [target.name for target in nested.lora_targets()] == names

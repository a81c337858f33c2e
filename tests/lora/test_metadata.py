"""What a LoRA file says of its making, as kohya's trainer says it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from optbench.lora.metadata import LoraCard, kohya_metadata
from optbench.optim import toy_task
from optbench.records import CaptionedImage, ImageFolder, ModelVersion
from optbench.schema import OptimizerOptions, OptimizerTraits, TrainOptions
from tests.builders.dataset_options import PLAIN
from tests.builders.network_options import PLAIN_NETWORK
from tests.builders.small_training import LOSS


def an_image(folder: str, caption: str, **changes: Any) -> CaptionedImage:
    image = CaptionedImage(
        path=Path("/secret/place") / folder / "1.png",
        key="0" * 16,
        caption=caption,
        class_words="girl",
        repeats=3,
        width=600,
        height=800,
        bucket=(384, 512),
        resized=(384, 512),
    )
    return replace(image, **changes)


TRAITS = OptimizerTraits(
    stepping="plain",
    weights="live",
    schedule="external",
    warmup="allowed",
    clip="external",
    lr_role="manual",
    group_rates="free",
    effective_lr="lr",
    uses_global_rng=False,
    exact_load=False,
)
CARD = LoraCard(
    name="adamw-dim16-0123abcd",
    model_version="sd_v1",
    prediction="epsilon",
    num_timesteps=1000,
    files={"ss_sd_model_name": "tiny", "ss_vae_name": "fine"},
    seed=42,
    lr_mult=0.5,
    epoch=2,
    step=20,
    num_epochs=4,
    num_steps=40,
    num_batches_per_epoch=10,
    images=(
        an_image("3_mirelle girl", "Blue hair, red dress,"),
        an_image("3_mirelle girl", "blue hair, beach", bucket=(512, 512), width=530, height=500),
        an_image("1_other", "forest", repeats=1),
        an_image("2_girl", "girl", repeats=7, is_regularization=True),
    ),
    folders=(
        ImageFolder(name="1_other", repeats=1, num_images=1, is_regularization=False),
        ImageFolder(name="3_mirelle girl", repeats=3, num_images=2, is_regularization=False),
        ImageFolder(name="2_girl", repeats=2, num_images=4, is_regularization=True),
    ),
    dataset=replace(PLAIN, dir="/secret/place", shuffle_caption=True, keep_tokens=1),
    network=replace(
        PLAIN_NETWORK, name="locon", dim=16, alpha=8.0, conv_dim=4, conv_alpha=2.0, rank_dropout=0.1
    ),
    optimizer=OptimizerOptions(
        name="adamw",
        target="torch.optim.AdamW",
        lr=1e-3,
        unet_lr=None,
        text_encoder_lr=5e-4,
        args={"weight_decay": 0.1, "betas": [0.9, 0.99]},
        group_args={},
        refused_args={},
        traits=TRAITS,
        package="torch",
        paper="",
        note="",
    ),
    lr_scheduler=toy_task.schedule("cosine_with_restarts", 100.0, num_cycles=3),
    train=TrainOptions(
        batch_size=4,
        epochs=4,
        max_steps=None,
        gradient_accumulation=2,
        mixed_precision="no",
        max_grad_norm=1.0,
        clip_skip=2,
        max_token_length=150,
        save_precision="fp16",
        gradient_checkpointing=False,
        attention="sdpa",
        torch_compile=False,
        dynamo_backend="inductor",
        device="cpu",
        num_threads=1,
    ),
    loss=replace(LOSS, min_snr_gamma=5.0),
)


def test_metadata_says_what_kohyas_trainer_would() -> None:
    metadata = kohya_metadata(CARD)
    expected = {
        "ss_output_name": "adamw-dim16-0123abcd",
        "ss_sd_model_name": "tiny",
        "ss_vae_name": "fine",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_clip_skip": "2",
        "ss_max_token_length": "150",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "16",
        "ss_network_alpha": "8.0",
        "ss_scale_weight_norms": "None",
        "ss_optimizer": "torch.optim.AdamW(weight_decay=0.1,betas=(0.9, 0.99))",
        "ss_learning_rate": "0.0005",
        "ss_unet_lr": "None",
        "ss_text_encoder_lr": "0.00025",
        "ss_lr_scheduler": "cosine_with_restarts",
        "ss_lr_warmup_steps": "100",
        "ss_epoch": "2",
        "ss_steps": "20",
        "ss_num_epochs": "4",
        "ss_max_train_steps": "40",
        "ss_num_train_images": "7",
        "ss_batch_size_per_device": "4",
        "ss_total_batch_size": "8",
        "ss_resolution": "(512, 512)",
        "ss_shuffle_caption": "True",
        "ss_seed": "42",
        "ss_loss_type": "l2",
        "ss_huber_c": "None",
        "ss_min_snr_gamma": "5.0",
        "ss_noise_offset": "None",
        "ss_multires_noise_iterations": "None",
        "ss_zero_terminal_snr": "False",
        "ss_debiased_estimation": "False",
        "ss_ip_noise_gamma": "None",
        "ss_prior_loss_weight": "1.0",
        "ss_v_parameterization": "False",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.prediction_type": "epsilon",
        "modelspec.resolution": "512x512",
        "modelspec.title": "adamw-dim16-0123abcd",
    }
    assert {name: metadata.get(name) for name in expected} == expected
    assert json.loads(metadata["ss_network_args"]) == {
        "conv_dim": "4",
        "conv_alpha": "2.0",
        "rank_dropout": "0.1",
    }
    assert json.loads(metadata["ss_dataset_dirs"]) == {
        "3_mirelle girl": {"n_repeats": 3, "img_count": 2},
        "1_other": {"n_repeats": 1, "img_count": 1},
    }
    assert json.loads(metadata["ss_tag_frequency"]) == {
        "3_mirelle girl": {"blue hair": 2, "red dress": 1, "beach": 1},
        "1_other": {"forest": 1},
        "2_girl": {"girl": 1},
    }
    assert metadata["ss_num_reg_images"] == "8"  # as the folder says, before balancing
    assert json.loads(metadata["ss_reg_dataset_dirs"]) == {
        "2_girl": {"n_repeats": 2, "img_count": 4}
    }
    assert json.loads(metadata["ss_bucket_info"]) == {
        "buckets": {
            "0": {"resolution": [384, 512], "count": 11},
            "1": {"resolution": [512, 512], "count": 3},
        },
        "mean_img_ar_error": pytest.approx(0.06 / 4),
    }


def test_metadata_is_repeatable_and_names_no_place_of_this_machine() -> None:
    assert kohya_metadata(CARD) == kohya_metadata(CARD)
    text = json.dumps(kohya_metadata(CARD))
    assert "secret" not in text
    assert not {"ss_session_id", "ss_training_started_at", "modelspec.date"} & set(
        kohya_metadata(CARD)
    )


def test_metadata_leaves_out_what_was_not_asked_for() -> None:
    network = replace(
        CARD.network, conv_dim=None, conv_alpha=None, rank_dropout=0.0, scale_weight_norms=1.0
    )
    card = replace(
        CARD,
        network=network,
        files={"ss_sd_model_name": "tiny"},
        dataset=replace(CARD.dataset, enable_bucket=False),
        lr_scheduler=replace(CARD.lr_scheduler, warmup_steps=0.05),
    )
    metadata = kohya_metadata(card)
    absent = {"ss_network_args", "ss_vae_name", "ss_bucket_info", "modelspec.timestep_range"}
    assert not absent & set(metadata)
    assert metadata["ss_scale_weight_norms"] == "1.0"
    assert metadata["ss_lr_warmup_steps"] == "0.05"


@pytest.mark.parametrize("version", get_args(ModelVersion))
def test_every_model_version_has_its_words(version: ModelVersion) -> None:
    prediction = "v" if version.endswith("_v") else "epsilon"
    metadata = kohya_metadata(replace(CARD, model_version=version, prediction=prediction))
    assert metadata["ss_v2"] == str("v2" in version)
    assert (metadata["modelspec.prediction_type"] == "v") == version.endswith("_v")
    assert metadata["ss_v_parameterization"] == str(version.endswith("_v"))
    assert metadata["modelspec.architecture"].endswith("/lora")
    assert ("generative-models" in metadata["modelspec.implementation"]) == ("sdxl" in version)


@pytest.mark.parametrize(
    ("first", "last", "said"), [(0, 500, "0,500"), (10, None, "10,1000"), (10, 20, "10,20")]
)
def test_a_range_of_timesteps_is_said(first: int, last: int | None, said: str) -> None:
    loss = replace(CARD.loss, min_timestep=first, max_timestep=last)
    assert kohya_metadata(replace(CARD, loss=loss))["modelspec.timestep_range"] == said


def test_sdxl_is_one_version_and_says_apart_that_it_predicts_v() -> None:
    metadata = kohya_metadata(replace(CARD, model_version="sdxl_base_v1-0", prediction="v"))
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    assert metadata["modelspec.prediction_type"] == "v"

"""The LoRA file: equal bytes, whole or absent, kohya's hashes and metadata, bad files refused."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import hypothesis.strategies as st
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from tests.unit.dataset_options import PLAIN
from tests.unit.small_training import LOSS
from torch import Tensor

from optbench import testing
from optbench.checkpoint import read_lora, save_lora
from optbench.errors import DamagedFileError, DivergedError
from optbench.metadata import LoraCard, ModelVersion, kohya_metadata
from optbench.options import (
    BaseOptions,
    NetworkOptions,
    OptimizerOptions,
    OptimizerTraits,
    SavePrecision,
    TrainOptions,
)
from optbench.records import CaptionedImage, PictureFolder

DTYPES: dict[SavePrecision, torch.dtype] = {
    "float": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


def some_tensors(size: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "lora_unet_b.lora_down.weight": torch.randn(4, size, 3, 3, generator=generator),
        "lora_unet_b.lora_up.weight": torch.randn(size, 4, 1, 1, generator=generator),
        "lora_unet_b.alpha": torch.tensor(2.3),
        "lora_te_a.lora_down.weight": torch.randn(4, size, generator=generator),
    }


METADATA = {"ss_output_name": 'Mirelle "\u00e9\u4e2d" <b>\n', "modelspec.title": "x", "ss_v2": "no"}


@pytest.mark.parametrize("precision", get_args(SavePrecision))
def test_saved_tensors_come_back(tmp_path: Path, precision: SavePrecision) -> None:
    path = tmp_path / "a.safetensors"
    tensors = some_tensors()
    save_lora(path, tensors, precision=precision, metadata=METADATA)
    found, metadata = read_lora(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == DTYPES[precision]  # alpha too
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor.to(DTYPES[precision]))
    assert metadata.items() >= METADATA.items()
    assert metadata.keys() - METADATA.keys() == {"sshs_model_hash", "sshs_legacy_hash"}
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_files_are_read_by_the_library_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_lora(path, some_tensors(), precision="fp16", metadata=METADATA)
    with safetensors.safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(some_tensors())
        assert file.metadata()["ss_output_name"] == METADATA["ss_output_name"]
        alpha = file.get_tensor("lora_unet_b.alpha")
    assert alpha.shape == ()
    assert alpha.dtype == torch.float16


def test_bytes_are_those_the_library_writes(tmp_path: Path) -> None:
    """With one key, sorted metadata and the library's own order are the same thing."""
    path = tmp_path / "a.safetensors"
    save_lora(path, some_tensors(), precision="float", metadata={})
    header, body = split(path.read_bytes())
    metadata = header["__metadata__"]
    for name, value in metadata.items():
        ours = safetensors.torch.save(some_tensors(), {name: value})
        assert split(ours)[1] == body
    assert list(metadata) == sorted(metadata)
    assert (len(path.read_bytes()) - len(body)) % 8 == 0


def split(blob: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", blob[:8])
    return json.loads(blob[8 : 8 + length]), blob[8 + length :]


def test_equal_contents_give_equal_files(tmp_path: Path) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    many = {f"ss_key{index}": str(index) for index in range(50)}
    save_lora(first, some_tensors(), precision="fp16", metadata=many)
    tensors = dict(reversed(some_tensors().items()))
    save_lora(second, tensors, precision="fp16", metadata=dict(reversed(many.items())))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("size", [6, 40_000])
def test_hashes_are_kohyas(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.safetensors"
    save_lora(path, some_tensors(size), precision="float", metadata=METADATA)
    metadata = read_lora(path)[1]
    body = split(path.read_bytes())[1]
    assert metadata["sshs_model_hash"] == hashlib.sha256(body).hexdigest()
    # Only the ss_* metadata counts, so one key makes the library's own file predictable.
    one = {"ss_output_name": "\u00e9\u4e2d"}
    save_lora(path, some_tensors(size), precision="float", metadata={**one, "modelspec.title": "x"})
    whole = safetensors.torch.save(some_tensors(size), one)
    legacy = hashlib.sha256(whole[0x100000:0x110000]).hexdigest()[:8]
    assert read_lora(path)[1]["sshs_legacy_hash"] == legacy
    assert (legacy == hashlib.sha256(b"").hexdigest()[:8]) == (len(whole) <= 0x100000)


def test_tensors_hash_does_not_depend_on_metadata(tmp_path: Path) -> None:
    hashes = []
    for metadata in ({}, METADATA):
        save_lora(tmp_path / "a", some_tensors(), precision="fp16", metadata=metadata)
        hashes.append(read_lora(tmp_path / "a")[1]["sshs_model_hash"])
    assert hashes[0] == hashes[1]


def test_unusual_memory_layouts_are_saved_by_value(tmp_path: Path) -> None:
    shared = torch.arange(12.0)
    tensors = {
        "transposed": shared.view(3, 4).T,
        "slice": shared[::2],
        "whole": shared,
        "again": shared,
        "last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "trained": torch.nn.Parameter(torch.ones(2)),
    }
    save_lora(tmp_path / "a", tensors, precision="float", metadata={})
    found = read_lora(tmp_path / "a")[0]
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


names = st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__")
texts = st.text(max_size=20)
shapes = st.lists(st.integers(0, 4), max_size=4)
values = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(deadline=None, max_examples=25)
@given(data=st.data(), metadata=st.dictionaries(names, texts, max_size=4))
def test_save_and_load_are_inverse(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, metadata: dict[str, str]
) -> None:
    tensors = {}
    for name, shape in data.draw(st.dictionaries(names, shapes, min_size=1, max_size=4)).items():
        size = math.prod(shape)
        drawn = data.draw(st.lists(values, min_size=size, max_size=size))
        tensors[name] = torch.tensor(drawn, dtype=torch.float32).view(shape)
    path = tmp_path_factory.mktemp("property") / "a.safetensors"
    save_lora(path, tensors, precision="float", metadata=metadata)
    found, read = read_lora(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name].view(torch.int32), tensor.view(torch.int32))  # bitwise
    assert read.items() >= metadata.items()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    path = tmp_path / "a.safetensors"
    save_lora(path, some_tensors(), precision="fp16", metadata={})
    before = path.read_bytes()
    tensors = some_tensors()
    tensors["lora_unet_b.lora_up.weight"][3, 2] = bad
    tensors["lora_unet_b.alpha"] = torch.tensor(7e4)
    with pytest.raises(DivergedError) as caught:
        save_lora(path, tensors, precision="fp16", metadata={})
    broken, overflown = caught.value.problems
    assert "1 of 4 tensors: lora_unet_b.lora_up.weight" in broken.found
    assert "too large for fp16 in 1 of 4 tensors: lora_unet_b.alpha" in overflown.found
    assert "save_precision=bf16" in overflown.fix
    assert path.read_bytes() == before  # what was there stays
    assert len(list(tmp_path.iterdir())) == 1


def test_what_overflows_fp16_fits_the_other_precisions(tmp_path: Path) -> None:
    for precision in ("float", "bf16"):
        tensors = {"a": torch.tensor([7e4])}
        save_lora(tmp_path / "a", tensors, precision=precision, metadata={})
        assert float(read_lora(tmp_path / "a")[0]["a"]) == pytest.approx(7e4, rel=2**-8)


def test_many_broken_tensors_are_counted_and_a_few_named(tmp_path: Path) -> None:
    tensors = {f"t{index}": torch.tensor(math.nan) for index in range(9)}
    with pytest.raises(DivergedError, match=r"9 of 9 tensors: t0, t1, t2, t3, t4 and 4 more"):
        save_lora(tmp_path / "a", tensors, precision="float", metadata={})


def test_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save_lora(path, some_tensors(), precision="fp16", metadata={})
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("optbench.checkpoint.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_lora(path, some_tensors(8), precision="fp16", metadata={})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("kept", [0, 4, 8, 60, 200, -1])
def test_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a.safetensors"
    save_lora(path, some_tensors(), precision="fp16", metadata=METADATA)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DamagedFileError) as caught:
        read_lora(path)
    assert caught.value.problems[0].where == str(path)


def raw(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04" + b"\0" * 100,
        b"\x80\x02}q\x00." * 20,
        raw(b"{}", b"trailing"),
        raw(b"not json"),
        raw(b'{"a":{"dtype":"Q7","shape":[1],"data_offsets":[0,1]}}', b"\0"),
        raw(b'{"a":{"dtype":"F8_E8M0","shape":[1],"data_offsets":[0,1]}}', b"\0"),
        raw(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', b"\0" * 4),
        struct.pack("<Q", 2**62) + b"{}",
    ],
    ids=["zip", "pickle", "trailing", "text", "dtype", "newer-dtype", "shape", "huge"],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match="whole safetensors file"):
        read_lora(path)


def test_absent_file_and_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(DamagedFileError, match="whole safetensors file"):
            read_lora(path)


def test_file_with_nan_is_refused_by_name(tmp_path: Path) -> None:
    tensors = some_tensors()
    tensors["lora_te_a.lora_down.weight"][0, 0] = math.nan
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(DamagedFileError, match=r"1 of 4 tensors: lora_te_a\.lora_down\.weight"):
        read_lora(path)


def test_file_without_metadata_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(some_tensors(), path)
    assert read_lora(path)[1] == {}


# Metadata


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
        PictureFolder(name="1_other", repeats=1, num_pictures=1, is_regularization=False),
        PictureFolder(name="3_mirelle girl", repeats=3, num_pictures=2, is_regularization=False),
        PictureFolder(name="2_girl", repeats=2, num_pictures=4, is_regularization=True),
    ),
    base=BaseOptions(
        name="tiny",
        family="stable_diffusion",
        path="/secret/place/tiny",
        vae="/secret/vae/fine",
        lr_scale=1.0,
    ),
    dataset=replace(PLAIN, dir="/secret/place", shuffle_caption=True, keep_tokens=1),
    network=NetworkOptions(
        name="locon",
        dim=16,
        alpha=8.0,
        conv_dim=4,
        conv_alpha=2.0,
        dropout=0.0,
        rank_dropout=0.1,
        module_dropout=0.0,
        scale_weight_norms=None,
        down_lr_weight=None,
        mid_lr_weight=None,
        up_lr_weight=None,
        block_lr_zero_threshold=0.0,
        block_dims=None,
        block_alphas=None,
        conv_block_dims=None,
        conv_block_alphas=None,
        rslora=False,
        dora=False,
        train_unet=True,
        train_text_encoder=True,
        weights=None,
        dim_from_weights=False,
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
    lr_scheduler=testing.schedule("cosine_with_restarts", 100.0, num_cycles=3),
    train=TrainOptions(
        batch_size=4,
        epochs=4,
        max_steps=None,
        gradient_accumulation=2,
        mixed_precision="no",
        max_grad_norm=1.0,
        clip_skip=2,
        save_precision="fp16",
        gradient_checkpointing=False,
        attention="sdpa",
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
        base=replace(CARD.base, vae=None),
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
    metadata = kohya_metadata(replace(CARD, model_version=version))
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

"""The embedded base's parts: identity at the start, codes and gains, vocabulary, files."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

pytest.importorskip("skia")

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from optbench import rng
from tests.builders.random_base import load, write_base
from tools.tinybase import autoencoder, shapes, world
from tools.tinybase import tokenizer as vocabulary
from tools.tinybase.autoencoder import PatchCodes
from tools.tinybase.drawings import Drawings, with_gains

TALL = (512, 768)


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- architecture ---


@torch.no_grad()
def test_the_untrained_unet_answers_with_its_input() -> None:
    """At any time and to any text, up to its last norm, which noise passes nearly unchanged."""
    unet = shapes.new_unet()
    noise = randn(2, shapes.LATENT_CHANNELS, 24, 16)
    answer = unet(noise, torch.tensor([0, 999]), 5 * randn(2, 7, shapes.TEXT_WIDTH)).sample
    normed = functional.group_norm(noise, 4, eps=unet.conv_norm_out.eps)
    torch.testing.assert_close(answer, normed, rtol=1e-5, atol=1e-5)  # float32 sums
    # 3072 numbers decide a group's mean and spread: both are right to a fiftieth or so.
    assert float((answer - noise).square().mean()) < 0.002


def test_the_identity_is_no_prison() -> None:
    """Every weight must get a gradient in the end, though some are multiplied by zeros at first."""
    unet = shapes.new_unet()
    text = randn(1, 7, shapes.TEXT_WIDTH)
    for _ in range(2):  # the second step reaches what the zeros hid from the first
        answer = unet(randn(1, 32, 12, 8), torch.tensor([500]), text).sample
        unet.zero_grad()
        (answer - randn(1, 32, 12, 8, seed=2)).square().mean().backward()
        with torch.no_grad():
            for weight in unet.parameters():
                weight -= 0.1 * weight.grad
    still = [name for name, weight in unet.named_parameters() if not weight.grad.any()]
    assert still == []


@torch.no_grad()
def test_a_picture_is_32_times_larger_than_its_latents() -> None:
    vae = shapes.new_autoencoder()
    posterior = vae.encode(randn(1, 3, 64, 96)).latent_dist
    assert posterior.mean.shape == (1, 32, 2, 3)
    assert vae.decode(posterior.mean).sample.shape == (1, 3, 64, 96)
    assert vae.config.scaling_factor == 1


def test_the_schedule_is_sd15s() -> None:
    """As in the scheduler_config.json published with it."""
    config = shapes.new_scheduler().config
    published = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": "epsilon",
    }
    assert {key: config[key] for key in published} == published


# --- codes and gains ---


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of codes fitted to two drawings in place of 150: seconds, not minutes."""
    folder = tmp_path_factory.mktemp("codes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoencoder, "_NUM_PATCH_DRAWINGS", 2)
        autoencoder.fit_codes(folder, seed=1)
    return folder


@pytest.fixture(scope="module")
def codes(fitted: Path) -> PatchCodes:
    return autoencoder.fit_codes(fitted, seed=1)


def test_codes_are_fitted_once_per_folder(
    fitted: Path, codes: PatchCodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world, "draw_variety", None)
    again = autoencoder.fit_codes(fitted, seed=1)
    for name, value in codes.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_codes_lie_along_orthogonal_directions_the_widest_first(codes: PatchCodes) -> None:
    product = codes.directions @ codes.directions.T
    # float32 sums of 3072 products.
    torch.testing.assert_close(product, torch.eye(32), rtol=0, atol=1e-4)
    assert torch.equal(codes.spread, codes.spread.sort(descending=True).values)
    assert float(codes.spread.min()) > 0


def drawn(place: int) -> Tensor:
    image = world.draw_variety(rng.key(1, "tiny", "patches", place), width=512, height=768)
    return autoencoder.to_tensor([np.asarray(image)])


def test_codes_of_the_pictures_they_were_fitted_to_are_white(codes: PatchCodes) -> None:
    width, height = world.SIZES[1]
    image = world.draw_variety(rng.key(1, "tiny", "patches", 1), width=width, height=height)
    both = [drawn(0), autoencoder.to_tensor([np.asarray(image)])]
    found = torch.cat([codes(pixels)[0].flatten(1) for pixels in both], 1)
    assert found.shape == (32, 2 * 384)
    # Sums of hundreds of float32 numbers around 1.
    torch.testing.assert_close(found.mean(1), torch.zeros(32), rtol=0, atol=1e-3)
    torch.testing.assert_close(torch.cov(found), torch.eye(32), rtol=0, atol=1e-2)


def rebuilt(codes: PatchCodes, pixels: Tensor) -> Tensor:
    """Return the pictures that 32 codes a patch describe, by the written inverse."""
    found = codes(pixels)[0].flatten(1)
    patches = (found * codes.spread[:, None]).T @ codes.directions + codes.mean
    size = shapes.PIXELS_PER_LATENT
    return functional.fold(patches.T[None], tuple(pixels.shape[2:]), size, stride=size)


def test_codes_tell_most_of_a_picture_they_have_never_seen(codes: PatchCodes) -> None:
    pixels = drawn(5)
    mean = codes.mean[None, :, None].expand(1, -1, 384)
    size = shapes.PIXELS_PER_LATENT
    plain = functional.fold(mean, tuple(pixels.shape[2:]), size, stride=size)
    error = float((rebuilt(codes, pixels) - pixels).square().mean())
    assert error < 0.3 * float((plain - pixels).square().mean())
    # No other point of the space of codes is nearer: the rest is orthogonal to it.
    rest = functional.unfold(rebuilt(codes, pixels) - pixels, size, stride=size)[0]
    assert float((codes.directions @ rest).abs().max()) < 1e-2


def test_pixels_reach_from_minus_one_to_one() -> None:
    picture = np.zeros((2, 3, 3), np.uint8)
    picture[0, 1] = (0, 255, 51)
    found = autoencoder.to_tensor([picture, 255 - picture])
    assert found.shape == (2, 3, 2, 3)
    torch.testing.assert_close(found[0, :, 0, 1], torch.tensor([-1.0, 1.0, -0.6]))
    assert torch.equal(found[1], -found[0])


def test_gains_soften_the_natural_proportions(codes: PatchCodes) -> None:
    gains = autoencoder.latent_gains(codes)
    assert float(gains.square().mean()) == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(gains / gains[0], (codes.spread / codes.spread[0]) ** 0.75)


@torch.no_grad()
def test_gains_scale_latents_and_leave_pictures_alone(codes: PatchCodes) -> None:
    plain = shapes.new_autoencoder()
    for layer in (plain.quant_conv, plain.post_quant_conv):
        layer.bias.copy_(randn(*layer.bias.shape) / 3)
    scaled = copy.deepcopy(plain)
    gains = autoencoder.latent_gains(codes)
    autoencoder.apply_gains(scaled, gains)
    pixels = randn(2, 3, 64, 96).clamp(-1, 1)
    before, after = plain.encode(pixels).latent_dist, scaled.encode(pixels).latent_dist
    shape = gains[:, None, None]
    # One more float32 product each; numbers around 1.
    torch.testing.assert_close(after.mean, before.mean * shape, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after.std, before.std * shape, rtol=1e-4, atol=1e-5)
    found, expected = scaled.decode(after.mean).sample, plain.decode(before.mean).sample
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    # And without the scaling of the latents the pictures would differ.
    assert not torch.allclose(scaled.decode(before.mean).sample, expected, rtol=0, atol=1e-2)


def test_drawings_get_the_gains_of_the_autoencoder(codes: PatchCodes) -> None:
    gains = autoencoder.latent_gains(codes)
    thumbnails = torch.zeros(2, 128, 128, 3, dtype=torch.uint8)
    latents = randn(2, 32, 24, 16).half()
    plain = Drawings(latents_NCHW=latents, thumbnails_NHWC=thumbnails, drawn=())
    found = with_gains({TALL: plain}, gains)[TALL].latents_NCHW
    assert found.dtype == torch.float16
    expected = plain.latents_NCHW.float() * gains[:, None, None]
    torch.testing.assert_close(found.float(), expected, rtol=2e-3, atol=1e-6)  # float16


# --- vocabulary ---


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder / "tokenizer")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Return captions of the world, without a picture being drawn."""
    return vocabulary._corpus()[:1000]


def tokens_of(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer(text).input_ids
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return ids[1:-1]


def said(tokenizer: CLIPTokenizer, ids: list[int]) -> str:
    return "".join(tokenizer.decode(ids).split())


def test_captions_come_back_from_their_tokens(tokenizer: CLIPTokenizer, texts: list[str]) -> None:
    for text in texts:
        assert said(tokenizer, tokens_of(tokenizer, text)) == "".join(text.split())


@pytest.mark.parametrize("text", ["MIRELLE, Starry Dress!", "f\u00eate, \u732b", "\U0001f319 3.5%"])
def test_words_the_world_does_not_know_lose_nothing_but_capitals(
    tokenizer: CLIPTokenizer, text: str
) -> None:
    ids = tokens_of(tokenizer, text)
    assert tokenizer.unk_token_id not in ids
    assert said(tokenizer, ids) == "".join(text.lower().split())


def test_words_of_the_world_are_one_token_and_names_a_few(
    tokenizer: CLIPTokenizer, texts: list[str]
) -> None:
    words = Counter(word for text in texts for word in text.replace(",", " ").split())
    lengths = {word: len(tokens_of(tokenizer, word)) for word in words}
    frequent = {word for word, number in words.items() if number >= 10}  # no name comes so often
    assert len(frequent) > 100
    assert {word for word in frequent if lengths[word] > 1} == {"1girl"}  # a digit stands alone
    assert max(lengths.values()) <= 5  # made-up names have up to eight letters
    assert len(tokens_of(tokenizer, "mirelle")) <= 4
    # The two marks included, a caption fits with room to spare for what people add.
    assert max(len(tokenizer(text).input_ids) for text in texts) <= 60


# --- files ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


def test_the_exported_folder_is_what_diffusers_calls_a_pipeline(folder: Path) -> None:
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    assert found == [
        "image_encoder/config.json",
        "image_encoder/model.safetensors",
        "image_encoder/preprocessor_config.json",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    index = json.loads((folder / "model_index.json").read_text())
    parts = {name for name, value in index.items() if isinstance(value, list) and value[0]}
    assert parts == {path.name for path in folder.iterdir() if path.is_dir()}


def test_weights_are_float16_and_fit_into_a_package(folder: Path) -> None:
    files = sorted(folder.rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in files) < 12e6
    for path in files:
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}


def test_diffusers_and_optbench_open_the_same_base(folder: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, torch_dtype=torch.float32, local_files_only=True
    )
    base = load(folder)
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(base, part).state_dict(), getattr(pipeline, part).state_dict()
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    assert isinstance(pipeline.vae, AutoencoderKL)
    assert base.tokenizer("1girl").input_ids == pipeline.tokenizer("1girl").input_ids
    pipeline.set_progress_bar_config(disable=True)
    (picture,) = pipeline("1girl", num_inference_steps=1, width=64, height=96).images
    assert picture.size == (64, 96)


def test_the_text_encoders_keys_are_those_of_every_other_checkpoint(folder: Path) -> None:
    names = load_file(folder / "text_encoder" / "model.safetensors")
    assert {name.split(".")[0] for name in names} == {"text_model"}

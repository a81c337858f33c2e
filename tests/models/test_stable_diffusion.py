"""The Stable Diffusion family: clip skip, noise, targets, and what it draws."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from optbench.contracts import SampleRequest
from optbench.models import autoencoder, sd15
from optbench.models.compute import text_model
from optbench.models.latent_diffusion import Name, Parts
from optbench.models.samplers import SAMPLERS
from optbench.models.stable_diffusion import StableDiffusion
from optbench.models.text.clip import ClipTextOptions
from tests.builders.random_base import LATENT_CHANNELS, NOISE_SCHEDULE, TEXT_WIDTH, load, write_base
from tests.builders.small_training import LOSS

REQUEST = SampleRequest(
    text="1girl, red dress",
    negative="blurry",
    seeds=(7, 2**64 - 1),
    width=64,
    height=96,
    cfg_scale=5.0,
    steps=2,
    sampler="DDIM",
    text_options=ClipTextOptions(),
)
# Sums of a batch run in another order than those of one picture, and a colour at the edge of two
# of its 256 levels may fall to the other side.
ONE_LEVEL = 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def base(whole: Path) -> StableDiffusion:
    return load(whole)


def with_schedule(base: StableDiffusion, **changes: Any) -> StableDiffusion:
    parts = Parts(
        tokenizers=base.tokenizers,
        text_encoders=base.text_encoders,
        vae=base.vae,
        unet=base.unet,
        schedule={**NOISE_SCHEDULE, **changes},
    )
    return StableDiffusion(
        parts, Name(name="other", family="sd15", fingerprint="0", vae_fingerprint="0")
    )


# --- text ---


def states(base: StableDiffusion, *texts: str, clip_skip: int = 1) -> Tensor:
    with torch.no_grad():
        return base.encode_captions(texts, ClipTextOptions(clip_skip=clip_skip))["states_BTE"]


@pytest.mark.parametrize("clip_skip", [1, 2, 3])
def test_clip_skip_leaves_out_the_last_layers(base: StableDiffusion, clip_skip: int) -> None:
    shorter = copy.copy(base)
    shorter.text_encoders = (copy.deepcopy(base.text_encoder),)
    encoder = text_model(shorter.text_encoder).encoder
    encoder.layers = encoder.layers[: len(encoder.layers) - clip_skip + 1]
    found = states(base, "1girl, red dress", "", clip_skip=clip_skip)
    assert torch.equal(found, states(shorter, "1girl, red dress", ""))
    # And in transformers' words: a hidden state, through the final norm.
    ids = base.tokenizer(["1girl, red dress"], padding="max_length", return_tensors="pt").input_ids
    hidden = base.text_encoder(input_ids=ids, output_hidden_states=True).hidden_states[-clip_skip]
    norm = text_model(base.text_encoder).final_layer_norm
    expected = nn.functional.layer_norm(hidden, norm.normalized_shape, norm.weight, norm.bias)
    torch.testing.assert_close(found[:1], expected)


def test_every_clip_skip_gives_states_of_its_own(base: StableDiffusion) -> None:
    one, two, three = (states(base, "1girl", clip_skip=skip) for skip in (1, 2, 3))
    assert one.shape == (1, 77, TEXT_WIDTH)
    for left, right in ((one, two), (two, three), (one, three)):
        assert float((left - right).abs().max()) > 0.01


def test_states_of_a_text_do_not_depend_on_its_neighbours(base: StableDiffusion) -> None:
    together = states(base, "1girl", "a long caption, with many words", "")
    # Float32 sums in another order.
    torch.testing.assert_close(together[:1], states(base, "1girl"), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], together[2], atol=0.01)


def test_texts_are_cut_after_75_tokens_and_counted(base: StableDiffusion) -> None:
    fits, long, longer = (" ".join(["sky"] * number) for number in (75, 76, 99))
    assert base.num_tokens([fits, long, "", longer]) == (75, 76, 0, 99)
    assert torch.equal(states(base, long), states(base, longer))
    assert not torch.equal(states(base, fits), states(base, fits.replace("sky", "red", 1)))


# --- noise and latents ---


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_latents_are_samples_of_the_posterior_one_stream_each(base: StableDiffusion) -> None:
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    scaled = copy.copy(base)
    scaled.vae = copy.deepcopy(base.vae)
    scaled.vae.register_to_config(scaling_factor=0.18215)
    with torch.no_grad():
        found = scaled.encode_images(pixels, generators(5, 6))
        alone = scaled.encode_images(pixels[1:], generators(6))
        posterior = base.vae.encode(pixels).latent_dist
    noise = torch.randn(found.shape[1:], generator=torch.Generator().manual_seed(5))
    expected = (posterior.mean[0] + posterior.logvar[0].div(2).exp() * noise) * 0.18215
    assert found.shape == (2, LATENT_CHANNELS, 2, 3)
    # Convolutions of one and of two pictures sum in other orders.
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1:], alone, rtol=1e-4, atol=1e-5)


def test_decoding_undoes_the_scale_of_latents(base: StableDiffusion) -> None:
    vae = copy.deepcopy(base.vae)
    vae.register_to_config(scaling_factor=0.18215)
    latents = torch.randn(1, LATENT_CHANNELS, 2, 3, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = base.vae.decode(latents / 0.18215).sample
        assert torch.equal(autoencoder.decode(vae, latents), expected)


def test_no_part_of_a_base_is_in_training_mode(base: StableDiffusion) -> None:
    parts = (*base.text_encoders, base.vae, base.unet)
    assert not any(module.training for part in parts for module in part.modules())
    for part in parts:
        part.train().requires_grad_()  # as whoever hands it in may have left it
    rebuilt = with_schedule(base)
    rebuilt_parts = (*rebuilt.text_encoders, rebuilt.vae, rebuilt.unet)
    assert not any(weight.requires_grad for part in rebuilt_parts for weight in part.parameters())
    assert not any(module.training for module in rebuilt.unet.modules())
    assert not any(module.training for module in rebuilt.text_encoders[0].modules())


def test_timesteps_come_one_from_each_stream_and_reach_both_ends(base: StableDiffusion) -> None:
    found = base.process.sample_timesteps(generators(*range(20_000)), LOSS)
    assert found.dtype == torch.int64
    assert found.shape == (20_000,)
    # 20 draws are expected of every timestep; missing an end altogether has odds of 2e-9.
    assert (int(found.min()), int(found.max())) == (0, 999)
    assert torch.equal(base.process.sample_timesteps(generators(17), LOSS), found[17:18])


def kept_signal() -> NDArray[np.float64]:
    """Return how much of a picture's variance SD1.5 keeps at each timestep."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept: NDArray[np.float64] = np.cumprod(1 - betas)
    return kept


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_noisy_latents_and_targets_follow_the_written_formulas(
    base: StableDiffusion, kind: str
) -> None:
    latents, noise = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(2))
    timesteps = torch.tensor([0, 500, 999])
    other = with_schedule(base, prediction_type=kind)
    noisy = other.process.add_noise(latents, noise, timesteps)
    target = other.process.target(latents, noise, timesteps)
    kept = torch.from_numpy(kept_signal())[timesteps].view(3, 1, 1, 1)
    signal, spread = kept.sqrt().float(), (1 - kept).sqrt().float()
    # The library multiplies a thousand factors in float32.
    torch.testing.assert_close(noisy, signal * latents + spread * noise, rtol=1e-3, atol=1e-4)
    expected = noise if kind == "epsilon" else signal * noise - spread * latents
    torch.testing.assert_close(target, expected, rtol=1e-3, atol=1e-4)


def test_without_a_word_on_it_the_target_is_the_noise(base: StableDiffusion) -> None:
    latents, noise = torch.randn(2, 1, 4, 2, 2)
    assert torch.equal(base.process.target(latents, noise, torch.tensor([10])), noise)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_predictions_have_the_shape_of_the_latents(whole: Path, dtype: torch.dtype) -> None:
    base = load(whole, dtype=dtype)
    noisy = torch.randn(2, LATENT_CHANNELS, 3, 2)
    with torch.no_grad():
        conditioning = base.encode_captions(["1girl", ""], ClipTextOptions())
        found = base.predict(noisy, torch.tensor([3, 900]), conditioning)
    assert found.shape == noisy.shape
    assert found.dtype == dtype


# --- pictures ---


def draw(base: StableDiffusion, **changes: Any) -> NDArray[np.int64]:
    pictures = base.sample(replace(REQUEST, **changes))
    return np.stack([np.asarray(picture, dtype=np.int64) for picture in pictures])


def distance(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    return int(np.abs(one - other).max())


@pytest.fixture(scope="module")
def drawn(base: StableDiffusion) -> NDArray[np.int64]:
    return draw(base)


@pytest.fixture
def untouched_stream() -> Iterator[None]:
    """Fail a test in which something draws from torch's global generator."""
    before = torch.random.get_rng_state()
    yield
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.usefixtures("untouched_stream")
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_batch_gives_each_seed_the_picture_it_gets_alone(
    base: StableDiffusion, sampler: str
) -> None:
    """With every sampler, those included that draw fresh noise at every step."""
    together = draw(base, sampler=sampler)
    alone = [draw(base, sampler=sampler, seeds=(seed,)) for seed in REQUEST.seeds]
    assert together.shape == (2, 96, 64, 3)
    assert distance(together, np.concatenate(alone)) <= ONE_LEVEL
    assert distance(together[:1], together[1:]) > 50


def test_every_setting_of_a_request_moves_the_picture(
    base: StableDiffusion, drawn: NDArray[np.int64]
) -> None:
    changes: tuple[dict[str, Any], ...] = (
        {"text": "1girl, blue dress"},
        {"negative": ""},
        {"cfg_scale": 9.0},
        {"steps": 3},
        {"sampler": "Euler"},
        {"text_options": ClipTextOptions(clip_skip=2)},
    )
    for change in changes:
        assert distance(draw(base, **change), drawn) > 10, change
    assert np.array_equal(draw(base), drawn)
    assert draw(base, width=96, height=64).shape == (2, 64, 96, 3)


def test_without_guidance_the_negative_prompt_says_nothing(base: StableDiffusion) -> None:
    assert np.array_equal(draw(base, cfg_scale=1.0, negative="night city"), draw(base, cfg_scale=1))


def test_guidance_from_a_text_to_itself_is_none(base: StableDiffusion) -> None:
    guided = draw(base, cfg_scale=7.0, negative=REQUEST.text)
    # A difference of float32 sums times 7, over two steps.
    assert distance(guided, draw(base, cfg_scale=1.0)) <= 2 * ONE_LEVEL


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_pictures_read_the_unets_answer_as_the_schedule_says(
    base: StableDiffusion, kind: str
) -> None:
    """With a unet that always answers 0, two steps of DDIM are a few lines."""
    silent = with_schedule(base, prediction_type=kind)
    silent.unet = copy.deepcopy(base.unet)
    for weight in silent.unet.conv_out.parameters():
        weight.data.zero_()
    kept = kept_signal()
    x = torch.randn(LATENT_CHANNELS, 3, 2, generator=generators(7)[0])
    # Evenly spaced timesteps, moved on by one; the last step ends at the first timestep.
    for now, then in ((501, 1), (1, 0)):
        signal, spread = kept[now] ** 0.5, (1 - kept[now]) ** 0.5
        picture, noise = (x / signal, 0 * x) if kind == "epsilon" else (signal * x, spread * x)
        x = kept[then] ** 0.5 * picture + (1 - kept[then]) ** 0.5 * noise
    with torch.no_grad():
        pixels = autoencoder.decode(base.vae, x[None])[0].clamp(-1, 1).permute(1, 2, 0)
    expected = ((pixels + 1) * 127.5).round().numpy().astype(np.int64)
    assert distance(draw(silent, seeds=(7,))[0], expected) <= ONE_LEVEL


@pytest.mark.usefixtures("untouched_stream")
def test_the_base_draws_from_the_streams_it_is_given_only(base: StableDiffusion) -> None:
    with torch.no_grad():
        base.encode_images(torch.zeros(1, 3, 64, 64), generators(1))
        base.encode_captions(["1girl"], ClipTextOptions(clip_skip=2))
    base.process.sample_timesteps(generators(1, 2), LOSS)
    base.process.add_noise(torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2), torch.tensor([1]))


@pytest.mark.parametrize("training", [False, True])
def test_sampling_leaves_weights_and_modes_as_they_were(
    base: StableDiffusion, training: bool
) -> None:
    parts = [base.unet, base.text_encoder, base.vae]
    weights = [weight.clone() for part in parts for weight in part.parameters()]
    base.unet.mid_block.train(training)
    try:
        modes = [module.training for part in parts for module in part.modules()]
        draw(base)
        assert [module.training for part in parts for module in part.modules()] == modes
    finally:
        base.unet.eval()
    now = [weight for part in parts for weight in part.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(weights, now, strict=True))


def test_a_base_in_16_bit_draws_nearly_the_same(whole: Path, drawn: NDArray[np.int64]) -> None:
    found = draw(load(whole, dtype=torch.bfloat16))
    # Nearer than the picture of another seed; a random unet magnifies roundings.
    assert np.abs(found - drawn).mean() < 0.5 * np.abs(found - drawn[::-1]).mean()


def test_a_base_of_random_weights_is_a_base_too(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sd15, "asset", lambda name: whole)  # for its tokenizer
    first, again, other = (draw(sd15.tiny(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)

"""What noise is trained on: whose draw it is, its moments, and the formulas written out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from optbench import rng
from optbench.records import Batch
from optbench.schema import LossOptions
from optbench.training.noise import Draw, draw_noise, multires_noise, offset_noise, perturbation
from tests.builders.small_training import LOSS, SmallProcess, make_batch, six_pictures

ALL_ON: dict[str, Any] = {
    "noise_offset": 0.1,
    "noise_offset_random_strength": True,
    "adaptive_noise_scale": 0.2,
    "multires_noise_iterations": 4,
    "multires_noise_discount": 0.3,
    "ip_noise_gamma": 0.1,
    "ip_noise_gamma_random_strength": True,
}


def options(**changes: Any) -> LossOptions:
    return replace(LOSS, **changes)


def drawn(batch: Batch, *, seed: int = 5, **changes: Any) -> Draw:
    return draw_noise(batch, SmallProcess("epsilon"), options(**changes), seed=seed)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain_noise(batch: Batch, seed: int = 5) -> Tensor:
    places = [(one.epoch, one.image_key, one.occurrence) for one in batch.samples]
    return torch.stack(
        [torch.randn(3, 4, 6, generator=rng.generator(seed, "noise", *at)) for at in places]
    )


# Whose draw


def test_with_everything_off_it_is_the_plain_draw() -> None:
    batch = make_batch("a", "b")
    draw = drawn(batch)
    assert torch.equal(draw.noise_BCHW, plain_noise(batch))
    assert draw.input_noise_BCHW is None


def test_a_draw_does_not_depend_on_how_pictures_are_split() -> None:
    together = drawn(make_batch(*"abcdef"), **ALL_ON)
    pairs = [drawn(batch, **ALL_ON) for batch in six_pictures(1)]
    assert torch.equal(together.noise_BCHW, torch.cat([one.noise_BCHW for one in pairs]))
    assert together.input_noise_BCHW is not None
    shown = [one.input_noise_BCHW for one in pairs if one.input_noise_BCHW is not None]
    assert torch.equal(together.input_noise_BCHW, torch.cat(shown))
    assert torch.equal(together.timesteps_B, torch.cat([one.timesteps_B for one in pairs]))


def test_options_do_not_change_each_others_draws() -> None:
    batch = make_batch("a", "b")
    plain, everything = drawn(batch), drawn(batch, **ALL_ON)
    assert torch.equal(everything.timesteps_B, plain.timesteps_B)
    offset = drawn(batch, noise_offset=0.1).noise_BCHW - plain.noise_BCHW
    # The perturbation alone, with and without an offset under it.
    alone = drawn(batch, ip_noise_gamma=0.1)
    both = drawn(batch, ip_noise_gamma=0.1, noise_offset=0.1)
    assert alone.input_noise_BCHW is not None
    assert both.input_noise_BCHW is not None
    assert torch.equal(alone.noise_BCHW, plain.noise_BCHW)  # the target is never perturbed
    torch.testing.assert_close(
        both.input_noise_BCHW - both.noise_BCHW, alone.input_noise_BCHW - alone.noise_BCHW
    )
    # A random strength shortens the offset and leaves its direction.
    shorter = drawn(batch, noise_offset=0.1, noise_offset_random_strength=True).noise_BCHW
    ratios = ((shorter - plain.noise_BCHW) / offset).flatten(1)
    for ratios_of_one in ratios:
        assert float(ratios_of_one.std()) < 1e-3
        assert 0 < float(ratios_of_one.mean()) < 1
    assert abs(float(ratios[0].mean() - ratios[1].mean())) > 1e-3  # each picture has its own


def test_every_option_draws_from_addresses_of_its_own() -> None:
    """Not from the noise's: an offset would repeat its first numbers."""
    batch = make_batch("a", "b")
    noise = plain_noise(batch)
    for index, sample in enumerate(batch.samples):
        at = (sample.epoch, sample.image_key, sample.occurrence)
        offset = drawn(batch, noise_offset=0.1).noise_BCHW[index] - noise[index]
        expected = 0.1 * torch.randn(3, 1, 1, generator=rng.generator(5, "noise-offset", *at))
        torch.testing.assert_close(offset, expected.expand(3, 4, 6), rtol=1e-3, atol=1e-6)
        patched = multires_noise(
            noise[index],
            iterations=4,
            discount=0.3,
            generator=rng.generator(5, "multires", *at),
        )
        found = drawn(batch, multires_noise_iterations=4, multires_noise_discount=0.3)
        assert torch.equal(found.noise_BCHW[index], patched)
        shown = drawn(batch, ip_noise_gamma=0.1).input_noise_BCHW
        assert shown is not None
        normal = torch.randn(3, 4, 6, generator=rng.generator(5, "input-perturbation", *at))
        torch.testing.assert_close(shown[index], noise[index] + 0.1 * normal)


def test_every_place_and_seed_has_draws_of_its_own() -> None:
    batches = [make_batch("a"), make_batch("b"), make_batch("a", occurrence=1),
               make_batch("a", epoch=2)]  # fmt: skip
    for name, amount in (("noise_offset", 0.1), ("ip_noise_gamma", 0.1)):
        extra = []
        for seed in (5, 6):
            for batch in batches:
                draw = drawn(batch, seed=seed, **{name: amount})
                shown = draw.noise_BCHW if draw.input_noise_BCHW is None else draw.input_noise_BCHW
                extra.append((shown - plain_noise(batch, seed)).flatten())
        assert len(torch.stack(extra).unique(dim=0)) == 8


# Offset


def test_an_offset_is_one_number_per_channel_of_the_asked_spread() -> None:
    latents = torch.zeros(4, 8, 8)
    offsets = torch.stack(
        [offset_noise(latents, options(noise_offset=0.1), generator(i)) for i in range(5000)]
    )
    assert offsets.shape == (5000, 4, 1, 1)
    # 20 000 normal numbers: three standard errors of mean and deviation.
    assert abs(float(offsets.mean())) < 3 * 0.1 / math.sqrt(20_000)
    assert float(offsets.std()) == pytest.approx(0.1, rel=3 / math.sqrt(2 * 20_000))
    correlation = np.corrcoef(offsets[:, :, 0, 0].T.numpy())
    assert np.abs(correlation - np.eye(4)).max() < 4 / math.sqrt(5000)


def test_a_random_strength_is_uniform_below_the_asked_one() -> None:
    latents = torch.zeros(1, 8, 8)
    random = options(noise_offset=0.1, noise_offset_random_strength=True)
    strengths = torch.stack(
        [
            offset_noise(latents, random, generator(seed))
            / torch.randn(1, 1, 1, generator=generator(seed))
            for seed in range(5000)
        ]
    )  # fmt: skip
    assert float(strengths.min()) >= 0
    assert float(strengths.max()) <= 0.1 * (1 + 1e-6)
    assert float(strengths.mean()) == pytest.approx(0.05, rel=0.05)
    assert float(strengths.std()) == pytest.approx(0.1 / math.sqrt(12), rel=0.05)


@pytest.mark.parametrize("scale", [0.5, -0.5])
def test_an_adaptive_offset_follows_the_latents_means(scale: float) -> None:
    latents = (
        torch.randn(3, 4, 6, generator=generator(1)) + torch.tensor([0.0, -2.0, 0.1])[:, None, None]
    )
    fixed = offset_noise(latents, options(noise_offset=0.1), generator(2))
    found = offset_noise(
        latents, options(noise_offset=0.1, adaptive_noise_scale=scale), generator(2)
    )
    for channel in range(3):
        strength = max(0.0, 0.1 + scale * abs(float(latents[channel].mean())))
        expected = float(fixed[channel]) / 0.1 * strength
        assert float(found[channel]) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    if scale < 0:
        assert float(found[1]) == 0  # never below no offset


# Multires


def enlarged(patches: np.ndarray[Any, Any], height: int, width: int) -> np.ndarray[Any, Any]:
    """Return an image enlarged bilinearly, pixel centres at halves, edges repeated."""

    def weights_of(num_out: int, num_in: int) -> np.ndarray[Any, Any]:
        matrix = np.zeros((num_out, num_in))
        for out in range(num_out):
            place = max((out + 0.5) * num_in / num_out - 0.5, 0)
            low = min(int(place), num_in - 1)
            high = min(low + 1, num_in - 1)
            matrix[out, low] += 1 - (place - low)
            matrix[out, high] += place - low
        return matrix

    rows, columns = weights_of(height, patches.shape[1]), weights_of(width, patches.shape[2])
    return np.einsum("yh,chw,xw->cyx", rows, patches, columns)


@pytest.mark.parametrize("iterations", [1, 3, 8])
def test_multires_noise_is_the_sum_of_enlarged_patches(iterations: int) -> None:
    height, width = 16, 24
    noise = torch.randn(4, height, width, generator=generator(1))
    found = multires_noise(noise, iterations=iterations, discount=0.3, generator=generator(2))
    draw = generator(2)
    total = noise.double().numpy()
    for level in range(iterations):
        ratio = (2 + 2 * float(torch.rand((), generator=draw))) ** level
        size = max(1, math.floor(height / ratio)), max(1, math.floor(width / ratio))
        patches = torch.randn(4, *size, generator=draw).double().numpy()
        total = total + enlarged(patches, height, width) * 0.3**level
        if min(size) == 1:
            break
    expected = total / total.std(ddof=1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("iterations", [1, 4, 8])
def test_multires_noise_has_a_deviation_of_one(iterations: int) -> None:
    for seed in range(20):
        noise = torch.randn(4, 32, 48, generator=generator(seed))
        found = multires_noise(
            noise, iterations=iterations, discount=0.8, generator=generator(seed + 100)
        )
        assert float(found.std()) == pytest.approx(1, abs=1e-5)
        assert not torch.equal(found, noise)


def test_multires_noise_has_large_patches_where_plain_noise_has_none() -> None:
    """The variance of means over 8 x 8 blocks: 1 / 64 for white noise, much more with patches."""

    def block_variance(noise: Tensor) -> float:
        return float(torch.nn.functional.avg_pool2d(noise, 8).var())

    plain = torch.stack([torch.randn(4, 64, 64, generator=generator(i)) for i in range(30)])

    def patched(discount: float) -> Tensor:
        drawn_by = [generator(100 + i) for i in range(len(plain))]
        return torch.stack(
            [
                multires_noise(one, iterations=8, discount=discount, generator=draw)
                for one, draw in zip(plain, drawn_by, strict=True)
            ]
        )

    assert block_variance(plain) == pytest.approx(1 / 64, rel=0.1)
    # Weights 0.3^i nearly make up for patches of 3^i pixels: each level adds about as much.
    assert 1.25 / 64 < block_variance(patched(0.3)) < 2 / 64
    assert block_variance(patched(0.8)) > 10 / 64


def test_patches_end_at_a_side_of_one() -> None:
    """More levels than a picture has change nothing: the last one drawn is one pixel high."""
    noise = torch.randn(4, 4, 32, generator=generator(1))
    some, many = (
        multires_noise(noise, iterations=count, discount=0.3, generator=generator(2))
        for count in (3, 50)
    )
    assert torch.equal(some, many)


# Input perturbation


def test_a_perturbation_has_the_asked_spread() -> None:
    found = perturbation((4, 64, 64), gamma=0.1, is_random=False, generator=generator(1))
    assert float(found.std()) == pytest.approx(0.1, rel=3 / math.sqrt(2 * found.numel()))
    spreads = [
        float(perturbation((4, 16, 16), gamma=0.1, is_random=True, generator=generator(i)).std())
        for i in range(2000)
    ]
    assert max(spreads) < 0.11
    assert float(np.mean(spreads)) == pytest.approx(0.05, rel=0.05)


# Timesteps


def test_timesteps_stay_in_their_range_and_reach_both_ends() -> None:
    batch = make_batch(*(f"picture {index}" for index in range(400)))
    found = drawn(batch, min_timestep=200, max_timestep=220).timesteps_B
    assert (int(found.min()), int(found.max())) == (200, 219)
    assert set(drawn(batch, min_timestep=7, max_timestep=8).timesteps_B.tolist()) == {7}

"""How far pictures are from each other: known answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from optbench.metrics.ssim import compare_pictures


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 30, 3))


def test_equal_pictures_are_equal(tmp_path: Path) -> None:
    first = save(tmp_path / "a.png", noise(1))
    found = compare_pictures(first, first)
    assert found is not None
    assert found.mean_abs_difference == 0
    assert found.ssim == pytest.approx(1)


def test_a_constant_shift_has_its_own_size_and_keeps_the_structure(tmp_path: Path) -> None:
    pixels = noise(1) // 2
    first, second = save(tmp_path / "a.png", pixels), save(tmp_path / "b.png", pixels + 51)
    found = compare_pictures(first, second)
    assert found is not None
    assert found.mean_abs_difference == pytest.approx(0.2)
    assert found.ssim > 0.6


def test_unrelated_pictures_are_far_apart(tmp_path: Path) -> None:
    found = compare_pictures(save(tmp_path / "a.png", noise(1)), save(tmp_path / "b.png", noise(2)))
    assert found is not None
    assert found.mean_abs_difference == pytest.approx(1 / 3, abs=0.02)  # two uniform numbers
    assert abs(found.ssim) < 0.1


def test_ssim_of_two_constants_is_the_formula(tmp_path: Path) -> None:
    flat = np.ones((16, 16, 3))
    first, second = save(tmp_path / "a.png", flat * 51), save(tmp_path / "b.png", flat * 102)
    found = compare_pictures(first, second)
    assert found is not None
    assert found.ssim == pytest.approx((2 * 0.2 * 0.4 + 1e-4) / (0.2**2 + 0.4**2 + 1e-4), rel=1e-4)


def test_pictures_of_two_sizes_are_not_compared(tmp_path: Path) -> None:
    first, second = save(tmp_path / "a.png", noise(1)), save(tmp_path / "b.png", noise(1)[:8])
    assert compare_pictures(first, second) is None

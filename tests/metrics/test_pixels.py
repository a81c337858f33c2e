"""Numbers of pixels: known answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from optbench.metrics import METRICS, Picture
from optbench.metrics.copies import NearCopy, forget_bits
from optbench.metrics.pixels import (
    AcrossSeeds,
    FromBase,
    FromPrevious,
    Surface,
    forget_pixels,
)
from tests.builders.image_runs import HEIGHT, WIDTH, noise, save, smooth


@pytest.fixture(autouse=True)
def _forget() -> None:
    forget_pixels()
    forget_bits()


def picture(path: Path, pixels: np.ndarray) -> Picture:
    return Picture(path=save(path, pixels), text="")


def flat(value: int) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), value, dtype=np.uint8)


def surface(path: Path, pixels: np.ndarray) -> dict[str, float]:
    found = Surface().measure(picture(path, pixels), ())
    assert found.keys() == Surface.meanings.keys()
    return {name: one.value for name, one in found.items()}


@pytest.mark.parametrize(("value", "clipped"), [(0, 1), (2, 1), (3, 0), (252, 0), (255, 1)])
def test_a_flat_picture_is_flat_and_clipped_near_the_ends(
    tmp_path: Path, value: int, clipped: int
) -> None:
    found = surface(tmp_path / "a.png", flat(value))
    assert found.pop("local_contrast") == pytest.approx(0, abs=1e-6)
    assert found == {"flat": 1, "clipped": clipped, "saturation": 0}


def test_a_picture_with_anything_on_it_is_not_flat(tmp_path: Path) -> None:
    pixels = flat(100)
    pixels[5, 5, 1] = 105
    assert surface(tmp_path / "a.png", pixels)["flat"] == 0


def test_saturation_is_the_spread_of_channels_over_the_brightest(tmp_path: Path) -> None:
    pixels = flat(200)
    pixels[:, : WIDTH // 2] = (200, 100, 50)  # 1 - 50/200 on one half, 0 on the other
    assert surface(tmp_path / "a.png", pixels)["saturation"] == pytest.approx(0.75 / 2)


def test_contrast_counts_within_squares_only(tmp_path: Path) -> None:
    broad = flat(50)
    broad[:, WIDTH // 2 :] = 200  # an edge between squares
    assert surface(tmp_path / "a.png", broad)["local_contrast"] == pytest.approx(0, abs=1e-6)
    fine = flat(50)
    fine[:, ::2] = 200
    found = surface(tmp_path / "b.png", fine)["local_contrast"]
    assert found == pytest.approx(75 / 255, rel=1e-4)


def test_distance_from_the_base_and_from_the_epoch_before(tmp_path: Path) -> None:
    own = picture(tmp_path / "a.png", noise(1, high=150))
    other = picture(tmp_path / "b.png", noise(1, high=150) + 51)
    from_base = FromBase().measure(own, (other,))
    assert from_base["change_from_base"].value == pytest.approx(0.2)
    assert 0.5 < from_base["ssim_with_base"].value < 1
    itself = FromBase().measure(own, (own,))
    assert itself["change_from_base"].value == 0
    assert itself["ssim_with_base"].value == pytest.approx(1)
    previous = FromPrevious().measure(own, (other,))
    assert previous["change_from_previous"].value == pytest.approx(0.2)


def test_without_another_picture_of_one_size_nothing_is_said(tmp_path: Path) -> None:
    own = picture(tmp_path / "a.png", noise(1))
    narrow = picture(tmp_path / "b.png", noise(1)[:, :32])
    for metric in (FromBase(), FromPrevious(), AcrossSeeds()):
        assert metric.measure(own, ()) == {}
        assert metric.measure(own, (narrow,)) == {}
    assert NearCopy().measure(own, ()) == {}


def test_seeds_that_give_one_picture_are_found(tmp_path: Path) -> None:
    own = picture(tmp_path / "a.png", smooth(1))
    same = picture(tmp_path / "b.png", smooth(1))
    black, white = picture(tmp_path / "c.png", flat(0)), picture(tmp_path / "d.png", flat(255))
    found = AcrossSeeds().measure(own, (same, black))
    assert found["identical_seeds"].value == 0.5
    assert AcrossSeeds().measure(black, (white,))["diversity"].value == pytest.approx(1)
    assert AcrossSeeds().measure(own, (same,))["diversity"].value == 0


def test_a_copy_is_found_named_and_survives_what_saving_does(tmp_path: Path) -> None:
    training = [picture(tmp_path / f"train-{n}.png", smooth(n)) for n in range(6)]
    brighter = np.clip(smooth(4).astype(int) + 12, 0, 255).astype(np.uint8)[::2, ::2]
    found = NearCopy().measure(picture(tmp_path / "a.png", brighter), training)["copy_distance"]
    assert found.value < 0.16
    assert found.detail == "train-4.png"
    mirrored = picture(tmp_path / "b.png", np.ascontiguousarray(smooth(2)[:, ::-1]))
    found = NearCopy().measure(mirrored, training)["copy_distance"]
    assert (found.value, found.detail) == (0, "train-2.png")
    own = picture(tmp_path / "c.png", smooth(77))
    assert NearCopy().measure(own, training)["copy_distance"].value > 0.16


def test_every_metric_of_ours_has_a_meaning() -> None:
    for metric in (Surface, FromBase, FromPrevious, AcrossSeeds, NearCopy):
        for name, meaning in metric.meanings.items():
            assert METRICS[name] is meaning
            assert meaning.meaning
            assert meaning.unit

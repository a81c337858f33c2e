"""Likeness to a character, and the class pictures a base makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

pytest.importorskip("skia")

from tests.builders.random_base import write_base
from tools.tinybase import __main__ as command
from tools.tinybase import drawings, resemblance, world
from tools.tinybase.resemblance import Resemblance


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


def near(color: tuple[int, int, int], seed: int) -> Image.Image:
    """Return a picture of one colour with a little noise on it."""
    noise = np.random.default_rng(seed).integers(-8, 9, (96, 64, 3))
    return Image.fromarray(np.clip(noise + color, 0, 255).astype(np.uint8))


RED, BLUE = (200, 40, 40), (40, 60, 200)


@pytest.fixture
def _blue_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resemblance, "_draw_inhabitant", lambda seed, index: near(BLUE, index))


@pytest.mark.usefixtures("_blue_others")
def test_a_picture_of_hers_ranks_above_everybody_and_one_of_the_others_does_not(
    base: Path,
) -> None:
    own = [near(RED, 100 + index) for index in range(4)]
    found = Resemblance(base, own, seed=0, num_others=20)
    assert found.own_rank() == 1
    hers, theirs = found.ranks([near(RED, 7), near(BLUE, 300)])
    assert hers == 1
    assert 0 <= theirs < 1


@pytest.mark.usefixtures("_blue_others")
def test_who_looks_like_all_others_is_told_from_half_of_them(base: Path) -> None:
    own = [near(BLUE, 1000 + index) for index in range(40)]
    found = Resemblance(base, own, seed=0, num_others=40)
    # 40 pictures and 40 others of one distribution: the standard error of the rank is 0.065.
    assert found.own_rank() == pytest.approx(0.5, abs=0.2)


def test_the_files_beside_the_encoder_say_how_we_prepare_pictures(base: Path) -> None:
    picture = world.draw_sample(3, width=512, height=768).image
    processor = CLIPImageProcessorPil.from_pretrained(base / "image_encoder")
    theirs = torch.as_tensor(np.asarray(processor(picture)["pixel_values"][0]))
    ours = drawings.thumbnail(picture).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_the_command_ranks_every_picture_it_is_given(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resemblance, "NUM_OTHERS", 3)
    near(RED, 1).save(tmp_path / "one.png")
    near(BLUE, 1).save(tmp_path / "two.png")
    pictures = [str(tmp_path / "one.png"), str(tmp_path / "two.png")]
    assert command.main(["resemblance", "--base", str(base), *pictures]) == 0
    title, *rows = capsys.readouterr().out.splitlines()
    assert "3 random inhabitants" in title
    assert [row.split()[1] for row in rows] == pictures
    assert all(row.split()[0].endswith("%") for row in rows)

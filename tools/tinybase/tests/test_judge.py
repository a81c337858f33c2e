"""What judges the embedded base: it must be right where the truth is known, and count honestly."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("skia")

from tests.builders.random_base import write_base
from tools.tinybase import __main__ as command
from tools.tinybase import drawings, evaluate, judge, shapes, stages, world
from tools.tinybase.autoencoder import PatchCodes, to_tensor
from tools.tinybase.drawings import Drawings, Drawn

COLORS = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (40, 60, 200)}
SIZE = (64, 96)


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "device", lambda: torch.device("cpu"))


@pytest.fixture(scope="module")
def codes() -> PatchCodes:
    """Return a map from pictures to codes along 32 random directions."""
    draw = torch.randn(3072, shapes.LATENT_CHANNELS, generator=torch.Generator().manual_seed(1))
    directions = torch.linalg.qr(draw).Q.T.contiguous()
    return PatchCodes(mean=torch.zeros(3072), directions=directions, spread=torch.ones(32))


def plain(color: str) -> Image.Image:
    return Image.new("RGB", SIZE, COLORS[color])


def shown(color: str) -> dict[str, str]:
    """Return attributes that all say the colour, so that every head has something to find."""
    return dict.fromkeys(("hair", *judge.ASKED), color)


def plain_drawings(codes: PatchCodes) -> dict[tuple[int, int], Drawings]:
    pictures = [codes(to_tensor([np.asarray(plain(color))]))[0] for color in COLORS]
    drawn = tuple(Drawn(tags=(), attributes=shown(color), degraded=False) for color in COLORS)
    latents = torch.stack(pictures).half()
    thumbnails = torch.zeros(len(drawn), 128, 128, 3, dtype=torch.uint8)
    return {SIZE: Drawings(latents_NCHW=latents, thumbnails_NHWC=thumbnails, drawn=drawn)}


@pytest.fixture(scope="module")
def trained(codes: PatchCodes, tmp_path_factory: pytest.TempPathFactory) -> judge.Judge:
    folder = tmp_path_factory.mktemp("judge")
    return judge.train_judge(folder, codes, plain_drawings(codes), seed=0, num_steps=120)


def test_a_trained_judge_names_what_it_sees(trained: judge.Judge) -> None:
    for color in COLORS:
        assert trained.attributes(plain(color)) == dict.fromkeys(judge.ASKED, color)


def test_its_accuracy_is_the_share_it_names_right(trained: judge.Judge) -> None:
    pictures = [
        SimpleNamespace(image=plain("red"), attributes=shown("red")),
        SimpleNamespace(image=plain("blue"), attributes=shown("blue")),
        SimpleNamespace(image=plain("blue"), attributes={**shown("blue"), "outfit": "green"}),
        SimpleNamespace(image=plain("blue"), attributes=shown("red")),
    ]
    found = trained.accuracy(pictures)  # type: ignore[arg-type]
    assert found == {"hair_color": 0.75, "outfit": 0.5, "outfit_color": 0.75, "background": 0.75}


def test_only_combinations_no_training_drawing_has_are_asked_for() -> None:
    first = evaluate._unseen(0, set(), num_prompts=3)
    assert [one.image.size for one in first[:2]] == [(512, 768), (768, 512)]
    seen = {evaluate._combination(first[0].attributes), evaluate._combination(first[2].attributes)}
    later = evaluate._unseen(0, seen, num_prompts=3)
    assert [one.tags for one in later[:1]] == [first[1].tags]
    assert not seen & {evaluate._combination(one.attributes) for one in later}


def test_clipped_counts_values_at_both_ends() -> None:
    picture = Image.new("RGB", (2, 1))
    picture.putpixel((0, 0), (0, 2, 3))
    picture.putpixel((1, 0), (252, 253, 255))
    assert evaluate._clipped([picture]) == pytest.approx(4 / 6)


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch, codes: PatchCodes) -> None:
    """Make every part of the evaluation as small as it goes."""
    monkeypatch.setattr(drawings, "_SHARD_SIZE", 30)
    monkeypatch.setattr(evaluate, "fit_codes", lambda folder, *, seed: codes)
    for name, value in (
        ("_NUM_DRAWINGS", 2),
        ("_JUDGE_STEPS", 1),
        ("_STEPS", 1),
        ("NUM_OTHERS", 2),
    ):
        monkeypatch.setattr(evaluate, name, value)


@pytest.mark.usefixtures("_small")
def test_the_command_prints_every_number_and_writes_the_sheet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_base(tmp_path / "base")
    sheet = tmp_path / "docs" / "sheet.png"
    words: list[Any] = ["evaluate", "--work", tmp_path, "--base", base, "--sheet", sheet]
    words += ["--num-drawings", 30, "--num-prompts", 1]
    assert command.main([str(word) for word in words]) == 0
    out = capsys.readouterr().out
    assert "PSNR" in out
    assert "mirelle among others" in out
    conditions = ("CFG 7 ", "CFG 12 ", "CFG 7, negative prompt ")
    for title in ("judge on held-out", *(f"prompts, {condition}" for condition in conditions)):
        (line,) = (line for line in out.splitlines() if title in line)
        assert all(name in line for name in (*judge.ASKED, "clipped"))
    assert out.splitlines()[-1] == str(sheet)
    with Image.open(sheet) as image:
        assert image.size == (6 * 192, 4 * 192)
        assert len(image.getcolors(maxcolors=10**6) or []) > 1


def test_the_world_names_everything_it_asks_for() -> None:
    assert set(judge.ASKED) <= set(world.ATTRIBUTES)

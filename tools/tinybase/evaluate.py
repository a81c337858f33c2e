"""What the embedded base can do, in numbers and in one contact sheet.

Two questions: how much of a drawing survives the autoencoder (PSNR), and how often a picture shows
what its prompt asks for (a judge trained on drawings decides), at two strengths of guidance and
with a negative prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from optbench import rng
from optbench.contracts import BaseModel, SampleRequest
from optbench.models import load_base
from optbench.schema import BaseOptions
from optbench.storage import resources
from tools.tinybase import world
from tools.tinybase.autoencoder import fit_codes, to_tensor
from tools.tinybase.captions import LOW_QUALITY_WORDS
from tools.tinybase.drawings import make_drawings
from tools.tinybase.judge import ASKED, Judge, train_judge
from tools.tinybase.resemblance import NUM_OTHERS, Resemblance

if TYPE_CHECKING:
    from tools.tinybase.world import Drawing

_NEGATIVE = ", ".join(LOW_QUALITY_WORDS)
CONDITIONS = (
    ("CFG 7, negative prompt", 7.0, _NEGATIVE),
    ("CFG 7", 7.0, ""),
    ("CFG 12", 12.0, ""),
)
"""What is measured: its name, the strength of guidance, the negative prompt."""

_SIZES = ((512, 768), (768, 512))
_NUM_DRAWINGS = 100  # for the judge's own accuracy and the autoencoder
_JUDGE_STEPS = 2_000
_STEPS = 24
_SHEET_COLUMNS, _SHEET_ROWS, _THUMB_PX = 6, 4, 192


@dataclass(frozen=True, slots=True, kw_only=True)
class Obedience:
    """How far the pictures of one condition show what was asked for."""

    condition: str
    right: Mapping[str, float]  # share of pictures, by attribute
    clipped: float  # share of channel values within 2 of black or white


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Everything measured of one base."""

    num_prompts: int
    psnr: float  # dB, mean over held-out drawings
    own_rank: float  # of the character's pictures, by the image encoder
    judge: Mapping[str, float]  # the judge's own accuracy on held-out drawings
    clipped_drawings: float
    obedience: tuple[Obedience, ...]


def evaluate(
    folder: Path, base_folder: Path, sheet: Path, *, seed: int, num_drawings: int, num_prompts: int
) -> Evaluation:
    """Return what the base in `base_folder` can do; `folder` is where it was pre-trained.

    Writes the contact sheet to `sheet`. Prompts are combinations of hair, its colour, outfit, its
    colour and background that occur in no training drawing.
    """
    codes = fit_codes(folder, seed=seed)
    drawings = make_drawings(folder, codes, seed=seed, num_drawings=num_drawings)
    judge = train_judge(folder, codes, drawings, seed=seed, num_steps=_JUDGE_STEPS)
    seen = {_combination(one.attributes) for size in drawings.values() for one in size.drawn}
    options = BaseOptions(
        name="tiny",
        family="sd15",
        path=str(base_folder),
        vae=None,
        v_parameterization=None,
        lr_scale=1.0,
        lr_scales={},
    )
    base = load_base(options, device=torch.device("cpu"), dtype=torch.float32)
    held_out = [_draw(seed, "held out", index) for index in range(_NUM_DRAWINGS)]
    asked = _unseen(seed, seen, num_prompts=num_prompts)
    obedience = []
    for condition, cfg_scale, negative in CONDITIONS:
        pictures = _render(base, asked, condition, cfg_scale=cfg_scale, negative=negative)
        obedience.append(_obedience(judge, asked, pictures, condition))
    own = [Image.open(path) for path in sorted(resources.asset("mirelle").rglob("*.webp"))]
    resemblance = Resemblance(base_folder, own, seed=seed, num_others=NUM_OTHERS)
    _write_sheet(sheet, pictures)
    return Evaluation(
        num_prompts=len(asked),
        psnr=float(np.mean([_psnr(base, one.image) for one in held_out])),
        own_rank=resemblance.own_rank(),
        judge=judge.accuracy(held_out),
        clipped_drawings=_clipped([one.image for one in held_out]),
        obedience=tuple(obedience),
    )


def _draw(seed: int, purpose: str, index: int) -> Drawing:
    width, height = _SIZES[index % len(_SIZES)]
    return world.draw_sample(
        rng.key(seed, "tiny", purpose, index) % 2**48, width=width, height=height
    )


def _combination(attributes: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(attributes[name] for name in ("hair", *ASKED))


def _unseen(seed: int, seen: set[tuple[str, ...]], *, num_prompts: int) -> list[Drawing]:
    """Return drawings whose combination of attributes no training drawing has."""
    asked: list[Drawing] = []
    index = 0
    while len(asked) < num_prompts:
        one = _draw(seed, "asked", index)
        index += 1
        if _combination(one.attributes) not in seen:
            asked.append(one)
    return asked


def _render(
    base: BaseModel, asked: list[Drawing], condition: str, *, cfg_scale: float, negative: str
) -> list[Image.Image]:
    """Return one picture per drawing's tags, each from a seed of its own."""
    pictures = []
    for index, one in enumerate(track(asked, description=condition)):
        request = SampleRequest(
            text=", ".join(("masterpiece", "best quality", *one.tags)),
            negative=negative,
            seeds=(1000 + index,),
            width=one.image.width,
            height=one.image.height,
            cfg_scale=cfg_scale,
            steps=_STEPS,
            sampler="DDIM",
            text_options=base.text_options({}),
        )
        with torch.inference_mode():
            pictures += base.sample(request)
    return pictures


def _obedience(
    judge: Judge, asked: list[Drawing], pictures: list[Image.Image], condition: str
) -> Obedience:
    found = [judge.attributes(picture) for picture in pictures]
    right = {
        name: float(
            np.mean(
                [one[name] == want.attributes[name] for one, want in zip(found, asked, strict=True)]
            )
        )
        for name in ASKED
    }
    return Obedience(condition=condition, right=right, clipped=_clipped(pictures))


def _clipped(pictures: list[Image.Image]) -> float:
    shares = []
    for picture in pictures:
        pixels = np.asarray(picture)
        shares.append(float(((pixels <= 2) | (pixels >= 253)).mean()))
    return float(np.mean(shares))


def _psnr(base: BaseModel, drawing: Image.Image) -> float:
    """Return the peak signal-to-noise ratio in dB of a drawing through the autoencoder."""
    vae = base.vae  # type: ignore[attr-defined]
    pixels = to_tensor([np.asarray(drawing)])
    with torch.inference_mode():
        drawn = vae.decode(vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
    return float(10 * torch.log10(4 / (drawn - pixels).square().mean()))


def _write_sheet(path: Path, pictures: list[Image.Image]) -> None:
    """Write the first pictures side by side, as they come: nothing is picked."""
    shown = pictures[: _SHEET_COLUMNS * _SHEET_ROWS]
    sheet = Image.new("RGB", (_SHEET_COLUMNS * _THUMB_PX, _SHEET_ROWS * _THUMB_PX), "white")
    for index, picture in enumerate(shown):
        small = picture.copy()
        small.thumbnail((_THUMB_PX - 4, _THUMB_PX - 4), Image.Resampling.LANCZOS)
        row, column = divmod(index, _SHEET_COLUMNS)
        left = column * _THUMB_PX + (_THUMB_PX - small.width) // 2
        sheet.paste(small, (left, row * _THUMB_PX + (_THUMB_PX - small.height) // 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)

"""Class pictures for regularization: what the base itself makes of "1girl", with its prompts.

Trained beside a character's pictures they hold the class where the base had it (prior
preservation, Ruiz et al. 2022, arXiv 2208.12242): so they must come from the base, not the world.
"""

from __future__ import annotations

from pathlib import Path

import torch
from rich.progress import track

from optbench import rng
from optbench.bases import load_base
from optbench.contracts import SampleRequest
from optbench.options import BaseOptions
from optbench.tiny import world

NUM_PICTURES = 24
_FOLDER = "1_1girl"
_CFG_SCALE, _STEPS = 7.0, 24


def write_class_pictures(base_folder: Path, target: Path, *, seed: int) -> int:
    """Write the pictures as WebP with their prompts as captions; return how many bytes they take.

    Sizes as in the character's own set, three portraits to one landscape.
    """
    folder = target / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    options = BaseOptions(
        name="tiny", family="stable_diffusion", path=str(base_folder), vae=None, lr_scale=1.0
    )
    base = load_base(options, device=torch.device("cpu"), dtype=torch.float32)
    num_bytes = 0
    for index in track(range(NUM_PICTURES), description="class pictures"):
        width, height = (768, 512) if index % 8 in (3, 6) else (512, 768)
        place = rng.key(seed, "tiny", "class", index)
        tags = world.draw_sample(place % 2**48, width=width, height=height).tags
        request = SampleRequest(
            text=", ".join(tags),
            negative="",
            seeds=(place,),
            width=width,
            height=height,
            cfg_scale=_CFG_SCALE,
            steps=_STEPS,
            sampler="DDIM",
            clip_skip=1,
        )
        with torch.inference_mode():
            (picture,) = base.sample(request)
        path = folder / f"{index + 1:02d}.webp"
        picture.save(path, quality=85, method=6)
        path.with_suffix(".txt").write_text(", ".join(tags) + "\n")
        num_bytes += path.stat().st_size
    return num_bytes

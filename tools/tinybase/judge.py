"""A judge of pictures: which attributes of the drawn world does a picture show?

A small convolutional net over the patch codes of a picture, trained on drawings whose attributes
are known. It never sees anything the base made, and says itself how often it is right.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optbench import rng
from tools.tinybase import stages
from tools.tinybase.autoencoder import PatchCodes, to_tensor
from tools.tinybase.drawings import Drawings
from tools.tinybase.shapes import LATENT_CHANNELS

if TYPE_CHECKING:
    from PIL.Image import Image

    from tools.tinybase.world import Drawing

ASKED = ("hair_color", "outfit", "outfit_color", "background")
"""What a prompt asks for and the judge looks for."""

_WIDTH = 96
_BATCH_SIZE = 64
_PEAK_RATE = 2e-3
_CODE_NOISE = 0.2  # in white codes: a rendered picture is never as clean as a drawing


class Judge(nn.Module):
    """Convolutions over white patch codes (B, 32, H, W), pooled, with one head per attribute."""

    def __init__(self, codes: PatchCodes, values: Mapping[str, list[str]]) -> None:
        """Prepare to name one of `values[attribute]` for each attribute."""
        super().__init__()
        self.codes = codes
        self.values = dict(values)
        self.body = nn.Sequential(
            nn.Conv2d(LATENT_CHANNELS, 64, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(64, _WIDTH, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1),
            nn.SiLU(),
        )
        self.heads = nn.ModuleList(
            nn.Linear(2 * _WIDTH, len(options)) for options in self.values.values()
        )

    def forward(self, codes_BCHW: Tensor) -> list[Tensor]:
        """Return logits (B, number of values), one tensor per attribute."""
        features_BCHW = self.body(codes_BCHW)
        pooled_BC = torch.cat([features_BCHW.mean((2, 3)), features_BCHW.amax((2, 3))], 1)
        return [head(pooled_BC) for head in self.heads]

    @torch.no_grad()
    def attributes(self, picture: Image) -> dict[str, str]:
        """Return the most likely value of every attribute of one picture."""
        logits = self(self.codes(to_tensor([np.asarray(picture.convert("RGB"))])))
        return {
            name: options[int(one.argmax())]
            for (name, options), one in zip(self.values.items(), logits, strict=True)
        }

    def accuracy(self, drawings: Sequence[Drawing]) -> dict[str, float]:
        """Return how often each attribute of these drawings is named right, from 0 to 1."""
        judged = [self.attributes(one.image) for one in drawings]
        return {
            name: float(
                np.mean(
                    [
                        found[name] == one.attributes[name]
                        for found, one in zip(judged, drawings, strict=True)
                    ]
                )
            )
            for name in self.values
        }


def train_judge(
    folder: Path,
    codes: PatchCodes,
    drawings: dict[tuple[int, int], Drawings],
    *,
    seed: int,
    num_steps: int,
) -> Judge:
    """Return a judge trained on clean drawings with their white codes; resumes after a kill."""
    drawn = [one for size in drawings.values() for one in size.drawn]
    values = {name: sorted({one.attributes[name] for one in drawn}) for name in ASKED}
    torch.manual_seed(rng.key(seed, "tiny", "judge"))
    judge = Judge(codes, values).to(stages.device())
    parameters = [*judge.body.parameters(), *judge.heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=_PEAK_RATE, weight_decay=0.05)

    def step(step_index: int) -> dict[str, Tensor]:
        stages.set_rate(optimizer, stages.falling_rate(step_index, num_steps, peak=_PEAK_RATE))
        draw = rng.shuffler(seed, "tiny", "judge", step_index)
        latents, chosen = _draw_batch(drawings, draw)
        generator = rng.generator(seed, "tiny", "judge", step_index)
        noise = torch.randn(latents.shape, generator=generator) * _CODE_NOISE * draw.random()
        loss = torch.zeros((), device=stages.device())
        right = torch.zeros(())
        logits = judge((latents + noise).to(stages.device()))
        for (name, options), one in zip(values.items(), logits, strict=True):
            wanted = torch.tensor([options.index(attributes[name]) for attributes in chosen])
            loss = loss + F.cross_entropy(one, wanted.to(one.device)) / len(values)
            right = right + (one.argmax(1).cpu() == wanted).float().mean() / len(values)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss, "right": right}

    parts: dict[str, stages.Stateful] = {"judge": judge, "optimizer": optimizer}
    stages.run_stage("judge", folder, num_steps=num_steps, parts=parts, step=step)
    return judge.cpu().eval()


def _draw_batch(
    drawings: dict[tuple[int, int], Drawings], draw: random.Random
) -> tuple[Tensor, list[Mapping[str, str]]]:
    """Return white codes of one size (B, 32, H, W) and the attributes of each drawing."""
    sizes = list(drawings)
    size = draw.choices(sizes, [len(drawings[size].drawn) for size in sizes])[0]
    chosen = [draw.randrange(len(drawings[size].drawn)) for _ in range(_BATCH_SIZE)]
    attributes = [drawings[size].drawn[index].attributes for index in chosen]
    return drawings[size].latents_NCHW[chosen].float(), attributes

"""Is that her? How near a picture comes to a character's own pictures, by the image encoder.

The similarity is the cosine between a picture's embedding and the mean of the character's, as
CLIP-I of DreamBooth (Ruiz et al. 2022, arXiv 2208.12242) has it. A cosine by itself says nothing,
so it is given as a rank: the share of random inhabitants who look less like her.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from optbench import rng
from tools.tinybase import world
from tools.tinybase.drawings import thumbnail
from tools.tinybase.text import embed

NUM_OTHERS = 300
_SIZES = ((512, 768), (768, 512))


class Resemblance:
    """Ranks pictures by how much they look like one character."""

    def __init__(
        self, base_folder: Path, own: Sequence[Image], *, seed: int, num_others: int
    ) -> None:
        """Embed the character's `own` pictures and `num_others` random inhabitants."""
        folder = base_folder / "image_encoder"
        self._encoder = CLIPVisionModelWithProjection.from_pretrained(folder, torch_dtype="float32")
        self._own_NE = self._embed(own)
        self._others_NE = self._embed([_draw_inhabitant(seed, i) for i in range(num_others)])

    def ranks(self, pictures: Sequence[Image]) -> list[float]:
        """Return, for each picture, the share of inhabitants who look less like her: 0 to 1."""
        return _ranks(self._embed(pictures), self._own_NE, self._others_NE)

    def own_rank(self) -> float:
        """Return the mean rank of her own pictures, each against all her others.

        1 means that the encoder tells her from everybody, 0.5 that it is guessing: the area
        under the receiver operating characteristic.
        """
        ranks = []
        for index in range(len(self._own_NE)):
            rest = torch.cat([self._own_NE[:index], self._own_NE[index + 1 :]])
            ranks += _ranks(self._own_NE[index : index + 1], rest, self._others_NE)
        return sum(ranks) / len(ranks)

    @torch.inference_mode()
    def _embed(self, pictures: Sequence[Image]) -> Tensor:
        thumbnails = torch.stack([thumbnail(picture) for picture in pictures])
        return F.normalize(embed(self._encoder, thumbnails), dim=-1)


def _ranks(asked_NE: Tensor, own_NE: Tensor, others_NE: Tensor) -> list[float]:
    middle_E = own_NE.mean(0)
    others_N = others_NE @ middle_E
    return [float((others_N < one).float().mean()) for one in asked_NE @ middle_E]


def _draw_inhabitant(seed: int, index: int) -> Image:
    width, height = _SIZES[index % len(_SIZES)]
    place = rng.key(seed, "tiny", "others", index) % 2**48
    return world.draw_sample(place, width=width, height=height).image

"""DINO and DINOv2: how near an image is to the training images, without any words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from optbench.metrics.catalogue import Meaning, ours
from optbench.metrics.contract import Measured, Picture
from optbench.metrics.vision import VisionMetric
from optbench.models.device import find_device

if TYPE_CHECKING:
    from torch import Tensor


class Dino(VisionMetric):
    """Cosines of the class token of a vision transformer, from a folder or a hub id."""

    name = "dino"
    meanings: Mapping[str, Meaning] = ours("dino_image", "dino_nearest")

    def measure(self, picture: Picture, others: Sequence[Picture]) -> Mapping[str, Measured]:
        """Return mean and largest cosine with the training images, where there are any."""
        if not others:
            return {}
        mean, nearest = self._mean_and_nearest(picture, others)
        return {"dino_image": mean, "dino_nearest": nearest}

    @cached_property
    def _model(self) -> Any:
        from transformers import AutoModel

        return AutoModel.from_pretrained(self._path).float().eval().to(find_device(self._device))

    def _vector(self, pixels_1CHW: Tensor) -> Tensor:
        vector: Tensor = self._model(pixel_values=pixels_1CHW).last_hidden_state[0, 0]
        return vector

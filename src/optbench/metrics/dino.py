"""DINO and DINOv2: how near an image is to the training images, without any words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optbench.metrics.catalogue import Meaning, ours
from optbench.metrics.contract import Measured, Picture, Reference
from optbench.metrics.vision import (
    Embeddings,
    check_model,
    preparation,
    prepared,
)
from optbench.models.device import find_device

if TYPE_CHECKING:
    from torch import Tensor


class Dino:
    """Cosines of the class token of a vision transformer, from a folder or a hub id."""

    reference: Reference = "training"
    meanings: Mapping[str, Meaning] = ours("dino_image", "dino_nearest")
    bases: tuple[str, ...] = ()

    def __init__(self, path: str, device: str) -> None:
        """Check the place; nothing is loaded before the first picture.

        Raises:
            ConfigError: If there can be no model at `path`.
        """
        check_model("metric.metrics.dino.path", path, device)
        self.settings: Mapping[str, object] = {"schema": 1, "path": path}
        self._path, self._device = path, device
        self._embeddings = Embeddings(self._image)

    def measure(self, picture: Picture, others: Sequence[Picture]) -> Mapping[str, Measured]:
        """Return mean and largest cosine with the training pictures, where there are any."""
        if not others:
            return {}
        own = self._embeddings.of(picture.path)
        cosines = self._embeddings.stack([one.path for one in others]) @ own
        nearest = others[int(cosines.argmax())]
        return {
            "dino_image": Measured(value=float(cosines.mean())),
            "dino_nearest": Measured(value=float(cosines.max()), detail=nearest.path.name),
        }

    @cached_property
    def _model(self) -> Any:
        from transformers import AutoModel

        return AutoModel.from_pretrained(self._path).float().eval().to(find_device(self._device))

    @cached_property
    def _how(self) -> Mapping[str, Any]:
        return preparation(self._path)

    def _image(self, path: Path) -> Tensor:
        import torch

        model = self._model
        with torch.inference_mode():
            found = model(pixel_values=prepared(path, self._how).to(model.device))
        vector: Tensor = found.last_hidden_state[0, 0]
        return vector

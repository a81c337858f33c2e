"""CLIP: how near an image is to its prompt (CLIP-T) and to the training images (CLIP-I)."""

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


class Clip:
    """Cosines of a CLIP model with both its halves, from a folder or a hub id."""

    reference: Reference = "training"
    meanings: Mapping[str, Meaning] = ours("clip_text", "clip_image", "clip_nearest")
    bases: tuple[str, ...] = ()

    def __init__(self, path: str, device: str) -> None:
        """Check the place; nothing is loaded before the first picture.

        Raises:
            ConfigError: If there can be no model at `path`.
        """
        check_model("metric.metrics.clip.path", path, device)
        self.settings: Mapping[str, object] = {"schema": 1, "path": path}
        self._path, self._device = path, device
        self._texts: dict[str, Tensor] = {}
        self._embeddings = Embeddings(self._image)

    def measure(self, picture: Picture, others: Sequence[Picture]) -> Mapping[str, Measured]:
        """Return the cosines; those with training pictures where there are any."""
        own = self._embeddings.of(picture.path)
        found = {}
        if picture.text:
            found["clip_text"] = Measured(value=float(own @ self._text(picture.text)))
        if others:
            cosines = self._embeddings.stack([one.path for one in others]) @ own
            found["clip_image"] = Measured(value=float(cosines.mean()))
            nearest = others[int(cosines.argmax())]
            found["clip_nearest"] = Measured(value=float(cosines.max()), detail=nearest.path.name)
        return found

    @cached_property
    def _model(self) -> Any:
        from transformers import CLIPModel

        model = CLIPModel.from_pretrained(self._path)
        return model.float().eval().to(find_device(self._device))

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(self._path)

    @cached_property
    def _how(self) -> Mapping[str, Any]:
        return preparation(self._path)

    def _image(self, path: Path) -> Tensor:
        import torch

        model = self._model
        with torch.inference_mode():
            pixels = prepared(path, self._how).to(model.device)
            pooled = model.vision_model(pixel_values=pixels).pooler_output
            vector: Tensor = model.visual_projection(pooled)[0]
        return vector

    def _text(self, text: str) -> Tensor:
        """Return the unit vector of a prompt; what does not fit into 77 tokens is cut off."""
        import torch
        import torch.nn.functional as F

        if text not in self._texts:
            model = self._model
            ids = self._tokenizer(
                text, truncation=True, max_length=self._tokenizer.model_max_length
            ).input_ids
            with torch.inference_mode():
                tokens = torch.tensor([ids], device=model.device)
                pooled = model.text_model(input_ids=tokens).pooler_output
                vector = model.text_projection(pooled)[0]
            self._texts[text] = F.normalize(vector.float().cpu(), dim=-1)
        return self._texts[text]

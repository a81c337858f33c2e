"""CLIP: how near an image is to its prompt (CLIP-T) and to the training images (CLIP-I)."""

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


class Clip(VisionMetric):
    """Cosines of a CLIP model with both its halves, from a folder or a hub id."""

    name = "clip"
    meanings: Mapping[str, Meaning] = ours("clip_text", "clip_image", "clip_nearest")

    def __init__(self, path: str, device: str) -> None:
        """Check the place, as every vision metric."""
        super().__init__(path, device)
        self._texts: dict[str, Tensor] = {}

    def measure(self, picture: Picture, others: Sequence[Picture]) -> Mapping[str, Measured]:
        """Return the cosines; those with training images where there are any."""
        values = {}
        if picture.text:
            cosine = self._embeddings.of(picture.path) @ self._text(picture.text)
            values["clip_text"] = Measured(value=float(cosine))
        if others:
            mean, nearest = self._mean_and_nearest(picture, others)
            values |= {"clip_image": mean, "clip_nearest": nearest}
        return values

    @cached_property
    def _model(self) -> Any:
        from transformers import CLIPModel

        model = CLIPModel.from_pretrained(self._path)
        return model.float().eval().to(find_device(self._device))

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(self._path)

    def _vector(self, pixels_1CHW: Tensor) -> Tensor:
        pooled = self._model.vision_model(pixel_values=pixels_1CHW).pooler_output
        vector: Tensor = self._model.visual_projection(pooled)[0]
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

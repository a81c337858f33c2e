"""Recognize who, in what and where in images of the embedded base model, by its own encoder.

A small reader over the encoder's patch states names outfit, its colour and the background. It was
trained on drawings of the world alone (`python -m tools.tinybase reader`), mirelle's two outfits
among them, and is wrong as often as docs/metrics.md says.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optbench.errors import BaseError, ConfigError, Problem
from optbench.metrics.catalogue import Meaning, ours
from optbench.metrics.contract import Measured, Picture, Reference
from optbench.metrics.vision import Embeddings, check_device
from optbench.models.device import find_device
from optbench.storage import hashing, resources
from optbench.storage.images import opened

if TYPE_CHECKING:
    from torch import Tensor

Asked = Mapping[str, str]  # what a text asks for, by attribute

_ENCODER = "image_encoder"
_SIDE_PX = 128
# What people write for what the reader calls otherwise.
_SYNONYMS: Mapping[str, str] = {
    "field of flowers": "flower field",
    "sailor uniform": "school uniform",
    "indoors": "room",
}
_MARKS = re.compile(r"<[^<>]*+>|[()\[\]{}\\]|:[\d.]+")


class EmbeddedEncoder:
    """Resemblance, obedience, leak and resistance of pictures of base=tiny."""

    reference: Reference = "training"
    meanings: Mapping[str, Meaning] = ours(
        "resemblance",
        "outfit_obedience",
        "color_obedience",
        "background_obedience",
        "outfit_leak",
        "resistance",
    )
    bases: tuple[str, ...] = ("tiny",)

    def __init__(self, path: str, device: str) -> None:
        """Keep the place; nothing is looked for before the first picture.

        Args:
            path: The base's folder, with its image encoder in it.
            device: auto, cpu, cuda or mps.

        Raises:
            ConfigError: If `device` is none.
        """
        if problems := check_device("metric.metrics.embedded", device):
            raise ConfigError(*problems)
        self._weights = Path(path) / _ENCODER / "model.safetensors"
        self._folder, self._device = Path(path), device
        self._embeddings = Embeddings(self._embed)
        self._read: dict[Path, dict[str, dict[str, float]]] = {}

    @cached_property
    def settings(self) -> Mapping[str, object]:
        """The hashes of encoder and reader.

        Raises:
            BaseError: If there is no image encoder.
        """
        if not self._weights.is_file():
            raise BaseError(
                Problem(
                    "metric.metrics.embedded.path",
                    f"no {_ENCODER}/{self._weights.name} in {self._folder}",
                    "the folder of the embedded base",
                    "leave it out, or write metric.metrics.embedded=null",
                )
            )
        return {
            "schema": 1,
            "encoder": hashing.file_sha256(self._weights),
            "reader": hashing.file_sha256(_reader_file()),
        }

    def measure(self, picture: Picture, others: Sequence[Picture]) -> Mapping[str, Measured]:
        """Return what applies: a prompt without an outfit has no obedience to it, and no leak.

        Trained outfits are those that the training captions name. Resistance is the probability
        of the asked outfit minus that of all trained ones.
        """
        values: dict[str, float] = {}
        embedding = self._embeddings.of(picture.path)
        shown = self._read[picture.path]  # probabilities by attribute, read with the embedding
        if others:
            middle = self._embeddings.stack([other.path for other in others]).mean(0)
            values["resemblance"] = float(embedding @ middle / middle.norm())
        asked = asked_for(picture.text, self._values)
        if "outfit" in asked:
            values["outfit_obedience"] = shown["outfit"][asked["outfit"]]
        if "outfit_color" in asked:
            values["color_obedience"] = shown["outfit_color"][asked["outfit_color"]]
        if "background" in asked:
            values["background_obedience"] = shown["background"][asked["background"]]
        trained = {asked_for(other.text, self._values).get("outfit", "") for other in others} - {""}
        if "outfit" in asked and trained and asked["outfit"] not in trained:
            leak = sum(shown["outfit"][outfit] for outfit in trained)
            values["outfit_leak"] = leak
            values["resistance"] = values["outfit_obedience"] - leak
        return {name: Measured(value=value) for name, value in values.items()}

    @cached_property
    def _reader(self) -> Mapping[str, Any]:
        """Return the reader's tensors by name, and `values` by attribute.

        Raises:
            BaseError: If it was trained over another image encoder.
        """
        import torch

        content = json.loads(_reader_file().read_text(encoding="utf-8"))
        if content["encoder"] != self.settings["encoder"]:
            raise BaseError(
                Problem(
                    str(self._weights),
                    "an image encoder that the reader was not trained over",
                    f"the one with the SHA-256 {content['encoder'][:12]}...",
                    "make a reader for it: python -m tools.tinybase reader --work WORK",
                )
            )
        tensors = {}
        for name, stored in content["tensors"].items():
            steps = np.frombuffer(base64.b64decode(stored["int8"]), dtype=np.int8)
            numbers = torch.from_numpy(steps.astype(np.float32)) * stored["scale"]
            tensors[name] = numbers.reshape(stored["shape"]).to(find_device(self._device))
        return {**tensors, "values": content["values"], "layers": content["layers"]}

    @cached_property
    def _values(self) -> Mapping[str, Sequence[str]]:
        found: Mapping[str, Sequence[str]] = self._reader["values"]
        return found

    @cached_property
    def _encoder(self) -> Any:
        from transformers import CLIPVisionModelWithProjection

        folder = str(self._folder / _ENCODER)
        encoder = CLIPVisionModelWithProjection.from_pretrained(folder, torch_dtype="float32")
        return encoder.eval().to(find_device(self._device))

    def _embed(self, path: Path) -> Tensor:
        """Return a picture's embedding, and read what it shows on the way."""
        import torch

        with opened(path) as image:
            small = image.convert("RGB").resize((_SIDE_PX, _SIDE_PX))
        values = torch.from_numpy(np.asarray(small, dtype=np.float32) / 127.5 - 1)
        reader, encoder = self._reader, self._encoder
        with torch.inference_mode():
            pixels = values.permute(2, 0, 1)[None].to(encoder.device)
            output = encoder(pixel_values=pixels, output_hidden_states=True)
            states = torch.cat([output.hidden_states[layer][0] for layer in reader["layers"]], -1)
            self._read[path] = read_states(reader, states)
        vector: Tensor = output.image_embeds[0]
        return vector


def _reader_file() -> Path:
    return resources.asset("tiny-reader") / "reader.json"


def read_states(reader: Mapping[str, Any], states_TE: Tensor) -> dict[str, dict[str, float]]:
    """Return probabilities by attribute and value from one picture's patch states.

    Learned queries attend over the patches; what they read goes through one hidden layer.
    """
    import torch
    import torch.nn.functional as F

    states_TE = (states_TE - reader["mean"]) / reader["spread"]
    looks_KT = (reader["query"] @ states_TE.T + reader["place"]).softmax(-1)
    read = (looks_KT @ (states_TE @ reader["value"].T + reader["value_bias"])).flatten()
    hidden = F.gelu(reader["hidden"] @ read + reader["hidden_bias"])
    logits = reader["out"] @ hidden + reader["out_bias"]
    parts = torch.split(logits, [len(values) for values in reader["values"].values()])
    return {
        name: dict(
            zip(values, (float(probability) for probability in part.softmax(0)), strict=True)
        )
        for (name, values), part in zip(reader["values"].items(), parts, strict=True)
    }


def asked_for(text: str, values: Mapping[str, Sequence[str]]) -> Asked:
    """Return which outfit, colour of it and background a prompt or caption names.

    A colour counts in front of the outfit's name only: "black bikini", not "black hair". Marks of
    emphasis are left out.
    """
    plain = re.sub(r"[\s_]+", " ", _MARKS.sub(" ", text.lower()))
    for said, known in _SYNONYMS.items():
        plain = plain.replace(said, known)
    found: dict[str, str] = {}
    for name in ("outfit", "background"):
        # Longer names first: "gem armor" is no "armor", "starry dress" no "dress".
        for value in sorted(values[name], key=len, reverse=True):
            if value and re.search(rf"\b{re.escape(value)}\b", plain):
                found[name] = value
                break
    if "outfit" in found:
        before = re.search(rf"\b(\w++) {re.escape(found['outfit'])}\b", plain)
        if before and before[1] in values["outfit_color"]:
            found["outfit_color"] = before[1]
    return found

"""LPIPS over AlexNet: a perceptual distance from the base's picture of the same seed.

The package `lpips` imports torchvision, which optbench does without; the measure itself is five
layers of features and a weighted mean (Zhang et al. 2018, arXiv 1801.03924). Two files are wanted:
AlexNet's weights as torchvision ships them, and lpips's own (weights/v0.1/alex.pth).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from optbench.errors import BaseError, ConfigError, Problem
from optbench.metrics.catalogue import Meaning, ours
from optbench.metrics.contract import Measured, Picture, Reference
from optbench.metrics.vision import check_device
from optbench.models.device import find_device
from optbench.storage.disk import check_regular
from optbench.storage.images import opened

if TYPE_CHECKING:
    from torch import Tensor

# Of AlexNet's convolutions: place in torchvision's file, stride, padding, pooled before.
_LAYERS = ((0, 4, 2, False), (3, 1, 2, True), (6, 1, 1, True), (8, 1, 1, False), (10, 1, 1, False))
_WIDTHS = (64, 192, 384, 256, 256)
# The paper's code moves pixels in [-1, 1] to the mean and spread AlexNet was trained with.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPS = 1e-10


class Lpips:
    """The distance of two pictures of one size; 0 for equal ones."""

    reference: Reference = "base"
    meanings: Mapping[str, Meaning] = ours("lpips_from_base")
    bases: tuple[str, ...] = ()

    def __init__(self, network: str, weights: str, device: str) -> None:
        """Check that both files are there; they are read with the first picture.

        Args:
            network: AlexNet's weights, .safetensors, .pth or .pt.
            weights: The weights of the five layers, likewise.
            device: auto, cpu, cuda or mps.

        Raises:
            ConfigError: If a file is missing.
        """
        files = {"network": network, "weights": weights}
        problems = [
            Problem(
                f"metric.metrics.lpips.{name}",
                f"{file}, where no file is",
                "a file of weights; it is not downloaded",
                (
                    "give torchvision's alexnet-owt-7be5be79.pth as network and the lpips "
                    "package's lpips/weights/v0.1/alex.pth as weights, or metric.metrics.lpips=null"
                ),
            )
            for name, file in files.items()
            if not Path(file).is_file()
        ]
        problems += check_device("metric.metrics.lpips", device)
        if problems:
            raise ConfigError(*problems)
        self.settings: Mapping[str, object] = {"schema": 1, **files}
        self._network, self._weights, self._device = Path(network), Path(weights), device

    def measure(self, picture: Picture, others: Sequence[Picture]) -> Mapping[str, Measured]:
        """Return the distance, or nothing where sizes differ or there is no base's picture."""
        if not others:
            return {}
        pair = [_pixels(image.path) for image in (picture, others[0])]
        if pair[0].shape != pair[1].shape:
            return {}
        return {"lpips_from_base": Measured(value=self.distance(pair[0], pair[1]))}

    def distance(self, one_1CHW: Tensor, other_1CHW: Tensor) -> float:
        """Return the distance of two pictures with values in [-1, 1]."""
        import torch

        total = 0.0
        with torch.inference_mode():
            layers = zip(self._features(one_1CHW), self._features(other_1CHW), strict=True)
            for index, (first, second) in enumerate(layers):
                difference = (_unit(first) - _unit(second)).square()
                weighted = (difference * self._parameters[f"lin{index}"]).sum(1)
                total += float(weighted.mean())
        return total

    @cached_property
    def _parameters(self) -> dict[str, Tensor]:
        """Return all weights by short names, on the device.

        Raises:
            BaseError: If a file holds something else.
        """
        parameters: dict[str, Tensor] = {}
        network, weights = _read(self._network), _read(self._weights)
        for index, (place, *_) in enumerate(_LAYERS):
            for part in ("weight", "bias"):
                parameters[f"{place}.{part}"] = _taken(
                    network, f"features.{place}.{part}", self._network
                )
            weight = _taken(weights, f"lin{index}.model.1.weight", self._weights)
            if weight.numel() != _WIDTHS[index]:
                raise _other_file(self._weights, f"{weight.numel()} weights for layer {index}")
            parameters[f"lin{index}"] = weight.reshape(1, -1, 1, 1)
        device = find_device(self._device)
        return {name: tensor.float().to(device) for name, tensor in parameters.items()}

    def _features(self, pixels_1CHW: Tensor) -> Iterator[Tensor]:
        """Yield what comes out of each of the five layers."""
        import torch
        import torch.nn.functional as F

        known = self._parameters
        device = known["0.weight"].device
        shift = torch.tensor(_SHIFT, device=device)[:, None, None]
        scale = torch.tensor(_SCALE, device=device)[:, None, None]
        hidden = (pixels_1CHW.to(device) - shift) / scale
        for place, stride, padding, is_pooled in _LAYERS:
            if is_pooled:
                hidden = F.max_pool2d(hidden, kernel_size=3, stride=2)
            weight, bias = known[f"{place}.weight"], known[f"{place}.bias"]
            hidden = F.relu(F.conv2d(hidden, weight, bias, stride=stride, padding=padding))
            yield hidden


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True).sqrt() + _EPS)


def _pixels(path: Path) -> Tensor:
    """Return a picture as (1, 3, H, W) with values in [-1, 1]."""
    import torch

    with opened(path) as image:
        values = np.asarray(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1)[None]


def _read(path: Path) -> Mapping[str, Tensor]:
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(check_regular(path))
        # weights_only: a pickle may not run anything.
        content = torch.load(check_regular(path), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError) as error:
        raise _other_file(path, f"{type(error).__name__}: {error}") from error
    except (OSError, ValueError, RuntimeError, EOFError, KeyError) as error:
        raise _other_file(path, f"{type(error).__name__}: {error}") from error
    if not isinstance(content, Mapping):
        raise _other_file(path, f"a {type(content).__name__}")
    return content


def _taken(tensors: Mapping[str, Tensor], name: str, path: Path) -> Tensor:
    if name not in tensors:
        raise _other_file(path, f"no {name}")
    return tensors[name]


def _other_file(path: Path, found: str) -> BaseError:
    return BaseError(
        Problem(
            str(path),
            found.partition("\n")[0],
            "AlexNet's weights of torchvision, or lpips's weights/v0.1/alex.pth",
            "give metric.metrics.lpips.network and .weights these two files, in this order",
        )
    )

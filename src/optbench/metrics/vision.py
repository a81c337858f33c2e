"""Prepare images for vision models as the file beside the weights says; embed each once.

Prepared here with Pillow, because transformers' own fast preparation needs torchvision, which
optbench does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from optbench.errors import BaseError, ConfigError, Problem
from optbench.metrics.contract import Measured, Picture, Reference
from optbench.storage.images import opened

if TYPE_CHECKING:
    from torch import Tensor

_DEVICES = ("auto", "cpu", "cuda", "mps")
_PREPROCESSOR = "preprocessor_config.json"


class Embeddings:
    """Unit vectors of picture files, each computed once; files are known by path and change."""

    def __init__(self, compute: Callable[[Path], Tensor]) -> None:
        """Keep what `compute` makes of a picture: a vector of any length."""
        self._compute = compute
        self._known: dict[tuple[Path, int, int], Tensor] = {}

    def of(self, path: Path) -> Tensor:
        """Return the vector (E,) of one picture, of length 1."""
        import torch.nn.functional as F

        stat = path.stat()
        key = (path, stat.st_size, stat.st_mtime_ns)
        if key not in self._known:
            self._known[key] = F.normalize(self._compute(path).detach().float().cpu(), dim=-1)
        return self._known[key]

    def stack(self, paths: Sequence[Path]) -> Tensor:
        """Return the vectors (N, E) of several pictures."""
        import torch

        return torch.stack([self.of(path) for path in paths])


class VisionMetric:
    """Cosines of a vision model's image vectors, from a folder or a hub id: with training images.

    A metric of one model says how it is loaded (`_model`) and what its vector of an image is.
    """

    name: ClassVar[str]  # in the group metric.metrics
    reference: Reference = "training"
    bases: tuple[str, ...] = ()

    def __init__(self, path: str, device: str) -> None:
        """Check the place; nothing is loaded before the first image.

        Raises:
            ConfigError: If there can be no model at `path`.
        """
        check_model(f"metric.metrics.{self.name}.path", path, device)
        self.settings: Mapping[str, object] = {"schema": 1, "path": path}
        self._path, self._device = path, device
        self._embeddings = Embeddings(self._embed)

    def _vector(self, pixels_1CHW: Tensor) -> Tensor:
        """Return the model's vector (E,) of one prepared image."""
        raise NotImplementedError

    @cached_property
    def _model(self) -> Any:
        raise NotImplementedError

    @cached_property
    def _preparation(self) -> Mapping[str, Any]:
        return preparation(self._path)

    def _embed(self, path: Path) -> Tensor:
        import torch

        model = self._model
        with torch.inference_mode():
            return self._vector(prepared(path, self._preparation).to(model.device))

    def _mean_and_nearest(
        self, picture: Picture, others: Sequence[Picture]
    ) -> tuple[Measured, Measured]:
        """Return the mean cosine with others, and the largest with its image's name."""
        vector = self._embeddings.of(picture.path)
        cosines = self._embeddings.stack([other.path for other in others]) @ vector
        nearest = others[int(cosines.argmax())]
        return (
            Measured(value=float(cosines.mean())),
            Measured(value=float(cosines.max()), detail=nearest.path.name),
        )


def check_model(where: str, path: str, device: str) -> None:
    """Refuse what is neither a folder with a model nor a hub id, without loading or asking.

    Raises:
        ConfigError: With what is wrong.
    """
    problems = []
    folder = Path(path).expanduser()
    looks_like_id = path.count("/") == 1 and not path.startswith((".", "/", "~"))
    if folder.is_dir() and not (folder / "config.json").is_file():
        problems.append(
            Problem(
                where,
                f"{path} without a config.json",
                "a folder with a model as transformers saves it",
                "give the folder that holds config.json and model.safetensors",
            )
        )
    elif not folder.is_dir() and (folder.is_file() or not looks_like_id):
        problems.append(
            Problem(
                where,
                f"{path}, where no folder is",
                "a folder with a model as transformers saves it, or a hub id",
                f"write {where}=FOLDER, or OWNER/NAME to download it",
            )
        )
    problems += check_device(where.rpartition(".")[0], device)
    if problems:
        raise ConfigError(*problems)


def check_device(section: str, device: str) -> list[Problem]:
    """Return a problem if a device is none."""
    if device in _DEVICES or device.startswith("cuda:"):
        return []
    return [
        Problem(
            f"{section}.device",
            repr(device),
            f"one of {', '.join(_DEVICES)}",
            f"write {section}.device=auto",
        )
    ]


def preparation(path: str) -> Mapping[str, Any]:
    """Return what the file beside a model's weights says of its pictures.

    Raises:
        BaseError: If there is no such file.
    """
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(path)
    except (OSError, ValueError) as error:
        raise BaseError(
            Problem(
                path,
                f"no readable {_PREPROCESSOR} ({str(error).strip().partition(chr(10))[0]})",
                "one beside the model's weights: it says how pictures are prepared",
                f"copy {_PREPROCESSOR} from where the model is from",
            )
        ) from error
    return dict(settings)


def prepared(path: Path, how: Mapping[str, Any]) -> Tensor:
    """Return a picture as (1, 3, H, W): resized, cut to the middle, and normalized as asked."""
    import torch

    with opened(path) as image:
        picture = image.convert("RGB")
    size, resample = how.get("size", {}), Image.Resampling(how.get("resample", 3))
    if how.get("do_resize", True):
        picture = picture.resize(_resized(picture.size, size), resample)
    if how.get("do_center_crop", False):
        width, height = _sides(how.get("crop_size", size))
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        picture = picture.crop((left, top, left + width, top + height))
    values = np.asarray(picture, dtype=np.float32)
    values = values * (how.get("rescale_factor", 1 / 255) if how.get("do_rescale", True) else 1)
    if how.get("do_normalize", True):
        values = (values - np.array(how["image_mean"])) / np.array(how["image_std"])
    return torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1)[None].contiguous()


def _resized(picture: tuple[int, int], size: Any) -> tuple[int, int]:
    if isinstance(size, Mapping) and "shortest_edge" in size:
        size = size["shortest_edge"]
    if isinstance(size, Mapping):
        return _sides(size)
    width, height = picture
    short, long = min(picture), max(picture)
    other = int(size * long / short)
    return (size, other) if width <= height else (other, size)


def _sides(size: Any) -> tuple[int, int]:
    if isinstance(size, Mapping):
        return int(size["width"]), int(size["height"])
    return int(size), int(size)

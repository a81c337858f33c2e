"""The parts of a checkpoint, from a folder in diffusers layout or one file in original layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, final

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError

from optbench.errors import BaseError, Problem
from optbench.models import key_maps
from optbench.models.assemble import Sources, assemble, assemble_folder, built
from optbench.models.diffusion import STABLE_DIFFUSION_SCHEDULE, read_schedule, with_prediction
from optbench.models.files import detect, locate, rules
from optbench.models.files.families import FAMILIES, Family
from optbench.models.tensors import PickledFile, SafetensorsFiles, TensorSource
from optbench.models.text.clip import clip_tokenizer, read_tokenizer
from optbench.schema import BaseOptions

# All that the libraries are known to raise for a file that is missing, cut off or other.
_UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError)
_T = TypeVar("_T")

# Equal in all families but for the factor of the latents.
AUTOENCODER: Mapping[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
}


@final
class Checkpoint:
    """One checkpoint on this disk: gives its parts, each on the device and in the dtype asked."""

    def __init__(self, options: BaseOptions, *, device: torch.device, dtype: torch.dtype) -> None:
        """Find the checkpoint and refuse it if it is not of the options' family.

        Raises:
            BaseError: If nothing is there, or it is damaged or of another family.
        """
        self.options = options
        self.family: Family = FAMILIES[options.family]
        self.path = locate.located(options.path)
        self._device = device
        self._dtype = dtype
        self._where = f"base.path={options.path}"
        self._file: TensorSource | None = None
        if self.path.is_file():
            self._file = self.part(self.path, lambda: open_file(self.path))
            finding = detect.what_file_is(self._file.shapes)
        else:
            finding = detect.what_folder_is(self.path)
        if problem := rules.misfit(finding, self.family, where=self._where):
            raise BaseError(problem)
        self._predicts_v = options.v_parameterization
        if self._predicts_v is None and self._file is not None:
            self._predicts_v = finding.predicts_v
            if problems := rules.check_prediction(options, self.family, finding.predicts_v):
                raise BaseError(*problems)

    def unet(self, config: Mapping[str, Any]) -> Any:
        """Return the unet; `config` is that of a single file, a folder brings its own."""
        return self._model(UNet2DConditionModel, "unet", config, key_maps.unet_sources(config))

    def vae(self, config: Mapping[str, Any]) -> Any:
        """Return the autoencoder in float32: the separate one if there is one."""
        sources = key_maps.vae_sources(len(config["block_out_channels"]))
        if self.options.vae is None:
            if self._file is None:
                return self._vae_folder(self.path / "vae", "base.path")
            return self._model(AutoencoderKL, "vae", config, sources, dtype=torch.float32)
        place = Path(self.options.vae)
        if not place.is_file():
            return self._vae_folder(place, "base.vae")

        def read() -> Any:
            return assemble(
                lambda: built(AutoencoderKL, config),
                open_file(place),
                sources,
                device=self._device,
                dtype=torch.float32,
            )

        return self.part(place, read, where="base.vae")

    def text_encoder(
        self, kind: Any, config: Mapping[str, Any], sources: Sources, *, name: str = "text_encoder"
    ) -> Any:
        """Return a text encoder; `config` and `sources` are those of a single file."""
        return self._model(kind, name, config, sources)

    def tokenizer(self, *, name: str = "tokenizer", pad_token: str) -> Any:
        """Return a tokenizer; a single file's is CLIP's own with this token to fill up."""
        if self._file is not None:
            return clip_tokenizer(pad_token=pad_token)
        folder = self.path / name
        return self.part(folder, lambda: read_tokenizer(folder))

    def schedule(self) -> Mapping[str, Any]:
        """Return the noise schedule, with the prediction that the options or the file name."""
        if self._file is not None:
            schedule = STABLE_DIFFUSION_SCHEDULE
        else:
            path = self.path / "scheduler" / "scheduler_config.json"
            schedule = self.part(path, lambda: read_schedule(path))
        return with_prediction(schedule, self._predicts_v)

    def fingerprints(self, cache_dir: Path | None) -> tuple[str, str]:
        """Return what changes with any weight, and what changes with the autoencoder's."""
        base_fingerprint = locate.fingerprint(self.path, cache_dir=cache_dir)
        if self.options.vae is not None:
            return base_fingerprint, locate.fingerprint(Path(self.options.vae), cache_dir=cache_dir)
        if self._file is not None:
            return base_fingerprint, f"vae-of-{base_fingerprint}"
        return base_fingerprint, locate.fingerprint(self.path / "vae", cache_dir=cache_dir)

    def part(self, path: Path, load: Callable[[], _T], *, where: str = "base.path") -> _T:
        """Return what `load` makes of one part of a checkpoint, or say which part is damaged.

        Raises:
            BaseError: Naming the path and what was found there.
        """
        try:
            return load()
        except _UNREADABLE as error:
            first_line = str(error).partition("\n")[0]
            raise BaseError(
                Problem(
                    where,
                    f"{path}: {type(error).__name__}: {first_line}",
                    f"a whole part of {self.family.words}",
                    "copy or download it again, or choose another base",
                )
            ) from error

    def refuse(self, found: str, fix: str) -> None:
        """Refuse a checkpoint whose parts were not made for one another.

        Raises:
            BaseError: Always.
        """
        expected = f"{self.family.words}, its parts made for one another"
        raise BaseError(Problem(self._where, found, expected, fix))

    def _vae_folder(self, folder: Path, where: str) -> Any:
        def read() -> Any:
            return assemble_folder(
                AutoencoderKL,
                folder,
                sources=key_maps.older_vae_sources,
                device=self._device,
                dtype=torch.float32,
            )

        return self.part(folder, read, where=where)

    def _model(
        self,
        kind: Any,
        name: str,
        config: Mapping[str, Any],
        sources: Sources,
        *,
        dtype: torch.dtype | None = None,
    ) -> Any:
        settings: dict[str, Any] = {"device": self._device, "dtype": dtype or self._dtype}
        file = self._file
        if file is not None:
            return self.part(
                self.path,
                lambda: assemble(lambda: built(kind, config), file, sources, **settings),
            )
        folder = self.path / name
        if name.startswith("text_encoder"):
            settings["sources"] = key_maps.clip_sources()
        return self.part(folder, lambda: assemble_folder(kind, folder, **settings))


def open_file(path: Path) -> TensorSource:
    """Return the tensors of one file.

    Raises:
        OSError, ValueError: If it is missing, damaged, or a pickle of more than tensors.
    """
    return PickledFile(path) if path.suffix in locate.PICKLES else SafetensorsFiles([path])


def check_fit(
    checkpoint: Checkpoint,
    *,
    tokenizer: Any,
    text_encoder: Any,
    unet: Any,
    vae: Any,
    context_width: int,
) -> None:
    """Refuse parts that do not fit together.

    Raises:
        BaseError: Naming the two numbers that differ.
    """
    unet_width = unet.config.cross_attention_dim
    num_words, num_rows = len(tokenizer), text_encoder.config.vocab_size
    num_read, num_written = unet.config.in_channels, vae.config.latent_channels
    if num_words != num_rows:
        checkpoint.refuse(
            f"a tokenizer of {num_words} tokens and a text encoder of {num_rows}",
            "copy vocab.json and merges.txt of the original model into tokenizer/",
        )
    if unet_width != context_width:
        checkpoint.refuse(
            f"a unet that reads {unet_width} numbers per token, a text encoder that writes "
            f"{context_width}",
            f"choose a {checkpoint.family.words} checkpoint",
        )
    if num_read != num_written:
        checkpoint.refuse(
            f"a unet that reads {num_read} channels, an autoencoder that writes {num_written}",
            "choose a checkpoint that is not for inpainting, and base.vae of the same family",
        )

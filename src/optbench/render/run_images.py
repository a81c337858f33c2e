"""The pictures of a run's folder: which are missing, rendered from the files they belong to.

A LoRA's pictures are rendered from its saved file, in the file's precision, so that they show what
a person will load, and can be made again at any time.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import torch
from PIL import Image

from optbench.contracts import BaseModel, Network, TextOptions
from optbench.errors import DamagedFileError
from optbench.lora.network import as_in_file
from optbench.models.text.prompt_grammar import LoraTag
from optbench.records import Cell
from optbench.render import sheet, thumbnails
from optbench.render.prompts import (
    Halving,
    Origin,
    Painter,
    cells_of,
    origin_of,
    parameters_text,
    png_bytes,
    render_prompts,
)
from optbench.schema import Prompt, PromptOptions, RenderOptions, RunConfig
from optbench.storage import hashing, rundir
from optbench.storage.files import link_or_copy
from optbench.storage.rundir import RunDir

_KEY_FILE = "rendered-as.json"
_FLAT_RANGE = 4  # of 255, in every channel: what an autoencoder makes of a constant


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """Where pictures go, and everything besides the LoRA that decides how they look."""

    run: RunDir
    base: BaseModel
    prompts: tuple[Prompt, ...]
    options: RenderOptions
    text_options: TextOptions
    cache_dir: Path
    painter: Painter | None = None  # None: the base itself
    origin: Origin | None = None  # None: the base's name alone

    @property
    def shared_dir(self) -> Path:
        """Where the base's own pictures lie, for all runs."""
        return self.cache_dir / "base-pictures" / self.key

    @property
    def key(self) -> str:
        """Hex that changes with anything but the LoRA that a picture depends on."""
        looks = asdict(self.options)
        # None of them changes a picture: noise is per seed, and rows of a batch do not mix.
        del looks["enabled"], looks["batch_size"], looks["seeds"], looks["sheet_format"]
        texts = [text for prompt in self.prompts for text in (prompt.text, prompt.negative)]
        content = {
            "base": self.base.fingerprint,
            "vae": self.base.vae_fingerprint,
            "dtype": str(self.base.dtype),
            "prompts": [asdict(prompt) for prompt in self.prompts],
            "render": looks,
            **self.base.prompt_settings(texts, self.text_options),
        }
        return hashing.fingerprint(content)


def gallery_for(
    config: RunConfig, run: RunDir, base: BaseModel, *, say: Callable[[str], None]
) -> Gallery:
    """Return where a run's images go, and what decides how they look.

    `say` is told of batches that do not fit into memory.
    """
    cache_dir = Path(config.cache_dir)
    return Gallery(
        run=run,
        base=base,
        prompts=config.prompts.prompts,
        options=config.render,
        text_options=base.text_options(asdict(config.train)),
        cache_dir=cache_dir,
        painter=Halving(base, say),
        origin=origin_of(config.base, cache_dir=cache_dir),
    )


def render_missing(gallery: Gallery, network: Network, *, num_epochs: int) -> None:
    """Render every image of the base and of so many epochs that is not on disk, where asked for."""
    if gallery.options.enabled:
        render_base(gallery)
        for epoch in range(1, num_epochs + 1):
            render_epoch(gallery, network, epoch=epoch)


def render_base(gallery: Gallery) -> None:
    """Give the run its epoch 0: the base alone, rendered once and shared by all runs."""
    _forget_other_looks(gallery)
    shared = gallery.shared_dir
    _render(gallery, folder=shared, epoch=0, lora="")
    own = gallery.run.images_dir(0)
    own.mkdir(parents=True, exist_ok=True)
    for prompt in gallery.prompts:
        for cell in cells_of(prompt, gallery.options, epoch=0):
            if not (own / cell.file_name).is_file():
                link_or_copy(shared / cell.file_name, own / cell.file_name)
    thumbnails.make_thumbnails(own.glob("*.png"))


def render_epoch(gallery: Gallery, network: Network, *, epoch: int) -> None:
    """Render what is missing of one epoch from its LoRA file; `network` is as before afterwards."""
    folder = gallery.run.images_dir(epoch)
    if not _missing(gallery, folder, epoch=epoch):
        return
    path = gallery.run.lora_path(epoch)
    with as_in_file(network, path), network.merged():
        _render(gallery, folder=folder, epoch=epoch, lora=path.stem)
    thumbnails.make_thumbnails(folder.glob("*.png"))


def render_merged(gallery: Gallery, *, epoch: int, lora: str) -> None:
    """Render what is missing of one epoch with the network that already sits in the base."""
    folder = gallery.run.images_dir(epoch)
    _render(gallery, folder=folder, epoch=epoch, lora=lora)
    thumbnails.make_thumbnails(folder.glob("*.png"))


def flat_pictures(run: RunDir, *, epoch: int) -> tuple[str, ...]:
    """Return the names of an epoch's pictures that are black or of one colour: nothing was drawn.

    NaN and infinity on the way to a picture become such a one, and no error.
    """
    paths = sorted(run.images_dir(epoch).glob("*.png"))
    return tuple(path.name for path in paths if _is_flat(path))


def _is_flat(path: Path) -> bool:
    with Image.open(path) as image:
        # One pair per channel, as for every picture of several.
        ranges = cast(tuple[tuple[int, int], ...], image.convert("RGB").getextrema())
    return all(high - low <= _FLAT_RANGE for low, high in ranges)


def draw_run_sheets(
    run: RunDir, prompts: PromptOptions, options: RenderOptions, *, num_epochs: int
) -> None:
    """Compose the run's own sheets: rows are epochs (0 = the base), columns are seeds."""
    for prompt in prompts.prompts:
        sheet.run_sheet(
            run,
            prompt,
            seeds=options.seeds,
            num_epochs=num_epochs,
            sheet_format=options.sheet_format,
        )


def _render(gallery: Gallery, *, folder: Path, epoch: int, lora: str) -> None:
    """Render the missing cells of one epoch into `folder`."""
    missing = _missing(gallery, folder, epoch=epoch)
    if not missing:
        return
    origin = gallery.origin or Origin(model=gallery.base.name)
    if lora:
        origin = replace(origin, loras=(LoraTag(name=lora, strength=1.0),))
    with torch.inference_mode():
        for cell, prompt, image in render_prompts(
            gallery.painter or gallery.base,
            gallery.prompts,
            gallery.options,
            epoch=epoch,
            text_options=gallery.text_options,
            is_wanted=missing.__contains__,
        ):
            text = parameters_text(
                cell,
                prompt,
                gallery.options,
                text_options=gallery.text_options,
                origin=origin,
            )
            rundir.write_atomic(folder / cell.file_name, png_bytes(image, text))


def _missing(gallery: Gallery, folder: Path, *, epoch: int) -> set[Cell]:
    cells = [
        cell
        for prompt in gallery.prompts
        for cell in cells_of(prompt, gallery.options, epoch=epoch)
    ]
    return {cell for cell in cells if not (folder / cell.file_name).is_file()}


def _forget_other_looks(gallery: Gallery) -> None:
    """Remove pictures made with other prompts or settings; their file names cannot tell."""
    images = gallery.run.path / "images"
    key_path = images / _KEY_FILE
    with contextlib.suppress(DamagedFileError):  # then nobody knows what they show
        if rundir.read_json(key_path).get("key") == gallery.key:
            return
    if images.is_dir():
        shutil.rmtree(images)
    thumbnails.remove_thumbnails(gallery.run.path)
    rundir.write_json(key_path, {"key": gallery.key})

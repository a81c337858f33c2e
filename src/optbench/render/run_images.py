"""Render the missing images of a run's folder from the LoRA files they belong to.

A LoRA's images are rendered from its saved file, in the file's precision, so that they show what
a person will load, and can be made again at any time.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

from optbench.contracts import BaseModel, Network, TextOptions
from optbench.errors import DamagedFileError
from optbench.lora.network import as_in_file
from optbench.models.text.prompt_grammar import LoraTag
from optbench.records import Cell
from optbench.render import sheet, thumbnails
from optbench.render.prompts import (
    ImageSampler,
    OomSafeSampler,
    Origin,
    cells_of,
    origin_of,
    write_images,
)
from optbench.schema import Prompt, PromptOptions, RenderOptions, RunConfig
from optbench.storage import files, hashing, locks
from optbench.storage.disk import make_folder
from optbench.storage.files import link_or_copy
from optbench.storage.images import opened_rendered
from optbench.storage.rundir import RunDir, epochs_named

_FLAT_RANGE = 4  # of 255, in every channel: what an autoencoder makes of a constant


@dataclass(frozen=True, slots=True, kw_only=True)
class RunImages:
    """Where a run's images go, and everything besides the LoRA that decides how they look."""

    run: RunDir
    base: BaseModel
    prompts: tuple[Prompt, ...]
    options: RenderOptions
    text_options: TextOptions
    cache_dir: Path
    sampler: ImageSampler | None = None  # None: the base itself
    origin: Origin | None = None  # None: the base's name alone
    say: Callable[[str], None] = print  # what becomes of images that are not current any more

    @property
    def shared_dir(self) -> Path:
        """Where the base model's own images lie, for all runs."""
        return self.cache_dir / "base-pictures" / self.key

    @property
    def key(self) -> str:
        """Hex that changes with anything but the LoRA that an image depends on."""
        looks = asdict(self.options)
        # None of them changes an image: noise is per seed, and rows of a batch do not mix.
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


def images_of_run(
    config: RunConfig, run: RunDir, base: BaseModel, *, say: Callable[[str], None]
) -> RunImages:
    """Return where a run's images go, and what decides how they look.

    `say` is told of batches that do not fit into memory.
    """
    cache_dir = Path(config.cache_dir)
    return RunImages(
        run=run,
        base=base,
        prompts=config.prompts.prompts,
        options=config.render,
        text_options=base.text_options(asdict(config.train)),
        cache_dir=cache_dir,
        sampler=OomSafeSampler(base, say),
        origin=origin_of(config.base, cache_dir=cache_dir),
        say=say,
    )


def render_missing(images: RunImages, network: Network, *, epochs: Sequence[int]) -> int:
    """Render every image of the base and of these epochs that is not on disk, where requested.

    An epoch whose LoRA file somebody deleted is left as it is, and named.

    Returns:
        How many images of the epochs were rendered.
    """
    if not images.options.enabled:
        return 0
    render_base(images)
    run = images.run
    missing = [epoch for epoch in epochs if _missing(images, run.images_dir(epoch), epoch=epoch)]
    gone = [epoch for epoch in missing if not run.lora_path(epoch).is_file()]
    if gone:
        images.say(f"{epochs_named(gone)} not rendered: the LoRA file is gone")
    return sum(render_epoch(images, network, epoch=epoch) for epoch in missing if epoch not in gone)


def render_base(images: RunImages) -> None:
    """Give the run its epoch 0: the base alone, rendered once and shared by all runs."""
    _put_other_images_aside(images)
    shared = images.shared_dir
    _render(images, folder=shared, epoch=0, lora="")
    folder = images.run.images_dir(0)
    make_folder(folder)
    for prompt in images.prompts:
        for cell in cells_of(prompt, images.options, epoch=0):
            if not (folder / cell.file_name).is_file():
                link_or_copy(shared / cell.file_name, folder / cell.file_name)
    thumbnails.make_thumbnails(folder.glob("*.png"))


def render_epoch(images: RunImages, network: Network, *, epoch: int) -> int:
    """Render what is missing of one epoch from its LoRA file, and return how many images.

    `network` is as before afterwards.
    """
    folder = images.run.images_dir(epoch)
    num_missing = len(_missing(images, folder, epoch=epoch))
    if not num_missing:
        return 0
    path = images.run.lora_path(epoch)
    with as_in_file(network, path), network.merged():
        _render(images, folder=folder, epoch=epoch, lora=path.stem)
    thumbnails.make_thumbnails(folder.glob("*.png"))
    return num_missing


def render_merged(images: RunImages, *, epoch: int, lora: str) -> None:
    """Render what is missing of one epoch with the network that already sits in the base."""
    folder = images.run.images_dir(epoch)
    _render(images, folder=folder, epoch=epoch, lora=lora)
    thumbnails.make_thumbnails(folder.glob("*.png"))


def flat_images(run: RunDir, *, epoch: int) -> tuple[str, ...]:
    """Return the names of an epoch's images that are black or of one colour.

    NaN and infinity on the way to an image give such a one, and no error.
    """
    paths = sorted(run.images_dir(epoch).glob("*.png"))
    flat = []
    for path in paths:
        with opened_rendered(path) as image:
            # One pair per channel, as for every image of several.
            ranges = cast(tuple[tuple[int, int], ...], image.convert("RGB").getextrema())
        if all(high - low <= _FLAT_RANGE for low, high in ranges):
            flat.append(path.name)
    return tuple(flat)


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


def _render(images: RunImages, *, folder: Path, epoch: int, lora: str) -> None:
    """Render the missing cells of one epoch into `folder`."""
    origin = images.origin or Origin(model=images.base.name)
    if lora:
        origin = replace(origin, loras=(LoraTag(name=lora, strength=1.0),))
    write_images(
        images.sampler or images.base,
        images.prompts,
        images.options,
        {cell: folder / cell.file_name for cell in _missing(images, folder, epoch=epoch)},
        epoch=epoch,
        text_options=images.text_options,
        origin=origin,
    )


def _missing(images: RunImages, folder: Path, *, epoch: int) -> set[Cell]:
    cells = [
        cell for prompt in images.prompts for cell in cells_of(prompt, images.options, epoch=epoch)
    ]
    return {cell for cell in cells if not (folder / cell.file_name).is_file()}


def _put_other_images_aside(images: RunImages) -> None:
    """Move images made with other prompts or settings to a folder of their key, and say so.

    Their file names cannot tell. Images of the key that is wanted now come back from there.
    """
    run, key_path = images.run, images.run.image_key_path
    folder, other_key = key_path.parent, "unknown"
    with contextlib.suppress(DamagedFileError):  # then nobody knows what they show
        other_key = str(files.read_json(key_path).get("key"))
    if other_key == images.key:
        return
    sizes = [path.stat().st_size for path in folder.glob("epoch-*/*.png")]
    if sizes:
        aside = _free_folder(run.earlier_images_dir(other_key))
        make_folder(aside.parent)
        locks.check_write(folder)
        folder.replace(aside)
        images.say(
            f"{len(sizes)} images made with other prompts or render settings are now in "
            f"{aside.relative_to(run.path)} ({sum(sizes) / 1e6:.1f} MB); their scores stay theirs"
        )
    elif folder.is_dir():
        shutil.rmtree(folder)
    thumbnails.remove_thumbnails(run.path)
    earlier = run.earlier_images_dir(images.key)
    if earlier.is_dir():
        earlier.replace(folder)
        images.say(f"the images in {earlier.relative_to(run.path)} are in use again")
    files.write_json(key_path, {"key": images.key})


def _free_folder(folder: Path) -> Path:
    """Return the folder, or one with a number behind its name where there is one already."""
    numbers = itertools.count(2)
    place = folder
    while place.exists():
        place = folder.with_name(f"{folder.name}-{next(numbers)}")
    return place

"""The images of a run's folder, those to compare each with, and its training images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from optbench.analysis import image_rows
from optbench.data.rules import IMAGE_SUFFIXES
from optbench.metrics.contract import Picture, Reference
from optbench.records import Cell
from optbench.storage.disk import read_bytes
from optbench.storage.images import opened_rendered
from optbench.storage.nested import section
from optbench.storage.rundir import RunDir


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPictures:
    """The pictures of one run by their place, and those it was trained on."""

    cells: Mapping[Cell, Picture]
    training: tuple[Picture, ...]
    base: str  # the base's name

    def beside(self, cell: Cell, reference: Reference) -> tuple[Picture, ...]:
        """Return the pictures that a metric wants beside the one of a cell, perhaps none."""
        if reference == "training":
            return self.training
        if reference == "seeds":
            return tuple(
                picture
                for other, picture in self.cells.items()
                if _place(other)[:-1] == _place(cell)[:-1]
                and other.epoch == cell.epoch
                and other.seed != cell.seed
            )
        epochs: Sequence[int] = ()
        if reference == "base" and cell.epoch > 0:
            epochs = (0,)
        elif reference == "previous":
            before = [
                other.epoch
                for other in self.cells
                if _place(other) == _place(cell) and other.epoch < cell.epoch
            ]
            epochs = (max(before),) if before else ()
        pictures = [self.cells.get(at_epoch(cell, epoch)) for epoch in epochs]
        return tuple(picture for picture in pictures if picture is not None)


def at_epoch(cell: Cell, epoch: int) -> Cell:
    """Return the same place after another epoch."""
    return Cell(
        prompt=cell.prompt, width=cell.width, height=cell.height, seed=cell.seed, epoch=epoch
    )


def find_pictures(run: RunDir, config: Mapping[str, Any]) -> RunPictures:
    """Return a run's pictures, in order; without those whose prompt its config does not have."""
    texts = {
        str(name): str(prompt.get("text", ""))
        for name, prompt in section(config, "prompts", "prompts").items()
        if isinstance(prompt, Mapping)
    }
    cells: dict[Cell, Picture] = {}
    for row in image_rows(run, run.path):
        cell = Cell(**{name: row[name] for name in ("prompt", "width", "height", "seed", "epoch")})
        if not _is_of_rendered_size(run.path / row["path"]):
            continue
        text = texts.get(cell.prompt, "")
        cells[cell] = Picture(path=run.path / row["path"], text=text)
    ordered = sorted(cells, key=lambda cell: (cell.epoch, *_place(cell)))
    return RunPictures(
        cells={cell: cells[cell] for cell in ordered},
        training=_training_pictures(config),
        base=str(section(config, "base").get("name", "")),
    )


def _is_of_rendered_size(path: Path) -> bool:
    """Return whether an image has no more pixels than a rendered one; only its header is read."""
    try:
        with opened_rendered(path):
            return True
    except Image.DecompressionBombError:
        return False
    except (OSError, SyntaxError, ValueError):
        return True  # the metric says what is wrong with it


def _place(cell: Cell) -> tuple[str, int, int, int]:
    return cell.prompt, cell.width, cell.height, cell.seed


def _training_pictures(config: Mapping[str, Any]) -> tuple[Picture, ...]:
    """Return every picture under dataset.dir with its caption; none where it is not here."""
    dataset = section(config, "dataset")
    folder, suffix = dataset.get("dir"), str(dataset.get("caption_extension", ".txt"))
    if not isinstance(folder, str) or not folder or not Path(folder).is_dir():
        return ()
    files = sorted(
        path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES
    )
    pictures = []
    for path in files:
        caption_file, caption = path.with_suffix(suffix), ""
        if caption_file.is_file():
            caption = read_bytes(caption_file).decode(errors="replace").strip()
        pictures.append(Picture(path=path, text=caption))
    return tuple(pictures)

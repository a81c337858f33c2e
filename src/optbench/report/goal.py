"""Small copies of training images for the page: what the LoRA ought to look like."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

from optbench.analysis.evidence import SweepEvidence
from optbench.data.rules import IMAGE_SUFFIXES
from optbench.report.links import refuse_links
from optbench.storage.files import write_atomic
from optbench.storage.images import opened
from optbench.storage.nested import section

FOLDER = "goal"  # in the report's own
NUM_SHOWN = 4
_LEFT_OUT = "no-goal.txt"
_SIZE_PX = 320  # of the longer side
_QUALITY = 82
_GOLDEN = (5**0.5 - 1) / 2


def goal_images(sweep: SweepEvidence, report_dir: Path) -> list[tuple[str, int, int]]:
    """Return address, width and height of the copies of a few training images, after making them.

    None where they are not to be shown (`shows_training_images`); copies made before are removed
    then. A copy has pixels alone: no EXIF, no name of its file. Where the training images are not
    on this machine, the copies that are already there stay.
    """
    folder = report_dir / FOLDER
    if not shows_training_images(sweep):
        _keep_only(folder, ())
        return []
    images = _spread(training_images(sweep))
    if images:
        _keep_only(
            folder, made := [path for image in images if (path := small_copy(image, folder))]
        )
    else:
        made = sorted(folder.glob("*.webp")) if folder.is_dir() else []
    shown = []
    for path in made[:NUM_SHOWN]:
        with Image.open(path) as copy:
            shown.append((f"./{FOLDER}/{path.name}", *copy.size))
    return shown


def shows_training_images(sweep: SweepEvidence) -> bool:
    """Return whether the page may show training images.

    Not where a run has `report.goal=false`, nor after `leave_out`.
    """
    if (sweep.path / "report" / _LEFT_OUT).is_file():
        return False
    return all(section(run.config, "report").get("goal") is not False for run in sweep.runs)


def leave_out(report_dir: Path) -> None:
    """Keep training images out of a report, now and whenever it is built again.

    Raises:
        DatasetError: If the folder is a symbolic link, which may lead anywhere.
    """
    refuse_links([report_dir])
    write_atomic(
        report_dir / _LEFT_OUT,
        "This report shows no training images. Remove this file to show them again.\n",
    )


def training_images(sweep: SweepEvidence) -> list[Path]:
    """Return the images that the first training with a folder here was trained on, by name."""
    for run in sorted(sweep.runs, key=lambda run: run.number):
        folder = section(run.config, "dataset").get("dir")
        if isinstance(folder, str) and folder and Path(folder).is_dir():
            return sorted(
                path
                for path in Path(folder).rglob("*")
                if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
            )
    return []


def _spread(images: Sequence[Path]) -> list[Path]:
    """Return a few of many, spread over all.

    Neighbours in a folder are often alike, and so may be every sixth: steps of the golden ratio
    fall into no such rhythm.
    """
    turns = ((turn + 0.5) * _GOLDEN % 1.0 for turn in range(4 * NUM_SHOWN))
    places = list(dict.fromkeys(int(turn * len(images)) for turn in turns)) if images else []
    return [images[place] for place in sorted(places[:NUM_SHOWN])]


def small_copy(image: Path, folder: Path) -> Path | None:
    """Return the small copy of an image, made if it is not there; None for what is no image."""
    try:
        stat = image.stat()
        identity = f"{image.resolve()} {stat.st_size} {stat.st_mtime_ns}"
        path = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:12]}.webp"
        if not path.is_file():
            with opened(image) as original:
                original.draft("RGB", (2 * _SIZE_PX, 2 * _SIZE_PX))
                small = ImageOps.exif_transpose(original).convert("RGB")
            small.thumbnail((_SIZE_PX, _SIZE_PX), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            # Into an image of its own: Pillow writes the EXIF and the profile that one carries.
            bare = Image.new("RGB", small.size)
            bare.paste(small)
            bare.save(buffer, "WEBP", quality=_QUALITY)
            write_atomic(path, buffer.getvalue(), durable=False)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    return path


def _keep_only(folder: Path, copies: Sequence[Path]) -> None:
    for path in folder.glob("*.webp") if folder.is_dir() else ():
        if path not in copies:
            path.unlink(missing_ok=True)

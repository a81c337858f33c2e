"""`optbench verify [FOLDER ...]`: read every file of runs and of images, and name the corrupt ones.

A disk may rot what nobody reads for months. Nothing is changed but the status of a damaged run:
it is `interrupted` then, and the command that made its sweep makes again what is corrupt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.text import Text

from optbench.analysis import runs_in
from optbench.cli.command import DONE, folders_only, refuse
from optbench.cli.regularize import class_image_folders
from optbench.cli.render.plan import CELLS_FOLDER
from optbench.errors import OptbenchError
from optbench.storage import files, rundir
from optbench.storage.rundir import RunDir
from optbench.terminal import errors, output
from optbench.training.recovery import DAMAGED, damage_of

_CORRUPT = 1
_WHOLE = ("done", "stopped")  # what nothing is left to do about, until it is read
_ENDED = ("done", "stopped", "diverged", "failed", "out_of_memory", "skipped", "interrupted")


def main(arguments: Sequence[str]) -> int:
    """Print every corrupt file of runs, of plots and of class images.

    Returns:
        0 if all are intact; 1 if one is not, or cannot be read; 2 if there is nothing to read.
    """
    try:
        folders = folders_only(arguments, default="runs")
        image_folders = [images for folder in folders for images in _image_folders(folder)]
        runs = [
            RunDir(run_dir)
            for folder in folders
            if not _image_folders(folder)
            for run_dir in runs_in(folder)
        ]
    except OptbenchError as error:
        return refuse(error.problems)
    console = output()

    def is_corrupt(name: str, sentences: Iterator[str]) -> list[str]:
        damage: list[str] = []
        try:
            damage += sentences
        except OSError as error:
            damage.append(f"cannot be read: {error}")
        for line in damage:
            console.print(Text.assemble(f"{name}: ", (line, "red")))
        return damage

    num_corrupt = num_corrupt_images = 0
    for run in runs:
        record = rundir.read_status(run.path)
        # A run that was stopped while its base model was loading has no config yet.
        has_begun = run.config_path.is_file() or record.status == "done"
        if record.status not in _ENDED or not has_begun or rundir.is_of_later_optbench(run.path):
            console.print(f"{run.name}: {record.status}, not read")
            continue
        damage = is_corrupt(run.name, damage_of(run))
        if damage and record.status in _WHOLE:
            reason = f"{DAMAGED}{'; '.join(damage)}; the same command makes it again"
            try:
                rundir.write_status(run.path, "interrupted", reason, **record.facts)
            except OSError as error:
                errors().print(
                    f"{run.name}: still called {record.status}, for it cannot be marked: {error}"
                )
        num_corrupt += bool(damage)
    for folder in image_folders:
        num_corrupt_images += len(is_corrupt(str(folder), _corrupt_images(folder)))
    if runs:
        console.print(f"{len(runs)} runs read, {num_corrupt} with corrupt files")
    if image_folders:
        count = f"{num_corrupt_images} corrupt images"
        console.print(f"{len(image_folders)} folders of images read, {count}")
    if num_corrupt or num_corrupt_images:
        console.print("-> give the commands that made them again: what is corrupt is made anew")
    return _CORRUPT if num_corrupt or num_corrupt_images else DONE


def _image_folders(folder: Path) -> list[Path]:
    """Return where `optbench render` and `optbench regularize` put images, if this is theirs."""
    cells = folder / CELLS_FOLDER
    return [*([cells] if cells.is_dir() else []), *class_image_folders(folder)]


def _corrupt_images(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.png")):
        if not files.is_intact_png(path):
            yield f"{path.name}: not a whole PNG; the command that made it makes it again"

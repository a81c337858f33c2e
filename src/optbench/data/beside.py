"""Read a folder of images beside the data set, which are measured on and never trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from optbench.data.folder import read_dataset
from optbench.data.layouts import METADATA_NAME, images_in
from optbench.errors import DatasetError, Problem
from optbench.records import CaptionedImage, Dataset
from optbench.schema import DatasetOptions

_DIR = "dataset.dir"


def read_beside(
    folder: str, setting: str, data: DatasetOptions, *, pixels_per_latent: int
) -> Dataset:
    """Return the images of a folder, sized and captioned as those of the data set.

    They may lie right in the folder: how often an image is used says nothing here.

    Args:
        folder: Where they are.
        setting: Which setting says so, for messages.
        data: How the data set is read.
        pixels_per_latent: As `read_dataset`.

    Raises:
        DatasetError: As `read_dataset`, in the words of `setting`.
    """
    root = Path(folder)
    is_flat = root.is_dir() and not any(path.is_dir() for path in root.iterdir())
    is_flat = is_flat and bool(images_in(root)) and not (root / METADATA_NAME).is_file()
    # What other captions and images give nothing to do is no mistake of these.
    apart = dataclasses.replace(
        data,
        dir=folder,
        num_repeats=1 if is_flat else None,
        reg_dir=None,
        class_tokens=None,
        enable_wildcard=False,
        caption_separator=",",
        secondary_separator=None,
        keep_tokens_separator=None,
        random_crop=False,
    )
    try:
        return read_dataset(apart, pixels_per_latent=pixels_per_latent)
    except DatasetError as error:
        raise DatasetError(*(_reworded(problem, setting) for problem in error.problems)) from error


def check_apart(
    by_setting: Mapping[str, Sequence[CaptionedImage]], trained: Sequence[CaptionedImage]
) -> list[Problem]:
    """Return a problem for every folder with images of another kind: same bytes, any name.

    Args:
        by_setting: The images of every folder by the setting that names it.
        trained: The images that are trained on.
    """
    kinds = dict.fromkeys((image.key for image in trained), "trained on")
    problems = []
    for setting, of_setting in by_setting.items():
        # Class images may be measured on as others and trained on.
        images = [image for image in of_setting if not image.is_regularization]
        both = [image for image in images if image.key in kinds]
        if both:
            are = "image that is" if len(both) == 1 else "images that are"
            problems.append(
                Problem(
                    setting,
                    f"{len(both)} {are} {kinds[both[0].key]}, for instance {both[0].path}",
                    "images that no training of this data set sees, each in one folder",
                    "take them out of one of the two folders",
                )
            )
        kinds |= dict.fromkeys((image.key for image in images), f"in {setting} too")
    return problems


def check_places(setting: str, folder: str, data: DatasetOptions) -> list[Problem]:
    """Return a problem if a folder beside is the data set's own, or one lies in the other."""
    for key, other in ((_DIR, data.dir), ("dataset.reg_dir", data.reg_dir)):
        if other is None:
            continue
        held_out, trained = Path(folder).resolve(), Path(other).resolve()
        if held_out == trained:
            found = f"{folder}, as {key}"
        elif held_out.is_relative_to(trained):
            found = f"{folder}, inside {key}={other}"
        elif trained.is_relative_to(held_out):
            found = f"{folder}, in which {key}={other} lies"
        else:
            continue
        return [
            Problem(
                setting,
                found,
                "a folder of its own, whose images no training of this data set sees",
                f"move the held-out images elsewhere, or write {setting}=null",
            )
        ]
    return []


def _reworded(problem: Problem, setting: str) -> Problem:
    """Return a problem of `dataset.dir` as one of another setting."""
    return Problem(
        problem.where.replace(_DIR, setting),
        problem.found,
        problem.expected,
        problem.fix.replace(_DIR, setting),
    )

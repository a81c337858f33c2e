"""Keep some images of a data set out of the training, other ones for every seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from optbench import rng
from optbench.data.folder import balanced, fingerprint_of
from optbench.records import CaptionedImage, Dataset, ImageFolder

NUM_FOLDS = 6
MIN_IMAGES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The images that a run does not train on."""

    images: tuple[CaptionedImage, ...]
    fold: int  # from 0
    fingerprint: str  # of the whole data set, the same for every seed


def hold_out(dataset: Dataset, *, seed: int) -> tuple[Dataset, HeldOut | None]:
    """Return what one seed trains on and what it does not: about a sixth of the images.

    Seed s leaves out fold s modulo 6, so six seeds in a row leave out every image once (K-fold
    cross-validation). Folds are drawn by the images' content, folder by folder; equal images share
    one. Fewer than 12 different images are all trained on. Regularization images are never held
    out, and balanced anew.
    """
    own = [image for image in dataset.images if not image.is_regularization]
    different = {image.key: image for image in own}
    if len(different) < MIN_IMAGES:
        return dataset, None
    drawn = sorted(
        different,
        key=lambda key: (
            different[key].path.parent.name,
            rng.key(0, "validation", "fold", key),
        ),
    )
    fold = seed % NUM_FOLDS
    keys = set(drawn[fold::NUM_FOLDS])
    held_out = HeldOut(
        images=tuple(image for image in own if image.key in keys),
        fold=fold,
        fingerprint=dataset.fingerprint,
    )
    return _less(dataset, held_out.images), held_out


def holdout_notice(dataset: Dataset, held_out: HeldOut | None) -> str:
    """Return one sentence on what a run does not train on.

    Args:
        dataset: What it trains on.
        held_out: The rest.
    """
    own = [image for image in dataset.images if not image.is_regularization]
    if held_out is None:
        return (
            f"all {len(own)} images are trained on: validate.holdout=auto takes images out for "
            f"validation from {MIN_IMAGES} different ones on"
        )
    num_all = len(own) + len(held_out.images)
    return (
        f"{len(held_out.images)} of {num_all} images are not trained on but validated on: fold "
        f"{held_out.fold + 1} of {NUM_FOLDS}, by the seed (validate.holdout=none trains on all)"
    )


def _less(dataset: Dataset, held_out: Sequence[CaptionedImage]) -> Dataset:
    keys = {image.key for image in held_out}
    own = [
        image for image in dataset.images if not image.is_regularization and image.key not in keys
    ]
    num_uses = sum(image.repeats for image in own)
    images = (*own, *balanced(dataset.class_images, num_uses=num_uses))
    return replace(
        dataset,
        images=images,
        fingerprint=fingerprint_of(images),
        folders=tuple(
            replace(folder, num_images=folder.num_images - _num_in(folder, held_out))
            for folder in dataset.folders
        ),
    )


def _num_in(folder: ImageFolder, images: Sequence[CaptionedImage]) -> int:
    if folder.is_regularization:
        return 0
    return sum(
        image.repeats == folder.repeats and folder.name in image.path.parts for image in images
    )

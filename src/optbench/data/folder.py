"""A folder of captioned pictures, every picture in its bucket.

Layout: DIR/<repeats>_<class words>/picture.png beside picture.txt (kohya), or DIR/metadata.jsonl
beside its pictures (Hugging Face), or pictures right in DIR with `num_repeats`.
Everything that is wrong is told at once. Sizes are (width, height) in pixels throughout.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from optbench.data.buckets import PlaceInBucket, bucket_chooser, check_buckets, check_latent_size
from optbench.data.caption_files import read_captions
from optbench.data.image_file import read_picture
from optbench.data.layouts import Folder, find_pictures
from optbench.data.rules import (
    Findings,
    check_captions,
    check_captions_use,
    file_problem,
    setting_problem,
)
from optbench.errors import DatasetError, Problem
from optbench.records import CaptionedImage, Dataset, PictureFolder
from optbench.schema import DatasetOptions
from optbench.storage.resources import command_line

_REG_DIR = "dataset.reg_dir"
_MUCH = 2
_ENLARGED = f"are enlarged more than {_MUCH} times to fill their bucket"


def read_dataset(options: DatasetOptions, *, pixels_per_latent: int) -> Dataset:
    """Return all pictures, sorted by folder and name, each decoded once to know it is whole.

    A caption is the first line of the file beside the picture; without such a file it is the
    class words of the folder's name (both as kohya). Pictures of `reg_dir` follow, as often as
    all others together, however many there are (as kohya).

    Without `bucket_no_upscale` the bucket is one of the sizes between `min_bucket_reso` and
    `max_bucket_reso`; with it, those two play no part. Without `enable_bucket` there is one
    bucket, `resolution`, and no `bucket_*` plays a part.

    Args:
        options: Where the pictures are, and how they are resized and captioned.
        pixels_per_latent: The base's; a bucket's sides are multiples of it.

    Raises:
        DatasetError: If any setting, folder, picture or caption is wrong; lists them all.
    """
    findings, class_findings = Findings(), Findings()
    problems = findings.problems
    problems += [*check_dataset_options(options), *check_latent_size(options, pixels_per_latent)]
    place = None if problems else bucket_chooser(options)
    folders = find_pictures(Path(options.dir), "dataset.dir", options.num_repeats, findings)
    if options.class_tokens is not None:
        folders = [replace(folder, class_words=options.class_tokens) for folder in folders]
    reg_folders = _regularization_folders(options, class_findings)
    images = _read_folders(folders, options, place, findings)
    class_images = _read_folders(reg_folders, options, place, class_findings)
    problems += class_findings.problems or _check_use(options, images, class_images)
    if problems:
        raise DatasetError(*problems)
    used = balanced(class_images, num_uses=sum(image.repeats for image in images))
    images += used
    return Dataset(
        images=tuple(images),
        fingerprint=_fingerprint(images),
        folders=tuple(_described([*folders, *reg_folders])),
        notices=(
            *findings.sentences(num_pictures=len(images) - len(used)),
            *_class_notices(class_findings, num_pictures=len(class_images), num_used=len(used)),
        ),
    )


def _check_use(
    options: DatasetOptions,
    images: Sequence[CaptionedImage],
    class_images: Sequence[CaptionedImage],
) -> list[Problem]:
    """Return the settings that these pictures and captions give nothing to do."""
    captions = [image.caption for image in (*images, *class_images)]
    problems = list(check_captions_use(options, captions))
    if options.random_crop and all(one.resized == one.bucket for one in (*images, *class_images)):
        expected = "false, for no picture is larger than its bucket"
        problems.append(setting_problem("random_crop", "true", expected, "false"))
    words = options.class_tokens
    if words is not None and images and all(image.caption != words for image in images):
        expected = "null, for every picture has a caption"
        problems.append(setting_problem("class_tokens", repr(words), expected, "null"))
    return problems


def _class_notices(findings: Findings, *, num_pictures: int, num_used: int) -> Iterator[str]:
    kind = "regularization pictures"
    yield from findings.sentences(num_pictures=num_pictures, kind=kind)
    if num_used < num_pictures:
        yield (
            f"{num_pictures - num_used} of {num_pictures} {kind} are not used: an epoch has as "
            "many uses of them as of the other pictures"
        )


def _regularization_folders(options: DatasetOptions, findings: Findings) -> list[Folder]:
    if options.reg_dir is None:
        return []
    root = Path(options.reg_dir)
    if root.is_dir() and root.resolve() == Path(options.dir).resolve():
        expected = "another folder, for the same pictures cannot be both"
        fix = f"make class images with {command_line('regularize')}, or write dataset.reg_dir=null"
        findings.problems.append(Problem(_REG_DIR, f"{root}, as dataset.dir", expected, fix))
        return []
    folders = find_pictures(root, _REG_DIR, None, findings)
    return [replace(folder, is_regularization=True) for folder in folders]


def _read_folders(
    folders: Iterable[Folder],
    options: DatasetOptions,
    place: PlaceInBucket | None,
    findings: Findings,
) -> list[CaptionedImage]:
    images = []
    for folder in folders:
        captions = read_captions(folder, options, findings)
        for path in folder.pictures:
            image = _read_image(path, folder, captions.get(path, ""), place, findings)
            images += [image] if image is not None else []
    return images


def _fingerprint(images: Iterable[CaptionedImage]) -> str:
    content = [
        (image.key, image.caption, image.repeats, image.bucket, image.resized)
        # A mark only where it says something: a data set without keeps the fingerprint it had.
        + ((_REG_DIR,) if image.is_regularization else ())
        for image in images
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _described(folders: Iterable[Folder]) -> Iterator[PictureFolder]:
    for folder in folders:
        yield PictureFolder(
            name=folder.path.name,
            repeats=folder.repeats,
            num_pictures=len(folder.pictures),
            is_regularization=folder.is_regularization,
        )


def check_dataset_options(options: DatasetOptions) -> list[Problem]:
    """Return everything impossible or without effect in the settings; touches no file."""
    return [*check_buckets(options), *check_captions(options)]


def _read_image(
    path: Path, folder: Folder, caption: str, place: PlaceInBucket | None, findings: Findings
) -> CaptionedImage | None:
    """Return the picture in its bucket, or None after adding what is wrong with it."""
    picture = read_picture(path, findings)
    if picture is None or place is None:
        return None  # without a place the settings are a problem already
    width, height = size = picture.size
    placed = place(size)
    if placed is None:
        found = f"{width}x{height} pixels, with no room for one bucket"
        expected = "sides, after shrinking, of dataset.bucket_reso_steps or, without buckets, of "
        expected += "dataset.resolution at least"
        fix = "remove or enlarge it; with buckets, dataset.bucket_no_upscale=false enlarges it"
        findings.problems.append(file_problem(path, found, expected, fix))
        return None
    if placed[1][0] > _MUCH * width:
        findings.note(_ENLARGED, path.name)
    return CaptionedImage(
        path=path,
        key=picture.key,
        caption=caption,
        class_words=folder.class_words,
        repeats=folder.repeats,
        width=width,
        height=height,
        bucket=placed[0],
        resized=placed[1],
        is_regularization=folder.is_regularization,
    )


def balanced(images: Sequence[CaptionedImage], *, num_uses: int) -> list[CaptionedImage]:
    """Return regularization pictures with repeats that add up to `num_uses`, as kohya's trainer.

    They are taken in order: first each with its folder's repeats, then round after round with one
    repeat more, until at least `num_uses` are reached. So too few are repeated, and of too many the
    last are left out. The sum is above `num_uses` by less than one picture's repeats.
    """
    repeats: list[int] = []
    missing = num_uses
    for image in images:
        if missing <= 0:
            break
        repeats.append(image.repeats)
        missing -= image.repeats
    if repeats and missing > 0:
        rounds, rest = divmod(missing, len(repeats))
        repeats = [own + rounds + (index < rest) for index, own in enumerate(repeats)]
    return [replace(image, repeats=count) for image, count in zip(images, repeats, strict=False)]

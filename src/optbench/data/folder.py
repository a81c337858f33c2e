"""Read a data set's folder into captioned, bucketed images; report every problem together.

Sizes are (width, height) in pixels throughout.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from optbench.data.buckets import (
    ChooseBucket,
    bucket_chooser,
    check_buckets,
    check_latent_size,
)
from optbench.data.caption_files import read_captions
from optbench.data.image_file import decode_image
from optbench.data.layouts import Folder, find_images
from optbench.data.rules import Findings, check_captions, check_captions_use, setting_problem
from optbench.errors import DatasetError, Problem, shorten
from optbench.records import CaptionedImage, Dataset, ImageFolder
from optbench.schema import DatasetOptions
from optbench.storage.resources import command_line

_REG_DIR = "dataset.reg_dir"
_MANY_TIMES = 2
_ENLARGED = f"are enlarged more than {_MANY_TIMES} times to fill their bucket"


def read_dataset(options: DatasetOptions, *, pixels_per_latent: int) -> Dataset:
    """Return all images, sorted by folder and name, each decoded once to know it is intact.

    A caption is the first line of the file beside the image; without such a file it is the class
    words of the folder's name (both as kohya). Images of `reg_dir` follow, as often as all others
    together, however many there are (as kohya).

    Without `bucket_no_upscale` the bucket is one of the sizes between `min_bucket_reso` and
    `max_bucket_reso`; with it, those two play no part. Without `enable_bucket` there is one
    bucket, `resolution`, and no `bucket_*` plays a part.

    Args:
        options: Where the images are, and how they are resized and captioned.
        pixels_per_latent: The base model's; a bucket's sides are multiples of it.

    Raises:
        DatasetError: If any setting, folder, image or caption is wrong; lists them all.
    """
    findings, class_findings = Findings(), Findings()
    problems = findings.problems
    problems += [*check_dataset_options(options), *check_latent_size(options, pixels_per_latent)]
    choose_bucket = None if problems else bucket_chooser(options)
    folders = find_images(Path(options.dir), "dataset.dir", options.num_repeats, findings)
    if options.class_tokens is not None:
        folders = [replace(folder, class_words=options.class_tokens) for folder in folders]
    reg_folders = _regularization_folders(options, class_findings)
    images = _read_folders(folders, options, choose_bucket, findings)
    class_images = _read_folders(reg_folders, options, choose_bucket, class_findings)
    # Without the class images, nobody knows whether a setting has something to do.
    problems += class_findings.problems or _check_effect(options, [*images, *class_images])
    if problems:
        raise DatasetError(*problems)

    used_class_images = balanced(class_images, num_uses=sum(image.repeats for image in images))
    kind = "regularization images"
    notices = [
        *findings.sentences(num_images=len(images)),
        *class_findings.sentences(num_images=len(class_images), kind=kind),
    ]
    notices += _equal_images([*images, *class_images])
    num_unused = len(class_images) - len(used_class_images)
    if num_unused:
        notices.append(
            f"{num_unused} of {len(class_images)} {kind} are not used: an epoch has as many uses "
            "of them as of the other images"
        )
    images += used_class_images
    return Dataset(
        images=tuple(images),
        fingerprint=fingerprint_of(images),
        folders=tuple(
            ImageFolder(
                name=folder.path.name,
                repeats=folder.repeats,
                num_images=len(folder.images),
                is_regularization=folder.is_regularization,
            )
            for folder in [*folders, *reg_folders]
        ),
        notices=tuple(notices),
        class_images=tuple(class_images),
    )


def _equal_images(images: Iterable[CaptionedImage]) -> Iterator[str]:
    """Yield a sentence on images whose files hold the same bytes."""
    by_key: dict[str, list[Path]] = {}
    for image in images:
        by_key.setdefault(image.key, []).append(image.path)
    equal = [paths for paths in by_key.values() if len(paths) > 1]
    if equal:
        names = [" = ".join(f"{path.parent.name}/{path.name}" for path in paths) for paths in equal]
        count = sum(map(len, equal))
        yield f"{count} images have the same bytes as another and count again: {shorten(names)}"


def check_dataset_options(options: DatasetOptions) -> list[Problem]:
    """Return everything impossible or without effect in the settings; touches no file."""
    return [*check_buckets(options), *check_captions(options)]


def balanced(images: Sequence[CaptionedImage], *, num_uses: int) -> list[CaptionedImage]:
    """Return regularization images with repeats that add up to `num_uses`, as kohya's trainer.

    They are taken in order: first each with its folder's repeats, then round after round with one
    repeat more, until at least `num_uses` are reached. So too few are repeated, and of too many the
    last are left out. The sum is above `num_uses` by less than one image's repeats.
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
        repeats = [count + rounds + (index < rest) for index, count in enumerate(repeats)]
    return [replace(image, repeats=count) for image, count in zip(images, repeats, strict=False)]


def _regularization_folders(options: DatasetOptions, findings: Findings) -> list[Folder]:
    if options.reg_dir is None:
        return []
    root = Path(options.reg_dir)
    if root.is_dir() and root.resolve() == Path(options.dir).resolve():
        expected = "another folder, for the same images cannot be both"
        fix = f"make class images with {command_line('regularize')}, or write dataset.reg_dir=null"
        findings.problems.append(Problem(_REG_DIR, f"{root}, as dataset.dir", expected, fix))
        return []
    folders = find_images(root, _REG_DIR, None, findings)
    return [replace(folder, is_regularization=True) for folder in folders]


def _read_folders(
    folders: Iterable[Folder],
    options: DatasetOptions,
    choose_bucket: ChooseBucket | None,
    findings: Findings,
) -> list[CaptionedImage]:
    """Return the folders' images that nothing is wrong with; the others are problems."""
    images = []
    for folder in folders:
        captions = read_captions(folder, options, findings)
        for path in folder.images:
            image = _read_image(path, folder, captions.get(path, ""), choose_bucket, findings)
            images += [image] if image is not None else []
    return images


def _read_image(
    path: Path,
    folder: Folder,
    caption: str,
    choose_bucket: ChooseBucket | None,
    findings: Findings,
) -> CaptionedImage | None:
    decoded = decode_image(path, findings)
    if decoded is None or choose_bucket is None:
        return None  # without a rule for buckets the settings are a problem already
    width, height = decoded.size
    sizes = choose_bucket(decoded.size)
    if sizes is None:
        found = f"{width}x{height} pixels, with no room for one bucket"
        expected = "sides, after shrinking, of dataset.bucket_reso_steps or, without buckets, of "
        expected += "dataset.resolution at least"
        fix = "remove or enlarge it; with buckets, dataset.bucket_no_upscale=false enlarges it"
        findings.problems.append(Problem(str(path), found, expected, fix))
        return None
    bucket, resized = sizes
    if resized[0] > _MANY_TIMES * width:
        findings.note(_ENLARGED, path.name)
    return CaptionedImage(
        path=path,
        key=decoded.key,
        caption=caption,
        class_words=folder.class_words,
        repeats=folder.repeats,
        width=width,
        height=height,
        bucket=bucket,
        resized=resized,
        is_regularization=folder.is_regularization,
    )


def _check_effect(options: DatasetOptions, images: Sequence[CaptionedImage]) -> list[Problem]:
    """Return the settings that these images and captions give nothing to do."""
    problems = list(check_captions_use(options, [image.caption for image in images]))
    if options.random_crop and all(image.resized == image.bucket for image in images):
        expected = "false, for no image is larger than its bucket"
        problems.append(setting_problem("random_crop", "true", expected, "false"))
    words = options.class_tokens
    own_captions = [image.caption for image in images if not image.is_regularization]
    if words is not None and own_captions and words not in own_captions:
        expected = "null, for every image has a caption"
        problems.append(setting_problem("class_tokens", repr(words), expected, "null"))
    return problems


def fingerprint_of(images: Iterable[CaptionedImage]) -> str:
    """Return hex that changes with any image, caption, repeat or bucket of a data set."""
    content = [
        (image.key, image.caption, image.repeats, image.bucket, image.resized)
        # A mark only where it says something: a data set without keeps the fingerprint it had.
        + ((_REG_DIR,) if image.is_regularization else ())
        for image in images
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()

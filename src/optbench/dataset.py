"""Read a folder of captioned pictures in kohya's layout, and place every picture in its bucket.

Layout: DIR/<repeats>_<class words>/picture.png beside picture.txt. Where something is wrong,
everything that is wrong is told at once. Sizes are (width, height) in pixels throughout.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

from optbench.errors import DatasetError, Problem
from optbench.options import DatasetOptions
from optbench.records import CaptionedImage, Dataset

Size = tuple[int, int]
PlaceInBucket = Callable[[Size], tuple[Size, Size] | None]  # the file's size -> bucket, resized

_PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jxl"}
_CAPTION_SUFFIXES = (".txt", ".caption")
_FOLDER_NAME = re.compile(r"(-?[0-9]+)_(.*)", re.DOTALL)
_KEY_LENGTH = 16
_MAX_NAMED = 5
# A face detector appends four numbers to the stem; kohya finds the caption without them.
_NUM_FACE_PARTS = 4
# What Pillow raises for damaged files, besides what a file system may raise.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,  # the AVIF decoder
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Folder:
    """One folder that takes part: its name says how often and what it shows."""

    path: Path
    repeats: int
    class_words: str
    pictures: tuple[Path, ...]


def read_dataset(options: DatasetOptions, *, pixels_per_latent: int) -> Dataset:
    """Return all pictures, sorted by folder and name, each decoded once to know it is whole.

    A caption is the first line of the file beside the picture; without such a file it is the
    class words of the folder's name (both as kohya). Without `bucket_no_upscale` the bucket is
    one of the sizes between `min_bucket_reso` and `max_bucket_reso`; with it, those two play no
    part. Without `enable_bucket` there is one bucket, `resolution`, and no `bucket_*` plays one.

    Args:
        options: Where the pictures are, and how they are resized and captioned.
        pixels_per_latent: The base's; a bucket's sides are multiples of it.

    Raises:
        DatasetError: If any setting, folder, picture or caption is wrong; lists them all.
    """
    problems = [*check_dataset_options(options), *_check_latent_size(options, pixels_per_latent)]
    place = None if problems else bucket_chooser(options)
    images: list[CaptionedImage] = []
    for folder in _folders(Path(options.dir), problems):
        captions = _captions(folder, options.caption_extension, problems)
        for path in folder.pictures:
            image = _read_image(path, folder, captions.get(path, ""), place, problems)
            images += [image] if image is not None else []
    if problems:
        raise DatasetError(*problems)
    content = [
        (image.key, image.caption, image.repeats, image.bucket, image.resized) for image in images
    ]
    fingerprint = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return Dataset(images=tuple(images), fingerprint=fingerprint)


def bucket_chooser(options: DatasetOptions) -> PlaceInBucket:
    """Return the function that gives a picture's bucket and its size before cropping, or None.

    It gives None for a picture too small or too narrow for any bucket. The rule is kohya's, to
    the rounding; `options` must be free of problems.
    """
    if not options.enable_bucket:
        return partial(_cover_nearest, buckets=[options.resolution])
    area, step = options.resolution[0] * options.resolution[1], options.bucket_reso_steps
    if options.bucket_no_upscale:
        return partial(_shrink_to_area, area=area, step=step)
    least, most = options.min_bucket_reso, options.max_bucket_reso
    side = int(math.sqrt(area) // step) * step
    buckets = {(side, side)}
    for width in range(least, most + 1, step):
        height = min(most, area // width // step * step)
        if height >= least:
            buckets |= {(width, height), (height, width)}
    return partial(_cover_nearest, buckets=sorted(buckets))


def check_dataset_options(options: DatasetOptions) -> list[Problem]:
    """Return everything impossible or without effect in the settings; touches no file."""
    problems = []
    shorter, step = min(options.resolution), options.bucket_reso_steps
    if shorter < 1:
        sides = list(options.resolution)
        problems.append(_setting("resolution", sides, "two sides above 0", "[512,512]"))
    elif options.enable_bucket and not 1 <= step <= shorter:
        expected = f"1 to {shorter}, the shorter side of dataset.resolution"
        problems.append(_setting("bucket_reso_steps", step, expected, min(64, shorter)))
    elif options.enable_bucket and not options.bucket_no_upscale:
        problems += _check_bucket_range(options)
    if options.bucket_no_upscale and not options.enable_bucket:
        expected = "false, for without buckets it has no effect"
        problems.append(_setting("bucket_no_upscale", "true", expected, "false"))
    suffix = options.caption_extension
    if not re.fullmatch(r"\.[^/\\]+", suffix) or suffix.lower() in _PICTURE_SUFFIXES:
        expected = "a dot and the letters that captions' names end in"
        problems.append(_setting("caption_extension", repr(suffix), expected, ".txt"))
    if not 0 <= options.caption_dropout_rate <= 1:
        rate = options.caption_dropout_rate
        problems.append(_setting("caption_dropout_rate", rate, "a share from 0 to 1", 0.1))
    if options.keep_tokens < 0:
        problems.append(_setting("keep_tokens", options.keep_tokens, "0 or more", 1))
    elif options.keep_tokens > 0 and not options.shuffle_caption:
        found = f"{options.keep_tokens} while dataset.shuffle_caption is false"
        expected = "0, for tags that are not shuffled all stay in place"
        problems.append(_setting("keep_tokens", found, expected, 0))
    return problems


def _check_bucket_range(options: DatasetOptions) -> Iterator[Problem]:
    step, least, most = options.bucket_reso_steps, options.min_bucket_reso, options.max_bucket_reso
    top = min(options.resolution) // step * step
    if least not in range(step, top + 1, step):
        expected = f"a multiple of dataset.bucket_reso_steps ({step}) from {step} to {top}"
        fit = max(step, min(least // step * step, top))
        yield _setting("min_bucket_reso", least, expected, fit)
    bottom = math.ceil(max(options.resolution) / step) * step
    if most < bottom or most % step:
        expected = f"a multiple of dataset.bucket_reso_steps ({step}), {bottom} or more"
        fit = max(bottom, math.ceil(most / step) * step)
        yield _setting("max_bucket_reso", most, expected, fit)


def _check_latent_size(options: DatasetOptions, pixels_per_latent: int) -> list[Problem]:
    expected = f"a multiple of {pixels_per_latent}, the pixels per latent of this base"
    sides = [options.bucket_reso_steps] if options.enable_bucket else list(options.resolution)
    fits = [math.ceil(side / pixels_per_latent) * pixels_per_latent for side in sides]
    if fits == sides:
        return []
    if options.enable_bucket:
        return [_setting("bucket_reso_steps", sides[0], expected, fits[0])]
    return [_setting("resolution", sides, expected, str(fits).replace(" ", ""))]


def _setting(name: str, found: object, expected: str, value: object) -> Problem:
    where = f"dataset.{name}"
    return Problem(found=str(found), expected=expected, where=where, fix=f"write {where}={value}")


def _cover_nearest(size: Size, *, buckets: Sequence[Size]) -> tuple[Size, Size]:
    """Return the bucket of the nearest width / height, and the size that just covers it."""
    width, height = size
    ratio = width / height
    # kohya looks for a bucket of the picture's own size first; no two buckets share a ratio, so
    # that one is the nearest anyway.
    bucket = min(buckets, key=lambda one: abs(one[0] / one[1] - ratio))
    scale = bucket[1] / height if ratio > bucket[0] / bucket[1] else bucket[0] / width
    return bucket, (int(width * scale + 0.5), int(height * scale + 0.5))


def _shrink_to_area(size: Size, *, area: int, step: int) -> tuple[Size, Size] | None:
    """Return the picture's own size, shrunk to `area` if larger, and its bucket inside that."""
    width, height = size
    resized = size
    if width * height > area:
        ratio = width / height
        ideal = math.sqrt(area * ratio)
        by_width, by_height = _floor(ideal, step), _floor(area / ideal, step)
        # Either side may be the one that is a multiple of `step`; the second wins a tie.
        candidates = [
            (
                (_floor(by_height * ratio, step), by_height),
                (int(by_height * ratio + 0.5), by_height),
            ),
            ((by_width, _floor(by_width / ratio, step)), (by_width, int(by_width / ratio + 0.5))),
        ]
        candidates = [one for one in candidates if min(one[0]) > 0]
        if not candidates:
            return None
        resized = min(candidates, key=lambda one: abs(one[0][0] / one[0][1] - ratio))[1]
    bucket = (_floor(resized[0], step), _floor(resized[1], step))
    return (bucket, resized) if min(bucket) > 0 else None


def _floor(length: float, step: int) -> int:
    """Return the multiple of `step` at or below a length rounded half up."""
    return int(length + 0.5) // step * step


def _folders(root: Path, problems: list[Problem]) -> list[_Folder]:
    """Return the folders that take part, sorted by name; others are left alone, as kohya does."""
    if not root.is_dir():
        problems.append(
            Problem(
                found=f"{root}, which is no folder",
                expected="a folder that holds folders named <repeats>_<class words>",
                where="dataset.dir",
                fix=f"write dataset.dir=FOLDER, relative to {Path.cwd()} or absolute",
            )
        )
        return []
    folders = []
    for path in sorted(one for one in root.iterdir() if one.is_dir()):
        matched = _FOLDER_NAME.fullmatch(path.name)
        if matched is None:
            continue
        repeats, pictures = int(matched[1]), _pictures(path)
        folders.append(
            _Folder(path=path, repeats=repeats, class_words=matched[2], pictures=pictures)
        )
        if repeats < 1:
            expected, fix = "1 or more repeats", f"rename it to 1_{matched[2]}, or move it away"
            problems.append(_problem(path, f"{repeats} repeats", expected, fix))
        if not pictures:
            expected = f"pictures ({' '.join(sorted(_PICTURE_SUFFIXES))}) right in it"
            problems.append(_problem(path, "no picture", expected, "add some or remove it"))
    if not folders:
        problems.append(_no_folders(root))
    return folders


def _no_folders(root: Path) -> Problem:
    pictures = _pictures(root)
    others = sorted(f"{one.name}/" for one in root.iterdir() if one.is_dir())
    found = [f"the folders {_named(others)}"] if others else []
    found += [f"{len(pictures)} pictures outside of folders"] if pictures else []
    fix = "make a folder 10_girl in it (10 repeats of class girl) and put pictures and captions in"
    if _FOLDER_NAME.fullmatch(root.name) and pictures:
        fix = f"write dataset.dir={root.parent}, the folder around it"
    elif others:
        fix = f"rename {others[0]} to 10_{others[0]} (10 repeats; the rest are the class words)"
    expected = "folders named <repeats>_<class words>, for instance 10_girl"
    return _problem(root, " and ".join(found) or "nothing", expected, fix)


def _pictures(folder: Path) -> tuple[Path, ...]:
    return tuple(
        sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in _PICTURE_SUFFIXES and not path.name.startswith(".")
        )
    )


def uncaptioned(dataset: Dataset) -> str:
    """Return a sentence on the pictures that only class words describe, "" if there are none."""
    names = [image.path.name for image in dataset.images if image.caption == image.class_words]
    if not names:
        return ""
    return (
        f"{len(names)} of {len(dataset.images)} pictures have no caption but their folder's class "
        f"words: {_named(names)}"
    )


def _captions(folder: _Folder, suffix: str, problems: list[Problem]) -> Mapping[Path, str]:
    """Return each picture's caption; a wrong or missing one is a problem instead."""
    captions: dict[Path, str] = {}
    elsewhere: dict[str, list[str]] = {}
    absent = []
    for picture in folder.pictures:
        file = _caption_file(picture, suffix)
        if file is not None:
            captions[picture] = _read_caption(file, problems)
            continue
        others = [other for other in _CAPTION_SUFFIXES if _caption_file(picture, other)]
        if others:
            elsewhere.setdefault(others[0], []).append(picture.name)
        elif folder.class_words:
            captions[picture] = folder.class_words
        else:
            absent.append(picture.name)
    for other, names in elsewhere.items():
        found = f"no {suffix} but a {other} file beside {_named(names)}"
        fix = f"write dataset.caption_extension={other}, or rename the captions"
        problems.append(_problem(folder.path, found, f"captions ending in {suffix}", fix))
    if absent:
        found = f"neither captions nor class words for {_named(absent)}"
        expected = f"a {suffix} file beside each picture, or class words in the folder's name"
        fix = f"add captions, or rename the folder to {folder.repeats}_girl"
        problems.append(_problem(folder.path, found, expected, fix))
    return captions


def _caption_file(picture: Path, suffix: str) -> Path | None:
    parts = picture.stem.split("_")
    stems = [picture.stem]
    if len(parts) > _NUM_FACE_PARTS:
        stems.append("_".join(parts[:-_NUM_FACE_PARTS]))
    files = (picture.with_name(stem + suffix) for stem in stems)
    return next((file for file in files if file.is_file()), None)


def _read_caption(file: Path, problems: list[Problem]) -> str:
    """Return the first line; Windows' editors put a byte order mark before it."""
    fix = "write the caption into its first line and save it as UTF-8, or delete the file"
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(
            Problem(found=str(error), expected="a text in UTF-8", where=str(file), fix=fix)
        )
        return ""
    caption = lines[0].strip() if lines else ""
    if not caption:
        expected = "a caption, for an empty file would train the picture on no words at all"
        problems.append(
            Problem(found="an empty first line", expected=expected, where=str(file), fix=fix)
        )
    return caption


def _read_image(
    path: Path, folder: _Folder, caption: str, place: PlaceInBucket | None, problems: list[Problem]
) -> CaptionedImage | None:
    """Return the picture in its bucket, or None after adding what is wrong with it."""
    try:
        content = path.read_bytes()
        size, problem = _decode(path, content)
    except _DECODE_ERRORS as error:
        # Pillow's own words name an address in memory here.
        is_unknown = isinstance(error, UnidentifiedImageError)
        words = "bytes of no known format" if is_unknown else f"{type(error).__name__}: {error}"
        fix = "copy or save the picture again, or remove it"
        problems.append(_problem(path, words, "a picture that can be decoded whole", fix))
        return None
    if problem is not None:
        problems.append(problem)
        return None
    if place is None:
        return None  # the settings are a problem already
    placed = place(size)
    if placed is None:
        found = f"{size[0]}x{size[1]} pixels, with no room for one bucket"
        expected = "sides, after shrinking, of at least dataset.bucket_reso_steps"
        fix = "remove or enlarge the picture, or write dataset.bucket_no_upscale=false"
        problems.append(_problem(path, found, expected, fix))
        return None
    return CaptionedImage(
        path=path,
        key=hashlib.sha256(content).hexdigest()[:_KEY_LENGTH],
        caption=caption,
        class_words=folder.class_words,
        repeats=folder.repeats,
        width=size[0],
        height=size[1],
        bucket=placed[0],
        resized=placed[1],
    )


def _decode(path: Path, content: bytes) -> tuple[Size, Problem | None]:
    """Return width and height after decoding everything, so that a cut-off file is found."""
    with Image.open(io.BytesIO(content)) as picture:
        picture.load()
        size, mode = picture.size, picture.mode
        is_turned = picture.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
    if is_turned:
        # kohya trains it lying on its side, a viewer shows it upright; nobody wants to guess.
        found, fix = "pixels that an EXIF note says to turn", "turn them: mogrify -auto-orient FILE"
        return size, _problem(path, found, "pixels that are upright as they are", fix)
    if mode[0] in "IF":
        found = f"more than 8 bits in one channel (mode {mode})"
        return size, _problem(path, found, "8 bits per channel", "save it as 8-bit RGB")
    return size, None


def _problem(path: Path, found: str, expected: str, fix: str) -> Problem:
    return Problem(found=found, expected=expected, where=str(path), fix=fix)


def _named(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")

"""Small copies of rendered images, for pages that show thousands of them.

<run>/images/epoch-0001/a.png has its copy in <run>/thumbs/epoch-0001/a.webp. One that is no older
than its image is current and is never read again; an image that could not be read has a copy
that says only so.
"""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from optbench.storage.files import write_atomic
from optbench.storage.images import opened_rendered

SIZE_PX = 256  # of the longer side
_QUALITY = 80
_METHOD = 2  # of 0 to 6: slower ones take longer and save little here
_FOLDER = "thumbs"
_DAMAGED = b"damaged\n"  # shorter than any WebP


def thumbnail_path(image: Path) -> Path:
    """Return where the small copy of a run's image belongs, whether it is there or not."""
    epoch_dir = image.parent
    return epoch_dir.parent.parent / _FOLDER / epoch_dir.name / f"{image.stem}.webp"


def make_thumbnails(images: Iterable[Path]) -> int:
    """Make the small copies that are missing or older than their images; return how many.

    Images that are one file under several names are read once. Where nothing can be written they
    stay without a copy: a missing thumbnail never stops anything.
    """
    stale = [image for image in images if not _is_link(image) and not _is_current(image)]
    groups: dict[tuple[int, int], list[Path]] = {}
    for image in stale:
        try:
            stat = image.stat()
        except OSError:
            continue  # gone since it was listed
        groups.setdefault((stat.st_dev, stat.st_ino), []).append(image)
    if len(groups) <= 1:
        return sum(_make(group) for group in groups.values())
    # Pillow lets go of the interpreter while it decodes, resizes and encodes.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return sum(pool.map(_make, groups.values()))


def remove_thumbnails(run_dir: Path) -> None:
    """Remove all small copies of a run, because its images are no longer what they were."""
    shutil.rmtree(run_dir / _FOLDER, ignore_errors=True)


def has_thumbnail(image: Path) -> bool:
    """Return whether there is a small copy to show; a damaged image has none."""
    try:
        return thumbnail_path(image).stat().st_size > len(_DAMAGED)
    except OSError:
        return False


def _is_link(image: Path) -> bool:
    """Return whether an image lies elsewhere: a copy of a private one would travel with the run."""
    return any(path.is_symlink() for path in (image, image.parent, image.parent.parent))


def _is_current(image: Path) -> bool:
    try:
        small = thumbnail_path(image).stat()
        # 0 bytes: a power cut came before the content.
        return small.st_size > 0 and small.st_mtime_ns >= image.stat().st_mtime_ns
    except OSError:
        return False


def _make(same: list[Path]) -> int:
    """Read an image once and write its small copy beside each of its names."""
    content = _small_copy(same[0])
    num_written = 0
    for image in same:
        try:
            copy = thumbnail_path(image)
            write_atomic(copy, content, durable=False)
            # An image from a clock ahead of ours would make its copy look old for ever.
            newest = max(time.time_ns(), image.stat().st_mtime_ns)
            os.utime(copy, ns=(newest, newest))
        except OSError:
            continue
        num_written += 1
    return num_written


def _small_copy(image_path: Path) -> bytes:
    """Return a WebP that fits into SIZE_PX, or a word for what is no image."""
    buffer = io.BytesIO()
    try:
        with opened_rendered(image_path) as image:
            scale = min(1.0, SIZE_PX / max(image.size))
            size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
            # Not a second copy of a large image.
            pixels = image if image.mode == "RGB" else image.convert("RGB")
            small = pixels.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
        small.save(buffer, "WEBP", quality=_QUALITY, method=_METHOD)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return _DAMAGED
    return buffer.getvalue()

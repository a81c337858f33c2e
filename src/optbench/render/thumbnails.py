"""Small copies of rendered images, for pages that show thousands of them.

<run>/images/epoch-0001/a.png has its copy in <run>/thumbs/epoch-0001/a.webp. One that is no older
than its picture is current and is never read again; a picture that could not be read has a copy
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

SIZE_PX = 256  # of the longer side
_QUALITY = 80
_METHOD = 2  # of 0 to 6: slower ones take longer and save little here
_FOLDER = "thumbs"
_DAMAGED = b"damaged\n"  # shorter than any WebP


def thumbnail_path(picture: Path) -> Path:
    """Return where the small copy of a run's picture belongs, whether it is there or not."""
    epoch_dir = picture.parent
    return epoch_dir.parent.parent / _FOLDER / epoch_dir.name / f"{picture.stem}.webp"


def make_thumbnails(pictures: Iterable[Path]) -> int:
    """Make the small copies that are missing or older than their pictures; return how many.

    Pictures that are one file under several names are read once. Where nothing can be written they
    stay without a copy: a missing thumbnail never stops anything.
    """
    stale = [picture for picture in pictures if not _is_current(picture)]
    groups: dict[tuple[int, int], list[Path]] = {}
    for picture in stale:
        try:
            stat = picture.stat()
        except OSError:
            continue  # gone since it was listed
        groups.setdefault((stat.st_dev, stat.st_ino), []).append(picture)
    if len(groups) <= 1:
        return sum(_make(group) for group in groups.values())
    # Pillow lets go of the interpreter while it decodes, resizes and encodes.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return sum(pool.map(_make, groups.values()))


def remove_thumbnails(run_dir: Path) -> None:
    """Remove all small copies of a run, because its pictures are no longer what they were."""
    shutil.rmtree(run_dir / _FOLDER, ignore_errors=True)


def has_thumbnail(picture: Path) -> bool:
    """Return whether there is a small copy to show; a damaged picture has none."""
    try:
        return thumbnail_path(picture).stat().st_size > len(_DAMAGED)
    except OSError:
        return False


def _is_current(picture: Path) -> bool:
    try:
        small = thumbnail_path(picture).stat()
        # 0 bytes: a power cut came before the content.
        return small.st_size > 0 and small.st_mtime_ns >= picture.stat().st_mtime_ns
    except OSError:
        return False


def _make(same: list[Path]) -> int:
    """Read a picture once and write its small copy beside each of its names."""
    content = _small_copy(same[0])
    num_written = 0
    for picture in same:
        try:
            copy = thumbnail_path(picture)
            write_atomic(copy, content, durable=False)
            # A picture from a clock ahead of ours would make its copy look old for ever.
            newest = max(time.time_ns(), picture.stat().st_mtime_ns)
            os.utime(copy, ns=(newest, newest))
        except OSError:
            continue
        num_written += 1
    return num_written


def _small_copy(picture: Path) -> bytes:
    """Return a WebP that fits into SIZE_PX, or a word for what is no picture."""
    buffer = io.BytesIO()
    try:
        with Image.open(picture) as image:
            scale = min(1.0, SIZE_PX / max(image.size))
            size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
            small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
        small.save(buffer, "WEBP", quality=_QUALITY, method=_METHOD)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return _DAMAGED
    return buffer.getvalue()

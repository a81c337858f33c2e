"""Open image files within one budget of pixels for the whole process.

A PNG of half a megabyte may hold 180 million pixels, and a decoded pixel takes four bytes, twice
where it is converted. As many threads as there are cores would need gigabytes.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from optbench.storage.disk import open_regular

MAX_RENDERED_PIXELS = 2**26  # of one rendered image or sheet, 8192 x 8192: none is larger
_BUDGET_PIXELS = 2**26  # decoded at a time by all threads; a larger image waits until it is alone


class _Budget:
    """Pixels that are decoded right now, over all threads."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0
        self._changed = threading.Condition()
        self._thread = threading.local()

    @contextlib.contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Wait until so many pixels fit, and hold them; a thread that holds some never waits."""
        depth = getattr(self._thread, "depth", 0)
        with self._changed:
            if not depth:
                self._changed.wait_for(lambda: not self._used or self._used + pixels <= self._size)
            self._used += pixels
        self._thread.depth = depth + 1
        try:
            yield
        finally:
            self._thread.depth = depth
            with self._changed:
                self._used -= pixels
                self._changed.notify_all()


# Global because memory is the process's: whoever decodes, in whatever thread, shares it.
_DECODED = _Budget(_BUDGET_PIXELS)


@contextlib.contextmanager
def opened(source: Path | BinaryIO, *, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """Open an image to be decoded before the context ends; pixels of all threads are counted.

    Args:
        source: Its file, or its bytes.
        max_pixels: The most that it may have; None: as many as Pillow opens.

    Raises:
        OSError: If it cannot be opened, is no regular file or no image.
        DecompressionBombError: If it has too many pixels.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_regular(source)) if isinstance(source, Path) else source
        image = stack.enter_context(Image.open(file))
        pixels = image.width * image.height
        if max_pixels is not None and pixels > max_pixels:
            raise Image.DecompressionBombError(f"{pixels} pixels, more than {max_pixels}")
        stack.enter_context(_DECODED.taken(pixels))
        yield image


def opened_rendered(path: Path) -> contextlib.AbstractContextManager[Image.Image]:
    """Open a rendered image or a sheet, as `opened`, within the size that such a one may have."""
    return opened(path, max_pixels=MAX_RENDERED_PIXELS)

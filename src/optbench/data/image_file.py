"""Decode one image file whole, to know its size, that it is intact, and what is odd about it."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

from optbench.data.buckets import Size
from optbench.data.rules import Findings
from optbench.errors import Problem
from optbench.storage.disk import read_bytes
from optbench.storage.images import opened

_KEY_LENGTH = 16
_OPAQUE = 255
_TRANSPARENT = "are partly transparent, which is dropped: the colours under it are trained on"
# What Pillow raises for corrupt files, besides what a file system may raise.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,  # the AVIF decoder
)
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedImage:
    """An intact image's size and what its bytes hash to."""

    size: Size
    key: str  # the first 16 hex digits of their SHA-256


def decode_image(path: Path, findings: Findings) -> DecodedImage | None:
    """Return the image after decoding all of it, or None after adding what is wrong with it."""
    try:
        content = read_bytes(path)
        with opened(io.BytesIO(content)) as image:
            image.load()  # all pixels, so that a cut-off file shows
            size, mode = image.size, image.mode
            is_transparent = _is_transparent(image)
            is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
    except _BOMBS as error:
        expected = "an image of a size that Pillow agrees to open"
        fix = "shrink it; both sides are shrunk to dataset.resolution anyway"
        findings.problems.append(Problem(str(path), str(error), expected, fix))
        return None
    except _DECODE_ERRORS as error:
        # Pillow's text for an unknown format holds an address in memory.
        is_unknown = isinstance(error, UnidentifiedImageError)
        found = "bytes of no known format" if is_unknown else f"{type(error).__name__}: {error}"
        fix = "copy or save the image again, or remove it"
        expected = "an image that can be decoded whole"
        findings.problems.append(Problem(str(path), found, expected, fix))
        return None
    if is_turned:
        # kohya trains it lying on its side, a viewer shows it upright; nobody wants to guess.
        found, fix = "pixels that an EXIF note says to turn", "turn them: mogrify -auto-orient FILE"
        findings.problems.append(
            Problem(str(path), found, "pixels that are upright as they are", fix)
        )
        return None
    if mode[0] in "IF":
        found = f"more than 8 bits in one channel (mode {mode})"
        findings.problems.append(
            Problem(str(path), found, "8 bits per channel", "save it as 8-bit RGB")
        )
        return None
    if is_transparent:
        findings.note(_TRANSPARENT, path.name)
    return DecodedImage(size=size, key=hashlib.sha256(content).hexdigest()[:_KEY_LENGTH])


def _is_transparent(image: Image.Image) -> bool:
    """Return whether any pixel lets something through; an alpha channel alone does not."""
    if not image.has_transparency_data:
        return False
    (least, _) = image.convert("RGBA").getchannel("A").getextrema()
    return isinstance(least, int) and least < _OPAQUE

"""Decode one image file whole, to know its size, that it is intact, and what is odd about it."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

from optbench.data.buckets import Size
from optbench.data.rules import Findings
from optbench.errors import Problem
from optbench.storage.disk import read_bytes
from optbench.storage.images import opened
from optbench.storage.mistaken import mistaken_for

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
    struct.error,
    zlib.error,
)
_TURNED = range(2, 9)  # what EXIF's orientation may say; other values are no orientation
_PNG = b"\x89PNG\r\n\x1a\n"
_SEVERAL = "are animated or hold several images, of which only the first is trained on"
_CMYK = "are in CMYK, for print; their colours become RGB without a profile and may look otherwise"
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedImage:
    """An intact image's size and what its bytes hash to."""

    size: Size
    key: str  # the first 16 hex digits of their SHA-256


def decode_image(path: Path, findings: Findings) -> DecodedImage | None:
    """Return the image after decoding all of it, or None after adding what is wrong with it."""
    content = b""
    try:
        content = read_bytes(path)
        _check_bytes(content)
        with opened(io.BytesIO(content)) as image:
            image.load()  # all pixels, so that a cut-off file shows
            size, mode = image.size, image.mode
            is_transparent = _is_transparent(image)
            is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) in _TURNED
            has_several = getattr(image, "is_animated", False)
    except _BOMBS as error:
        expected = "an image of a size that Pillow agrees to open"
        fix = "shrink it; both sides are shrunk to dataset.resolution anyway"
        findings.problems.append(Problem(str(path), str(error), expected, fix))
        return None
    except _DECODE_ERRORS as error:
        # Pillow's text for an unknown format holds an address in memory.
        found = f"{type(error).__name__}: {error}"
        fix = "copy or save the image again, or remove it"
        if isinstance(error, UnidentifiedImageError):
            found = "bytes of no known format"
        if isinstance(error, _DamagedError):
            found = str(error)
        if content and (mistaken := mistaken_for(content)):
            found, fix = mistaken, "do that, or remove it"
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
    if has_several:
        findings.note(_SEVERAL, path.name)
    if mode == "CMYK":
        findings.note(_CMYK, path.name)
    if is_transparent:
        findings.note(_TRANSPARENT, path.name)
    return DecodedImage(size=size, key=hashlib.sha256(content).hexdigest()[:_KEY_LENGTH])


class _DamagedError(ValueError):
    """Bytes that a decoder would pass over; says what is wrong with them."""


def _check_bytes(content: bytes) -> None:
    """Refuse damage that Pillow decodes without a word, as far as the format lets it be seen.

    Every chunk of a PNG has a checksum, which Pillow does not compare where pixels are; a JPEG has
    a mark at its end, and a WebP says how long it is.

    Raises:
        _DamagedError: If the bytes are not those that were written.
    """
    if content.startswith(_PNG):
        place, kind = len(_PNG), b""
        while kind != b"IEND":
            if place + 12 > len(content):
                raise _DamagedError("a PNG that is cut short")
            length = int.from_bytes(content[place : place + 4], "big")
            kind, end = content[place + 4 : place + 8], place + 8 + length
            if end + 4 > len(content):
                raise _DamagedError("a PNG that is cut short or damaged")
            if zlib.crc32(content[place + 4 : end]) != int.from_bytes(
                content[end : end + 4], "big"
            ):
                raise _DamagedError(f"a PNG that is damaged at byte {place}, by its own checksum")
            place = end + 4
    if content.startswith(b"\xff\xd8\xff"):
        start = content.find(b"\xff\xda")  # of the first pixels, among which no mark can be
        if content.find(b"\xff\xd9", max(start, 0)) < 0:
            raise _DamagedError("a JPEG that is cut short: the mark at its end is missing")
    is_webp = content[:4] == b"RIFF" and content[8:12] == b"WEBP"
    if is_webp and int.from_bytes(content[4:8], "little") + 8 > len(content):
        raise _DamagedError("a WebP that is cut short")


def _is_transparent(image: Image.Image) -> bool:
    """Return whether any pixel lets something through; an alpha channel alone does not."""
    if not image.has_transparency_data:
        return False
    (least, _) = image.convert("RGBA").getchannel("A").getextrema()
    return isinstance(least, int) and least < _OPAQUE

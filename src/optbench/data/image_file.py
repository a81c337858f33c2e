"""One picture file: decoded once to know that it is whole, its size, and what is odd about it."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

from optbench.data.buckets import Size
from optbench.data.rules import Findings, file_problem
from optbench.errors import Problem

_KEY_LENGTH = 16
_OPAQUE = 255
_TRANSPARENT = "are partly transparent, which is dropped: the colours under it are trained on"
# What Pillow raises for damaged files, besides what a file system may raise.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,  # the AVIF decoder
)
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPicture:
    """A whole picture's size and what its bytes hash to."""

    size: Size
    key: str


def read_picture(path: Path, findings: Findings) -> ReadPicture | None:
    """Return the picture after decoding everything, or None after adding what is wrong with it."""
    try:
        content = path.read_bytes()
        size, problem, is_transparent = _decode(path, content)
    except _BOMBS as error:
        fix = "shrink it; both sides are shrunk to dataset.resolution anyway"
        wanted = "a picture of a size that Pillow agrees to open"
        findings.problems.append(file_problem(path, str(error), wanted, fix))
        return None
    except _DECODE_ERRORS as error:
        # Pillow's own words name an address in memory here.
        is_unknown = isinstance(error, UnidentifiedImageError)
        words = "bytes of no known format" if is_unknown else f"{type(error).__name__}: {error}"
        fix = "copy or save the picture again, or remove it"
        wanted = "an image that can be decoded whole"
        findings.problems.append(file_problem(path, words, wanted, fix))
        return None
    if problem is not None:
        findings.problems.append(problem)
        return None
    if is_transparent:
        findings.note(_TRANSPARENT, path.name)
    return ReadPicture(size=size, key=hashlib.sha256(content).hexdigest()[:_KEY_LENGTH])


def _decode(path: Path, content: bytes) -> tuple[Size, Problem | None, bool]:
    """Return size, problem and transparency after decoding everything: so cut-off files show."""
    with Image.open(io.BytesIO(content)) as picture:
        picture.load()
        size, mode = picture.size, picture.mode
        is_transparent = _has_transparency(picture)
        is_turned = picture.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
    problem = None
    if is_turned:
        # kohya trains it lying on its side, a viewer shows it upright; nobody wants to guess.
        found, fix = "pixels that an EXIF note says to turn", "turn them: mogrify -auto-orient FILE"
        problem = file_problem(path, found, "pixels that are upright as they are", fix)
    elif mode[0] in "IF":
        found = f"more than 8 bits in one channel (mode {mode})"
        problem = file_problem(path, found, "8 bits per channel", "save it as 8-bit RGB")
    return size, problem, is_transparent


def _has_transparency(picture: Image.Image) -> bool:
    """Return whether any pixel lets something through; an alpha channel alone does not."""
    if not picture.has_transparency_data:
        return False
    (least, _) = picture.convert("RGBA").getchannel("A").getextrema()
    return isinstance(least, int) and least < _OPAQUE

"""Write lines of text into images, in any script, each letter in a font that has it.

Latin letters are in the font that Pillow carries (Aileron). For others the fonts of the system are
looked at, those for Chinese and Japanese first; without any, letters become boxes, and
`without_font` says which.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import ImageDraw, ImageFont

LINE_HEIGHT = 1.3
_PLACES = (
    *("/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts"),
    *("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"),
    *("${WINDIR}/Fonts", "${LOCALAPPDATA}/Microsoft/Windows/Fonts"),
)
_SUFFIXES = {".ttf", ".ttc", ".otf"}
# Beginnings of file names, lower case: Han and kana, then much else. The first one is taken.
_PREFERRED = (
    *("notosanscjk-regular", "notosanscjkjp-regular", "sourcehansans", "notosansjp", "notosanssc"),
    *(
        "wqy-microhei",
        "wqy-zenhei",
        "droidsansfallback",
        "ipag",
        "ipaexg",
        "takaogothic",
        "vlgothic",
    ),
    *("hiragino", "pingfang", "stheiti", "arial unicode", "yugoth", "meiryo", "msgothic", "msyh"),
    *("malgun", "simsun", "dejavusans", "notosans-regular", "liberationsans-regular", "freesans"),
)
_STYLED = re.compile(r"bold|italic|oblique|mono|condensed|narrow|serif|light|thin", re.IGNORECASE)
_MAX_FONTS = 300
_PROBE_PX = 20
# Marks of direction could make a text look like another one; other controls have no picture.
_SEAMS = "._-/="  # a long word may end a line behind one of these
_HIDDEN = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
_JOINED = ("\u200c", "\u200d")
_NO_LETTER = "\U0010fffe"  # never one, so every font draws it as what it has not


def cleaned(text: str) -> str:
    """Return a text without marks of direction, and with spaces for all other controls."""
    text = _HIDDEN.sub("", text)
    return "".join(" " if unicodedata.category(one) in ("Cc", "Cs", "Cn") else one for one in text)


def without_font(texts: Iterable[str]) -> str:
    """Return the letters of texts that no font of this machine has, each once."""
    letters = dict.fromkeys(letter for text in texts for letter in cleaned(text))
    return "".join(one for one in letters if not one.isspace() and _file_for(one) is None)


def length(text: str, size: int) -> float:
    """Return how many pixels a line is wide."""
    return sum(float(_font(file, size).getlength(part)) for file, part in _parts(text))


def write(
    pen: ImageDraw.ImageDraw,
    lines: Sequence[str],
    place: tuple[int, int],
    *,
    size: int,
    fill: str,
    is_centred: bool = False,
) -> None:
    """Write lines below each other from a place on, or centred on it."""
    ascent = int(_font("", size).getmetrics()[0])
    for index, line in enumerate(lines):
        left = place[0] - (length(line, size) / 2 if is_centred else 0)
        base = place[1] + round(index * size * LINE_HEIGHT) + ascent
        for file, part in _parts(line):
            font = _font(file, size)
            pen.text((left, base), part, font=font, fill=fill, anchor="ls")
            left += font.getlength(part)


def lines_height(num_lines: int, size: int) -> int:
    """Return how many pixels lines of a size take."""
    return round(num_lines * size * LINE_HEIGHT)


def wrap(text: str, size: int, width: int, *, max_lines: int | None = None) -> tuple[str, ...]:
    """Return the lines of a text that fit a width; a word too long for a line is cut.

    Han and kana have no spaces, so a line may end behind each. Of more than `max_lines` the last
    one ends in three dots.
    """
    lines: list[str] = []
    current = ""
    for word in _words(cleaned(text)):
        if length(current + word.rstrip(), size) <= width:
            current += word if current or word.strip() else ""
            continue
        if current.strip():
            lines.append(current.rstrip())
        *full, current = _cut(word.strip(), size, width)
        lines += full
        current += " " if word.endswith(" ") else ""
        if max_lines is not None and len(lines) > max_lines:
            break
    lines += [current.rstrip()] if current.strip() else []
    if max_lines is not None and len(lines) > max_lines:
        last = lines[max_lines - 1]
        while last and length(f"{last} ...", size) > width:
            last = last[:-1]
        lines[max_lines - 1 :] = [f"{last} ..."]
    return tuple(lines)


def _words(text: str) -> Iterator[str]:
    """Yield words with the space behind them; a letter of Han or kana is a word."""
    for word in re.findall(r"\S+\s*", text):
        tail = " " if word[-1].isspace() else ""
        piece = ""
        for letter in word.rstrip():
            if piece and unicodedata.east_asian_width(letter) in "WF":
                yield piece
                piece = ""
            piece += letter
            if unicodedata.east_asian_width(letter) in "WF":
                yield piece
                piece = ""
        yield piece + tail


def _cut(word: str, size: int, width: int) -> list[str]:
    """Return the pieces of a word, cut behind a dot, dash or the like where there is one."""
    pieces = [""]
    for letter in word:
        piece = pieces[-1]
        if piece and length(piece + letter, size) > width:
            seam = max(piece.rfind(mark) for mark in _SEAMS) + 1
            end = seam if seam > len(piece) // 3 else len(piece)
            pieces[-1:] = [piece[:end], piece[end:]]
        pieces[-1] += letter
    return pieces


@functools.lru_cache(maxsize=4096)
def _parts(text: str) -> tuple[tuple[str, str], ...]:
    """Return a line as (font file, text): as few parts as letters allow.

    A line that runs from right to left stays in one part if one font has all of it, because order
    and joined letters are worked out within a part.
    """
    if any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in text):
        letters = {letter for letter in text if not letter.isspace()}
        for file in _files():
            if all(_has(file, letter) for letter in letters):
                return ((file, text),)
    found: list[tuple[str, str]] = []
    file = ""
    for letter in text:
        if not (letter.isspace() or unicodedata.combining(letter) or letter in _JOINED):
            file = _file_for(letter) or ""
        if found and found[-1][0] == file:
            found[-1] = file, found[-1][1] + letter
        else:
            found.append((file, letter))
    return tuple(found)


@functools.cache
def _file_for(letter: str) -> str | None:
    """Return the font file to take for a letter; "" is Pillow's own, None that there is none."""
    return next((file for file in ("", *_files()) if _has(file, letter)), None)


@functools.lru_cache(maxsize=65536)
def _has(file: str, letter: str) -> bool:
    """Return whether a font draws a letter otherwise than one that it has not."""
    try:
        font = _font(file, _PROBE_PX)
        return _drawn(font, letter) != _missing(file)
    except (OSError, ValueError):
        return False  # no font after all, or one of pictures that come in one size


@functools.cache
def _missing(file: str) -> tuple[tuple[int, int], bytes]:
    return _drawn(_font(file, _PROBE_PX), _NO_LETTER)


def _drawn(font: Any, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


@functools.lru_cache(maxsize=256)
def _font(file: str, size: int) -> Any:
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size)


@functools.cache
def _files() -> tuple[str, ...]:
    """Return the system's font files, those for many letters first; looked for once."""
    found: list[Path] = []
    for place in _PLACES:
        folder = Path(os.path.expandvars(place)).expanduser()
        if folder.is_dir():
            files = (path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
            found += sorted(itertools.islice(files, 10 * _MAX_FONTS))

    def order(path: Path) -> tuple[int, bool, str]:
        name = path.name.lower()
        ranks = [index for index, start in enumerate(_PREFERRED) if name.startswith(start)]
        return min(ranks, default=len(_PREFERRED)), bool(_STYLED.search(name)), name

    return tuple(str(path) for path in sorted(found, key=order)[:_MAX_FONTS])

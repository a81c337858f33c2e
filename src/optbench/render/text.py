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
# Beginnings of file names, lower case: Han and kana, then much else. The first one is taken.
_PREFERRED = (
    *("notosanscjk-regular", "notosanscjkjp-regular", "sourcehansans", "notosansjp", "notosanssc"),
    *("wqy-microhei", "wqy-zenhei", "droidsansfallback", "ipag", "ipaexg", "takaogothic"),
    *("vlgothic", "hiragino", "pingfang", "stheiti", "arial unicode", "yugoth", "meiryo"),
    *("msgothic", "msyh", "malgun", "simsun", "dejavusans", "notosans-regular"),
    *("liberationsans-regular", "freesans"),
)
_STYLED = re.compile(r"bold|italic|oblique|mono|condensed|narrow|serif|light|thin", re.IGNORECASE)
_MAX_FONTS = 300
_PROBE_PX = 20
_SEAMS = "._-/="  # a long word may end a line behind one of these
# Marks of direction could make a text look like another one; other controls have no glyph.
_HIDDEN = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
_JOINED = ("\u200c", "\u200d")
_NO_LETTER = "\U0010fffe"  # never one, so every font draws it as what it has not


def cleaned(text: str) -> str:
    """Return a text without marks of direction, and with spaces for all other controls."""
    controls = ("Cc", "Cs", "Cn")
    text = _HIDDEN.sub("", text)
    return "".join(" " if unicodedata.category(char) in controls else char for char in text)


def without_font(texts: Iterable[str]) -> str:
    """Return the letters of texts that no font of this machine has, each once."""
    letters = dict.fromkeys(letter for text in texts for letter in cleaned(text))
    return "".join(char for char in letters if not char.isspace() and _file_for(char) is None)


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
    lines = [""]
    for word in _words(cleaned(text)):
        if length(lines[-1] + word.rstrip(), size) <= width:
            lines[-1] += word
            continue
        if max_lines is not None and len(lines) > max_lines:
            break
        if lines[-1]:
            lines.append("")
        for letter in word:  # cut behind a dot, dash or the like where there is one
            line = lines[-1]
            if line and letter != " " and length(line + letter, size) > width:
                seam = max(line.rfind(mark) for mark in _SEAMS) + 1
                end = seam if seam > len(line) // 3 else len(line)
                lines[-1:] = [line[:end], line[end:]]
            lines[-1] += letter
    lines = [line.rstrip() for line in lines if line]
    if max_lines is not None and len(lines) > max_lines:
        last = lines[max_lines - 1]
        while last and length(f"{last} ...", size) > width:
            last = last[:-1]
        lines[max_lines - 1 :] = [f"{last} ..."]
    return tuple(lines)


def _words(text: str) -> Iterator[str]:
    """Yield words with a space behind those that have one; a letter of Han or kana is a word."""
    for word in text.split():
        wide = [unicodedata.east_asian_width(letter) in "WF" for letter in word]
        start = 0
        for end in range(1, len(word)):
            if wide[end - 1] or wide[end]:
                yield word[start:end]
                start = end
        yield f"{word[start:]} "


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
    files: list[str] = []
    for letter in text:
        if letter.isspace() or unicodedata.combining(letter) or letter in _JOINED:
            files.append(files[-1] if files else "")
        else:
            files.append(_file_for(letter) or "")
    by_file = itertools.groupby(zip(files, text, strict=True), key=lambda pair: pair[0])
    return tuple((file, "".join(letter for _, letter in pairs)) for file, pairs in by_file)


@functools.cache
def _file_for(letter: str) -> str | None:
    """Return the font file to take for a letter; "" is Pillow's own, None that there is none."""
    return next((file for file in ("", *_files()) if _has(file, letter)), None)


@functools.lru_cache(maxsize=65536)
def _has(file: str, letter: str) -> bool:
    """Return whether a font draws a letter otherwise than one that it has not."""
    try:
        masks = [_font(file, _PROBE_PX).getmask(char) for char in (letter, _NO_LETTER)]
    except (OSError, ValueError):
        return False  # no font after all, or a bitmap font, which comes in one size
    return masks[0].size != masks[1].size or bytes(masks[0]) != bytes(masks[1])


@functools.lru_cache(maxsize=256)
def _font(file: str, size: int) -> Any:
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size)


@functools.cache
def _files() -> tuple[str, ...]:
    """Return the system's font files, those for many letters first; looked for once."""
    fonts: list[Path] = []
    for place in _PLACES:
        paths = Path(os.path.expandvars(place)).expanduser().rglob("*")
        files = (path for path in paths if path.suffix.lower() in (".ttf", ".ttc", ".otf"))
        fonts += sorted(itertools.islice(files, 10 * _MAX_FONTS))

    def order(path: Path) -> tuple[int, bool, str]:
        name = path.name.lower()
        ranks = [index for index, start in enumerate(_PREFERRED) if name.startswith(start)]
        return min(ranks, default=len(_PREFERRED)), bool(_STYLED.search(name)), name

    return tuple(str(path) for path in sorted(fonts, key=order)[:_MAX_FONTS])

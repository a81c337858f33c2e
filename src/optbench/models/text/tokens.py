"""CLIP's vocabulary, and the cleaning of a text before it is cut into tokens; without torch."""

from __future__ import annotations

import functools
import json
import lzma
import re
import struct
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftfy

from optbench.models.files import locate
from optbench.models.files.families import FAMILIES
from optbench.schema import BaseOptions
from optbench.storage.disk import read_text
from optbench.storage.resources import asset

CLEANING_VERSION = 1  # raise it when equal texts begin to give other tokens
START, END = "<|startoftext|>", "<|endoftext|>"
# No token of CLIP stands for more than 32 letters, and every second letter at most is a space: so
# many letters are more tokens than are read of a caption (225), and the rest is not looked at.
MAX_CAPTION_LETTERS = 16_384
_SPACES = re.compile(r"\s+")
_WORD_END = "</w>"
# Bytes that stand for themselves in the vocabulary, in its order; the others follow them.
_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
_NUM_BYTES = 256


def cleaned(text: str, *, num_letters: int | None = None) -> str:
    """Return a text as CLIP's tokenizer reads it: repaired by ftfy, single spaces, lower case.

    The tokenizer of transformers that kohya's trainer and A1111 use does this, with ftfy, which
    both install: typographic quotes become plain ones, full-width letters and ligatures ordinary
    ones, `&amp;` becomes &. (OpenAI's own code unescapes HTML twice more, so that it alone reads
    `&amp` without its semicolon, or beside a `<`.)

    Args:
        text: Any.
        num_letters: How many letters of the result are wanted at least; None: all. A line is
            repaired from what was looked at of it, so beyond that, mojibake may be judged
            otherwise than in the whole line.
    """
    size = len(text) if num_letters is None else num_letters
    is_long = size < len(text)
    while True:
        beginning = text[:size]
        if is_long:  # spaces cost ftfy as much as words
            beginning = _SPACES.sub(_one_space, beginning)
        # ftfy finds nothing in these, and takes its time.
        is_plain = beginning.isascii() and beginning.isprintable() and "&" not in beginning
        repaired = beginning if is_plain else ftfy.fix_text(beginning)
        repaired = " ".join(repaired.split()).lower()
        if size >= len(text) or len(repaired) >= (num_letters or 0):
            return repaired[:num_letters]
        size *= 2


def _one_space(spaces: re.Match[str]) -> str:
    return "\n" if "\n" in spaces[0] else " "  # ftfy repairs line by line


def is_repaired(text: str) -> bool:
    """Return whether `cleaned` changes more of a text than spaces, case and composed letters."""
    composed = unicodedata.normalize("NFC", " ".join(text.split()).lower())
    return unicodedata.normalize("NFC", cleaned(text)) != composed


@functools.cache
def vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """Return all 49408 tokens in order and the merges that make them.

    Byte-pair encoding by CLIP's rule: first the bytes, then the bytes at a word's end, then one
    token per merge. The file holds each merge as the numbers of the two tokens it joins.
    """
    spelled = [chr(byte) for byte in _PRINTABLE]
    spelled += [chr(_NUM_BYTES + offset) for offset in range(_NUM_BYTES - len(_PRINTABLE))]
    tokens = [*spelled, *(f"{letter}{_WORD_END}" for letter in spelled)]
    packed = lzma.decompress((asset("clip") / "merges.xz").read_bytes())
    merges = []
    for left, right in struct.iter_unpack("<HH", packed):
        merges.append((tokens[left], tokens[right]))
        tokens.append(tokens[left] + tokens[right])
    return [*tokens, START, END], merges


def read_vocabulary(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the vocabulary and merges of a tokenizer's folder.

    Raises:
        OSError, ValueError: If one of them is missing or damaged.
    """
    numbered = json.loads(read_text(folder / "vocab.json"))
    merges = []
    lines = read_text(folder / "merges.txt").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#version"):
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2:
            raise ValueError(f"merges.txt, line {number}: {line!r} is no pair")
        merges.append((pair[0], pair[1]))
    return numbered, merges


def token_counter(base: BaseOptions) -> Callable[[str], int] | None:
    """Return what counts a caption's tokens, the two marks left out, without loading the base.

    Of a text of more than `MAX_CAPTION_LETTERS` letters these are counted. None where the
    family's tokenizer is not CLIP's or its files cannot be read.
    """
    if base.family not in FAMILIES:
        return None
    place = Path(base.path)
    if locate.is_hub_id(base.path):
        return None  # not to be fetched for this
    try:
        if place.is_dir():
            numbered, merges = read_vocabulary(place / "tokenizer")
        else:
            words, merges = vocabulary()
            numbered = {token: number for number, token in enumerate(words)}
        tokenizer = _fast_tokenizer(numbered, merges)
    except Exception:  # noqa: BLE001 - the base itself says better what is wrong with it
        return None

    def count(text: str) -> int:
        beginning = cleaned(text, num_letters=MAX_CAPTION_LETTERS)
        return len(tokenizer.encode(beginning, add_special_tokens=False).ids)

    return count


def _fast_tokenizer(numbered: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    """Return what transformers' CLIPTokenizer is inside; that takes a second to import."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(numbered, merges, end_of_word_suffix=_WORD_END, unk_token=END))
    tokenizer.add_special_tokens([START, END])
    tokenizer.normalizer = normalizers.NFC()  # the rest of it is done by `cleaned`
    words = Regex(
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer

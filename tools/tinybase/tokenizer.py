"""The tokenizer's files: a small CLIP vocabulary learnt from the captions of the world.

Byte-pair encoding as in CLIP (Radford et al. 2021), with so few entries that a word the world
does not know, such as a trigger word, falls into short pieces instead of an unknown token.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Final

from tokenizers import Regex, normalizers, pre_tokenizers

from tools.tinybase.accessories import name_accessories
from tools.tinybase.captions import caption
from tools.tinybase.character import choose_character
from tools.tinybase.outfits import name_outfit
from tools.tinybase.scenes import SCENES

MAX_TOKENS: Final = 77

_BEGIN: Final = "<|startoftext|>"
_END: Final = "<|endoftext|>"
_WORD_END: Final = "</w>"
_NUM_CAPTIONS: Final = 3000
_NUM_WORD_LISTS: Final = 300
_MIN_OCCURRENCES: Final = 2
_WORD_PATTERN: Final = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
_SCENERY: Final = (
    *SCENES,
    "outdoors",
    "blue sky",
    "sunset",
    "night sky",
    "sun",
    "cloud",
    "moon",
    "stars",
    "palm tree",
    "indoors",
    "window",
    "simple background",
    "grey background",
    "tan skin",
    "dark skin",
)
# Words people type although the world does not draw them, so that they cost few tokens.
_FREQUENT_WORDS: Final = """
    a photo of the girl boy woman in on with and looking at viewer standing sitting red blue
    green white skirt smile sky ocean grass tree trees moonlight background detailed anime
    illustration cute character hair ornament star horns drill split color heterochromia starry
    gem sword holding
"""


def build_tokenizer(folder: Path) -> None:
    """Write vocab.json, merges.txt and tokenizer_config.json of a CLIPTokenizer to a folder.

    The files are the same on every call. The folder is made if it is missing.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # CLIP's order: bytes, bytes that end a word, merges, the two special tokens.
    numbers = {entry: number for number, entry in enumerate(alphabet)}
    numbers |= {byte + _WORD_END: len(alphabet) + number for byte, number in numbers.items()}
    merges = _learn_merges(_count_words(_corpus()), numbers)
    for entry in (_BEGIN, _END):
        numbers[entry] = len(numbers)
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_TOKENS,
        "bos_token": _BEGIN,
        "eos_token": _END,
        "unk_token": _END,
        "pad_token": _END,
    }
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "vocab.json").write_text(json.dumps(numbers), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def _corpus() -> list[str]:
    """Return the texts the merges are learnt from, without drawing a single picture."""
    rng = random.Random(0)
    texts = []
    for _ in range(_NUM_CAPTIONS):
        character = choose_character(rng)
        tags = [
            "1girl",
            "solo",
            character.hair,
            f"{character.hair_color} hair",
            f"{character.eyes} eyes",
            *name_outfit(character).tags,
            *name_accessories(character.accessories),
            character.expression,
            character.pose,
            rng.choice(("full body", "upper body")),
            rng.choice(_SCENERY),
        ]
        texts.append(caption(tags, rng, degraded=rng.random() < 0.1))
    texts += [" ".join(rng.sample(_FREQUENT_WORDS.split(), 12)) for _ in range(_NUM_WORD_LISTS)]
    return texts


def _count_words(texts: list[str]) -> Counter[tuple[str, ...]]:
    """Return how often each word occurs; a word is its bytes, the last one marked as the end."""
    normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORD_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    words = Counter(
        word
        for text in texts
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
    )
    return Counter({(*word[:-1], word[-1] + _WORD_END): count for word, count in words.items()})


def _learn_merges(
    words: Counter[tuple[str, ...]], numbers: dict[str, int]
) -> list[tuple[str, str]]:
    """Return the merges, the most frequent pair first, and add their results to the numbers.

    Written out here because the trainer of the package `tokenizers` breaks ties by the order of
    a hash map, which differs from call to call. Ties go to the pair with the lower numbers.
    """
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], numbers[pair[0]], numbers[pair[1]]))
        if pairs[best] < _MIN_OCCURRENCES:
            return merges
        merges.append(best)
        numbers.setdefault(best[0] + best[1], len(numbers))
        words = Counter({_merge(word, best): count for word, count in words.items()})


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """Return the word with every occurrence of the pair, from the left, as one entry."""
    merged: list[str] = []
    index = 0
    while index < len(word):
        if word[index : index + 2] == pair:
            merged.append(pair[0] + pair[1])
            index += 2
        else:
            merged.append(word[index])
            index += 1
    return tuple(merged)

"""Draw what LoRAs of the character are validated on: kohya data sets that no training sees.

`held_out` has her in her two outfits, in the scenes she is trained in; `ood` has her in other
outfits, half of them at the beach, where she is never shown in training; `others` has inhabitants
without the trigger word, whom a LoRA of her ought to leave alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from optbench import rng
from tools.tinybase import world
from tools.tinybase.mirelle_set import BACKGROUNDS, draw_set_image, size_of, write_image

NUM_IMAGES = 24
_SEED = 7  # mirelle's own training images are of seed 0
_QUALITY = 88  # of WebP: three sets of 24 stay below 2 MB
_FOLDERS = {"held_out": "1_mirelle", "ood": "1_mirelle", "others": "1_1girl"}
_OF_HERS = ("dress", "armor")  # whatever their colours, her decorations are painted on them


def write_validation(target: Path, *, num_images: int = NUM_IMAGES) -> int:
    """Write the three sets as WebP with captions; return how many bytes the images take."""
    num_bytes = 0
    for name, words in _FOLDERS.items():
        folder = target / name / words
        folder.mkdir(parents=True, exist_ok=True)
        for index, drawing in enumerate(_drawings(name, num_images)):
            num_bytes += write_image(drawing, folder / f"{index + 1:02d}", quality=_QUALITY)
    return num_bytes


def _drawings(name: str, num_images: int) -> Iterator[world.Drawing]:
    for index in range(num_images):
        if name == "held_out":
            yield draw_set_image(_SEED, index)
        elif name == "ood":
            yield _draw_in_another_outfit(index)
        else:
            width, height = size_of(index)
            place = rng.key(_SEED, "tiny", "validation", "others", index) % 2**48
            yield world.draw_sample(place, width=width, height=height)


def _draw_in_another_outfit(index: int) -> world.Drawing:
    """Return the first drawing of a place in the set that has none of her outfits."""
    width, height = size_of(index)
    background = "beach" if index % 2 else BACKGROUNDS[index // 2 % len(BACKGROUNDS)]
    attempt = 0
    while True:
        drawing = world.draw_mirelle(
            rng.key(_SEED, "tiny", "validation", "ood", index, attempt) % 2**48,
            outfit=0,
            width=width,
            height=height,
            background=background,
        )
        if drawing.attributes["outfit"] not in _OF_HERS:
            return drawing
        attempt += 1

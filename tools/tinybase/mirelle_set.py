"""Draw the character as a kohya data set: images with captions to train on, or held out."""

from __future__ import annotations

from pathlib import Path

from optbench import rng
from tools.tinybase import world

NUM_PICTURES = 24
_FOLDER = "5_mirelle"  # five repeats an epoch; the class words are the trigger word
_QUALITY = 90  # of WebP: less than half of the lossless files, at 37 dB
BACKGROUNDS = ("flower field", "night city", "forest", "room", "snow", "simple")


def write_mirelle(target: Path, *, seed: int, num_pictures: int = NUM_PICTURES) -> int:
    """Write the pictures as WebP with captions; return how many bytes they take.

    The first ones of a seed are the same however many are drawn. Both outfits in equal numbers,
    three portraits to one landscape. She is never shown at the beach, and never in anything but
    her two outfits: prompt (b) asks for what nobody taught.
    """
    folder = target / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return sum(
        write_image(draw_set_image(seed, index), folder / f"{index + 1:02d}", quality=_QUALITY)
        for index in range(num_pictures)
    )


def draw_set_image(seed: int, index: int) -> world.Drawing:
    """Return one image of a seed's data set of her."""
    width, height = size_of(index)
    return world.draw_mirelle(
        rng.key(seed, "tiny", "mirelle", index) % 2**48,
        outfit=1 + index % 2,
        width=width,
        height=height,
        background=BACKGROUNDS[index // 2 % len(BACKGROUNDS)],
    )


def size_of(index: int) -> tuple[int, int]:
    """Return the width and height of one image of a data set."""
    return (768, 512) if index % 8 in (3, 6) else (512, 768)


def write_image(drawing: world.Drawing, place: Path, *, quality: int) -> int:
    """Write a drawing and its caption beside each other; return the image's bytes."""
    picture = place.with_suffix(".webp")
    drawing.image.save(picture, quality=quality, method=6)
    picture.with_suffix(".txt").write_text(", ".join(drawing.tags) + "\n")
    return picture.stat().st_size

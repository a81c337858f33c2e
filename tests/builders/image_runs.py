"""Run folders with small made-up pictures, as `optbench.metrics` reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from optbench.records import Cell
from optbench.storage import files, rundir
from optbench.storage.rundir import RunDir

SEEDS = (7, 8)
WIDTH, HEIGHT = 64, 96
Pixels = np.ndarray

CONFIG = """\
base: {{name: {base}}}
dataset: {{dir: {dir}, caption_extension: .txt}}
prompts:
  name: test
  prompts:
    a: {{text: "word, 1girl, beach", negative: "", width: 64, height: 96}}
cache_dir: {cache}
"""


def noise(seed: int, *, low: int = 0, high: int = 256) -> Pixels:
    """Return a picture of independent values."""
    drawn = np.random.default_rng(seed).integers(low, high, (HEIGHT, WIDTH, 3))
    return drawn.astype(np.uint8)


def smooth(seed: int) -> Pixels:
    """Return a picture of a few soft spots, as hashes see pictures."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    resized = Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def save(path: Path, pixels: Pixels) -> Path:
    """Write a picture and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def make_run(
    folder: Path,
    *,
    epochs: int = 2,
    base: str = "tiny",
    pixels: Callable[[int, int], Pixels] = lambda epoch, seed: smooth(100 * epoch + seed),
    training: int = 3,
) -> RunDir:
    """Return a finished run with a picture per epoch (0 is the base's) and seed, and its data."""
    data = folder / "data" / "5_word"
    for index in range(training):
        save(data / f"{index}.png", smooth(900 + index))
        (data / f"{index}.txt").write_text("word, 1girl, red dress, forest")
    run = RunDir(folder / "sweep" / f"adamw-{base}")
    cache = folder / "cache"
    cache.mkdir(exist_ok=True)
    files.write_atomic(run.config_path, CONFIG.format(base=base, dir=data.parent, cache=cache))
    for epoch in range(epochs + 1):
        for seed in SEEDS:
            cell = Cell(prompt="a", width=WIDTH, height=HEIGHT, seed=seed, epoch=epoch)
            save(run.image_path(cell), pixels(epoch, seed))
    rundir.write_status(run.path, "done")
    return run

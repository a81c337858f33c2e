"""A sweep's folder as if it had been trained: pictures, records and settings, made in a moment."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw

from optbench.records import Cell
from optbench.storage import files, rundir
from optbench.storage.rundir import RunDir

SEEDS = (112233, 101011111212)
TEXTS = {
    "a": "mirelle, 1girl, solo, blue dress, white ribbon, standing, forest, upper body",
    "b": "mirelle, 1girl, sailor uniform, sitting, classroom",
    "c": "mirelle, 1girl, walking, city street, night, from side",
    "d": "1girl, black hair, red coat, snow",
}
_OPTIMIZERS = ("adamw", "lion", "prodigy", "dadaptlion", "came", "adafactor", "sgd", "muon")
_NUM_LOOKS = 40  # pictures that differ; all others are one of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How large the sweep is."""

    num_optimizers: int = 2
    dims: Sequence[int] = (4, 8)
    num_epochs: int = 3
    steps_per_epoch: int = 10
    prompts: Sequence[str] = ("a", "b")
    seeds: Sequence[int] = SEEDS
    size: tuple[int, int] = (64, 96)
    sizes: Mapping[str, tuple[int, int]] | None = None  # of prompts that have another one
    texts: dict[str, str] | None = None
    train_seeds: Sequence[int] = (1234,)
    are_linked: bool = False  # one file under many names: thousands of pictures in seconds


def make_sweep(path: Path, shape: Shape) -> list[RunDir]:
    """Make the runs of every optimizer, dim and training seed; all of them are done."""
    looks: dict[tuple[int, str], Path] = {}
    return [
        _make_run(path, shape, optimizer=number, dim=dim, seed=seed, looks=looks)
        for number in range(shape.num_optimizers)
        for dim in shape.dims
        for seed in shape.train_seeds
    ]


def name_of(number: int) -> str:
    """Return an optimizer's name."""
    again = number // len(_OPTIMIZERS)
    return f"{_OPTIMIZERS[number % len(_OPTIMIZERS)]}{again or ''}"


def cut_short(run: RunDir, *, epoch: int, status: Any, reason: str = "") -> None:
    """Make a run one that ended after an epoch."""
    for folder in run.path.glob("images/epoch-*"):
        if int(folder.name[-4:]) > epoch:
            for picture in folder.iterdir():
                picture.unlink()
            folder.rmdir()
    for path in (run.steps_path, run.epochs_path):
        files.truncate_rows(path, max_epoch=epoch)
    rundir.write_status(run.path, status, reason)


def _make_run(
    sweep: Path,
    shape: Shape,
    *,
    optimizer: int,
    dim: int,
    seed: int,
    looks: dict[tuple[int, str], Path],
) -> RunDir:
    name = name_of(optimizer)
    of_seed = f"-seed{seed}" if len(shape.train_seeds) > 1 else ""
    run = RunDir(sweep / f"{name}-dim{dim}{of_seed}-{optimizer:04x}{dim:04x}")
    texts = TEXTS | (shape.texts or {})
    sizes = {prompt: (shape.sizes or {}).get(prompt, shape.size) for prompt in shape.prompts}
    prompts = {
        prompt: {"text": texts[prompt], "negative": "bad", "width": width, "height": height}
        for prompt, (width, height) in sizes.items()
    }
    config = {
        "base": {"name": "tiny"},
        "network": {"name": "lora", "dim": dim, "alpha": dim / 2},
        "optimizer": {"name": name, "lr": 1e-4 * (1 + optimizer)},
        "train": {"epochs": shape.num_epochs, "batch_size": 1},
        "prompts": {"name": "mirelle", "prompts": prompts},
        "render": {"seeds": list(shape.seeds)},
        "seed": seed,
    }
    files.write_atomic(run.config_path, yaml.safe_dump(config))
    files.write_json(run.provenance_path, {"num_cpus": 2, "changed": ["network.dim"]})
    for epoch in range(shape.num_epochs + 1):
        for place, (prompt, (width, height)) in enumerate(sizes.items()):
            for index, image_seed in enumerate(shape.seeds):
                look = 7 * epoch + 3 * optimizer + dim + 5 * index if epoch else 11 * index
                cell = Cell(prompt=prompt, width=width, height=height, seed=image_seed, epoch=epoch)
                path = run.image_path(cell)
                _picture(path, shape, (width, height), (look % _NUM_LOOKS, str(place)), looks)
    files.append_rows(run.steps_path, _steps(shape, optimizer, dim))
    files.append_rows(run.epochs_path, _epochs(shape, optimizer, dim))
    rundir.write_status(run.path, "done")
    return run


def _steps(shape: Shape, optimizer: int, dim: int) -> Iterator[dict[str, float]]:
    for step in range(1, shape.num_epochs * shape.steps_per_epoch + 1):
        yield {
            "step": step,
            "epoch": (step - 1) // shape.steps_per_epoch + 1,
            "loss": 0.1 + 0.05 / (1 + step * 0.05) + 0.004 * optimizer + (step % 7) * 0.002,
            "lr/unet": 1e-4,
            "effective_lr/unet": 1e-4 * (1 + optimizer) * min(1.0, step / 20),
            "seconds_forward": 0.5 + 0.01 * optimizer,
            "seconds_backward": 0.5 + 0.001 * dim,
        }


def _epochs(shape: Shape, optimizer: int, dim: int) -> Iterator[dict[str, float]]:
    for epoch in range(1, shape.num_epochs + 1):
        yield {
            "epoch": epoch,
            "step": epoch * shape.steps_per_epoch,
            "mean_loss": 0.1 + 0.05 / epoch + 0.004 * optimizer,
            "validation_loss/held_out": 0.11 + 0.03 / epoch + 0.003 * optimizer - 1e-4 * dim,
            "validation_loss_base/held_out": 0.15,
            "seconds_train": 10.0 + optimizer,
        }


def _picture(
    path: Path,
    shape: Shape,
    size: tuple[int, int],
    look: tuple[int, str],
    looks: dict[tuple[int, str], Path],
) -> None:
    """Draw a figure whose place and colour differ with `look`, with the grain of a rendering."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if look in looks:
        if shape.are_linked:
            os.link(looks[look], path)
        else:
            path.write_bytes(looks[look].read_bytes())
        return
    (number, prompt), (width, height) = look, size
    hue = (number * 37 + int(prompt) * 90) % 256
    image = Image.merge(
        "HSV",
        [
            Image.new("L", size, hue),
            Image.new("L", size, 90),
            Image.linear_gradient("L").resize(size).point(lambda value: 120 + value // 2),
        ],
    ).convert("RGB")
    pen = ImageDraw.Draw(image)
    left = width * (0.25 + 0.004 * number)
    pen.ellipse((left, height * 0.12, left + width * 0.4, height * 0.42), fill=(250, 224, 205))
    pen.rectangle(
        (left + width * 0.06, height * 0.42, left + width * 0.34, height * 0.9),
        fill=((number * 53) % 256, 80, 160),
    )
    grain = Image.effect_noise(size, 14).convert("RGB")
    image = Image.blend(image, grain, 0.12)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    path.write_bytes(buffer.getvalue())
    looks[look] = path

"""A small real job: the embedded base, eight pictures of noise-coloured shapes, two epochs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

SIZE = 128


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a kohya data set of four small pictures with captions."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "1_thing"
    folder.mkdir()
    for index in range(4):
        image = Image.new("RGB", (SIZE, SIZE), (40 * index, 90, 200 - 40 * index))
        ImageDraw.Draw(image).ellipse((20, 20, 60 + 15 * index, 90), fill=(250, 220, 40))
        image.save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"thing, number {index}, blue sky\n")
    return root


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one cache folder for the whole session, as a person has one."""
    return tmp_path_factory.mktemp("cache")


class Command:
    """The command line on the small job."""

    def __init__(self, pictures: Path, cache: Path) -> None:
        self.arguments = [
            f"dataset.dir={pictures}",
            f"cache_dir={cache}",
            "dataset=folder",
            "dataset.resolution=[128,128]",
            "dataset.min_bucket_reso=64",
            "dataset.max_bucket_reso=256",
            "train.epochs=2",
            "network.dim=4",
            "render.steps=2",
            "render.seeds=[7]",
            "train.num_threads=1",
        ]

    def start(self, runs_dir: Path, extra: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Return the started process."""
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "optbench",
                *self.arguments,
                f"runs_dir={runs_dir}",
                *extra,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ.copy(),
        )

    def run(
        self, runs_dir: Path, extra: Sequence[str] = (), *, code: int = 0
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end, insist on the exit code, and return what was printed."""
        process = self.start(runs_dir, extra)
        out, err = process.communicate(timeout=280)
        assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture(scope="session")
def command(pictures: Path, cache: Path) -> Command:
    """Return the command line of the small job."""
    return Command(pictures, cache)


@pytest.fixture(scope="session")
def finished(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of one finished run with pictures."""
    runs_dir = tmp_path_factory.mktemp("runs")
    command.run(runs_dir)
    return one_run(runs_dir)


def one_run(runs_dir: Path) -> Path:
    """Return the only run under `runs_dir`."""
    (status,) = runs_dir.glob("*/*/status.json")
    return status.parent

"""A small real job: the embedded base, four small images, two epochs."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from optbench.cli.main import main
from optbench.training import memory
from tests.builders.shared import SharedFolders
from tests.builders.small_training import global_state_kept

SIZE = 128


@pytest.fixture(scope="session")
def pictures(shared: SharedFolders) -> Path:
    """Return a kohya data set of four small pictures with captions."""

    def draw(root: Path) -> None:
        folder = root / "1_thing"
        folder.mkdir()
        for index in range(4):
            image = Image.new("RGB", (SIZE, SIZE), (40 * index, 90, 200 - 40 * index))
            ImageDraw.Draw(image).ellipse((20, 20, 60 + 15 * index, 90), fill=(250, 220, 40))
            image.save(folder / f"{index}.png")
            (folder / f"{index}.txt").write_text(f"thing, number {index}, blue sky\n")

    return shared.folder("pictures", draw)


@pytest.fixture(scope="session")
def cache(shared: SharedFolders) -> Path:
    """Return one cache folder for the whole session, as a person has one."""
    return shared.folder("cache", lambda root: None)


@dataclass(frozen=True)
class Printed:
    stdout: str
    stderr: str


class Command:
    """The command line on the small job."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.arguments = tuple(arguments)

    def without(self, *keys: str) -> Command:
        """Return the command without the settings that begin with one of `keys`."""
        return Command([one for one in self.arguments if not one.startswith(keys)])

    def start(self, runs_dir: Path, extra: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Return the started process, for what a process alone can show."""
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

    def run(self, runs_dir: Path, extra: Sequence[str] = (), *, code: int = 0) -> Printed:
        """Run to the end in this process, insist on the exit code, return what was printed."""
        out, err = io.StringIO(), io.StringIO()
        with (
            global_state_kept(),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.MonkeyPatch.context() as patched,
        ):
            warnings.simplefilter("default")  # as for a person
            patched.setattr(memory, "keep_freed_memory", lambda: False)  # lasts for the process
            exit_code = main([*self.arguments, f"runs_dir={runs_dir}", *extra])
        assert exit_code == code, f"exit {exit_code}\n{out.getvalue()}\n{err.getvalue()}"
        return Printed(out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def command(pictures: Path, cache: Path) -> Command:
    """Return the command line of the small job."""
    return Command(
        [
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
            "prompts.prompts.a.width=128",
            "prompts.prompts.a.height=192",
            "prompts.prompts.b.width=192",
            "prompts.prompts.b.height=128",
        ]
    )


@pytest.fixture(scope="session")
def finished(command: Command, shared: SharedFolders) -> Path:
    """Return the folder of one finished run with pictures, to be looked at and not changed."""

    def make(runs_dir: Path) -> None:
        process = command.start(runs_dir)
        out, err = process.communicate(timeout=800)
        assert process.returncode == 0, f"exit {process.returncode}\n{out}\n{err}"

    return one_run(shared.folder("finished", make))


def one_run(runs_dir: Path) -> Path:
    """Return the only run under `runs_dir`."""
    (status,) = runs_dir.glob("*/*/status.json")
    return status.parent

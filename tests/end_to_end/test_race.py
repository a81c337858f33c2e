"""A small race on the embedded base, killed amid a phase: the same command ends it the same."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from optbench.analysis.frames import load
from optbench.analysis.race import RaceRecord, read_race, read_results, verdicts
from optbench.storage import files, rundir
from tests.builders.shared import SharedFolders
from tests.end_to_end.conftest import SIZE, Command

pytestmark = pytest.mark.slow
FRESH = ("seed1235", "seed1236")


@pytest.fixture(scope="session")
def race(command: Command, shared: SharedFolders) -> Command:
    """Return the command of a race of two recipes, three rates and two fresh seeds."""

    def draw(root: Path) -> None:
        for split in ("held_out", "others"):
            folder = root / split / "1_thing"
            folder.mkdir(parents=True)
            for index in range(2):
                colour = (200 - 90 * index, 60, 90) if split == "others" else (90, 60 * index, 20)
                image = Image.new("RGB", (SIZE, SIZE), colour)
                ImageDraw.Draw(image).ellipse((30, 20, 70 + 15 * index, 90), fill=(250, 220, 40))
                image.save(folder / f"{index}.png")
                (folder / f"{index}.txt").write_text(f"{split}, number {index}, blue sky\n")

    beside = shared.folder("beside", draw)
    return Command(
        [
            "-m",
            "sweep=race",
            "optimizer=adamw,lion",
            "race.rates=0.5:2:3",
            "race.rungs=[1,2]",
            "race.confirm=2..2",
            "metric=off",
            *command.without("train.epochs").arguments,
            "train.epochs=3",
            f"validate.dir={beside / 'held_out'}",
            f"validate.others_dir={beside / 'others'}",
            "validate.timesteps=[250]",
        ]
    )


@pytest.fixture(scope="session")
def undisturbed(race: Command, shared: SharedFolders) -> Path:
    """Return the folder of the race, run to its end by one process."""
    return shared.folder("race", lambda root: race.run(root) and None) / "race"


def record_of(sweep_dir: Path) -> RaceRecord:
    record = read_race(sweep_dir)
    assert record is not None
    return record


def test_a_race_ends_with_a_report_and_only_finalists_have_images(undisturbed: Path) -> None:
    record = record_of(undisturbed)
    design = record.design
    assert (design.arms, design.rungs, design.tuning_seed) == (("adamw", "lion"), (1, 2, 3), 1234)
    verdict = verdicts(design, read_results(load(undisturbed), record))
    assert verdict.is_over
    statuses = {name: rundir.read_status(undisturbed / name) for name in record.runs}
    assert {status.status for status in statuses.values()} <= {"done", "stopped"}
    rendered = {name for name in record.runs if list((undisturbed / name).glob("images/*/*.png"))}
    assert rendered
    assert {record.runs[name].seed for name in rendered} == {1235}
    assert (undisturbed / "report" / "index.html").is_file()


def running(sweep_dir: Path, *, fresh: bool) -> bool:
    """Return whether a run of a phase is being trained, after its first one ended."""
    of_phase = [
        rundir.read_status(path.parent).status
        for path in sweep_dir.glob("*/status.json")
        if any(seed in path.parent.name for seed in FRESH) == fresh
    ]
    return "running" in of_phase and bool({"stopped", "done"} & {*of_phase})


# As many workers as one likes: they change nothing.
@pytest.mark.parametrize(
    ("fresh", "workers"), [(False, 2), (True, 1)], ids=["tuning", "fresh-seeds"]
)
def test_killed_amid_a_phase_the_same_command_ends_it_the_same(
    race: Command, undisturbed: Path, tmp_path: Path, fresh: bool, workers: int
) -> None:
    sweep_dir = tmp_path / "race"
    arguments = [*race.arguments, f"launch.workers={workers}"]
    kill_when(lambda: running(sweep_dir, fresh=fresh), arguments, tmp_path)
    killed = {path.parent.name: path.read_bytes() for path in sweep_dir.glob("*/status.json")}
    assert killed
    race.run(tmp_path)
    assert record_of(sweep_dir).design == record_of(undisturbed).design
    assert record_of(sweep_dir).runs == record_of(undisturbed).runs
    for name in record_of(undisturbed).runs:
        ours, theirs = sweep_dir / name, undisturbed / name
        assert outcome(ours) == outcome(theirs), name
        loras = {path.name for path in theirs.glob("lora/*.safetensors")}
        assert loras == {path.name for path in ours.glob("lora/*.safetensors")}
        for file in loras:
            assert (ours / "lora" / file).read_bytes() == (theirs / "lora" / file).read_bytes()
        assert rows(ours / "validation.jsonl") == rows(theirs / "validation.jsonl")


def kill_when(is_time: Callable[[], bool], arguments: list[str], runs_dir: Path) -> None:
    """Start a command and kill it with all its workers when it is time."""
    process = subprocess.Popen(
        [sys.executable, "-m", "optbench", *arguments, f"runs_dir={runs_dir}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ.copy(),
        start_new_session=True,
    )
    try:
        while not is_time():
            assert process.poll() is None, "the race was over before it could be killed"
            time.sleep(0.02)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def outcome(run_dir: Path) -> tuple[Any, ...]:
    record = rundir.read_status(run_dir)
    return record.status, record.reason, record.facts.get("epoch"), record.facts.get("step")


def rows(path: Path) -> list[files.Row]:
    return sorted(files.read_rows(path), key=lambda row: (row["epoch"], str(row)))

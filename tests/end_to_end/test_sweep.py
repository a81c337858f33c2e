"""What must be true of a sweep: failures stay with their run, bad input writes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Command


def statuses(runs_dir: Path) -> dict[str, str]:
    return {
        path.parent.name.split("-")[0]: json.loads(path.read_text())["status"]
        for path in runs_dir.glob("*/*/status.json")
    }


def test_a_run_that_diverges_leaves_the_others_alone(command: Command, tmp_path: Path) -> None:
    extra = ["-m", "optimizer=sgdnesterov,adamw", "render=off", "lr_mult=1e30"]
    done = command.run(tmp_path, extra, code=1)
    assert statuses(tmp_path)["sgdnesterov"] == "diverged"
    assert "diverged" in done.stderr
    extra = ["-m", "optimizer=sgdnesterov,adamw", "render=off", "sweep_name=again"]
    command.run(tmp_path, extra)
    assert (tmp_path / "again" / "report" / "runs.csv").is_file()


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["netwrk.dim=4"], ["netwrk"]),
        (["network.dim=many"], ["network.dim"]),
        (["network.dim=0"], ["network.dim"]),
        (["dataset.dir=/no/such/folder"], ["/no/such/folder"]),
        (["network.dim=0", "train.epochs=0", "train.batch_size=x"], ["dim", "epochs", "batch"]),
        (["-m", "optimizer=dadaptlion", "optimizer.unet_lr=1", "optimizer.text_encoder_lr=0.5"],
         ["one rate for both"]),
    ],
)  # fmt: skip
def test_bad_input_is_told_at_once_and_writes_nothing(
    command: Command, tmp_path: Path, extra: list[str], words: list[str]
) -> None:
    done = command.run(tmp_path / "runs", extra, code=2)
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_broken_picture_is_named(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "1_thing"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (folder / "a.txt").write_text("thing")
    done = command.run(tmp_path / "runs", [f"dataset.dir={tmp_path / 'data'}"], code=2)
    assert "a.png" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()

"""What TensorBoard reads back: the same names, steps and values, each once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from optbench.records import StepRecord
from optbench.storage import files
from optbench.training.tensorboard import (
    write_end,
    write_metrics,
    write_pictures,
    write_scalars,
)
from tests.builders.image_runs import make_run


def read_back(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard shows: (step, value) by step, by name.

    By step, because TensorBoard reads files of one second in the order of a counter as text: 10
    before 9.
    """
    read = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        name: sorted(
            ((event.step, event.value) for event in read.Scalars(name)), key=lambda pair: pair[0]
        )
        for name in read.Tags()["scalars"]
    }


def step_row(step: int, loss: float = 0.5) -> dict[str, float | int]:
    record = StepRecord(
        step=step,
        epoch=1,
        loss=loss,
        grad_norm=2.0,
        lr={"unet": 1e-4, "text_encoder": 5e-5},
        d={"unet": 1e-6},
        effective_lr={"unet": 1e-10},
        update_ratio={"unet": 1e-3},
        seconds_data=0.25,
        seconds_forward=0.5,
        seconds_backward=0.75,
        seconds_optimizer=0.125,
    )
    return record.as_row()


def test_every_number_comes_back_under_its_name_and_step(tmp_path: Path) -> None:
    rows = [step_row(step, loss=1 / step) for step in (1, 2, 3)]
    write_scalars(tmp_path, rows)
    found = read_back(tmp_path)
    assert set(found) == set(rows[0]) - {"step", "epoch"}
    assert {"loss", "lr/unet", "d/unet", "effective_lr/unet", "seconds_data"} <= set(found)
    for name, points in found.items():
        # An event file holds float32.
        assert points == [(int(row["step"]), float(np.float32(row[name]))) for row in rows]


def test_an_epochs_record_stands_at_its_last_step(tmp_path: Path) -> None:
    row = {"epoch": 2, "step": 34, "mean_loss": 0.25, "peak_memory_bytes": 3 * 2**30}
    write_scalars(tmp_path, [step_row(34), row])
    found = read_back(tmp_path)
    assert found["mean_loss"] == [(34, 0.25)]
    assert found["peak_memory_bytes"] == [(34, 3 * 2.0**30)]
    assert "epoch" not in found


def test_epochs_written_one_after_the_other_make_one_curve(tmp_path: Path) -> None:
    for epoch in range(12):
        write_scalars(tmp_path, [step_row(2 * epoch + 1), step_row(2 * epoch + 2)])
    points = read_back(tmp_path)["loss"]
    assert sorted(step for step, _ in points) == list(range(1, 25))


def test_what_an_earlier_process_wrote_stays(tmp_path: Path) -> None:
    write_scalars(tmp_path, [step_row(1)])
    kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
    write_scalars(tmp_path, [step_row(2)])
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert [step for step, _ in read_back(tmp_path)["loss"]] == [1, 2]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_not_finite_does_not_cost_the_others(tmp_path: Path, bad: float) -> None:
    """The gradient of an fp16 overflow."""
    rows = [step_row(1) | {"grad_norm": bad}, step_row(2)]
    write_scalars(tmp_path, rows)
    found = read_back(tmp_path)
    assert [step for step, _ in found["loss"]] == [1, 2]
    assert found["grad_norm"][-1] == (2, 2.0)


def test_a_missing_number_is_left_out(tmp_path: Path) -> None:
    row: dict[str, Any] = step_row(1) | {"grad_norm": None}
    write_scalars(tmp_path, [row])
    found = read_back(tmp_path)
    assert "grad_norm" not in found
    assert "loss" in found


def test_a_file_cut_off_by_a_kill_does_not_hide_the_next_one(tmp_path: Path) -> None:
    write_scalars(tmp_path, [step_row(1), step_row(2)])
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    write_scalars(tmp_path, [step_row(3)])
    steps = [step for step, _ in read_back(tmp_path)["loss"]]
    assert steps[0] == 1
    assert steps[-1] == 3


def test_pictures_and_sheets_come_back_at_their_steps_and_settings_beside_final_numbers(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path, epochs=1)
    files.append_rows(run.epochs_path, [{"epoch": 1, "step": 9, "mean_loss": 0.5, "x": None}])
    run.sheets_dir.mkdir()
    Image.new("RGB", (3000, 30)).save(run.sheets_dir / "a.png")
    config: dict[str, Any] = {
        group: {"name": group, "rate": 0.5, "list": [1], "note": "x" * 100, "none": None}
        for group in ("base", "dataset", "network", "optimizer", "lr_scheduler", "train", "loss")
    }
    write_pictures(run, {0: 0, 1: 9, 2: 18})
    write_end(
        run, {**config, "seed": 3, "lr_mult": 1.0}, ["optimizer.rate", "loss.note", "runs_dir"]
    )
    read = EventAccumulator(str(run.tensorboard_dir), size_guidance={"images": 0}).Reload()
    assert set(read.Tags()["images"]) == {"pictures/a-64x96", "sheets/a"}
    pictures = read.Images("pictures/a-64x96")
    assert [one.step for one in pictures] == [0, 9]
    assert (pictures[0].width, pictures[0].height) == (2 * 170, 256)  # two seeds side by side
    assert read.Images("sheets/a")[0].width == 2048
    plugin = read.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"optimizer.rate" in plugin
    assert b"seed" in plugin
    assert b"note" not in plugin
    assert b"network.rate" not in plugin  # nobody changed it: a column that says nothing
    assert b"runs_dir" not in plugin
    assert read.Scalars("final/mean_loss")[0].value == 0.5


def test_numbers_of_images_are_scalars_of_their_epochs_each_once(tmp_path: Path) -> None:
    run = make_run(tmp_path, epochs=2)
    files.append_rows(run.epochs_path, [{"epoch": 1, "step": 9}, {"epoch": 2, "step": 18}])
    rows = [
        {"epoch": epoch, "metric": "resistance", "value": value}
        for epoch, value in ((0, 0.9), (1, 0.5), (1, 0.7), (2, 0.25))
    ]
    files.write_rows(run.path / "metrics.jsonl", rows)
    write_scalars(run.tensorboard_dir, [step_row(9)])
    for _ in range(2):
        write_metrics(run)
    read = read_back(run.tensorboard_dir)
    assert [step for step, _ in read["images/resistance"]] == [9, 18]
    assert read["images/resistance"][0][1] == pytest.approx(0.6)
    assert "loss" in read

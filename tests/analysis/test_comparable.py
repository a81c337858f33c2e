"""Losses are compared only where they are losses of the same thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optbench.analysis import load
from optbench.analysis.changes import changes
from optbench.analysis.outcomes import outcomes, unlike
from optbench.analysis.superseded import superseded
from tests.builders.fabricated import make_run

EARLY, LATE = "2026-01-01T10:00:00+00:00", "2026-01-01T11:00:00+00:00"

# What a training loss is a loss of, and one setting of each kind that changes it.
LOSSES = {
    "dropout": {"network.module_dropout": 0.1},
    "resolution": {"dataset.resolution": [768, 768]},
    "captions": {"dataset.caption_dropout_rate": 0.1},
    "clip_skip": {"train.clip_skip": 2},
    "batch": {"train.batch_size": 4},
    "loss": {"loss.noise_offset": 0.1},
    "images": {"dataset.flip_aug": True},
}


def made(sweep: Path, *runs: dict[str, Any]) -> Any:
    for number, changes_of_run in enumerate(runs):
        gain = changes_of_run.pop("gain", None)
        make_run(sweep, f"run{number}", gain, **changes_of_run)
    return load(sweep)


def reasons(frames: Any, measure: str = "final_loss") -> tuple[str, ...]:
    return unlike(outcomes(frames.runs, frames.validation)[measure])


@pytest.mark.parametrize("kind", LOSSES)
def test_training_losses_of_something_else_do_not_compare(tmp_path: Path, kind: str) -> None:
    frames = made(tmp_path / "s", {"gain": -0.1}, {"gain": -0.2, **LOSSES[kind]})
    assert reasons(frames) == (kind,)
    assert frames.pairs["loss_difference"].isna().all()
    assert [change.num_losses for change in changes(frames)] == [0]
    # A validation loss of equal images compares all of them.
    assert reasons(frames, "validation_held_out") == ()


@pytest.mark.parametrize(
    "changed",
    [
        {"optimizer": "lion"},
        {"dim": 16},
        {"lr_mult": 3.0},
        {"train.scale_weight_norms": 1.0},
        {"dataset.num_workers": 4},
    ],
)
def test_what_is_trained_is_what_is_compared(tmp_path: Path, changed: dict[str, Any]) -> None:
    frames = made(tmp_path / "s", {}, changed)
    assert reasons(frames) == ()
    assert frames.pairs["loss_difference"].notna().all()


def test_a_setting_that_is_off_is_off_however_it_is_spelled(tmp_path: Path) -> None:
    frames = made(
        tmp_path / "s", {"optimizer": "lion"}, {"dataset.flip_aug": False, "loss.noise_offset": 0.0}
    )
    assert reasons(frames) == ()


def test_another_caption_of_one_held_out_image_is_another_measurement(tmp_path: Path) -> None:
    frames = made(tmp_path / "s", {"gain": -0.1}, {"gain": -0.2, "base_loss": 0.001})
    assert reasons(frames, "validation_held_out") == ("validation",)
    # The last bits of another machine, or of another precision, are none.
    for slack, precision in ((1e-8, "no"), (5e-4, "bf16")):
        frames = made(
            tmp_path / f"s{precision}",
            {"gain": -0.1},
            {"gain": -0.2, "base_loss": slack, "train.mixed_precision": precision},
        )
        assert reasons(frames, "validation_held_out") == ()


def saw(**contents: str) -> dict[str, Any]:
    return {
        "time": contents.get("time", EARLY),
        "dataset": {"fingerprint": contents.get("images", "a")},
        "base": {"fingerprint": contents.get("base", "b")},
        "optimizer": {"source_fingerprint": contents.get("source", "c")},
    }


@pytest.mark.parametrize("content", ["images", "base"])
def test_runs_of_other_files_under_one_name_are_no_pair(tmp_path: Path, content: str) -> None:
    now = saw(time=LATE, **{content: "now"})
    frames = made(
        tmp_path / "s",
        {"gain": -0.1, "provenance": saw()},
        {"gain": -0.2, "optimizer": "lion", "provenance": now},
    )
    assert frames.pairs.empty
    (stale,) = superseded(frames.runs)
    assert (stale.run, stale.content, stale.newer_run) == ("run0", content, "run1")
    by_measure = outcomes(frames.runs, frames.validation)
    for measure in ("final_loss", "validation_held_out", "seconds_per_step"):
        assert [outcome.run for outcome in by_measure[measure]] == ["run1"]


def test_the_command_given_again_compares_what_it_made_last(tmp_path: Path) -> None:
    now = saw(time=LATE, images="now")
    frames = made(
        tmp_path / "s",
        {"optimizer": "adamw", "provenance": saw()},
        {"optimizer": "lion", "provenance": saw()},
        {"optimizer": "adamw", "provenance": now},
        {"optimizer": "lion", "provenance": now},
    )
    assert {stale.run for stale in superseded(frames.runs)} == {"run0", "run1"}
    pairs = frames.pairs
    assert {*zip(pairs["from_run"], pairs["to_run"], strict=True)} == {
        ("run0", "run1"),
        ("run2", "run3"),
    }


def test_an_edited_optimizer_class_leaves_its_earlier_runs_behind(tmp_path: Path) -> None:
    now = saw(time=LATE, source="now")
    frames = made(
        tmp_path / "s",
        {"optimizer": "mine", "provenance": saw()},
        {"optimizer": "mine", "lr_mult": 3.0, "provenance": now},
        {"optimizer": "adamw", "provenance": saw()},
    )
    assert [stale.run for stale in superseded(frames.runs)] == ["run0"]


def test_two_folders_of_images_are_a_question_and_no_change_of_files(tmp_path: Path) -> None:
    frames = made(
        tmp_path / "s",
        {"gain": -0.1, "dataset.dir": "a", "provenance": saw()},
        {"gain": -0.2, "dataset.dir": "b", "provenance": saw(images="other", time=LATE)},
    )
    assert superseded(frames.runs) == []
    assert len(frames.pairs) == 1
    assert frames.pairs["loss_difference"].isna().all()
    assert reasons(frames) == ("images",)
    assert reasons(frames, "validation_held_out") == ()


def test_a_folder_that_was_moved_is_the_same_images(tmp_path: Path) -> None:
    frames = made(
        tmp_path / "s",
        {"dataset.dir": "a", "provenance": saw()},
        {"dataset.dir": "b", "optimizer": "lion", "provenance": saw()},
    )
    assert reasons(frames) == ()


def test_each_seed_may_hold_out_images_of_its_own(tmp_path: Path) -> None:
    folds = [
        {
            "gain": -0.1,
            "optimizer": optimizer,
            "seed": seed,
            "base_loss": 0.01 * seed,  # other images, other losses
            "validate.holdout": "auto",
        }
        for seed in (1, 2)
        for optimizer in ("adamw", "lion")
    ]
    frames = made(tmp_path / "s", *folds)
    assert reasons(frames, "validation_held_out") == ()
    # But not two settings of one seed.
    other = {"gain": -0.1, "optimizer": "came", "base_loss": 0.5, "validate.holdout": "auto"}
    make_run(tmp_path / "s", "other", **other)
    assert reasons(load(tmp_path / "s"), "validation_held_out") == ("validation",)


def test_seeds_with_folds_of_one_folder_supersede_one_another_never(tmp_path: Path) -> None:
    folds = [
        {
            "gain": -0.1,
            "seed": seed,
            "validate.holdout": "auto",
            "provenance": {
                "time": f"2026-01-0{seed}T10:00:00+00:00",
                "dataset": {"fingerprint": f"fold {seed}", "whole_fingerprint": "whole"},
            },
        }
        for seed in (1, 2)
    ]
    assert superseded(made(tmp_path / "s", *folds).runs) == []

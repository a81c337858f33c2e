"""Gain and forgetting: two numbers of each run, and the one that decides."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from optbench import analysis
from optbench.analysis.frames import load
from optbench.analysis.outcomes import outcomes
from tests.builders.fabricated import make_run


def test_the_objective_is_the_held_out_loss_and_a_quarter_of_the_forgetting(
    tmp_path: Path,
) -> None:
    make_run(tmp_path / "s", "both", -0.03, splits=("held_out", "others", "ood"))
    make_run(tmp_path / "s", "alone", -0.02, splits=("held_out",))
    runs = load(tmp_path / "s").runs.set_index("run")
    both = runs.loc["both"]
    assert both["validation_objective"] == pytest.approx(
        both["validation_held_out"] + 0.25 * both["validation_others"]
    )
    assert both["validation_ood"] == pytest.approx(-0.03)
    assert runs["validation_objective"].isna().to_dict() == {"alone": True, "both": False}


def test_what_images_contribute_sums_up_to_the_measure(tmp_path: Path) -> None:
    make_run(tmp_path / "s", "a", -0.03, splits=("held_out", "others"))
    frames = load(tmp_path / "s")
    by_measure = outcomes(frames.runs, frames.validation)
    for measure, kinds in (
        (analysis.OBJECTIVE, {"held_out", "others"}),
        ("validation_held_out", {"held_out"}),
    ):
        (outcome,) = by_measure[measure]
        assert outcome.images.keys() == kinds
        means = [statistics.fmean(images.values()) for images in outcome.images.values()]
        assert outcome.value == pytest.approx(sum(means))


def test_runs_measured_on_other_subjects_of_their_own_are_not_comparable(tmp_path: Path) -> None:
    make_run(tmp_path / "s", "a", -0.03, splits=("held_out", "others"))
    make_run(tmp_path / "s", "b", -0.02, optimizer="lion", splits=("held_out", "others"))
    make_run(tmp_path / "s", "c", -0.02, dim=32, splits=("held_out", "others"), base_loss=0.1)
    frames = load(tmp_path / "s")
    by_run = {
        outcome.run: outcome.comparable
        for outcome in outcomes(frames.runs, frames.validation)[analysis.OBJECTIVE]
    }
    assert by_run["a"] == by_run["b"] != by_run["c"]


def test_a_seed_without_images_is_another_seed_of_the_same_setting(tmp_path: Path) -> None:
    for seed in (1, 2):
        for optimizer, gain in (("adamw", -0.03), ("lion", -0.02)):
            render = {"render.enabled": seed == 1}
            name = f"{optimizer}{seed}"
            make_run(tmp_path / "s", name, gain, optimizer=optimizer, seed=seed, **render)
    frames = load(tmp_path / "s")
    assert [*analysis.factors(frames.runs)] == ["optimizer", "seed"]
    settings = {one.settings for one in outcomes(frames.runs, frames.validation)["final_loss"]}
    assert len(settings) == 2

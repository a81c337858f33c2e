"""Pairs, effects, noise and outcomes say what is known of sweeps whose truth is known."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from optbench import analysis
from optbench.analysis import Frames, load, stats
from tests.builders.fabricated import make_run, make_sweep

GAINS = {
    ("adamw", 8): [-0.020, -0.022, -0.018],
    ("lion", 8): [-0.030, -0.031, -0.029],
    ("adamw", 16): [-0.021, -0.023, -0.019],
    ("lion", 16): [-0.031, -0.032, -0.030],
}


def effect_of(
    frames: Frames, setting: str, measure: str = "validation_held_out"
) -> dict[str, object]:
    found = analysis.effects(frames.pairs, frames.runs, frames.validation)
    chosen = found[(found["setting"] == setting) & (found["measure"] == measure)]
    assert len(chosen) == 1
    return {str(key): value for key, value in chosen.iloc[0].items()}


def test_a_run_ends_with_its_loss_minus_the_bases(tmp_path: Path) -> None:
    make_run(tmp_path / "s", "a", -0.03)
    row = load(tmp_path / "s").runs.iloc[0]
    assert row["validation_held_out"] == pytest.approx(-0.03)
    assert math.isnan(row["validation_training"])


def test_an_effect_is_over_seeds_where_there_are_several(tmp_path: Path) -> None:
    frames = load(make_sweep(tmp_path / "s", GAINS))
    found = effect_of(frames, "optimizer")
    assert (found["from_value"], found["to_value"]) == ("adamw", "lion")
    assert (found["num_pairs"], found["num_seeds"]) == (6, 3)
    # Seed by seed -0.010, -0.009 and -0.011, at both dims.
    assert found["mean"] == pytest.approx(-0.010)
    # What setting and seed leave: adamw +-0.0005 and lion the reverse, twice each.
    deviation = math.sqrt(4 * 2 * 0.0005**2 / 6)
    half = stats.range_quantile(0.95, 4, 6) * deviation / math.sqrt(3)
    assert (found["low"], found["high"]) == (
        pytest.approx(-0.010 - half, rel=1e-3),
        pytest.approx(-0.010 + half, rel=1e-3),
    )
    assert (found["num_lower"], found["probability_lower"]) == (6, 1.0)
    assert found["verdict"] == "lower"
    assert not found["depends_on"]
    assert found["in_deviations"] == pytest.approx(-0.010 / deviation)


def test_the_noise_floor_is_what_setting_and_seed_leave(tmp_path: Path) -> None:
    frames = load(make_sweep(tmp_path / "s", GAINS))
    floor = analysis.noise_floor(frames.runs, frames.validation).set_index("measure")
    row = floor.loc["validation_held_out"]
    assert row["deviation"] == pytest.approx(math.sqrt(4 * 2 * 0.0005**2 / 6))
    assert row["seed_deviation"] == pytest.approx(math.sqrt((4 * 0.002**2 + 4 * 0.001**2) / 8))
    assert (row["degrees"], row["num_settings"], row["num_runs"]) == (6, 4, 12)


def test_one_seed_has_no_noise_floor_and_no_interval(tmp_path: Path) -> None:
    frames = load(make_sweep(tmp_path / "s", {key: found[:1] for key, found in GAINS.items()}))
    assert analysis.noise_floor(frames.runs, frames.validation).empty
    found = effect_of(frames, "optimizer")
    assert (found["num_pairs"], found["num_seeds"], found["verdict"]) == (2, 1, "unknown")
    assert found["mean"] == pytest.approx(-0.010)
    assert found["low"] is None


def test_a_single_pair_is_neither_a_win_nor_a_tie(tmp_path: Path) -> None:
    frames = load(make_sweep(tmp_path / "s", {("adamw", 8): [-0.02], ("lion", 8): [-0.05]}))
    assert effect_of(frames, "optimizer")["verdict"] == "unknown"


def test_what_an_effect_depends_on_is_said(tmp_path: Path) -> None:
    gains = {**GAINS, ("lion", 16): [-0.0105, -0.013, -0.0095]}
    found = effect_of(load(make_sweep(tmp_path / "s", gains)), "optimizer")
    assert str(found["depends_on"]).startswith("network.dim: ")
    assert "-0.01 at 8" in str(found["depends_on"])
    assert "+0.01 at 16" in str(found["depends_on"])


def test_a_pair_has_an_interval_over_pictures(tmp_path: Path) -> None:
    frames = load(make_sweep(tmp_path / "s", {("adamw", 8): [-0.02], ("lion", 8): [-0.05]}))
    row = frames.pairs.iloc[0]
    assert row["validation_held_out_difference"] == pytest.approx(-0.03)
    # Every picture says the same, so there is no doubt about these two files.
    assert row["validation_held_out_low"] == pytest.approx(-0.03)
    assert math.isnan(row["validation_training_difference"])


def test_unlike_pictures_unfinished_runs_and_unlike_losses_do_not_compare(tmp_path: Path) -> None:
    make_run(tmp_path / "s", "a", -0.02)
    make_run(tmp_path / "s", "b", -0.03, optimizer="lion", num_pictures=3)
    make_run(tmp_path / "s", "c", -0.04, dim=16, status="interrupted")
    make_run(tmp_path / "s", "d", -0.05, loss="huber")
    frames = load(tmp_path / "s")
    found = analysis.effects(frames.pairs, frames.runs, frames.validation)
    shown = {(row.setting, row.measure) for row in found.itertuples()}
    assert ("optimizer", "validation_held_out") not in shown
    assert ("optimizer", "final_loss") in shown
    assert not [name for name, _ in shown if name == "network.dim"]
    assert ("loss.type", "validation_held_out") in shown
    assert ("loss.type", "final_loss") not in shown
    by_setting = frames.pairs.set_index("setting")["validation_held_out_difference"]
    assert by_setting.loc[["optimizer", "network.dim"]].isna().all()


def test_another_base_does_not_compare(tmp_path: Path) -> None:
    make_run(tmp_path / "s", "a", -0.02)
    make_run(tmp_path / "s", "b", -0.05, base="sd15")
    frames = load(tmp_path / "s")
    found = analysis.effects(frames.pairs, frames.runs, frames.validation)
    assert set(found["measure"]) <= {"seconds_per_step"}


def test_bands_split_the_noise_levels(tmp_path: Path) -> None:
    make_run(tmp_path / "s", "a", -0.03)
    frames = load(tmp_path / "s")
    found = analysis.bands(frames.validation)
    assert len(found) == 2 * 3
    last = found[found["epoch"] == 2]
    assert list(last["band"]) == list(analysis.BANDS)
    assert last["difference"].tolist() == pytest.approx([-0.03] * 3)
    assert analysis.bands(found.head(0)).empty

    table = analysis.last_bands(found, frames.runs)
    assert list(table.index) == [("s", "a")]
    assert list(table.columns) == [("held_out", band) for band in analysis.BANDS]
    assert table.iloc[0].tolist() == last["difference"].tolist()
    unmeasured = found[found["epoch"] == 1]
    assert analysis.last_bands(unmeasured, frames.runs).empty
    assert analysis.last_bands(found.head(0), frames.runs).empty
    assert analysis.last_bands(found.assign(split="of somebody"), frames.runs).empty

"""Broken LoRAs: found by what they forget and draw, kept in every table, never recommended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optbench import analysis
from optbench.analysis import gate
from optbench.analysis.frames import Frames, load
from optbench.analysis.standings import rank_settings
from optbench.storage import files, rundir
from tests.builders.fabricated import make_run

BOTH = ("held_out", "others")


def lora(sweep: Path, name: str, gain: float, forgetting: float, **changes: Any) -> None:
    make_run(sweep, name, gain, splits=BOTH, forgetting=forgetting, **changes)


def kinds(frames: Frames) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for reason in gate.broken(frames):
        found.setdefault(reason.run, set()).add(reason.kind)
    return found


def test_forgetting_is_judged_by_the_gain_that_it_costs(tmp_path: Path) -> None:
    lora(tmp_path / "s", "whole", -0.035, 0.010)
    lora(tmp_path / "s", "broken", -0.032, 0.025, optimizer="lion")
    lora(tmp_path / "s", "useless", 0.01, 0.002, optimizer="came")
    frames = load(tmp_path / "s")
    assert kinds(frames) == {"broken": {"forgetting"}, "useless": {"forgetting"}}
    words = gate.broken_runs(frames)["broken"]
    assert "+0.0250" in words
    assert "0.0192" in words  # 0.6 x 0.032


def test_a_lost_background_breaks_only_where_forgetting_is_not_known(tmp_path: Path) -> None:
    lora(tmp_path / "s", "measured", -0.03, 0.010)
    make_run(tmp_path / "s", "alone", -0.03, optimizer="lion")
    for name in ("measured", "alone"):
        row = {"epoch": 2, "prompt": "a", "seed": 7, "width": 64, "height": 96}
        numbers = {"metric": "background_obedience", "value": 0.5, "base_value": 0.9}
        path = tmp_path / "s" / name / rundir.METRICS_NAME
        files.append_rows(path, [{**row, **numbers, "training_value": None}])
    frames = load(tmp_path / "s")
    assert kinds(frames) == {"alone": {"background"}}
    flags = {(flag.run, flag.kind) for flag in analysis.image_flags(frames)}
    assert flags == {("measured", "lost_background"), ("alone", "lost_background")}


def test_runs_without_others_are_not_judged_by_them(tmp_path: Path) -> None:
    make_run(tmp_path / "s", "a", 0.05, splits=("held_out",))
    assert gate.broken(load(tmp_path / "s")) == ()


@pytest.mark.parametrize(
    ("metric", "value", "kind"),
    [
        ("background_obedience", 0.60, "background"),
        ("background_obedience", 0.70, None),
        ("flat", 1.0, "blank"),
        ("local_contrast", 0.09, "noise"),
    ],
)
def test_images_tell_too(tmp_path: Path, metric: str, value: float, kind: str | None) -> None:
    run = make_run(tmp_path / "s", "a", -0.03)
    row = {"epoch": 2, "prompt": "a", "seed": 7, "width": 64, "height": 96}
    base = 0.9 if metric == "background_obedience" else 0.04
    numbers = {"metric": metric, "value": value, "base_value": base, "training_value": 0.03}
    files.append_rows(run.path / rundir.METRICS_NAME, [{**row, **numbers}])
    assert kinds(load(tmp_path / "s")) == ({"a": {kind}} if kind else {})


def test_a_broken_setting_stays_in_the_table_and_is_never_recommended(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        noise = 0.0001 * seed
        lora(tmp_path / "s", f"l{seed}", -0.050 + noise, 0.045, optimizer="lion", seed=seed)
        lora(tmp_path / "s", f"a{seed}", -0.030 + noise, 0.005, seed=seed)
        lora(tmp_path / "s", f"c{seed}", -0.020 + noise, 0.005, optimizer="came", seed=seed)
    standings = rank_settings(load(tmp_path / "s"))
    assert standings.measure == analysis.OBJECTIVE
    verdicts = {setting.recipe: standings.verdict(setting) for setting in standings.settings}
    assert verdicts == {"lion": "broken", "adamw": "lowest", "came": "worse"}
    assert [setting.recipe for setting in standings.best] == ["adamw"]

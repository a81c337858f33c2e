"""Conclusions from frames alone: who leads, what is tied, untuned or unlike, what to run next."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import optbench
from optbench import analysis
from optbench.analysis.standings import Standings, label_of
from optbench.errors import DatasetError
from tests.builders.fabricated import make_run, make_sweep

CLEAR = {("adamw", 8): [-0.020, -0.022, -0.018], ("lion", 8): [-0.030, -0.032, -0.0279]}
TIED = {("adamw", 8): [-0.030, -0.022, -0.028], ("lion", 8): [-0.029, -0.025, -0.0279]}


def standings_of(folder: Path, gains: Any, **changes: Any) -> Standings:
    return analysis.rank_settings(optbench.load(make_sweep(folder, gains, **changes)))


def by_setting(folder: Path) -> pd.DataFrame:
    return analysis.compare_settings(optbench.load(folder)).set_index("setting")


def test_a_frame_says_who_leads_what_is_tied_and_what_is_untuned(tmp_path: Path) -> None:
    make_sweep(tmp_path / "clear", CLEAR)
    make_sweep(tmp_path / "tied", TIED)
    found = analysis.compare_settings(optbench.load(tmp_path)).set_index(["sweep", "setting"])
    assert found["verdict"].to_dict() == {
        ("clear", "lion"): "lowest",
        ("clear", "adamw"): "worse",
        ("tied", "lion"): "tied_lowest",
        ("tied", "adamw"): "tied",
    }
    row = found.loc["clear", "adamw"]
    assert 0 < row["low"] < row["difference"] < row["high"]
    assert row["difference"] == pytest.approx(0.03 - 0.02, abs=1e-3)
    assert (row["num_seeds"], row["is_rate_tuned"], row["measure"]) == (
        3,
        False,
        "validation_held_out",
    )
    assert found["is_on_frontier"].to_dict()["clear", "adamw"] is False  # slower and higher


def test_a_sweep_that_still_runs_is_compared_by_what_is_done(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "s", CLEAR)
    make_run(sweep, "came1", optimizer="came", status="running")
    make_run(sweep, "lion4", optimizer="lion", seed=4, status="interrupted")
    table = by_setting(sweep)
    assert table["verdict"].to_dict() == {"lion": "lowest", "adamw": "worse", "came": "no_result"}
    assert table["num_unfinished"].to_dict() == {"lion": 1, "adamw": 0, "came": 1}
    assert math.isnan(table.loc["came", "mean"])
    assert by_setting_is_empty(tmp_path / "none")


def by_setting_is_empty(folder: Path) -> bool:
    make_run(folder, "a", status="running")
    table = by_setting(folder)
    return table["verdict"].tolist() == ["no_result"] and not table["num_seeds"].any()


@pytest.mark.parametrize(
    ("gains", "conclusion"),
    [
        ({}, "nothing_finished"),
        ({("adamw", 8): [-0.1]}, "one_setting"),
        ({("adamw", 8): [-0.1], ("lion", 8): [-0.2]}, "one_seed"),
        (CLEAR, "clear"),
        (TIED, "all_tied"),
        ({**TIED, ("came", 8): [0.03, 0.031, 0.032]}, "some_tied"),
    ],
)
def test_the_conclusion_is_one_word(tmp_path: Path, gains: Any, conclusion: str) -> None:
    make_run(tmp_path / "s", "x", optimizer="sgd", status="running")
    assert standings_of(tmp_path / "s", gains).conclusion == conclusion


def test_what_was_measured_unlike_is_named(tmp_path: Path) -> None:
    for number, base in enumerate(("tiny", "sd15")):
        make_run(tmp_path / "s", f"r{number}", base=base, num_pictures=4 + number)
    found = analysis.rank_settings(optbench.load(tmp_path / "s"))
    assert found.unlike == ("base", "validation")
    assert (found.conclusion, found.best) == ("not_comparable", found.finished)
    assert {found.verdict(setting) for setting in found.settings} == {"not_compared"}


def test_a_value_is_judged_at_the_best_of_the_others(tmp_path: Path) -> None:
    gains = {
        (optimizer, dim): [base + 0.002 * seed * (1 if dim == 8 else -1) for seed in (-1, 0, 1)]
        for optimizer, base in (("adamw", -0.03), ("lion", -0.01))
        for dim in (8, 16)
    }
    optimizer, dim = standings_of(tmp_path / "s", gains).by_factor
    assert [s.is_worse for s in optimizer.standings] == [False, True]
    assert [s.is_tied for s in dim.standings] == [False, True]
    assert optimizer.num_tried == {"adamw": 2, "lion": 2}


def test_every_optimizer_contends_once_at_its_best_rate(tmp_path: Path) -> None:
    rates = {("adamw", 0.5): -0.02, ("adamw", 1.0): -0.03, ("lion", 0.5): -0.031, ("lion", 1.0): 0}
    for (optimizer, mult), gain in rates.items():
        for seed in (1, 2):
            make_run(
                tmp_path / "s",
                f"{optimizer}-{mult}-{seed}",
                gain + 1e-4 * seed * (1 + mult),
                optimizer=optimizer,
                lr_mult=mult,
                seed=seed,
            )
    standings = analysis.rank_settings(optbench.load(tmp_path / "s"))
    contenders = [setting.label for setting in standings.contenders]
    assert contenders == ["lion lr_mult=0.5", "adamw lr_mult=1"]


def test_a_setting_that_forgets_too_much_does_not_contend_for_its_optimizer(tmp_path: Path) -> None:
    for mult, gain, forgetting in ((0.5, -0.02, 0.001), (1.0, -0.03, 0.02)):
        for optimizer in ("adamw", "lion"):
            for seed in (1, 2):
                make_run(
                    tmp_path / "s",
                    f"{optimizer}-{mult}-{seed}",
                    gain + 1e-4 * seed * (1 + mult),
                    optimizer=optimizer,
                    lr_mult=mult,
                    seed=seed,
                    forgetting=forgetting,
                    splits=("held_out", "others"),
                )
    standings = analysis.rank_settings(optbench.load(tmp_path / "s"))
    assert {setting.label for setting in standings.contenders} == {
        "adamw lr_mult=0.5",
        "lion lr_mult=0.5",
    }


def test_the_best_at_the_last_rate_tried_is_at_the_edge(tmp_path: Path) -> None:
    for optimizer, gains in (("adamw", (-0.01, -0.02, -0.03)), ("lion", (-0.01, -0.03, -0.02))):
        for mult, gain in zip((0.3, 1.0, 3.0), gains, strict=True):
            name = f"{optimizer}{mult}"
            make_run(tmp_path / "s", name, gain, optimizer=optimizer, lr_mult=mult)
    table = by_setting(tmp_path / "s")
    assert table["is_rate_tuned"].all()
    assert table[table["rate_edge"] != ""]["rate_edge"].to_dict() == {"adamw lr_mult=3": "highest"}


def test_the_frontier_is_what_no_other_beats_in_both(tmp_path: Path) -> None:
    gains = {("adamw", 8): [-0.03], ("lion", 8): [-0.02], ("came", 8): [-0.025]}
    found = standings_of(tmp_path / "s", gains)  # 0.5 s, 0.25 s and 1 s a step
    assert [s.label for s in analysis.frontier(found, "seconds_total")] == ["lion", "adamw"]
    assert analysis.frontier(found, "no such cost") == ()
    assert analysis.fastest(found.settings).label == "lion"  # type: ignore[union-attr]


def test_time_beside_other_work_names_no_fastest(tmp_path: Path) -> None:
    found = standings_of(tmp_path / "s", TIED, load=9.0)
    assert analysis.fastest(found.settings) is None
    assert by_setting(tmp_path / "s")["was_busy"].all()


def test_next_steps_are_data(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "s", {("adamw", 8): [-0.1], ("lion", 8): [-0.2]})
    make_run(sweep, "d", optimizer="came", status="diverged")
    make_run(sweep, "o", optimizer="sgd", status="out_of_memory")
    make_run(sweep, "r", optimizer="adan", status="running")
    frames = optbench.load(sweep)
    steps = {
        step.reason: step.changes
        for step in analysis.next_steps(frames, analysis.rank_settings(frames))
    }
    assert steps == {
        "unfinished": ((),),
        "diverged": (("optimizer=came", "lr_mult=0.1,0.3,1"),),
        "out_of_memory": (("train.gradient_checkpointing=true",),),
        "few_seeds": (("seed=1,2,3", "render=off"),),
        "rates_untuned": (("optimizer=adamw,lion", "lr_mult=0.3,1,3"),),
    }
    gaps = analysis.untested(frames, analysis.rank_settings(frames))
    assert (gaps.rates, gaps.num_steps, gaps.ratings) == (("adamw", "lion"), 10, True)
    assert gaps.fixed == {"base": ("tiny",), "dataset": ()}


def test_runs_of_several_sweeps_are_not_ranked_together(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_sweep(tmp_path / name, CLEAR)
    frames = optbench.load(tmp_path)
    with pytest.raises(DatasetError, match="2 sweeps"):
        analysis.rank_settings(frames)
    alone = frames.by_sweep()
    assert list(alone) == ["one", "two"]
    assert [len(part.runs) for part in alone.values()] == [6, 6]


def test_a_lora_that_training_continues_from_is_named_without_its_folders() -> None:
    factors = ("optimizer", "network.weights")
    assert label_of(factors, ("adamw", "runs/a/lora/b.safetensors")) == "adamw network.weights=b"
    assert label_of(factors, ("adamw", "null")) == "adamw"


def test_the_target_is_what_the_median_run_ends_with(tmp_path: Path) -> None:
    gains = {("adamw", 8): [-0.02, -0.02], ("lion", 8): [-0.04, -0.01]}
    frames = optbench.load(make_sweep(tmp_path / "s", gains))
    targets = analysis.time_to_target(frames, analysis.rank_settings(frames))
    assert targets is not None
    assert targets.target == pytest.approx(-0.02)
    first = targets.runs[0]
    assert first.run == "lion-dim8-seed1"
    # Half of -0.04 is reached at the end of the first of two epochs of five steps of 0.25 s.
    assert first.seconds == pytest.approx(1.25)
    assert (first.epochs, first.resolution_seconds) == (pytest.approx(1.0), pytest.approx(1.25))
    assert [reached.seconds for reached in targets.runs[1:3]] == pytest.approx([5.0, 5.0])
    assert math.isinf(targets.runs[-1].seconds)


def test_importing_optbench_imports_no_pandas_and_analysis_comes_when_asked_for() -> None:
    code = (
        "import sys, optbench\n"
        "assert 'pandas' not in sys.modules\n"
        "optbench.analysis.compare_settings\n"
        "assert 'pandas' in sys.modules and 'torch' not in sys.modules\n"
        "assert 'optbench.report' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        optbench.nothing  # noqa: B018

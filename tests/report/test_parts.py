"""Tables and files of the report: what they leave out and what they must not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from optbench.analysis import load
from optbench.analysis.changes import changes
from optbench.analysis.evidence import SweepEvidence, read_sweep
from optbench.report import tables
from optbench.report.charts.styles import run_styles
from optbench.report.charts.training import training_charts
from optbench.report.exports import write_tables
from optbench.report.findings import make_findings
from optbench.report.links import address
from optbench.report.wording import decimal_text
from optbench.storage import files, rundir
from optbench.storage.rundir import RunDir


def make_run(sweep: Path, name: str, losses: Sequence[float], **settings: Any) -> None:
    run = RunDir(sweep / name)
    files.write_atomic(run.config_path, yaml.safe_dump({"seed": 1, **settings}))
    rows = [
        {"step": step, "epoch": 1, "loss": loss, "seconds_forward": 0.5}
        for step, loss in enumerate(losses, start=1)
    ]
    files.append_rows(run.steps_path, rows)
    epoch = {"epoch": 1, "mean_loss": losses[-1], "seconds_train": 0.5 * len(losses)}
    files.append_rows(run.epochs_path, [epoch])
    rundir.write_status(run.path, "done")


def sweep_of(tmp_path: Path, **runs: dict[str, Any]) -> SweepEvidence:
    for name, asked in runs.items():
        settings = {key: value for key, value in asked.items() if key != "losses"}
        make_run(tmp_path / "sweep", name, asked["losses"], **settings)
    return read_sweep(tmp_path / "sweep")


def titles(sweep: SweepEvidence) -> list[str]:
    return [
        chart.title
        for chart in training_charts(sweep, make_findings(sweep, run_styles(sweep)).legend)
    ]


def test_runs_are_compared_step_by_step_only_where_they_saw_the_same(tmp_path: Path) -> None:
    same = sweep_of(
        tmp_path / "same", a={"losses": [1.0, 0.5]}, b={"losses": [2.0, 0.7], "lr_mult": 3.0}
    )
    assert "Training loss against the other runs" in titles(same)
    other = sweep_of(
        tmp_path / "other", a={"losses": [1.0, 0.5]}, b={"losses": [2.0, 1], "seed": 2}
    )
    assert "Training loss against the other runs" not in titles(other)
    assert "Training loss" in titles(other)


def test_a_setting_that_is_off_in_some_runs_is_a_value_of_its_own(tmp_path: Path) -> None:
    sweep = sweep_of(
        tmp_path,
        **{
            f"d{dim}n{limit}": {
                "losses": [0.5],
                "network": {"dim": dim, "scale_weight_norms": limit},
            }
            for dim in (8, 16)
            for limit in (2.0, 1.0, None)
        },
    )
    (sweep.path / "bare").mkdir()  # a run of which nothing is known switches nothing off
    rundir.write_status(sweep.path / "bare", "failed", "no reason")
    found = read_sweep(sweep.path)
    assert found.factors == {
        "network.dim": ("8", "16"),
        "network.scale_weight_norms": ("null", "1", "2"),
    }
    styles = run_styles(found)
    known = [run.name for run in found.runs if run.row["network.dim"] is not None]
    assert len({(styles[name].colour, styles[name].dash) for name in known}) == 6


def test_seeds_show_how_large_luck_is(tmp_path: Path) -> None:
    sweep = sweep_of(
        tmp_path,
        a={"losses": [0.50], "seed": 1},
        b={"losses": [0.53], "seed": 2},
        c={"losses": [0.90], "seed": 1, "lr_mult": 2.0},
    )
    noise = (
        make_findings(sweep, run_styles(sweep))
        .tables["noise"]
        .set_index("measure")["seed_deviation"]
    )
    assert noise["final_loss"] == pytest.approx(0.03 / 2**0.5)


def test_changes_are_summed_up_over_their_pairs(tmp_path: Path) -> None:
    rates = {f"d{dim}m{mult}": (dim, mult) for dim in (8, 16) for mult in (1.0, 3.0)}
    sweep = sweep_of(
        tmp_path,
        **{
            name: {
                "losses": [1.0 - 0.01 * dim + 0.1 * mult],
                "lr_mult": mult,
                "network": {"dim": dim},
            }
            for name, (dim, mult) in rates.items()
        },
    )
    found = {
        (row.setting, row.from_value, row.to_value): (len(row.pairs), row.num_lower_loss)
        for row in changes(sweep.frames)
    }
    assert found == {("network.dim", "8", "16"): (2, 2), ("lr_mult", "1", "3"): (2, 0)}


def test_of_many_epochs_an_even_choice_with_the_last_is_shown(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "sweep" / "a")
    make_run(tmp_path / "sweep", "a", [1.0])
    run.epochs_path.unlink()
    rows = [{"epoch": epoch, "seconds_train": 1.0} for epoch in range(1, 101)]
    files.append_rows(run.epochs_path, rows)
    table = tables.epoch_times(read_sweep(tmp_path / "sweep"))
    assert table is not None
    assert len(table.titles) == 12
    assert (table.titles[0], table.titles[-1]) == ("epoch 1", "epoch 100")
    assert table.rows[0].entries[-1].sort == pytest.approx(100.0)


def test_a_table_that_an_earlier_report_had_and_this_one_has_not_is_gone(tmp_path: Path) -> None:
    make_run(tmp_path / "sweep", "a", [1.0])
    frames = load(tmp_path / "sweep")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.csv").write_text("a person's")
    settings = pd.DataFrame({"setting": ["adamw"]})
    write_tables(frames, tmp_path / "out", {"settings": settings})
    assert (tmp_path / "out" / "settings.parquet").is_file()
    names = write_tables(frames, tmp_path / "out", {"settings": settings.iloc[:0]})
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert there == {*names, "mine.csv"}


def test_mixed_settings_can_be_written_and_formulas_are_not(tmp_path: Path) -> None:
    settings = {"title": "=cmd()", "knob": 3, "other": "-1", "=cmd|calc!A0": 1}
    make_run(tmp_path / "sweep", "a", [1.0], **settings)
    make_run(tmp_path / "sweep", "b", [1.0], title="plain", knob="auto", other="-x")
    frames = load(tmp_path / "sweep")
    write_tables(frames, tmp_path / "out")
    stored = pd.read_parquet(tmp_path / "out" / "runs.parquet")
    assert list(stored["knob"]) == ["3", "auto"]
    assert list(stored["title"]) == ["=cmd()", "plain"]
    text = pd.read_csv(tmp_path / "out" / "runs.csv", dtype=str)
    assert list(text["title"]) == ["'=cmd()", "plain"]
    assert list(text["other"]) == ["-1", "'-x"]
    assert "'=cmd|calc!A0" in text.columns
    assert not [name for name in text.columns if name.startswith(("=", "+", "-", "@"))]


def test_addresses_are_relative_and_mean_the_file_whatever_it_is_called(tmp_path: Path) -> None:
    report = tmp_path / "report"
    assert address(tmp_path / "a b#1?x%41.png", report) == "../a%20b%231%3Fx%2541.png"
    assert address(report / "javascript:alert(1)", report).startswith("./")


def test_small_numbers_are_read_without_an_exponent() -> None:
    texts = [decimal_text(value, 2) for value in (0.000063, 0.00032, 0.1, 12.3, -0.0011, 0.0)]
    assert texts == ["0.000063", "0.00032", "0.1", "12", "-0.0011", "0"]

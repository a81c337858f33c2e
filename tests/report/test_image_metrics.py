"""What the report says of image metrics: means, flags with known causes, and nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import optbench
from optbench.analysis import last_metrics, metric_table
from optbench.analysis.evidence import read_sweep
from optbench.metrics import Metric
from optbench.metrics.copies import NearCopy
from optbench.metrics.measure import Tally, measure_run
from optbench.metrics.pixels import AcrossSeeds, FromBase, FromPrevious, Surface
from optbench.report.image_metrics import MetricReport, metric_report
from optbench.report.page import write_page
from optbench.storage import files, rundir
from tests.builders.image_runs import SEEDS, Pixels, make_run, noise, smooth


def soft(seed: int) -> Pixels:
    return (smooth(seed) // 2 + 60).astype(np.uint8)


def sweep_of(folder: Path, kind: str) -> Path:
    def pixels(epoch: int, seed: int) -> Pixels:
        if epoch == 0 or kind == "untrained":
            return soft(seed)
        drawn = {
            "burnt": np.where(soft(seed + epoch) > 120, 255, 0),
            "noise": noise(seed + epoch, low=40, high=200),
            "black": soft(0) * 0,
            "copy": smooth(900),
            "trained": soft(seed + 10 * epoch),
        }
        return drawn[kind].astype(np.uint8)

    run = make_run(folder, pixels=pixels)
    metrics: dict[str, Metric] = {
        type(one).__name__: one
        for one in (Surface(), FromBase(), FromPrevious(), AcrossSeeds(), NearCopy())
    }
    tally = Tally()
    measure_run(run, metrics, tally)
    assert tally.notices == []
    return run.path.parent


def report_of(folder: Path) -> MetricReport | None:
    sweep = read_sweep(folder)
    return metric_report(sweep, ())


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("untrained", {"hardly differs from the base model"}),
        ("trained", set()),
        ("burnt", {"burnt", "noise"}),  # hard edges everywhere
        ("noise", {"noise"}),
        ("black", {"blank", "burnt", "all seeds give the same image"}),
        ("copy", {"near-copy of 0.png", "all seeds give the same image"}),
    ],
)
def test_what_is_odd_is_flagged_and_nothing_else(
    tmp_path: Path, kind: str, flags: set[str]
) -> None:
    found = report_of(sweep_of(tmp_path, kind))
    assert found is not None
    assert {row.what for row in found.flag_rows} == flags
    assert all(any(digit.isdigit() for digit in row.why) for row in found.flag_rows)


def test_the_table_has_means_over_seeds_with_floor_and_ceiling(tmp_path: Path) -> None:
    frames = optbench.load(sweep_of(tmp_path, "trained"))
    table = metric_table(frames)
    one = table[(table["metric"] == "clipped") & (table["epoch"] == 2)].iloc[0]
    rows = frames.metrics
    own = rows[(rows["metric"] == "clipped") & (rows["epoch"] == 2)]
    assert one["num_pictures"] == len(SEEDS)
    assert one["value"] == pytest.approx(own["value"].mean())
    assert one["base_value"] == pytest.approx(own["base_value"].mean())
    assert one["training_value"] == pytest.approx(own["training_value"].iloc[0])
    assert set(last_metrics(table)["epoch"]) == {table["epoch"].max()}


def test_without_numbers_there_is_no_section_and_hostile_details_are_text(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    frames = optbench.load(run.path.parent)
    assert metric_table(frames).empty
    assert last_metrics(metric_table(frames)).empty
    assert report_of(run.path.parent) is None
    assert 'id="metrics"' not in write_page(run.path.parent).read_text()
    row = {
        "epoch": 1,
        "prompt": "<b>a",
        "seed": 7,
        "width": 64,
        "height": 96,
        "metric": "copy_distance",
        "value": 0.0,
        "detail": "<script>alert(1)</script>",
    }
    odd = {**row, "metric": "<i>unknown", "value": "text", "detail": None}
    files.append_rows(run.path / rundir.METRICS_NAME, [row, odd])
    page = write_page(run.path.parent).read_text()
    assert 'id="metrics"' in page
    assert "<script>alert(1)" not in page
    assert "near-copy of &lt;script&gt;" in page

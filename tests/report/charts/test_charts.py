"""Charts as data: what they leave out, and what their files hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from optbench.analysis.curves import band
from optbench.analysis.evidence import read_sweep
from optbench.report import build_report
from optbench.report.charts.chart import (
    Axis,
    Chart,
    Level,
    Line,
    Point,
    Row,
    curves,
    points,
    rows,
)
from optbench.report.charts.runs import run_facts
from optbench.storage import files, rundir
from tests.builders.fabricated_sweep import Shape, cut_short, make_sweep


def drawn(*lines: Line, **more: Any) -> Chart:
    chart = curves("loss", "Loss", "", x="step", y=Axis(title="loss"), lines=lines, **more)
    assert chart is not None
    return chart


def chart_data(report: Path, name: str) -> dict[str, Any]:
    """Return what a chart's file hands over."""
    text = (report / "charts" / f"{name}.js").read_text(encoding="ascii")
    head = f'optbenchCharts.add("{name}",'
    assert text.startswith(head)
    data: dict[str, Any] = json.loads(text.removeprefix(head).removesuffix(");\n"))
    return data


def test_a_line_of_one_point_is_none_and_a_gap_is_a_gap() -> None:
    lines = [Line(name="a", points=[(1, 1.0)]), Line(name="b", points=[])]
    assert curves("x", "X", "", x="step", y=Axis(title="y"), lines=lines) is None
    chart = drawn(Line(name="a", points=[(1, 0.5), (2, math.nan), (3, math.inf), (4, 0.25)]))
    assert chart.data["lines"] == [["a", [1, 2, 3, 4], [0.5, None, None, 0.25]]]


def test_many_long_lines_stay_small_and_keep_their_ends() -> None:
    long = [(step, float(step)) for step in range(100_000)]
    chart = drawn(*(Line(name=f"r{number}", points=long) for number in range(200)))
    assert len(json.dumps(chart.data)) < 400_000
    assert {line[1][-1] for line in chart.data["lines"]} == {99_999}


def test_smoothed_lines_carry_what_they_smooth_at_the_same_places() -> None:
    smooth = [(step, 1.0) for step in range(1000)]
    chart = drawn(Line(name="a", points=smooth, raw=[float(step) for step in range(1000)]))
    ((_, steps, _, raw),) = chart.data["lines"]
    assert raw == steps
    assert chart.has_raw


def test_a_band_is_named_by_its_setting_and_levels_by_what_they_are() -> None:
    of_seeds = {"a": [(1, 1.0), (2, 2.0)], "b": [(1, 3.0), (2, 4.0)]}
    shared = band(of_seeds)
    assert shared is not None
    chart = drawn(
        *(Line(name=name, points=points) for name, points in of_seeds.items()),
        bands={"adamw": shared},
        levels=[Level(value=0.0, text="the base model")],
    )
    assert chart.data["bands"] == [["adamw", ["a", "b"], [1, 2], [2, 3], [1, 2], [3, 4]]]
    assert chart.data["levels"] == [{"value": 0, "text": "the base model"}]


def test_rows_and_points_leave_out_what_is_no_number() -> None:
    row = Row(label="a", colour="#000", marker="circle", value=math.nan)
    assert rows("x", "X", "", axis=Axis(title="loss"), listed=[row]) is None
    size = Axis(title="size", is_log=True)
    listed = [
        Point(label=str(x), colour="#000", marker="circle", x=x, y=y)
        for x, y in ((1.0, 2.0), (0.0, 1.0), (2.0, math.nan), (4.0, 3.0))
    ]
    chart = points("x", "X", "", x=size, y=Axis(title="loss"), listed=listed)
    assert chart is not None
    assert [point["label"] for point in chart.data["points"]] == ["1.0", "4.0"]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sweep = tmp_path_factory.mktemp("charts") / "sweep"
    runs = make_sweep(sweep, Shape(num_optimizers=2, dims=(4, 8), num_epochs=3))
    cut_short(runs[1], epoch=2, status="diverged", reason="the loss is not finite")
    for run in runs:
        epochs = files.read_rows(run.epochs_path)
        run.epochs_path.unlink()
        files.append_rows(
            run.epochs_path,
            [{**row, "optimizer_state_bytes": 1e6 * len(run.name)} for row in epochs],
        )
    build_report(sweep)
    return sweep / "report"


def test_every_chart_of_the_page_has_its_file_and_no_file_is_in_vain(report: Path) -> None:
    page = (report / "index.html").read_text(encoding="utf-8")
    names = set(page.split('data-chart="')[1:])
    shown = {text.partition('"')[0] for text in names}
    assert {"loss", "gain-held-out", "results"} <= shown
    written = {path.stem for path in (report / "charts").glob("*.js")}
    assert written == shown | {"sweep", "bokeh.min", "bokeh-api.min"}
    data = chart_data(report, "loss")
    assert len(data["lines"]) == 4
    assert str(data["lines"][0][2][-1]) not in page, "data is not in the page"


def test_every_chart_has_a_title_in_words_and_titles_on_its_axes(report: Path) -> None:
    for path in (report / "charts").glob("*.js"):
        if path.stem == "sweep" or path.name.startswith("bokeh"):
            continue
        data = chart_data(report, path.stem)
        assert "_" not in data["title"]
        for axis in ("y", "axis", "xAxis"):
            assert axis not in data or ("_" not in data[axis]["title"] and data[axis]["title"])


def test_results_have_their_interval_and_their_costs_beside_them(report: Path) -> None:
    data = chart_data(report, "results")
    assert {row["label"] for row in data["rows"]} == {
        *("adamw network.dim=4", "lion network.dim=4", "lion network.dim=8")
    }
    assert data["columns"] == ["seeds", "training time", "optimizer state"]
    assert all(len(row["notes"]) == 3 for row in data["rows"])


def test_without_a_gpu_no_chart_shows_the_memory_of_a_process(tmp_path: Path) -> None:
    for run in make_sweep(tmp_path / "s", Shape(num_optimizers=2, dims=(4,), num_epochs=2)):
        rows_ = files.read_rows(run.epochs_path)
        run.epochs_path.unlink()
        files.append_rows(run.epochs_path, [{**row, "peak_memory_bytes": 1e9} for row in rows_])
        if run.name.startswith("lion"):
            session = {"threads": 1, "gpus": [{"name": "one"}], "time": "2026"}
            files.write_json(run.provenance_path, {"sessions": [session]})
    build_report(tmp_path / "s")
    assert (tmp_path / "s" / "report" / "charts" / "peak-memory-bytes.js").is_file()
    make_sweep(tmp_path / "cpu", Shape(num_optimizers=2, dims=(4,), num_epochs=2))
    build_report(tmp_path / "cpu")
    assert not (tmp_path / "cpu" / "report" / "charts" / "peak-memory-bytes.js").exists()


def test_a_run_that_ended_early_says_so_where_its_curve_ends(report: Path) -> None:
    facts = chart_data(report, "sweep")["runs"]
    ended = {name: of_run["ended"] for name, of_run in facts.items() if of_run["ended"]}
    assert ended == {"adamw-dim8-00000008": "diverged"}
    assert facts["adamw-dim8-00000008"]["ends"][-1][:2] == [20, 2]


def test_records_of_others_name_no_file(tmp_path: Path) -> None:
    (run, *_) = make_sweep(tmp_path / "s", Shape(num_optimizers=2, dims=(4,), num_epochs=2))
    steps = files.read_rows(run.steps_path)
    run.steps_path.unlink()
    files.append_rows(run.steps_path, [{**row, "lr/../../../x<b>": 1.0} for row in steps])
    build_report(tmp_path / "s")
    names = {path.name for path in (tmp_path / "s" / "report" / "charts").iterdir()}
    assert "lr-1.js" in names
    assert {path.name for path in tmp_path.iterdir()} == {"s"}


def test_a_running_run_has_not_ended(tmp_path: Path) -> None:
    (run, *_) = make_sweep(tmp_path, Shape(num_optimizers=1, dims=(4,), num_epochs=1))
    rundir.write_status(run.path, "running")
    assert run_facts(read_sweep(tmp_path))[run.name]["ended"] == ""

"""Every notebook runs from its first cell to its last on what a sweep leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from optbench.report.charts.notebook import Drawing, draw_curves
from optbench.storage import files, rundir
from optbench.storage.rundir import RunDir

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
PICTURE = {"prompt": "b", "seed": 7, "width": 768, "height": 512}


def make_run(sweep: Path, optimizer: str, rate: float, *, is_full: bool) -> None:
    run = RunDir(sweep / f"{optimizer}-dim16-00000000")
    config = f"network: {{dim: 16}}\noptimizer: {{name: {optimizer}, lr: {rate}}}\nseed: 1\n"
    files.write_atomic(run.config_path, config)
    phases = ("data", "forward", "backward", "optimizer")
    steps = [
        {
            "step": step,
            "epoch": 1 + step // 13,
            "loss": 0.5 / step,
            "effective_lr/unet": rate / step,
            **{f"seconds_{name}": 0.1 for name in phases},
        }
        for step in range(1, 25)
    ]
    files.append_rows(run.steps_path, steps)
    files.append_rows(
        run.epochs_path,
        [
            {"epoch": epoch, "step": 12 * epoch, "mean_loss": 0.3, "seconds_train": 7.5}
            for epoch in (1, 2)
        ],
    )
    rundir.write_status(run.path, "done")
    if not is_full:
        return
    places = [(epoch, timestep) for epoch in (1, 2) for timestep in (50, 950)]
    validated = {"image": "x", "split": "training", "loss": 0.1, "base_loss": 0.2}
    files.append_rows(
        run.validation_path,
        [{"epoch": epoch, "timestep": timestep, **validated} for epoch, timestep in places],
    )
    metrics = [
        {**PICTURE, "epoch": epoch, "metric": name, "value": rate * epoch, "base_value": 0.0}
        for epoch in (0, 1, 2)
        for name in ("resistance", "resemblance", "clipped")
    ]
    files.append_rows(run.path / rundir.METRICS_NAME, metrics)


def make_scores(sweep: Path) -> None:
    runs = ("adamw-dim16-00000000", "lion-dim16-00000000")
    cells = [{**PICTURE, "run": run, "epoch": epoch} for run in runs for epoch in (1, 2)]
    scores = [{**cell, "score": 40 + 10 * number} for number, cell in enumerate(cells)]
    vote = {"left": cells[0], "right": cells[2], "winner": "right", "repeat": False}
    content = {"format": "optbench scores 1", "sweep": "demo", "rater": "me"}
    files.write_json(sweep / "scores" / "me.json", {**content, "scores": scores, "votes": [vote]})


def executed(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    (folder / "notebooks").mkdir()
    monkeypatch.chdir(folder / "notebooks")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    names: dict[str, Any] = {}
    for cell in code:
        exec("".join(cell["source"]), names)
    return names


@pytest.mark.parametrize("is_full", [True, False], ids=["full", "bare"])
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_carries_no_output(
    path: Path, is_full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = tmp_path / "runs" / "demo"
    for optimizer, rate in (("adamw", 1e-3), ("lion", 2e-4)):
        make_run(sweep, optimizer, rate, is_full=is_full)
    if is_full:
        make_scores(sweep)
    names = executed(path, tmp_path, monkeypatch)
    if path.stem in ("loss", "sweep-as-tables"):
        assert len(names["loss"].columns) == 2
    if path.stem == "sweep-as-tables":
        assert names["settings"]["verdict"].tolist() == ["unranked", "unranked"]
        assert names["leaders"] == []
        assert names["untuned"] == ["adamw", "lion"]
        assert [step.reason for step in names["steps"]][-1] == "rates_untuned"
    if path.stem == "loss":
        assert len(names["bands"]) == (2 if is_full else 0)
        assert names["difference"].abs().max().max() == 0  # both were given one loss
    if path.stem == "timing":
        assert names["phases"]["seconds_per_step"].tolist() == pytest.approx([0.4, 0.4])
        assert names["seconds"].to_numpy() == pytest.approx(0.4)
        assert names["price"]["ratio"].tolist() == pytest.approx([1.0])
    if path.stem == "scores-and-metrics" and is_full:
        assert names["wide"]["resistance"].loc[2].tolist() == pytest.approx([2e-3, 4e-4])
        assert names["agreement"]["clipped"] == pytest.approx(-0.6)
        assert names["won"].tolist() == ["lion-dim16-00000000"]


def test_every_planned_notebook_is_there() -> None:
    assert {path.stem for path in NOTEBOOKS} == {
        *("loss", "timing", "scores-and-metrics", "sweep-as-tables")
    }


def test_a_drawing_has_a_line_and_a_name_for_every_column_and_escapes_it() -> None:
    frame = pd.DataFrame({"<b>one": [1.0, 2.0, None], "two": [3.0, 2.0, 1.0]}, index=[1, 2, 3])
    html = draw_curves(frame, x_title="step", y_title="loss")._repr_html_()
    assert html.count('class="line"') == 2
    assert "<b>" not in html
    assert "&lt;b&gt;one" in html
    empty = draw_curves(frame.iloc[:0], x_title="<i>", y_title="loss")
    assert isinstance(empty, Drawing)
    assert "Nothing to draw yet: loss over &lt;i&gt;" in empty.html

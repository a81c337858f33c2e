"""Every notebook runs from its first cell to its last on what a sweep leaves."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

import optbench
from optbench.errors import DatasetError
from optbench.report.charts import notebook
from optbench.report.charts.styles import COLOURS
from optbench.storage import files, rundir
from optbench.storage.rundir import RunDir
from tests.builders.fabricated_sweep import Shape, cut_short, make_sweep
from tools.notebooks import NOTEBOOKS, execute, shown

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
PICTURE = {"prompt": "b", "seed": 7, "width": 768, "height": 512}
RUNS = ("adamw-dim16-00000000", "lion-dim16-00000000")


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
    epoch = {"mean_loss": 0.3, "seconds_train": 7.5, "seconds_render": 5.0}
    files.append_rows(
        run.epochs_path, [{"epoch": number, "step": 12 * number, **epoch} for number in (1, 2)]
    )
    rundir.write_status(run.path, "done")
    if not is_full:
        return
    files.append_rows(
        run.validation_path,
        [
            {"epoch": epoch, "timestep": timestep, "image": "x", "split": split}
            | {"loss": loss, "base_loss": 0.2}
            for epoch in (1, 2)
            for timestep in (50, 950)
            for split, loss in (("training", 0.1), ("held_out", 0.15))
        ],
    )
    metrics = [
        {**PICTURE, "epoch": epoch, "metric": name, "value": rate * epoch, "base_value": 0.0}
        for epoch in (0, 1, 2)
        for name in ("resistance", "resemblance", "clipped")
    ]
    files.append_rows(run.path / rundir.METRICS_NAME, metrics)


def make_scores(sweep: Path) -> None:
    cells = [{**PICTURE, "run": run, "epoch": epoch} for run in RUNS for epoch in (1, 2)]
    scores = [{**cell, "score": 40 + 10 * number} for number, cell in enumerate(cells)]
    vote = {"left": cells[0], "right": cells[2], "winner": "right", "repeat": False}
    content = {"format": "optbench scores 1", "sweep": "demo", "rater": "me"}
    files.write_json(sweep / "scores" / "me.json", {**content, "scores": scores, "votes": [vote]})


def said(outputs: list[list[dict[str, Any]]]) -> str:
    parts = [part for cell in outputs for part in cell]
    return "\n".join(
        "".join(part["text"] if "text" in part else part["data"]["text/plain"]) for part in parts
    )


@pytest.mark.parametrize("is_full", [True, False], ids=["full", "bare"])
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_runs(
    path: Path, is_full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = tmp_path / "runs" / "demo"
    for optimizer, rate in (("adamw", 1e-3), ("lion", 2e-4)):
        make_run(sweep, optimizer, rate, is_full=is_full)
    if is_full:
        make_scores(sweep)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    names, outputs = execute(path)
    text = said(outputs)
    assert ("Nothing to draw" in text) <= (not is_full), "what was recorded is drawn"
    if path.stem in ("loss", "sweep-as-tables"):
        assert set(names["loss"]["setting"]) == {"adamw", "lion"}
    if path.stem == "sweep-as-tables":
        assert names["settings"]["verdict"].tolist() == ["unranked", "unranked"]
        assert names["leaders"] == []
        assert names["untuned"] == ["adamw", "lion"]
        assert [step.reason for step in names["steps"]][-1] == "rates_untuned"
        assert "No images." in text
    if path.stem == "loss":
        assert names["difference"]["mean"].abs().max() == pytest.approx(0)  # equal losses
        if is_full:
            assert names["noise"].to_numpy() == pytest.approx(0.05)
            assert names["gaps"]["mean"].to_numpy() == pytest.approx(0.05)
        else:
            assert text.count("Nothing to draw") == 4
    if path.stem == "timing":
        assert names["seconds"]["adamw"].to_numpy() == pytest.approx(0.4)
        assert names["price"]["median"].tolist() == pytest.approx([1.0])
    if path.stem == "scores-and-metrics" and is_full:
        resistance = names["wide"]["resistance"].set_index(["run", "epoch"])["value"]
        assert resistance[RUNS[1], 2] == pytest.approx(4e-4)
        assert names["agreement"]["clipped"] == pytest.approx(-0.6)
        assert names["won"].to_dict() == {"lion": 1}
        assert names["of_settings"].loc["adamw", ["mean", "count"]].tolist() == [45, 2]
    elif path.stem == "scores-and-metrics":
        assert names["agreement"] is None, "no number for what does not exist"
        assert "No scores yet" in text
        assert "No votes yet" in text


def test_every_planned_notebook_is_there() -> None:
    assert {path.stem for path in PATHS} == {
        *("loss", "timing", "scores-and-metrics", "sweep-as-tables")
    }


def test_notebooks_carry_small_outputs_of_every_cell_and_no_error() -> None:
    sizes = 0
    for path in PATHS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for cell in cells:
            if cell["cell_type"] == "code":
                assert cell["outputs"], f"{path.name}: run python -m tools.notebooks"
                assert all(part["output_type"] != "error" for part in cell["outputs"])
                sizes += len(json.dumps(cell["outputs"]))
        kinds = {
            kind
            for cell in cells
            for part in cell.get("outputs", ())
            for kind in part.get("data", ())
        }
        assert "image/png" in kinds, "code hosts show no scripts"
        assert "application/javascript" not in kinds
    assert sizes < 230_000


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> optbench.analysis.Frames:
    sweep = tmp_path_factory.mktemp("notebooks") / "sweep"
    runs = make_sweep(sweep, Shape(num_optimizers=2, dims=(4,), num_epochs=2, steps_per_epoch=12))
    for number, run in enumerate(runs):
        for seed in (5, 6):
            config = run.config_path.read_text().replace("seed: 1234", f"seed: {seed}")
            other = RunDir(run.path.with_name(f"{run.name[:-8]}{number}000000{seed}"))
            files.write_atomic(other.config_path, config)
            steps = [{**row, "loss": row["loss"] + seed} for row in files.read_rows(run.steps_path)]
            files.append_rows(other.steps_path, steps)
            files.append_rows(other.epochs_path, files.read_rows(run.epochs_path))
            rundir.write_status(other.path, "done")
    cut_short(other, epoch=1, status="stopped")
    return optbench.load(sweep)


def test_runs_have_labels_and_settings_have_their_seeds(frames: optbench.analysis.Frames) -> None:
    by_setting = frames.by_setting()
    assert list(by_setting) == ["adamw", "lion"]
    assert sorted(by_setting["lion"].runs["seed"]) == [5, 6, 1234]
    assert set(by_setting["lion"].steps["run"]) == set(by_setting["lion"].runs["run"])
    name = by_setting["lion"].runs["run"].iloc[0]
    assert frames.label(name).startswith("lion seed=")
    alone = by_setting["adamw"].over_seeds("loss")
    whole = frames.over_seeds("loss").query("setting == 'adamw'")
    assert alone["mean"].tolist() == whole["mean"].tolist()


def test_seeds_are_a_mean_in_their_range_and_a_stopped_run_is_apart(
    frames: optbench.analysis.Frames,
) -> None:
    bands = frames.over_seeds("loss")
    adamw = bands[bands["setting"] == "adamw"]
    assert adamw["num_seeds"].tolist() == [3] * 24
    assert (adamw["high"] - adamw["low"]).to_numpy() == pytest.approx(6.0)
    lion = bands[(bands["setting"] == "lion") & bands["is_stopped"]]
    assert lion["step"].max() == 12
    assert lion["num_seeds"].max() == 1
    whole = bands[(bands["setting"] == "lion") & ~bands["is_stopped"]]
    assert whole["num_seeds"].tolist() == [2] * 24
    assert frames.over_seeds("no such column").empty


def test_a_drawing_has_a_line_a_band_and_the_reports_colour_for_every_setting(
    frames: optbench.analysis.Frames,
) -> None:
    drawing = notebook.draw_curves(
        frames, frames.over_seeds("loss"), x_title="step", y_title="loss", base=0.1
    )
    assert drawing.axes is not None
    labels = [text.get_text() for text in drawing.axes.get_legend().get_texts()]
    assert labels == ["adamw (3 seeds)", "lion (2 seeds)"]
    assert [line.get_color() for line in drawing.axes.lines[:2]] == list(COLOURS[:2])
    assert len(drawing.axes.collections) == 2, "bands"
    assert shown(drawing)["image/png"]
    assert repr(drawing) == "loss over step"


def test_what_does_not_exist_is_a_sentence_and_no_chart(frames: optbench.analysis.Frames) -> None:
    nothing = frames.over_seeds("score", frames.scores)
    drawing = notebook.draw_curves(frames, nothing, x_title="epoch", y_title="mean score")
    assert shown(drawing) == {"text/plain": ["Nothing to draw: no mean score was recorded."]}
    assert "Nothing to draw" in repr(notebook.draw_heat(pd.DataFrame(), title="gain", x_title="t"))
    assert "Nothing to draw" in repr(notebook.draw_boxes([("a", [])], x_title="seconds"))
    assert notebook.draw_phases(frames).axes is not None
    assert notebook.draw_settings(frames).axes is not None


def test_phases_add_up_to_the_run_and_what_was_not_recorded_is_left_out(tmp_path: Path) -> None:
    make_run(tmp_path / "s", "adamw", 1e-3, is_full=False)
    phases = notebook.phase_seconds(optbench.load(tmp_path / "s")).iloc[0]
    assert phases[["data", "forward", "backward", "optimizer"]].sum() == pytest.approx(15.0)
    assert phases["rendering"] == 10.0
    assert phases["share beside training"] == pytest.approx(10 / 25)
    assert "validating" not in phases


def test_a_grid_has_every_image_at_its_place(frames: optbench.analysis.Frames) -> None:
    grid = frames.grid(height_px=48)
    assert grid.rows == ("adamw", "lion")
    assert grid.columns == ("base, no LoRA", "epoch 1", "epoch 2")
    jpeg = base64.b64decode(shown(grid)["image/jpeg"])
    assert jpeg.startswith(b"\xff\xd8")
    paths = frames.images.query("prompt == 'a' and seed == 112233 and epoch == 2")["path"]
    first = Image.open(frames.root / paths.iloc[0]).convert("RGB").resize((32, 48))
    width, height = grid.image.size
    corner = grid.image.crop((width - 36, height - 2 * 52, width - 4, height - 2 * 52 + 48))
    assert (
        math.dist(corner.resize((1, 1)).getpixel((0, 0)), first.resize((1, 1)).getpixel((0, 0)))
        < 12
    )  # type: ignore[arg-type]
    assert frames.grid(rows="seed", columns="prompt", epoch=1).columns == ("a", "b")
    with pytest.raises(DatasetError, match="no image that fits"):
        frames.grid(prompt="nobody")

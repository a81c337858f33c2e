"""Every notebook runs from its first cell to its last on what a sweep leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optbench import rundir
from optbench.rundir import RunDir

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def make_run(sweep: Path, optimizer: str, rate: float) -> None:
    run = RunDir(sweep / f"{optimizer}-dim16-00000000")
    config = f"network: {{dim: 16}}\noptimizer: {{name: {optimizer}, lr: {rate}}}\nseed: 1\n"
    rundir.write_atomic(run.config_path, config)
    steps = [
        {"step": step, "epoch": 1, "loss": 0.5 / step, "effective_lr/unet": rate / step}
        for step in range(1, 25)
    ]
    rundir.append_rows(run.steps_path, steps)
    epoch = {"epoch": 1, "step": 24, "mean_loss": 0.3, "seconds_train": 7.5}
    rundir.append_rows(run.epochs_path, [epoch])
    rundir.write_status(run.path, "done")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_carries_no_output(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for optimizer, rate in (("adamw", 1e-3), ("lion", 2e-4)):
        make_run(tmp_path / "runs" / "demo", optimizer, rate)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in code)
    names: dict[str, object] = {}
    for cell in code:
        exec("".join(cell["source"]), names)
    assert len(names["loss"].columns) == 2  # type: ignore[attr-defined]


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS

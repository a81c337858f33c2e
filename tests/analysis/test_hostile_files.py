"""A run folder from anywhere is read without an exception, and what is wrong with it is said."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from optbench import analysis
from optbench.storage import files, rundir
from optbench.storage.rundir import RunDir

CONFIG = "seed: 1\noptimizer: {name: adamw, lr: 0.001}\nnetwork: {name: lora, dim: 16}\n"


def make_run(sweep: Path, name: str, text: str, rows: list[dict[str, Any]]) -> RunDir:
    run = RunDir(sweep / name)
    files.write_atomic(run.config_path, text)
    files.write_atomic(run.epochs_path, "".join(f"{json.dumps(row)}\n" for row in rows))
    rundir.write_status(run.path, "done")
    return run


def bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text", ["a: &a {b: *a}", bomb(), "[" * 50_000, "seed: 1\nseed: &b 2\nlr_mult: *b\n"]
)
def test_a_config_that_unfolds_without_end_is_a_problem(tmp_path: Path, text: str) -> None:
    make_run(tmp_path / "sweep", "good", CONFIG, [])
    bad = make_run(tmp_path / "sweep", "worse", text, [])
    frames = analysis.load(tmp_path / "sweep")
    assert list(frames.runs["run"]) == ["good", "worse"]
    assert len(frames.problems) == 1
    assert str(bad.config_path) in frames.problems[0]
    assert len(frames.problems[0]) < 1000


def test_our_own_configs_hold_no_alias() -> None:
    shared = [1, 2]
    text = OmegaConf.to_yaml(OmegaConf.create({"a": shared, "b": shared, "c": {"d": shared}}))
    assert not any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text))


@pytest.mark.parametrize("value", ["text", None, [1], {"a": 1}, True, 10**30, 10**400])
def test_what_is_no_number_counts_as_missing(tmp_path: Path, value: Any) -> None:
    good = {"epoch": 1, "mean_loss": 0.5, "seconds_train": 2.0, "peak_memory_bytes": 5}
    bad = {"epoch": 2, **dict.fromkeys(("mean_loss", "seconds_train", "peak_memory_bytes"), value)}
    make_run(tmp_path / "sweep", "a", CONFIG, [good, bad])
    make_run(tmp_path / "sweep", "b", CONFIG.replace("16", "32"), [good])
    frames = analysis.load(tmp_path / "sweep")
    first, second = frames.runs.to_dict("records")
    assert math.isnan(first["final_loss"])
    assert second["final_loss"] == 0.5
    assert (first["seconds_total"], first["peak_memory_bytes"]) == (2.0, 5)
    assert frames.epochs["seconds_train_cumulative"].dropna().tolist() == [2.0, 2.0]
    assert len(frames.pairs) == 1


@pytest.mark.parametrize(
    "text",
    [
        "optimizer: null\nnetwork: 3\n",
        "optimizer: {name: {a: 1}, lr: 1}\n",
        "optimizer: {name: [a], lr: {}}\n",
        "status: {name: x}\nrun: other\nsweep: other\n",
        "seed: 2020-01-01\n",
        "on: 1\n2: 3\n",
    ],
)
def test_alien_settings_are_rows_like_others(tmp_path: Path, text: str) -> None:
    make_run(tmp_path / "sweep", "a", CONFIG, [])
    make_run(tmp_path / "sweep", "b", text, [])
    frames = analysis.load(tmp_path / "sweep")
    assert list(frames.runs["run"]) == ["a", "b"]
    assert list(frames.runs["status"]) == ["done", "done"]
    assert len(analysis.labels(frames.runs)) == 2


def test_a_record_cannot_speak_for_another_run(tmp_path: Path) -> None:
    make_run(tmp_path / "sweep", "a", CONFIG, [{"run": "b", "sweep": "x", "epoch": 1}])
    frames = analysis.load(tmp_path / "sweep")
    assert frames.epochs[["sweep", "run"]].to_numpy().tolist() == [["sweep", "a"]]
    assert list(frames.epochs.columns)[:2] == ["sweep", "run"]

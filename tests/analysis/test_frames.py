"""Frames hold what the folders say, and what differs between runs is found as a person would."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from optbench import analysis
from optbench.errors import DatasetError
from optbench.storage import files, rundir
from optbench.storage.rundir import RunDir

RATES = {"adamw": 1e-4, "lion": 2e-5}


def config(optimizer: str = "adamw", dim: int = 16, **changes: Any) -> dict[str, Any]:
    rate = RATES[optimizer]
    tree: dict[str, Any] = {
        "base": {"name": "tiny", "path": str(Path.home() / "models" / "tiny")},
        "network": {"name": "lora", "dim": dim, "alpha": dim / 2, "conv_dim": None},
        "optimizer": {
            "name": optimizer,
            "lr": rate,
            "text_encoder_lr": rate / 2,
            "args": {"betas": [0.9, 0.99]},
            "note": f"about {optimizer}",
        },
        "prompts": {"name": "mirelle", "prompts": {"a": {"text": "x", "width": 8, "height": 8}}},
        "seed": 1234,
        "runs_dir": "runs",
    }
    for key, value in changes.items():
        group, _, name = key.rpartition("__")
        (tree[group] if group else tree)[name] = value
    return tree


def make_run(
    sweep: Path, name: str, tree: dict[str, Any], *, num_steps: int = 6, seconds: float = 0.25
) -> RunDir:
    run = RunDir(sweep / name)
    files.write_atomic(run.config_path, yaml.safe_dump(tree))
    steps = [
        {
            "step": step,
            "epoch": 1 + (step - 1) // 3,
            "loss": 0.5 / step,
            "seconds_forward": 10.0 if step <= 3 else seconds * 0.75,
            "seconds_backward": 10.0 if step <= 3 else seconds * 0.25,
        }
        for step in range(1, num_steps + 1)
    ]
    files.append_rows(run.steps_path, steps)
    epochs = [
        {"epoch": epoch, "step": 3 * epoch, "mean_loss": 0.3 / epoch, "seconds_train": 7.5}
        for epoch in range(1, num_steps // 3 + 1)
    ]
    files.append_rows(run.epochs_path, epochs)
    rundir.write_status(run.path, "done")
    return run


def make_square(sweep: Path) -> None:
    for optimizer in RATES:
        for dim in (16, 32):
            make_run(sweep, f"{optimizer}-dim{dim}-0000000{dim % 10}", config(optimizer, dim))


def frame_of(*trees: dict[str, Any]) -> pd.DataFrame:
    rows = [
        {
            "sweep": "s",
            "run": f"run-{index}",
            **analysis.settings(tree),
            "final_loss": 0.1 * index,
            "seconds_per_step": 1.0 + index,
            "seconds_total": 10.0,
        }
        for index, tree in enumerate(trees)
    ]
    return pd.DataFrame(rows)


def test_a_run_becomes_one_row_with_settings_spelled_like_overrides(tmp_path: Path) -> None:
    run = make_run(tmp_path / "sweep", "adamw-dim16-00000000", config())
    run.lora_dir.mkdir()
    run.lora_path(1).write_bytes(b"12")
    run.lora_path(None).write_bytes(b"12345")
    (run.lora_dir / "made-smaller.safetensors").write_bytes(b"1")
    (run.lora_dir / "another.safetensors").write_bytes(b"1")
    frames = analysis.load(tmp_path / "sweep")
    assert len(frames.runs) == 1
    row = frames.runs.iloc[0]
    assert (row["sweep"], row["run"], row["status"]) == ("sweep", run.name, "done")
    assert (row["optimizer"], row["optimizer.lr"], row["network.dim"]) == ("adamw", 1e-4, 16)
    assert row["optimizer.args.betas"] == "[0.9, 0.99]"
    assert row["lora_bytes"] == 5
    assert (row["num_epochs"], row["num_steps"]) == (2, 6)
    assert row["final_loss"] == pytest.approx(0.15)
    assert row["seconds_total"] == pytest.approx(15.0)
    assert "runs_dir" not in frames.runs
    assert not [name for name in frames.runs if name.startswith(("prompts.", "optimizer.note"))]


def test_an_unfinished_run_has_the_size_of_its_last_epoch(tmp_path: Path) -> None:
    run = make_run(tmp_path / "sweep", "a", config())
    run.lora_dir.mkdir()
    for epoch in (1, 2, 10):
        run.lora_path(epoch).write_bytes(b"1" * epoch)
    (run.lora_dir / "zzz.safetensors").write_bytes(b"123")
    assert analysis.load(tmp_path / "sweep").runs.iloc[0]["lora_bytes"] == 10


def test_the_first_steps_do_not_count_in_the_time_per_step(tmp_path: Path) -> None:
    make_run(tmp_path / "sweep", "a", config(), seconds=0.2)
    row = analysis.load(tmp_path / "sweep").runs.iloc[0]
    assert row["seconds_per_step"] == pytest.approx(0.2)
    assert row["seconds_forward"] == pytest.approx(0.15)


def test_a_run_of_two_steps_still_has_a_time_per_step(tmp_path: Path) -> None:
    make_run(tmp_path / "sweep", "a", config(), num_steps=2)
    row = analysis.load(tmp_path / "sweep").runs.iloc[0]
    assert row["seconds_per_step"] == pytest.approx(20.0)
    assert math.isnan(row["seconds_total"])


def test_the_home_folder_is_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    files = [str(tmp_path / "loras" / name) for name in ("a.safetensors", "b.safetensors")]
    make_run(tmp_path / "sweep", "a", {**config(), "source": files})
    (tmp_path / "sweep" / "a" / "epochs.jsonl").write_text("{}\nno json\n")
    failed = make_run(tmp_path / "sweep", "b", config())
    rundir.write_status(failed.path, "failed", f"no file {files[0]}")
    frames = analysis.load(tmp_path / "sweep")
    first, second = frames.runs.to_dict("records")
    assert first["base.path"] == "~/models/tiny"
    assert first["source"] == '["~/loras/a.safetensors", "~/loras/b.safetensors"]'
    assert second["reason"] == "no file ~/loras/a.safetensors"
    assert any("~/sweep/a/epochs.jsonl" in problem for problem in frames.problems)
    assert not any(str(tmp_path) in problem for problem in frames.problems)


def test_time_adds_up_over_epochs_of_each_run_apart(tmp_path: Path) -> None:
    make_square(tmp_path / "sweep")
    epochs = analysis.load(tmp_path / "sweep").epochs
    assert list(epochs["seconds_train_cumulative"]) == [7.5, 15.0] * 4


def test_one_run_a_sweep_and_a_folder_of_sweeps_can_be_read(tmp_path: Path) -> None:
    make_run(tmp_path / "one", "a", config())
    make_run(tmp_path / "two", "a", config("lion"))
    (tmp_path / "notes").mkdir()
    assert list(analysis.load(tmp_path).runs["sweep"]) == ["one", "two"]
    assert len(analysis.load(str(tmp_path / "one")).steps) == 6
    alone = analysis.load(tmp_path / "two" / "a").runs.iloc[0]
    assert (alone["sweep"], alone["run"]) == ("two", "a")


@pytest.mark.parametrize("folder", ["empty", "nowhere"])
def test_a_folder_without_runs_is_refused_with_its_name(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=folder):
        analysis.load(tmp_path / folder)


@pytest.mark.parametrize("text", ["{", "- 1\n- 2", "\xff"])
def test_a_damaged_config_leaves_a_row_and_a_problem(tmp_path: Path, text: str) -> None:
    make_run(tmp_path / "sweep", "good", config())
    bad = make_run(tmp_path / "sweep", "worse", config())
    bad.config_path.write_bytes(text.encode("latin-1"))
    frames = analysis.load(tmp_path / "sweep")
    assert list(frames.runs["run"]) == ["good", "worse"]
    assert len(frames.problems) == 1
    assert str(bad.config_path) in frames.problems[0]
    assert analysis.differing(frames.runs) == []
    assert frames.pairs.empty


def test_a_config_is_read_and_never_executed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "sweep", "a", config())
    made = tmp_path / "made"
    run.config_path.write_text(f"seed: !!python/object/apply:os.mkdir ['{made}']\n")
    assert len(analysis.load(tmp_path / "sweep").problems) == 1
    assert not made.exists()


def test_damaged_records_and_status_do_not_stop_the_others(tmp_path: Path) -> None:
    make_run(tmp_path / "sweep", "good", config())
    bad = make_run(tmp_path / "sweep", "bad", config("lion"))
    bad.status_path.write_text("{")
    bad.steps_path.write_text('nonsense\n{"step": 2}\n')
    frames = analysis.load(tmp_path / "sweep")
    status = dict(zip(frames.runs["run"], frames.runs["status"], strict=True))
    assert status == {"good": "done", "bad": "interrupted"}
    assert set(frames.steps["run"]) == {"good"}
    assert len(frames.problems) == 1


def test_a_run_killed_in_the_middle_of_a_line_keeps_the_lines_before(tmp_path: Path) -> None:
    run = make_run(tmp_path / "sweep", "a", config())
    with run.steps_path.open("a") as file:
        file.write('{"step": 7, "lo')
    frames = analysis.load(tmp_path / "sweep")
    assert len(frames.steps) == 6
    assert frames.problems == ()


def test_a_loss_that_was_not_finite_is_missing_and_not_text(tmp_path: Path) -> None:
    run = make_run(tmp_path / "sweep", "a", config(), num_steps=0)
    files.append_rows(run.steps_path, [{"step": 1, "epoch": 1, "loss": math.nan}])
    losses = analysis.load(tmp_path / "sweep").steps["loss"]
    assert losses.dtype == float
    assert math.isnan(losses[0])


def test_images_are_found_with_their_cells(tmp_path: Path) -> None:
    run = make_run(tmp_path / "sweep", "a", config())
    names = {
        0: "a-512x768-s112233.png",
        3: "my-prompt-2x1-768x512-s101011111212.png",
    }
    for epoch, name in names.items():
        run.images_dir(epoch).mkdir(parents=True)
        (run.images_dir(epoch) / name).touch()
    (run.images_dir(3) / "thumbs.png").touch()
    images = analysis.load(tmp_path / "sweep").images
    assert images.drop(columns=["sweep", "run"]).to_dict("records") == [
        {
            "epoch": 0,
            "prompt": "a",
            "width": 512,
            "height": 768,
            "seed": 112233,
            "path": "a/images/epoch-0000/a-512x768-s112233.png",
        },
        {
            "epoch": 3,
            "prompt": "my-prompt-2x1",
            "width": 768,
            "height": 512,
            "seed": 101011111212,
            "path": "a/images/epoch-0003/my-prompt-2x1-768x512-s101011111212.png",
        },
    ]


def test_validation_is_empty_without_records_and_read_with_them(tmp_path: Path) -> None:
    run = make_run(tmp_path / "sweep", "a", config())
    assert analysis.load(tmp_path / "sweep").validation.empty
    files.append_rows(run.validation_path, [{"epoch": 1, "loss": 0.5}])
    assert list(analysis.load(tmp_path / "sweep").validation["loss"]) == [0.5]


def test_what_a_recipe_or_a_dim_brings_along_is_no_difference_of_its_own() -> None:
    runs = frame_of(config("adamw", 16), config("lion", 16), config("adamw", 32))
    assert analysis.differing(runs) == ["optimizer", "network.dim"]
    assert analysis.followers(runs) == {
        "network.alpha": "network.dim",
        "optimizer.lr": "optimizer",
        "optimizer.text_encoder_lr": "optimizer.lr",
    }


def test_an_alpha_that_was_varied_on_its_own_is_a_difference() -> None:
    runs = frame_of(config(), config(dim=32), config(network__alpha=1.0))
    assert analysis.differing(runs) == ["network.dim", "network.alpha"]


def test_a_rate_that_was_varied_within_a_recipe_is_a_difference() -> None:
    runs = frame_of(config(), config(optimizer__lr=1e-3, optimizer__text_encoder_lr=5e-4))
    assert analysis.differing(runs) == ["optimizer.lr"]


def test_whole_and_broken_numbers_are_equal_where_their_values_are() -> None:
    runs = frame_of(
        config(network__alpha=8), config(network__alpha=8.0), config(network__alpha="auto")
    )
    pairs = analysis.find_pairs(runs)
    assert list(pairs["from_run"] + pairs["to_run"]) == ["run-0run-2", "run-1run-2"]


def test_labels_say_the_recipe_and_what_else_differs_and_are_unique() -> None:
    runs = frame_of(config("adamw", 16), config("lion", 32), config("lion", 32))
    labels = list(analysis.labels(runs).values())
    assert labels == [
        "adamw network.dim=16",
        "lion network.dim=32 (run-1)",
        "lion network.dim=32 (run-2)",
    ]


def test_every_pair_with_one_difference_is_found_and_no_other(tmp_path: Path) -> None:
    make_square(tmp_path / "sweep")
    pairs = analysis.load(tmp_path / "sweep").pairs
    found = {
        (row.setting, row.from_run.partition("-0")[0], row.to_run.partition("-0")[0])
        for row in pairs.itertuples()
    }
    assert found == {
        ("optimizer", "adamw-dim16", "lion-dim16"),
        ("optimizer", "adamw-dim32", "lion-dim32"),
        ("network.dim", "adamw-dim16", "adamw-dim32"),
        ("network.dim", "lion-dim16", "lion-dim32"),
    }


def test_a_pair_is_second_minus_first_and_numbers_go_upwards() -> None:
    pairs = analysis.find_pairs(frame_of(config(dim=64), config(dim=16)))
    row = pairs.iloc[0]
    assert (row["from_value"], row["to_value"]) == ("16", "64")
    assert (row["from_run"], row["to_run"]) == ("run-1", "run-0")
    assert row["loss_difference"] == pytest.approx(-0.1)
    assert row["seconds_per_step_difference"] == pytest.approx(-1.0)


def test_runs_of_different_sweeps_are_no_pair(tmp_path: Path) -> None:
    make_run(tmp_path / "one", "a", config())
    make_run(tmp_path / "two", "b", config("lion"))
    assert analysis.load(tmp_path).pairs.empty


def test_the_public_door_reads_the_same(tmp_path: Path) -> None:
    import optbench

    make_run(tmp_path / "sweep", "a", config())
    assert len(optbench.load(str(tmp_path)).runs) == 1


def test_prompts_of_any_shape_do_not_reach_the_settings() -> None:
    tree = config()
    tree["prompts"]["prompts"] = [{"name": "a", "text": json.dumps("<b>")}]
    assert not [name for name in analysis.settings(tree) if "prompts." in name]


def test_a_copied_run_folder_counts_once_and_is_named(tmp_path: Path) -> None:
    sweep = tmp_path / "s"
    for name, fingerprint in (("adamw-11112222", "1111222233334444"), ("lion-5", "5" * 16)):
        run = make_run(sweep, name, config())
        files.write_json(run.provenance_path, {"weights_fingerprint": fingerprint})
    before = analysis.load(sweep)
    shutil.copytree(sweep / "adamw-11112222", sweep / "a-backup")
    shutil.copytree(sweep / "lion-5", sweep / "lion-5-copy")
    frames = analysis.load(sweep)
    assert list(frames.runs["run"]) == ["adamw-11112222", "lion-5"]
    assert len(frames.epochs) == len(before.epochs)
    assert [problem.partition(",")[0] for problem in frames.problems] == [
        "a-backup is a copy of adamw-11112222",
        "lion-5-copy is a copy of lion-5",
    ]

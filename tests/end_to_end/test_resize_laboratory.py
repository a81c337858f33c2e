"""A trained LoRA and its resized files, looked at on the embedded base, in one report."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

import optbench
from optbench.cli.resize.command import main
from optbench.report import build_report
from optbench.storage import files, rundir
from optbench.storage.resources import asset
from tests.builders.lora_files import write_lora
from tests.end_to_end.conftest import Command, one_run


@pytest.fixture
def trained(command: Command, tmp_path: Path) -> Path:
    """Return a finished run, validated, whose LoRA changes pictures."""
    extra = ["validate.every_n_epochs=1", "validate.timesteps=[200,700]"]
    extra += ["lr_mult=30", "sweep_name=both"]
    command.run(tmp_path / "runs", extra)
    return one_run(tmp_path / "runs")


def asked(command: Command, trained: Path, *more: str) -> list[str]:
    return [
        *command.without("train.", "network.").arguments,
        "render=few",
        "render.steps=2",
        "render.seeds=[7]",
        "validate.timesteps=[200,700]",
        f"source={trained}",
        f"runs_dir={trained.parents[1]}",
        "num_threads=1",
        *more,
    ]


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_run_and_what_is_made_of_it_stand_in_one_report(
    command: Command, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(trained)
    arguments = asked(command, trained, "sweep_name=both", "new_dim=4,1", "-m")
    assert main(arguments) == 0
    assert tree(trained) == before  # the source is only read
    assert capsys.readouterr().out.splitlines()[-1].endswith("both/report/index.html")
    sweep = trained.parent
    runs = {path.parent.name: path.parent for path in sweep.glob("*/status.json")}
    assert len(runs) == 4
    frames = optbench.load(sweep)
    places = {(row.kind, row.new_dim): runs[row.run] for row in frames.runs.itertuples()}
    assert {kind for kind, _ in places} == {"training", "resize", "original"}
    original = next(path for name, path in runs.items() if name.startswith("original-"))
    whole, small = places["resize", 4], places["resize", 1]
    for run in (original, whole, small):
        assert rundir.read_status(run).status == "done"
        assert {row["epoch"] for row in files.read_rows(run / "validation.jsonl")} == {1, 2}
        for epoch in (0, 1, 2):
            assert len(list((run / "images" / f"epoch-{epoch:04d}").glob("*.png"))) == 2
        assert len(list((run / "sheets").glob("*.png"))) == 2
    first, last = files.read_rows(whole / "epochs.jsonl"), files.read_rows(small / "epochs.jsonl")
    # At its own dim a LoRA is itself but for rounding to fp16; at dim 1 it is another.
    assert first[1]["picture_difference"] < 0.2 * last[1]["picture_difference"]
    assert first[1]["retained_energy"] == pytest.approx(1, abs=1e-6)
    # What the training measured of its own file, the original's run measures again.
    losses = frames.validation.groupby(["run", "epoch"])["loss"].mean()
    for epoch in (1, 2):
        assert losses[original.name, epoch] == pytest.approx(losses[trained.name, epoch], rel=1e-4)
    page = (sweep / "report" / "index.html").read_text()
    for said in (
        "Resized LoRAs",
        "new_dim=1 resized",
        "Retained energy of every layer",
        "Speed and cost",
    ):
        assert said in page
    pictures = {path: path.stat().st_mtime_ns for path in sweep.rglob("*.png")}
    assert main(arguments) == 0  # nothing is made twice
    assert {path: path.stat().st_mtime_ns for path in sweep.rglob("*.png")} == pictures
    for record in (original / "likeness.jsonl", small / "layers.jsonl"):
        whole_rows, content = files.read_rows(record), bytearray(record.read_bytes())
        content[len(content) // 2] ^= 1
        record.write_bytes(content)
        assert main(arguments) == 0  # what is corrupt is, the original's records too
        assert [row.keys() for row in files.read_rows(record)] == [row.keys() for row in whole_rows]
    capsys.readouterr()
    assert main([*arguments, "render.seeds=[7,8]"]) == 0  # more pictures, the same files
    assert len(list((small / "images" / "epoch-0002").glob("*.png"))) == 4
    assert build_report(sweep).is_file()


def test_a_lora_of_another_base_is_resized_without_pictures_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lora(Path("big.safetensors"))
    assert main(["source=big.safetensors", "new_dim=2"]) == 0
    said = capsys.readouterr().err
    assert "No images and no losses: " in said
    assert "base=sd15" in said
    (made,) = Path("runs").glob("*/*/lora/*.safetensors")
    assert not (made.parents[1] / "images").exists()
    # Of a base that was asked for, it is refused before anything is made.
    shutil.copytree(asset("tiny"), "mine")
    assert main(["source=big.safetensors", "new_dim=3", "base.path=mine"]) == 2
    assert "no place for" in capsys.readouterr().err


def test_validation_changes_no_weight(command: Command, finished: Path, tmp_path: Path) -> None:
    command.run(tmp_path / "new", ["render=off", "validate.every_n_epochs=1"])
    validated = one_run(tmp_path / "new")
    weights = [
        {path.name: path.read_bytes() for path in (run / "lora").iterdir()}
        for run in (validated, finished)
    ]
    assert weights[0] == weights[1]
    rows = files.read_rows(validated / "epochs.jsonl")
    assert all("validation_loss/training" in row for row in rows)
    # Asked for afterwards, a finished run is measured and not trained again.
    shutil.copytree(finished.parents[1], tmp_path / "finished")
    run = one_run(tmp_path / "finished")
    (run / "validation.jsonl").unlink()
    before = (run / "steps.jsonl").stat().st_mtime_ns
    command.run(tmp_path / "finished", ["render=off", "validate.every_n_epochs=1"])
    assert (run / "steps.jsonl").stat().st_mtime_ns == before
    losses = [files.read_rows(path / "validation.jsonl") for path in (run, validated)]
    assert losses[0] == losses[1]

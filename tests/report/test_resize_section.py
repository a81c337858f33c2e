"""The report of resized LoRAs, from folders alone: order, sizes, charts, and hostile contents."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from optbench import analysis
from optbench.analysis.evidence import read_sweep
from optbench.report import build_report
from optbench.report.charts.spectra import energy_map, spectrum_chart
from optbench.report.charts.styles import run_styles
from optbench.report.resize_section import ResizeSection, resize_section
from optbench.storage import files, rundir
from optbench.storage.rundir import RunDir

PROMPTS = {"prompts": {"a": {"text": "1girl", "negative": "", "width": 64, "height": 32}}}
SIZES = {"original": 5_000_000, "8": 900_000, "2": 300_000, "4": 600_000}


def write_run(sweep: Path, name: str, *, method: str, param: float | None, size: int) -> RunDir:
    run = RunDir(sweep / name)
    config = {
        "source": ["/data/big.safetensors"],
        "weights": None,
        "method": method,
        "param": param,
        "base": {"name": "tiny"},
        "prompts": {"name": "p", **PROMPTS},
        "render": {"enabled": True, "seeds": [7, 8]},
    }
    files.write_atomic(run.config_path, yaml.safe_dump(config))
    row: dict[str, Any] = {
        "epoch": 1,
        "lora_bytes": size,
        "source_bytes": SIZES["original"],
        "mean_dim": size / 1e5,
        "max_dim": 9,
        "retained_energy": size / SIZES["original"],
        "least_retained_energy": 0.1,
    }
    is_original = method == "original"
    row["base_picture_difference" if is_original else "picture_difference"] = 0.2 - size / 1e8
    files.append_rows(run.epochs_path, [row])
    for epoch in (0, 1):
        folder = run.images_dir(epoch)
        folder.mkdir(parents=True)
        for seed in (7, 8):
            Image.new("RGB", (64, 32), (seed * 9, 3, 3)).save(folder / f"a-64x32-s{seed}.png")
    losses = [
        {
            "epoch": 1,
            "image": image,
            "split": "training",
            "timestep": step,
            "loss": 0.1 + (0.01 if image == "x" else -0.02) * (not is_original),
            "base_loss": 0.3,
            **({} if is_original else {"original_loss": 0.1}),
        }
        for image in ("x", "y")
        for step in (100, 900)
    ]
    files.append_rows(run.validation_path, losses)
    if not is_original:
        files.append_rows(run.layers_path, list(layers(size / SIZES["original"])))
    rundir.write_status(run.path, "done")
    return run


def layers(kept: float) -> Any:
    for name in ("te_text_model_encoder_layers_0", "unet_down_blocks_0_x", "unet_mid_block_y"):
        yield {
            "epoch": 1,
            "layer": f"lora_{name}",
            "is_conv": name.endswith("y"),
            "old_dim": 9,
            "new_dim": 2,
            "retained_fro": kept**0.5,
            "singular_values": [2.0, 1.0, 0.5, 0.0],
        }


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "resize_ratio"
    for text, size in SIZES.items():
        if text == "original":
            write_run(folder, "original-big-1", method="original", param=None, size=size)
        else:
            write_run(folder, f"z{text}", method="sv_ratio", param=float(text), size=size)
    return folder


def section_of(folder: Path) -> ResizeSection | None:
    sweep = read_sweep(folder)
    return resize_section(sweep, run_styles(sweep), folder / "report")


def test_the_original_comes_first_and_then_the_files_by_size(sweep: Path) -> None:
    found = section_of(sweep)
    assert found is not None
    assert [row.run.label for row in found.table.rows] == [
        "original",
        "param=8",
        "param=4",
        "param=2",
    ]
    (shown,) = found.sheets
    ((epoch, (sheet,)),) = shown.epochs
    assert epoch == 1
    titles = [spot.title for spot in sheet.spots]
    assert len(titles) == 10  # original, three files and the base, two seeds
    assert titles[0] == "seed 7, original\n4.77 MiB: full size"
    assert titles[4].startswith("seed 7, base, no LoRA")
    assert found.base_distance == pytest.approx(0.15)


def test_losses_are_compared_draw_by_draw(sweep: Path) -> None:
    found = section_of(sweep)
    assert found is not None
    texts = dict(zip(found.table.titles, found.table.rows[1].entries, strict=True))
    assert texts["loss"].sort == pytest.approx(0.095)
    assert texts["loss - base"].sort == pytest.approx(-0.205)
    assert texts["loss - original"].sort == pytest.approx(-0.005)
    assert texts["loss - original"].text == "-0.005 (1 of 2)"
    assert "held-out loss" not in texts


def test_many_files_make_several_sheets_each_with_the_original(sweep: Path) -> None:
    for number in range(9, 17):
        write_run(sweep, f"z{number}", method="sv_ratio", param=float(number), size=number * 10**5)
    found = section_of(sweep)
    assert found is not None
    ((_, sheets),) = found.sheets[0].epochs
    assert len(sheets) == 3
    assert all("original" in sheet.spots[0].title for sheet in sheets)
    shown = {re.sub(r"\n.*", "", one.title) for sheet in sheets for one in sheet.spots}
    assert len({title for title in shown if "seed 7" in title}) == 13


def test_a_page_of_files_alone_has_no_ranking_of_steps(sweep: Path) -> None:
    page = build_report(sweep).read_text()
    assert "Resized LoRAs: which param?" in page
    for said in ("Retained energy of every layer", "Spectrum of the original", "base, no LoRA"):
        assert said in page
    for unsaid in ('id="ranking"', 'id="pairs"', "Rates are the recipes"):
        assert unsaid not in page
    assert analysis.load(sweep).layers["retained_fro"].notna().all()


def test_the_report_of_a_half_finished_sweep_without_an_original(sweep: Path) -> None:
    for path in (sweep / "original-big-1").rglob("*"):
        if path.is_file():
            path.unlink()
    (sweep / "z2" / "epochs.jsonl").unlink()
    (sweep / "z4" / "layers.jsonl").write_text(
        '{"epoch": 1, "layer": "<b>", "retained_fro": "x"}\n'
    )
    page = build_report(sweep).read_text()
    assert "param=2" in page
    assert "param=4" in page


def test_an_original_that_was_trained_here_has_the_name_of_its_training(tmp_path: Path) -> None:
    sweep = tmp_path / "both"
    for dim in (32, 128):
        run = RunDir(sweep / f"t{dim}")
        config = {"network": {"name": "lora", "dim": dim}, "optimizer": {"name": "adamw"}}
        files.write_atomic(run.config_path, yaml.safe_dump(config))
        files.append_rows(run.epochs_path, [{"epoch": 1, "mean_loss": 0.1}])
        rundir.write_status(run.path, "done")
    for name, method in (("original-t128", "original"), ("t128-dim32", "none")):
        run = write_run(sweep, name, method=method, param=None, size=100)
        config = {**yaml.safe_load(run.config_path.read_text()), "source": ["runs/both/t128"]}
        files.write_atomic(run.config_path, yaml.safe_dump({**config, "new_dim": 32}))
    evidence = read_sweep(sweep)
    assert {run.name: run.label for run in evidence.runs} == {
        "t32": "network.dim=32",
        "t128": "network.dim=128",
        "original-t128": "network.dim=128, original",
        "t128-dim32": "new_dim=32 resized",
    }
    assert dict(evidence.factors) == {"network.dim": ("32", "128")}
    found = section_of(sweep)
    assert found is not None
    names = [row.run.name for row in found.table.rows]
    assert names == ["original-t128", "t128-dim32", "t32"]  # t128 stands there as the original
    page = build_report(sweep).read_text()
    assert "Which network.dim?" in page
    assert 'id="ranking"' in page


def test_hostile_names_are_text(tmp_path: Path) -> None:
    run = write_run(tmp_path / "s", "a", method="sv_ratio", param=2.0, size=10)
    rows = [{**row, "layer": "<script>alert(1)</script>"} for row in layers(0.5)]
    run.layers_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = build_report(tmp_path / "s").read_text()
    assert "<script>alert" not in page
    written = (tmp_path / "s" / "report" / "charts" / "energy-1.js").read_text()
    assert "<" not in written
    assert "script>alert(1)" in written


def test_spectrum_and_map_leave_out_what_is_no_number() -> None:
    broken = [{"layer": "a", "singular_values": None}, {"layer": None, "retained_fro": None}]
    spectrum = spectrum_chart("s", "Spectrum", "", [*broken, *layers(0.5)])
    assert spectrum is not None
    assert "unet, convolutions (1 layer)" in [key.label for key in spectrum.keys]
    drawn = energy_map("e", "Energy", "", [("x", broken), ("y", list(layers(1.0)))])
    assert drawn is not None
    assert drawn.data["rows"] == ["a", "None"]
    assert energy_map("e", "Energy", "", []) is None

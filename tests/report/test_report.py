"""The report: one page from whatever a sweep's folder holds, offline, and nothing executed."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from io import BufferedReader
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
import yaml
from PIL import Image

from optbench.cli.report import main
from optbench.errors import DatasetError
from optbench.records import Cell
from optbench.report import build_report, sheets
from optbench.report.wording import bytes_text, seconds_text
from optbench.storage import files, images, rundir
from optbench.storage.rundir import RunDir
from tests.builders.fabricated_sweep import Shape, make_sweep

SOURCE = Path(__file__).resolve().parents[2] / "src"
HOSTILE = '<img src=x onerror="alert(1)">\'&<script>alert(2)</script>'
SEEDS = [112233, 101011111212]
VOID = {"meta", "img", "br", "input", "link", "hr"}


class Page(HTMLParser):
    """What a browser would make of the page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.folder = path.parent
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += data

    def addresses(self) -> list[str]:
        found = [attrs.get("href") or attrs.get("src") for _, attrs in self.tags]
        return [address for address in found if address and not address.startswith("#")]

    def missing_targets(self) -> list[str]:
        return [
            address
            for address in self.addresses()
            if urlsplit(address).scheme or not (self.folder / unquote(address)).is_file()
        ]


def make_run(sweep: Path, optimizer: str, dim: int, **changes: Any) -> RunDir:
    """Make a run of two epochs; `changes`: name, status, reason, text, num_epochs, ..."""
    run = RunDir(sweep / changes.get("name", f"{optimizer}-dim{dim}"))
    text, done = changes.get("text", "mirelle, 1girl"), changes.get("num_epochs", 2)
    prompt = {"text": text, "negative": text, "width": 64, "height": 96}
    config = {
        "base": {"name": "tiny", "path": "tiny"},
        "network": {"name": "lora", "dim": dim, "alpha": dim / 2},
        "optimizer": {"name": optimizer, "lr": 1e-4, "paper": text, "note": text},
        "train": {"epochs": 2, "batch_size": 1},
        "prompts": {"name": "mirelle", "prompts": {changes.get("prompt", "a"): prompt}},
        "render": {"seeds": SEEDS},
        "seed": 1234,
        **({"loss": changes["loss"]} if "loss" in changes else {}),
    }
    files.write_atomic(run.config_path, yaml.safe_dump(config))
    provenance = {"departures": [text], "optimizer": {"class": text}, "command": ["-m", text]}
    provenance |= {"num_cpus": 2}
    files.write_json(run.provenance_path, provenance)
    seconds = changes.get("seconds", 1.0)
    for epoch in range(done + 1):
        for seed in SEEDS:
            cell = Cell(prompt="a", width=64, height=96, seed=seed, epoch=epoch)
            path = run.image_path(cell)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 96), (40 * epoch, dim, 9)).save(path)
    for step in range(1, 4 * done + 1):
        rates = {"lr/unet": 1e-4, "effective_lr/unet": 1e-4 / step}
        row = {"step": step, "epoch": (step + 3) // 4, "loss": 1 / step, **rates}
        files.append_rows(run.steps_path, [{**row, "seconds_forward": seconds}])
    for epoch in range(1, done + 1):
        row = {"epoch": epoch, "step": 4 * epoch, "mean_loss": 0.5 / epoch}
        row |= {"seconds_train": 4 * seconds, "load_average": changes.get("load", 1.0)}
        files.append_rows(run.epochs_path, [row])
    rundir.write_status(run.path, changes.get("status", "done"), changes.get("reason", ""))
    return run


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sweep = tmp_path_factory.mktemp("runs") / "optimizer,network.dim"
    make_run(sweep, "adamw", 4, seconds=2.0)
    make_run(sweep, "lion", 4, seconds=1.0)
    make_run(sweep, "lion", 8, status="diverged", reason="loss is nan", num_epochs=1, seconds=3.0)
    build_report(sweep)
    return sweep


@pytest.fixture(scope="module")
def page(sweep: Path) -> Page:
    return Page(sweep / "report" / "index.html")


def test_the_page_says_what_was_compared_and_how_it_went(page: Page) -> None:
    for words in ("optimizer", "adamw, lion", "network.dim", "4, 8", "3 runs", "2 done"):
        assert words in page.text
    assert "loss is nan" in page.text
    assert "n = 1" in page.text
    assert "untuned: 1 rate" in page.text
    assert "not image quality" in page.text


def test_losses_that_are_counted_differently_are_not_to_be_compared(tmp_path: Path) -> None:
    make_run(tmp_path / "sweep", "adamw", 4, loss={"name": "default", "loss_type": "l2"})
    other = make_run(tmp_path / "sweep", "adamw", 8, loss={"name": "default", "loss_type": "l2"})
    assert "losses are not comparable here" not in Page(build_report(tmp_path / "sweep")).text
    config = yaml.safe_load(other.config_path.read_text(encoding="utf-8"))
    config["loss"]["loss_type"] = "huber"
    files.write_atomic(other.config_path, yaml.safe_dump(config))
    assert "losses are not comparable here" in Page(build_report(tmp_path / "sweep")).text


def test_runs_beside_other_work_are_not_to_be_ranked_by_time(page: Page, tmp_path: Path) -> None:
    assert "Timings are unreliable" not in page.text
    make_run(tmp_path / "sweep", "adamw", 4, load=1.9)
    make_run(tmp_path / "sweep", "lion", 4, load=7.25)
    text = Page(build_report(tmp_path / "sweep")).text
    assert "Timings are unreliable: 1 of 2 runs" in text
    assert "up to 7.25" in text


def test_runs_are_ranked_by_seconds_per_step(page: Page) -> None:
    rows = [attrs["data-run"] for tag, attrs in page.tags if tag == "tr" and "data-run" in attrs]
    swept = {"run-1": "adamw-dim4", "run-2": "lion-dim4", "run-3": "lion-dim8"}
    assert [swept[str(anchor)] for anchor in rows[:3]] == ["lion-dim4", "adamw-dim4", "lion-dim8"]


def test_what_a_shorter_run_reached_is_compared_with_nothing(page: Page) -> None:
    assert "12.0 s *" in page.text
    dims = r"network.dim\s*4\s*8\s*training loss\s*-\s*0 of 0\s*-\s*not compared\s*1 pair\s*x 3.00"
    assert re.search(dims, page.text)


def test_every_link_is_relative_and_leads_somewhere(page: Page) -> None:
    assert page.missing_targets() == []
    assert len(page.addresses()) > 15


def test_the_page_needs_no_network_and_no_module(page: Page) -> None:
    text = (page.folder / "index.html").read_text(encoding="utf-8")
    scripts = [attrs for tag, attrs in page.tags if tag == "script"]
    assert [attrs for attrs in scripts if attrs] == [{"src": "./data.js"}]
    for word in ("fetch(", "@import", "<link", 'http-equiv="refresh'):
        assert word not in text
    assert not re.search(r"url\((?!#)", text)
    assert page.open == []


def test_sheets_and_curves_are_there(page: Page, sweep: Path) -> None:
    shown = [unquote(address) for address in page.addresses()]
    assert "./sheets/epoch-0001/a.png" in shown
    assert "./sheets/epoch-0002/a.png" in shown
    assert "../lion-dim8/sheets/a.png" in shown
    charts = [attrs["data-chart"] for _, attrs in page.tags if "data-chart" in attrs]
    assert "loss" in charts
    assert all((page.folder / "charts" / f"{name}.js").is_file() for name in charts)


def viewer_data(report: Path) -> dict[str, Any]:
    """Return what data.js assigns."""
    text = (report / "data.js").read_text(encoding="ascii")
    name, _, value = text.removesuffix(";\n").partition("=")
    assert name == "window.optbenchReport"
    data: dict[str, Any] = json.loads(value)
    return data


def test_the_viewers_runs_follow_the_settings_and_not_the_measured_times(page: Page) -> None:
    data = viewer_data(page.folder)
    assert data["schema"] == 2
    assert [run["label"] for run in data["runs"]] == [
        "adamw network.dim=4",
        "lion network.dim=4",
        "lion network.dim=8",
    ]


def test_the_viewer_knows_every_picture_and_where_one_is_missing(page: Page, sweep: Path) -> None:
    data = viewer_data(page.folder)
    assert data["epochs"] == [0, 1, 2]
    whole, broken_off = data["runs"][0], data["runs"][2]
    assert whole["pictures"] == {"0": "11", "1": "11", "2": "11"}
    assert broken_off["pictures"] == {"0": "11", "1": "11"}
    assert broken_off["status"] == "diverged"
    assert broken_off["reason"] == "loss is nan"
    assert whole["epochSteps"] == [[1, 4], [2, 8]]
    assert (sweep / "adamw-dim4" / "thumbs" / "epoch-0002" / "a-64x96-s112233.webp").is_file()


def test_a_run_that_renders_nothing_is_no_row_of_empty_cells(tmp_path: Path) -> None:
    with_images, without = make_sweep(tmp_path, Shape(num_optimizers=1))
    shutil.rmtree(without.path / "images")
    config = yaml.safe_load(without.config_path.read_text())
    config["render"]["enabled"] = False
    without.config_path.write_text(yaml.safe_dump(config))
    report = build_report(tmp_path).parent
    labels = [run["label"] for run in viewer_data(report)["runs"]]
    assert labels == ["network.dim=4"]
    assert len(pd.read_csv(report / "runs.csv")) == 2
    shutil.rmtree(with_images.path / "images")
    build_report(tmp_path)
    assert len(viewer_data(report)["runs"]) == 1  # its images may come


def test_a_report_reads_no_picture_twice(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_report(sweep)
    opened: list[Path] = []
    really_open = images.open_regular

    def remember(path: Path, **how: bool) -> BufferedReader:
        opened.append(path)
        return really_open(path, **how)

    monkeypatch.setattr(images, "open_regular", remember)
    build_report(sweep)
    # Of a sheet only what it was drawn from is read, which stands at its beginning.
    assert {path.parts[-3] for path in opened} & {"images", "thumbs"} == set()
    assert opened


def test_tables_lie_beside_the_page(sweep: Path) -> None:
    report = sweep / "report"
    runs = pd.read_csv(report / "runs.csv")
    assert sorted(runs["network.dim"]) == [4, 4, 8]
    for name in ("runs", "epochs", "steps", "pairs", "images"):
        assert len(pd.read_parquet(report / f"{name}.parquet")) == len(
            pd.read_csv(report / f"{name}.csv")
        )


def test_sheets_and_charts_that_an_earlier_report_had_go(tmp_path: Path) -> None:
    make_run(tmp_path, "adamw", 8)
    report = build_report(tmp_path).parent
    before = set(report.rglob("*"))
    (report / "sheets" / "epoch-0009" / "part-2").mkdir(parents=True)
    gone = ("epoch-0009/a.png", "epoch-0009/part-2/a.png", "epoch-0001/gone.png")
    for name in (*(f"sheets/{name}" for name in gone), "charts/gone.js"):
        (report / name).write_bytes(b"")
    build_report(tmp_path)
    assert set(report.rglob("*")) == before
    assert (report / "sheets" / "epoch-0001" / "a.png") in before


def test_building_again_leaves_sheets_alone(sweep: Path) -> None:
    drawn = sorted(sweep.rglob("sheets/**/*.png"))
    for path in drawn:
        os.utime(path, ns=(7, 7))
    build_report(sweep)
    assert drawn
    assert {path.stat().st_mtime_ns for path in drawn} == {7}


@pytest.mark.parametrize(
    ("name", "limit", "epochs", "said"),
    [
        ("_MAX_IMAGES", 100, {"epoch-0001", "epoch-0002"}, ""),
        ("_MAX_IMAGES", 11, {"epoch-0002"}, "Sheets are drawn of epoch 2 only"),
        ("_MAX_IMAGES_OF_AN_EPOCH", 5, set(), "There are too many images for sheets"),
    ],
)
def test_of_a_large_sweep_fewer_sheets_are_drawn_and_that_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    limit: int,
    epochs: set[str],
    said: str,
) -> None:
    for dim in (4, 8, 16):
        make_run(tmp_path, "adamw", dim)
    monkeypatch.setattr(sheets, name, limit)

    page = Page(build_report(tmp_path))

    drawn = {path.parent.name for path in tmp_path.glob("report/sheets/*/a.png")}
    assert drawn == epochs
    assert said in page.text
    assert page.missing_targets() == []


def test_a_long_sheet_comes_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for dim in (4, 8, 16):
        make_run(tmp_path, "adamw", dim)
    monkeypatch.setattr(sheets, "_MAX_ROWS", 3)

    page = Page(build_report(tmp_path))

    parts = sorted(path.relative_to(tmp_path) for path in tmp_path.glob("report/sheets/**/*.png"))
    assert [path.as_posix() for path in parts[:2]] == [
        "report/sheets/epoch-0001/a.png",
        "report/sheets/epoch-0001/part-2/a.png",
    ]
    assert "epoch 1, part 2" in page.text
    assert page.missing_targets() == []


def test_hostile_words_are_shown_and_never_run(tmp_path: Path) -> None:
    sweep = tmp_path / HOSTILE.replace("/", "_")
    name = f"run #50%20? {HOSTILE.replace('/', '_')}"
    make_run(sweep, f"adamw{HOSTILE}", 4, text=HOSTILE, reason=HOSTILE, status="failed")
    make_run(sweep, f"lion{HOSTILE}", 4, text=HOSTILE, name=name)

    page = Page(build_report(sweep))

    scripts = [attrs for tag, attrs in page.tags if tag == "script"]
    assert [attrs for attrs in scripts if attrs] == [{"src": "./data.js"}]
    assert not [attrs for _, attrs in page.tags if any(key.startswith("on") for key in attrs)]
    assert all(
        str(attrs["src"]).endswith((".png", ".webp")) for tag, attrs in page.tags if tag == "img"
    )
    assert page.text.count(HOSTILE) >= 5
    assert page.missing_targets() == []


@pytest.mark.parametrize("name", ["../../out", "/out", "..", ""])
def test_a_prompts_name_cannot_lead_out_of_the_report(tmp_path: Path, name: str) -> None:
    sweep = tmp_path / "in" / "sweep"
    make_run(sweep, "adamw", 4, prompt=name)
    before = {path for path in tmp_path.rglob("*") if sweep not in path.parents}

    page = Page(build_report(sweep))

    assert {path for path in tmp_path.rglob("*") if sweep not in path.parents} == before
    assert "a prompt that cannot be shown" in page.text


@pytest.mark.parametrize("place", ["report", "report/tables", "{run}/thumbs", "{run}/sheets/deep"])
def test_nothing_is_written_through_a_link_that_came_with_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    made = make_run(tmp_path / "theirs", "adamw", 8)
    link = tmp_path / "theirs" / place.format(run=made.path.name)
    link.parent.mkdir(parents=True, exist_ok=True)
    mine = tmp_path / "mine"
    mine.mkdir()
    link.symlink_to(mine)
    code, text = call([tmp_path / "theirs"], capsys)
    assert code == 2
    assert all(word in text for word in ("symbolic link", str(mine), str(link), "rm ")), text
    assert not list(mine.iterdir())
    link.unlink()
    assert call([tmp_path / "theirs"], capsys)[0] == 0


def test_damaged_and_bare_runs_have_a_report_too(tmp_path: Path) -> None:
    broken = make_run(tmp_path, "adamw", 4)
    for path in (broken.config_path, broken.provenance_path, broken.steps_path):
        path.write_text("{ not: [closed\nat all\n", encoding="utf-8")
    broken.image_path(Cell(prompt="a", width=64, height=96, seed=SEEDS[0], epoch=1)).write_bytes(
        b"no picture"
    )
    make_run(tmp_path, "lion", 4)
    rundir.write_status(tmp_path / "bare", "skipped", "package foo is not installed")

    page = Page(build_report(tmp_path))

    assert "package foo is not installed" in page.text
    for name in ("config.yaml", "provenance.json", "steps.jsonl"):
        assert name in page.text
    assert page.missing_targets() == []


def test_an_empty_sweep_has_a_report_and_a_missing_one_an_error(tmp_path: Path) -> None:
    assert "no run" in Page(build_report(tmp_path)).text
    with pytest.raises(DatasetError, match="no such folder"):
        build_report(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()


def call(arguments: Sequence[str | Path], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.err if code else captured.out


def test_the_command_takes_sweeps_and_folders_of_sweeps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        make_run(tmp_path / name, "adamw", 4, num_epochs=0)

    code, printed = call([tmp_path], capsys)
    assert code == 0
    pages = [tmp_path / name / "report" / "index.html" for name in ("one", "two")]
    assert printed.split() == [str(path) for path in pages]
    assert call([tmp_path / "one"], capsys) == (0, f"{pages[0]}\n")


def test_a_wrong_path_is_answered_in_four_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed = call([tmp_path / "nowhere", tmp_path], capsys)
    assert code == 2
    for words in ("found no such folder", "expected", str(tmp_path / "nowhere"), "->", "2."):
        assert words in printed


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (float("nan"), "-"), (0.084, "84 ms"), (1.234, "1.23 s")]
)
def test_durations_are_said_as_people_say_them(seconds: float | None, text: str) -> None:
    assert seconds_text(seconds) == text


def test_longer_durations_and_sizes() -> None:
    assert seconds_text(200) == "3 min 20 s"
    assert seconds_text(7500) == "2 h 05 min"
    assert bytes_text(0) == "0 B"
    assert bytes_text(3 * 2**20) == "3 MiB"

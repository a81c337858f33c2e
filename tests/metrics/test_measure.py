"""Numbers of a run's folder: measured once, again where something changed, and never fatal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import optbench
from optbench.cli.metrics import main
from optbench.errors import ConfigError
from optbench.metrics import Meaning, Measured, Metric, Picture, Reference
from optbench.metrics.build import build_metrics, check_metric
from optbench.metrics.measure import Tally, measure_run
from optbench.metrics.pixels import FromBase, FromPrevious
from optbench.records import Cell
from optbench.schema import MetricOptions
from optbench.storage import files, rundir
from optbench.storage.rundir import RunDir
from tests.builders.image_runs import SEEDS, make_run, save, smooth

_PIXELS = "optbench.metrics.pixels"


class Counting:
    """The number of bytes of a picture and of those beside it, and how often it was asked."""

    def __init__(self, reference: Reference = "none", scale: float = 1, base: str = "") -> None:
        self.reference: Reference = reference
        self.meanings: Mapping[str, Meaning] = {
            "bytes": Meaning(unit="bytes", higher_is_better=None, meaning="size")
        }
        self.settings: Mapping[str, object] = {"scale": scale}
        self.bases: tuple[str, ...] = (base,) if base else ()
        self.scale = scale
        self.asked: list[tuple[str, list[str], str]] = []

    def measure(self, picture: Picture, others: Sequence[Picture]) -> Mapping[str, Measured]:
        self.asked.append((picture.path.name, [one.path.name for one in others], picture.text))
        return {"bytes": Measured(value=self.scale * picture.path.stat().st_size)}


def measured(run: RunDir, **metrics: Metric) -> tuple[list[files.Row], Tally]:
    tally = Tally()
    measure_run(run, metrics, tally)
    return files.read_rows(run.path / rundir.METRICS_NAME), tally


def cell(epoch: int, seed: int = SEEDS[0]) -> Cell:
    return Cell(prompt="a", width=64, height=96, seed=seed, epoch=epoch)


def test_every_picture_has_a_row_with_floor_and_ceiling(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    metric = Counting()
    rows, tally = measured(run, size=metric)
    assert tally.num_measured == len(rows) == 3 * len(SEEDS)
    for row in rows:
        path = run.image_path(cell(row["epoch"], row["seed"]))
        assert row["value"] == pytest.approx(path.stat().st_size, rel=1e-4)
        base = run.image_path(cell(0, row["seed"])).stat().st_size
        assert row["base_value"] == pytest.approx(base, rel=1e-4)
        sizes = [one.stat().st_size for one in (tmp_path / "data").rglob("*.png")]
        assert row["training_value"] == pytest.approx(sum(sizes) / len(sizes), rel=1e-4)
        assert (row["prompt"], row["width"], row["height"]) == ("a", 64, 96)


def test_nothing_is_measured_twice_and_only_what_changed_again(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    before, _ = measured(run, size=Counting())
    again = Counting()
    rows, tally = measured(run, size=again)
    assert rows == before
    assert again.asked == []
    assert (tally.num_measured, tally.num_kept) == (0, len(rows))
    save(run.image_path(cell(1)), smooth(5))
    changed = Counting()
    rows, tally = measured(run, size=changed)
    assert (tally.num_measured, tally.num_kept) == (1, len(before) - 1)
    assert [row for row in rows if row not in before][0]["epoch"] == 1
    _, tally = measured(run, size=Counting(scale=2))
    assert tally.num_kept == 0  # its settings are part of the key


def test_a_picture_beside_that_changed_counts_as_a_change(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    measured(run, base=FromBase())
    save(run.image_path(cell(0)), smooth(5))
    _, tally = measured(run, base=FromBase())
    assert tally.num_measured == 2  # two epochs of one seed


@pytest.mark.parametrize(
    ("reference", "at_0", "at_2"),
    [
        ("none", [], []),
        ("base", [], ["epoch-0000/a-64x96-s7.png"]),
        ("previous", [], ["epoch-0001/a-64x96-s7.png"]),
        ("seeds", ["epoch-0000/a-64x96-s8.png"], ["epoch-0002/a-64x96-s8.png"]),
        ("training", ["5_word/0.png", "5_word/1.png", "5_word/2.png"], None),
    ],
)
def test_the_right_pictures_come_beside(
    tmp_path: Path, reference: Reference, at_0: list[str], at_2: list[str] | None
) -> None:
    from optbench.metrics.run_pictures import find_pictures
    from optbench.storage.rundir import read_config

    run = make_run(tmp_path)
    pictures = find_pictures(run, read_config(run))
    for epoch, expected in ((0, at_0), (2, at_0 if at_2 is None else at_2)):
        found = pictures.beside(cell(epoch), reference)
        names = [f"{one.path.parent.name}/{one.path.name}" for one in found]
        assert names == expected
    assert pictures.cells[cell(1)].text == "word, 1girl, beach"
    assert pictures.training[0].text == "word, 1girl, red dress, forest"


def test_the_first_epoch_is_compared_with_the_base(tmp_path: Path) -> None:
    rows, _ = measured(make_run(tmp_path), previous=FromPrevious())
    assert sorted({row["epoch"] for row in rows}) == [1, 2]


def test_rows_of_metrics_that_are_not_asked_for_stay_and_those_of_deleted_pictures_go(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path)
    measured(run, size=Counting())
    run.image_path(cell(2)).unlink()
    rows, _ = measured(run, base=FromBase())
    names = [row["metric"] for row in rows]
    assert names.count("bytes") == 3 * len(SEEDS) - 1
    assert names.count("change_from_base") == 3


def test_a_metric_that_fails_is_a_notice_and_costs_the_others_nothing(tmp_path: Path) -> None:
    class Broken(Counting):
        def measure(self, picture: Picture, others: Sequence[Picture]) -> Mapping[str, Measured]:
            raise RuntimeError("no such layer\nand more")

    rows, tally = measured(make_run(tmp_path), broken=Broken(), base=FromBase())
    assert {row["metric"] for row in rows} == {"change_from_base", "ssim_with_base"}
    (notice,) = tally.notices
    assert "broken" in notice
    assert notice.endswith("RuntimeError: no such layer")


def test_a_metric_of_another_base_says_so_once(tmp_path: Path) -> None:
    run = make_run(tmp_path, base="sd15")
    rows, tally = measured(run, size=Counting(base="tiny"))
    assert rows == [] or not rows
    assert tally.notices == ["bytes: for base=tiny only, not for base=sd15"]


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    before, _ = measured(run, size=Counting())
    path = run.path / rundir.METRICS_NAME
    path.write_text("{not json}\n" + path.read_text())
    rows, tally = measured(run, size=Counting())
    assert rows == before
    assert "could not be read" in tally.notices[0]


def test_the_command_measures_a_sweep_and_load_gives_the_frame(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path)
    frames = optbench.load(tmp_path / "sweep")
    assert frames.metrics.empty
    assert {"run", "metric", "value", "base_value"} <= set(frames.metrics.columns)
    assert main([str(tmp_path / "sweep"), "metric.metrics.embedded=null"]) == 0
    assert "1 run: 26 images measured, 0 reused" in capsys.readouterr().out
    frame = optbench.load(tmp_path / "sweep").metrics
    assert set(frame["metric"]) >= {"flat", "clipped", "diversity", "copy_distance"}
    assert set(frame["run"]) == {"adamw-tiny"}
    assert frame["value"].notna().all()
    assert main([str(tmp_path / "sweep"), "metric.metrics.embedded=null"]) == 0
    assert "0 images measured, 26 reused" in capsys.readouterr().out


def test_a_run_that_has_no_config_yet_is_a_notice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rundir.write_status(tmp_path / "sweep" / "adamw-tiny", "failed", "no base model")
    assert main([str(tmp_path / "sweep")]) == 0
    notice = "adamw-tiny has no config.yaml: its images cannot be measured\n"
    assert capsys.readouterr().err.endswith(notice)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["optimizer=lion"], "settings of the metrics only"),
        (["metric=nonsense"], "metric"),
        (["metric=off"], "something to measure"),
        (["metric=clip"], "metric.metrics.clip.path: found no value"),
        (["+metric.metrics.x._target_=optbench.nowhere.X"], "optbench.nowhere"),
        ([f"+metric.metrics.x={{_target_: {_PIXELS}.Surface, a: 1}}"], "'a'"),
    ],
)
def test_impossible_metrics_are_refused_in_words(
    tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path)
    assert main([str(tmp_path / "sweep"), *arguments]) == 2
    text = capsys.readouterr().err
    assert said in text
    assert "->" in text
    assert not (tmp_path / "sweep" / "adamw-tiny" / rundir.METRICS_NAME).exists()


def test_a_folder_without_runs_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    assert "a folder without runs" in capsys.readouterr().err


def options(**metrics: object) -> MetricOptions:
    return MetricOptions(enabled=True, metrics=metrics)


def test_a_class_of_ones_own_is_built_and_what_is_no_metric_refused() -> None:
    built = build_metrics(options(a={"_target_": f"{_PIXELS}.Surface"}, b=None))
    assert list(built) == ["a"]
    for entry in ({"_target_": "pathlib.Path"}, {"path": "x"}, "text", {"_target_": "x"}):
        (problem,) = check_metric(options(a=entry))
        assert problem.where.startswith("metric.metrics.a")
    twice = {"_target_": f"{_PIXELS}.Surface"}
    with pytest.raises(ConfigError, match="a second flat"):
        build_metrics(options(a=twice, b=twice))


def test_rows_are_plain_json(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    measured(run, base=FromBase())
    for line in (run.path / rundir.METRICS_NAME).read_text().splitlines():
        assert json.loads(line)["key"]

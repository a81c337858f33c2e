"""Draw a table of a sweep's images as one PNG, with the axes of the page's viewer.

    rows=run,columns=shot            every run by every prompt and image seed, after the last epoch
    rows=epoch,columns=seed,prompt=a,run=NAME
    rows=optimizer,columns=network.dim,seed=1

`run`, `setting` (the runs of all seeds), `epoch`, `prompt`, `seed` (of the images), `shot` (prompt
and seed), `size`, and every setting that was varied, as `NAME` or `set.NAME`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optbench import analysis
from optbench.analysis.evidence import RunEvidence, SweepEvidence, read_sweep
from optbench.analysis.standings import rank_settings
from optbench.errors import ConfigError, Problem, did_you_mean, near_names
from optbench.render.sheet import Row, SheetPlan, Tile, write_sheet
from optbench.report.links import refuse_links
from optbench.report.sheets import by_settings
from optbench.report.summary import read_summary

_CELL_PX = 256
_BASE = "base, no LoRA"
_FLAG = "--sheet"
_SHOT_AXES = ("shot", "prompt", "seed", "size")


@dataclass(frozen=True, slots=True)
class _Image:
    run: RunEvidence
    epoch: int
    prompt: str
    width: int
    height: int
    seed: int
    path: Path

    @property
    def size(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def shot(self) -> str:
        return f"{self.prompt}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class _Axis:
    """One thing that rows or columns can be."""

    name: str
    values: tuple[str, ...]
    of: Callable[[_Image], str]
    prefix: str = ""


def draw_grid(sweep_dir: Path, view: str) -> Path:
    """Return the path of a PNG in the sweep's report that shows a view, as `grid_plan` has it.

    Raises:
        ConfigError: If the view names an axis or a value that is not there.
        DatasetError: If the sweep's folder cannot be used.
    """
    name = re.sub(r"[^\w.=-]+", "_", view)[:100]
    return write_grid(sweep_dir, view, sweep_dir / "report" / "grids" / f"{name}.png")


def write_grid(sweep_dir: Path, view: str, target: Path) -> Path:
    """Return `target`, a PNG that shows a view.

    Raises:
        ConfigError: If the view names an axis or a value that is not there.
        DatasetError: If the sweep's folder cannot be used.
    """
    report_dir = sweep_dir / "report"
    refuse_links([report_dir, target.parent])
    return write_sheet(target, grid_plan(read_sweep(sweep_dir), view, report_dir=report_dir)).path


def grid_plan(sweep: SweepEvidence, view: str, *, report_dir: Path) -> SheetPlan:
    """Return the sheet of a view.

    Args:
        sweep: The sweep.
        view: What is rows and columns, and one value for other axes: `rows=run,columns=seed`.
        report_dir: The report, whose headline the sheet carries.

    Raises:
        ConfigError: If the view names an axis or a value that is not there.
    """
    images = _images(sweep)
    axes = _axes(sweep, images)
    choice = _read(view, axes)
    rows, columns = axes[choice.pop("rows")], axes[choice.pop("columns")]
    if "epoch" not in (rows.name, columns.name):
        choice.setdefault("epoch", axes["epoch"].values[-1])
    chosen = [
        image for image in images if all(axes[name].of(image) == v for name, v in choice.items())
    ]
    has_runs = rows.name in ("run", "setting")
    base = [image for image in images if image.epoch == 0] if has_runs else []
    # What a fixed epoch leaves out of the base is shown all the same, beside the runs.
    fixed = {name: value for name, value in choice.items() if name in _SHOT_AXES}
    base = [image for image in base if all(axes[n].of(image) == v for n, v in fixed.items())]
    tiles: dict[tuple[str, str], _Image] = {}
    for image in chosen:
        tiles.setdefault((rows.of(image), columns.of(image)), image)
    row_values = [value for value in rows.values if any(key[0] == value for key in tiles)]
    column_values = [value for value in columns.values if any(key[1] == value for key in tiles)]
    if not tiles:
        raise ConfigError(
            Problem(_FLAG, view, "a view with at least one image", "leave out a fixed value")
        )

    def tile(image: _Image | None) -> Tile:
        return Tile(path=None, note="no image") if image is None else Tile(path=image.path)

    lines = [
        Row(
            title=rows.prefix + row,
            tiles=tuple(tile(tiles.get((row, column))) for column in column_values),
        )
        for row in row_values
    ]
    if base:
        of_base = {columns.of(image): image for image in reversed(base)}
        if any(column in of_base for column in column_values):
            shown = tuple(tile(of_base.get(column)) for column in column_values)
            lines.insert(0, Row(title=_BASE, tiles=shown))
    summary = read_summary(report_dir)
    places = ", ".join(f"{axes[name].prefix or f'{name} '}{v}" for name, v in choice.items())
    some = next(iter(tiles.values()))
    return SheetPlan(
        title=", ".join(filter(None, [sweep.path.resolve().name, places])),
        text=summary.headline if summary else "",
        columns=tuple(columns.prefix + value for value in column_values),
        rows=tuple(lines),
        size_px=(some.width, some.height),
        cell_height_px=_CELL_PX,
    )


def _images(sweep: SweepEvidence) -> list[_Image]:
    runs = by_settings(sweep)
    order = {run.name: place for place, run in enumerate(runs)}
    images = [
        _Image(
            run=runs[order[str(row["run"])]],
            epoch=int(row["epoch"]),
            prompt=str(row["prompt"]),
            width=int(row["width"]),
            height=int(row["height"]),
            seed=int(row["seed"]),
            path=sweep.frames.root / str(row["path"]),
        )
        for row in sweep.frames.images.to_dict("records")
    ]
    if not images:
        raise ConfigError(
            Problem(str(sweep.path), "no images", "rendered images", "train with render=default")
        )
    return sorted(
        images,
        key=lambda image: (order[image.run.name], image.epoch, image.prompt, image.seed),
    )


def _axes(sweep: SweepEvidence, images: Sequence[_Image]) -> Mapping[str, _Axis]:
    def values(of: Callable[[_Image], str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(map(of, images)))

    epochs = tuple(map(str, sorted({image.epoch for image in images})))
    axes = {
        "run": _Axis("run", values(lambda i: i.run.label), lambda i: i.run.label),
        "epoch": _Axis("epoch", epochs, lambda i: str(i.epoch), "epoch "),
        "prompt": _Axis("prompt", values(lambda i: i.prompt), lambda i: i.prompt, "prompt "),
        "seed": _Axis("seed", values(lambda i: str(i.seed)), lambda i: str(i.seed), "seed "),
        "shot": _Axis("shot", values(lambda i: i.shot), lambda i: i.shot),
        "size": _Axis("size", values(lambda i: i.size), lambda i: i.size),
    }
    settings = {
        name: setting.label
        for setting in rank_settings(sweep.frames).settings
        for name in setting.runs
    }
    axes["setting"] = _Axis(
        "setting",
        values(lambda i: settings.get(i.run.name, i.run.label)),
        lambda i: settings.get(i.run.name, i.run.label),
    )
    for name, of_setting in sweep.factors.items():

        def of(image: _Image, name: str = name) -> str:
            return analysis.shown(image.run.row.get(name))

        axis = _Axis(name, tuple(of_setting), of, f"{name} ")
        axes.setdefault(name, axis)
        axes[f"set.{name}"] = axis
    return axes


def _read(view: str, axes: Mapping[str, _Axis]) -> dict[str, str]:
    """Return a view as `rows`, `columns` and the value of every other axis it names."""
    choice: dict[str, str] = {}
    problems: list[Problem] = []
    # A comma inside of a value is one that no `name=` follows.
    for part in re.split(r",(?=[\w.]+=)", view):
        name, _, value = part.strip().partition("=")
        name = {"cols": "columns"}.get(name, name)
        if name in ("rows", "columns"):
            if value not in axes:
                problems.append(_unknown(f"{_FLAG} {name}", value, list(axes)))
            choice[name] = value
        elif name not in axes:
            problems.append(_unknown(_FLAG, name, ["rows", "columns", *axes]))
        elif value not in axes[name].values:
            problems.append(_unknown(f"{_FLAG} {name}", value, axes[name].values))
        else:
            choice[name] = value
    for name, default in (("rows", "run"), ("columns", "shot")):
        choice.setdefault(name, default)
    if not problems and choice["rows"] == choice["columns"]:
        problems.append(
            Problem(_FLAG, view, "two axes that differ", f"choose of {', '.join(axes)}")
        )
    if problems:
        raise ConfigError(*problems)
    return choice


def _unknown(where: str, name: str, known: Sequence[str] | Any) -> Problem:
    fix = did_you_mean(near_names(name, known)) or "choose one of them"
    return Problem(where, repr(name), f"one of {', '.join(known)}", fix)

"""The page's section of resized LoRAs beside their original: table, sheets, losses by file size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optbench import analysis
from optbench.analysis.evidence import RunEvidence, SweepEvidence
from optbench.analysis.resized import resized_layers, resized_losses
from optbench.records import Cell
from optbench.render import sheet as render_sheet
from optbench.report.charts import spectra
from optbench.report.charts.chart import Axis, Chart, Level, Point, points
from optbench.report.charts.styles import Styles
from optbench.report.sheets import PromptSheets, shown_sheet
from optbench.report.tables import Entry, RunRow, Table
from optbench.report.wording import NONE, bytes_text, difference_text, number_text
from optbench.schema import Prompt

_MAX_COLUMNS = 6  # of one sheet, the original included
_CELL_PX = 420
_SPLITS = {
    "training": "training images",
    "held_out": "held-out images",
    "ood": "other outfits and places",
    "others": "other subjects",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeSection:
    """Everything the page says about resized LoRAs."""

    table: Table
    sheets: tuple[PromptSheets, ...]
    charts: tuple[Chart, ...]
    maps: tuple[Chart, ...]
    base_distance: float | None  # from the original to the base alone: nothing left


def resize_section(sweep: SweepEvidence, styles: Styles, report_dir: Path) -> ResizeSection | None:
    """Return what to show of a sweep's resized LoRAs, or None where it has none."""
    resized = [run for run in sweep.runs if run.kind == analysis.RESIZE]
    if not resized:
        return None
    columns = _in_order(sweep)
    last = [(run, _last_record(run)) for run in columns]
    layered = list(_spectra_and_maps(sweep, resized))
    return ResizeSection(
        table=_table(sweep, last),
        sheets=tuple(_sheets(columns, report_dir)),
        charts=(*_charts(sweep, styles, last), *(spectrum for spectrum, _ in layered)),
        maps=tuple(chart for _, maps in layered for chart in maps),
        base_distance=_base_distance(last),
    )


def _in_order(sweep: SweepEvidence) -> list[RunEvidence]:
    """Return originals, each before its resized files, large before small; then trainings."""
    originals = {_source(run): run for run in sweep.runs if run.kind == analysis.ORIGINAL}
    resized = [run for run in sweep.runs if run.kind == analysis.RESIZE]
    ordered: list[RunEvidence] = []
    for source in dict.fromkeys([*originals, *map(_source, resized)]):
        resized_files = [run for run in resized if _source(run) == source]
        ordered += [originals[source]] if source in originals else []
        ordered += sorted(resized_files, key=lambda run: (-(_size_of(run) or 0.0), run.name))
    trainings = [run for run in sweep.runs if run.kind == analysis.TRAINING]
    # A training that was resized stands there already: as the original.
    sources = {source for run in resized for source in _sources(run)}
    others = [run for run in trainings if not any(run.name in source for source in sources)]
    return ordered + sorted(others, key=lambda run: run.name)


def _sources(run: RunEvidence) -> list[str]:
    sources = run.config.get("source")
    return [str(path) for path in sources] if isinstance(sources, list) else [str(sources)]


def _source(run: RunEvidence) -> str:
    return repr((_sources(run), run.config.get("weights")))


# The table


def _table(sweep: SweepEvidence, last: Sequence[tuple[RunEvidence, Mapping[str, Any]]]) -> Table:
    largest = max((_size_of(run) or 0.0 for run, _ in last), default=0.0) or 1.0
    losses = resized_losses(sweep.frames)
    splits = [name for name in _SPLITS if any(name in by_split for by_split in losses.values())]
    rows = []
    for run, row in last:
        size = _size_of(run)
        share = 100 * (size or 0.0) / largest
        source = _number(row.get("source_bytes"))
        of_source = size / source if size and source else None
        entries = [
            Entry(text=bytes_text(size), sort=size, bar_percent=share),
            _entry(of_source, lambda value: f"{value:.1%}"),
            _entry(_number(row.get("mean_dim")), lambda value: f"{value:.3g}"),
            _entry(_number(row.get("max_dim")), lambda value: f"{value:.0f}"),
            _entry(_number(row.get("retained_energy")), lambda value: f"{value:.2%}"),
            _entry(_number(row.get("least_retained_energy")), lambda value: f"{value:.2%}"),
            _entry(_number(row.get("picture_difference")), number_text),
            _entry(_number(row.get("picture_ssim")), number_text),
        ]
        by_split = losses.get(run.name, {})
        for split in splits:
            loss = by_split.get(split)
            if loss is None:
                entries += [_entry(None, number_text)] * 3
                continue
            original = difference_text(loss.against_original)
            if loss.against_original is not None:
                original += f" ({loss.num_worse} of {loss.num_images})"
            entries += [
                _entry(loss.loss, number_text),
                Entry(text=difference_text(loss.against_base), sort=loss.against_base),
                Entry(text=original, sort=loss.against_original),
            ]
        rows.append(RunRow(run=run, entries=tuple(entries)))
    titles = [
        *("file", "of original", "mean dim", "max dim", "retained energy", "least layer"),
        *("distance", "SSIM"),
    ]
    for split in splits:
        name = "loss" if split == "training" else "held-out loss"
        titles += [name, f"{name} - base", f"{name} - original"]
    return Table(titles=tuple(titles), rows=tuple(rows))


def _entry(value: float | None, text: Any) -> Entry:
    return Entry(text=NONE if value is None else text(value), sort=value)


# Charts


def _charts(
    sweep: SweepEvidence, styles: Styles, last: Sequence[tuple[RunEvidence, Mapping[str, Any]]]
) -> Iterator[Chart]:
    def chart(
        name: str,
        title: str,
        note: str,
        y_title: str,
        value_of: Callable[[RunEvidence, Mapping[str, Any]], float | None],
        base: float | None = None,
    ) -> Iterator[Chart]:
        listed = [
            Point(
                label=run.label,
                colour=styles[run.name].colour,
                marker=styles[run.name].marker,
                x=size,
                y=value,
            )
            for run, row in last
            if (size := _size_of(run)) and (value := value_of(run, row)) is not None
        ]
        levels = [] if base is None else [Level(value=base, text="base, no LoRA")]
        drawn = points(
            name,
            title,
            note,
            x=Axis(title="file size, log scale", is_log=True, unit="bytes"),
            y=Axis(title=y_title),
            listed=listed,
            levels=levels,
        )
        if drawn is not None:
            yield drawn

    yield from chart(
        "resized-distance",
        "Image distance by file size",
        "Mean absolute difference of all pixels from the original's images of the same prompts "
        "and seeds, 0 to 1. The line is the base without any LoRA: nothing left.",
        "mean absolute difference, 0 to 1",
        lambda run, row: _number(row.get("picture_difference")),
        _base_distance(last),
    )
    losses = resized_losses(sweep.frames)
    for split, words in _SPLITS.items():
        base = next(
            (
                paired.loss - paired.against_base
                for by_split in losses.values()
                if (paired := by_split.get(split)) and paired.against_base is not None
            ),
            None,
        )

        def loss_of(run: RunEvidence, _: Mapping[str, Any], split: str = split) -> float | None:
            paired = losses.get(run.name, {}).get(split)
            return paired.loss if paired else None

        yield from chart(
            f"resized-{split.replace('_', '-')}",
            f"Validation loss by file size, {words}",
            "The same images, noise and timesteps for every file. Lower is nearer to these "
            "images, which is not the same as better images.",
            "validation loss",
            loss_of,
            base,
        )
    yield from chart(
        "resized-energy",
        "Retained energy by file size",
        "Share of the sum of all squared singular values of the weight changes that is still "
        "there. It is exact, and says nothing of whether the lost part was seen.",
        "share of the energy",
        lambda run, row: _number(row.get("retained_energy")),
    )


def _base_distance(last: Sequence[tuple[RunEvidence, Mapping[str, Any]]]) -> float | None:
    distances = (_number(row.get("base_picture_difference")) for _, row in last)
    return next((value for value in distances if value is not None), None)


def _short(run: RunEvidence) -> str:
    """Return a label without the names of settings: `param=8` is 8."""
    words = [word.rpartition("=")[2] for word in run.label.split()]
    return " ".join(words)[:24]


def _spectra_and_maps(
    sweep: SweepEvidence, resized: Sequence[RunEvidence]
) -> Iterator[tuple[Chart, list[Chart]]]:
    """Yield each source's spectrum, and what every layer kept in each of its files."""
    by_run = resized_layers(sweep.frames)
    by_source: dict[str, list[RunEvidence]] = {}
    for run in sorted(resized, key=lambda run: -(_size_of(run) or 0.0)):
        if by_run.get(run.name):
            by_source.setdefault(_source(run), []).append(run)
    for place, runs in enumerate(by_source.values(), start=1):
        name = "" if len(by_source) == 1 else f" of {Path(_sources(runs[0])[0]).name}"
        note = "The median over all layers of a kind, largest singular value = 1. A steep "
        note += "fall means that few directions do the work, and the rest can go."
        spectrum = spectra.spectrum_chart(
            f"spectrum-{place}",
            f"Spectrum of the original{name}",
            note,
            by_run[runs[0].name],
        )
        if spectrum is None:
            continue
        energy_map = spectra.energy_map(
            f"energy-{place}",
            f"Retained energy of every layer{name}",
            "Pale: all of its energy is retained; full colour: none. Point at a cell for numbers.",
            [(_short(run), by_run[run.name]) for run in runs],
        )
        yield spectrum, [] if energy_map is None else [energy_map]


def _last_record(run: RunEvidence) -> Mapping[str, Any]:
    """Return a run's record of its last epoch, empty where it has none."""
    return run.epochs[-1] if run.epochs else {}


def _size_of(run: RunEvidence) -> float | None:
    """Return how many bytes a run's file has, of an original those of its source."""
    size = _number(_last_record(run).get("lora_bytes"))
    return _number(run.row.get("lora_bytes")) if size is None else size


def _number(value: Any) -> float | None:
    """Return a value that is a number, None for anything else."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and value == value else None


def _sheets(columns: Sequence[RunEvidence], report_dir: Path) -> Iterator[PromptSheets]:
    """Yield every prompt's sheets; the runs are columns in this order, the original first."""
    prompts = {prompt.name: prompt for run in columns for prompt in run.prompts}
    rendered = [run for run in columns if run.prompts and (run.run.path / "images").is_dir()]
    resized = [run for run in rendered if run.kind == analysis.RESIZE]
    if not resized:
        return
    epochs = sorted({int(row["epoch"]) for run in resized for row in run.epochs})
    for number, (name, prompt) in enumerate(prompts.items(), start=1):
        by_epoch = []
        for epoch in epochs:
            plans = _plans(rendered, prompt, epoch=epoch, seeds=resized[0].seeds)
            folder = report_dir / "sheets" / f"epoch-{epoch:04d}"
            sheet_files = [
                render_sheet.write_sheet(folder / f"resized-{name}-{part}.png", plan)
                for part, plan in enumerate(plans, start=1)
            ]
            sheets = tuple(shown_sheet(sheet, prompt, report_dir) for sheet in sheet_files)
            by_epoch.append((epoch, sheets))
        yield PromptSheets(prompt=prompt, anchor=f"resized-{number}", epochs=tuple(by_epoch))


def _plans(
    runs: Sequence[RunEvidence],
    prompt: Prompt,
    *,
    epoch: int,
    seeds: Sequence[int],
) -> Iterator[render_sheet.SheetPlan]:
    """Yield sheets with columns that fit a page; the original is the first of every one."""
    titled = []
    for run in runs:
        row = next((row for row in run.epochs if row.get("epoch") == epoch), {})
        size = _number(row.get("lora_bytes")) or _size_of(run)
        titled.append((run, epoch, f"{run.label}\n{bytes_text(size)}"))
    first, *others = titled
    base = next((run for run in runs if run.run.images_dir(0).is_dir()), None)
    if base is not None:
        others.append((base, 0, "base, no LoRA\n0 B"))
    num_sheets = -(-len(others) // (_MAX_COLUMNS - 1)) or 1
    width = -(-len(others) // num_sheets)
    for start in range(0, max(1, len(others)), width or 1):
        columns = [first, *others[start : start + width]]
        rows = tuple(
            render_sheet.Row(
                title=f"seed {seed}",
                tiles=tuple(_tile(run, prompt, seed=seed, epoch=at) for run, at, _ in columns),
            )
            for seed in seeds
        )
        yield render_sheet.SheetPlan(
            title=f"prompt {prompt.name}: {first[2].partition(chr(10))[0]} and what was made of it",
            text=prompt.text,
            columns=tuple(title for _, _, title in columns),
            rows=rows,
            size_px=(prompt.width, prompt.height),
            cell_height_px=_CELL_PX,
        )


def _tile(run: RunEvidence, prompt: Prompt, *, seed: int, epoch: int) -> render_sheet.Tile:
    cell = Cell(
        prompt=prompt.name, width=prompt.width, height=prompt.height, seed=seed, epoch=epoch
    )
    path = run.run.image_path(cell)
    if path.is_file():
        return render_sheet.Tile(path=path)
    note = "not rendered" if run.row["status"] == "done" else f"{run.status}: {run.reason}"
    return render_sheet.Tile(path=None, note=note.partition("\n")[0])

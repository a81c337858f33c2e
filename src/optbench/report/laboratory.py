"""Resized LoRAs beside their original: one table, sheets, and what was lost for which size."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from optbench import results
from optbench.report import spectra
from optbench.report.charts import number_text
from optbench.report.evidence import RunEvidence, SweepEvidence
from optbench.report.resized_sheets import (
    PromptSheets,
    last_record,
    number_of,
    resized_sheets,
    size_of,
)
from optbench.report.scatter import Level, Point, size_chart
from optbench.report.tables import Entry, Line, Table
from optbench.report.wording import bytes_text, difference_text

NO_LEGEND = Markup("")
_NONE = "-"
_SPLITS = {"training": "training pictures", "held_out": "held-out pictures"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One chart with its heading and what to know before reading it."""

    title: str
    note: str
    svg: Markup
    legend: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class Laboratory:
    """Everything the page says about resized LoRAs."""

    table: Table
    sheets: tuple[PromptSheets, ...]
    charts: tuple[Chart, ...]
    maps: tuple[Chart, ...]
    base_distance: float | None  # from the original to the base alone: nothing left


def make_laboratory(sweep: SweepEvidence, report_dir: Path) -> Laboratory | None:
    """Return what to show of a sweep's resized LoRAs, or None where it has none."""
    resized = [run for run in sweep.runs if run.kind == results.RESIZE]
    if not resized:
        return None
    columns = _in_order(sweep)
    last = [(run, last_record(run)) for run in columns]
    layered = list(_spectra_and_maps(sweep, resized))
    return Laboratory(
        table=_table(sweep, last),
        sheets=tuple(resized_sheets(columns, report_dir)),
        charts=(*_charts(sweep, last), *(spectrum for spectrum, _ in layered)),
        maps=tuple(map_ for _, maps in layered for map_ in maps),
        base_distance=next(iter(_base_distances(last)), None),
    )


def _in_order(sweep: SweepEvidence) -> list[RunEvidence]:
    """Return originals, each before its resized files, large before small; then trainings."""
    originals = {_source(run): run for run in sweep.runs if run.kind == results.ORIGINAL}
    resized = [run for run in sweep.runs if run.kind == results.RESIZE]
    found: list[RunEvidence] = []
    for source in dict.fromkeys([*originals, *map(_source, resized)]):
        own = [run for run in resized if _source(run) == source]
        found += [originals[source]] if source in originals else []
        found += sorted(own, key=lambda run: (-(size_of(run) or 0.0), run.run.name))
    trained = [run for run in sweep.runs if run.kind == results.TRAINING]
    # A training that was resized stands there already: as the original.
    sources = {str(one) for run in resized for one in _sources(run)}
    others = [run for run in trained if not any(run.run.name in one for one in sources)]
    return found + sorted(others, key=lambda run: run.run.name)


def _sources(run: RunEvidence) -> list[str]:
    listed = run.config.get("source")
    return [str(one) for one in listed] if isinstance(listed, list) else [str(listed)]


def _source(run: RunEvidence) -> str:
    return repr((_sources(run), run.config.get("weights")))


# The table


def _table(sweep: SweepEvidence, last: Sequence[tuple[RunEvidence, Mapping[str, Any]]]) -> Table:
    largest = max((size_of(run) or 0.0 for run, _ in last), default=0.0) or 1.0
    losses = _paired(sweep)
    splits = [name for name in _SPLITS if any(name in found for found in losses.values())]
    lines = []
    for run, row in last:
        size = size_of(run)
        share = 100 * (size or 0.0) / largest
        source = number_of(row.get("source_bytes"))
        of_source = size / source if size and source else None
        entries = [
            Entry(text=bytes_text(size), sort=size, bar_percent=share),
            _entry(of_source, lambda value: f"{value:.1%}"),
            _entry(number_of(row.get("mean_dim")), lambda value: f"{value:.3g}"),
            _entry(number_of(row.get("max_dim")), lambda value: f"{value:.0f}"),
            _entry(number_of(row.get("retained_energy")), lambda value: f"{value:.2%}"),
            _entry(number_of(row.get("least_retained_energy")), lambda value: f"{value:.2%}"),
            _entry(number_of(row.get("picture_difference")), number_text),
            _entry(number_of(row.get("picture_ssim")), number_text),
        ]
        found = losses.get(run.run.name, {})
        for split in splits:
            entries += found[split].entries() if split in found else [_entry(None, number_text)] * 3
        lines.append(Line(run=run, entries=tuple(entries)))
    titles = [
        *("file", "of original", "mean dim", "max dim", "energy kept", "least layer"),
        *("distance", "SSIM"),
    ]
    for split in splits:
        name = "loss" if split == "training" else "held-out loss"
        titles += [name, f"{name} - base", f"{name} - original"]
    return Table(titles=tuple(titles), lines=tuple(lines))


def _entry(value: float | None, text: Any) -> Entry:
    return Entry(text=_NONE if value is None else text(value), sort=value)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Paired:
    """A run's validation loss on one kind of pictures, and differences at the same draws."""

    loss: float
    against_base: float | None
    against_original: float | None
    num_worse: int  # pictures on which it is worse than the original
    num_pictures: int

    def entries(self) -> list[Entry]:
        original = difference_text(self.against_original)
        if self.against_original is not None:
            original += f" ({self.num_worse} of {self.num_pictures})"
        return [
            _entry(self.loss, number_text),
            Entry(text=difference_text(self.against_base), sort=self.against_base),
            Entry(text=original, sort=self.against_original),
        ]


def _paired(sweep: SweepEvidence) -> dict[str, dict[str, _Paired]]:
    """Return every run's losses after its last measured epoch, by run and kind of pictures."""
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    frame = sweep.frames.validation
    if frame.empty or "loss" not in frame:
        return {}
    last = frame.groupby("run")["epoch"].transform("max")
    for record in frame[frame["epoch"] == last].to_dict("records"):
        row = {str(key): value for key, value in record.items()}
        if number_of(row.get("loss")) is not None:
            found.setdefault(row["run"], {}).setdefault(str(row.get("split")), []).append(row)
    return {
        run: {split: _paired_of(rows) for split, rows in by_split.items() if split in _SPLITS}
        for run, by_split in found.items()
    }


def _paired_of(rows: Sequence[Mapping[str, Any]]) -> _Paired:
    by_picture: dict[str, list[float]] = {}
    for row in rows:
        original = number_of(row.get("original_loss"))
        if original is not None:
            by_picture.setdefault(str(row.get("image")), []).append(row["loss"] - original)
    base = [row["loss"] - alone for row in rows if (alone := number_of(row.get("base_loss")))]
    differences = [value for values in by_picture.values() for value in values]
    return _Paired(
        loss=statistics.fmean(row["loss"] for row in rows),
        against_base=statistics.fmean(base) if base else None,
        against_original=statistics.fmean(differences) if differences else None,
        num_worse=sum(statistics.fmean(values) > 0 for values in by_picture.values()),
        num_pictures=len(by_picture),
    )


# Charts


def _charts(
    sweep: SweepEvidence, last: Sequence[tuple[RunEvidence, Mapping[str, Any]]]
) -> Iterator[Chart]:
    far = _base_distances(last)
    yield from _chart(
        "Picture distance by file size",
        "Mean absolute difference of all pixels from the original's pictures of the same prompts "
        "and seeds, 0 to 1. The line is the base without any LoRA: nothing left.",
        _points(last, lambda run, row: number_of(row.get("picture_difference"))),
        y_title="picture distance",
        levels=[Level(value=value, text="base, no LoRA") for value in far[:1]],
    )
    losses = _paired(sweep)
    for split, words in _SPLITS.items():
        points = _points(
            last,
            lambda run, row, split=split: (
                found.loss if (found := losses.get(run.run.name, {}).get(split)) else None
            ),
        )
        base = [
            one.loss - one.against_base
            for by_split in losses.values()
            if (one := by_split.get(split)) and one.against_base is not None
        ]
        yield from _chart(
            f"Validation loss by file size, {words}",
            "The same pictures, noise and timesteps for every file. Lower is nearer to these "
            "pictures, which is not the same as better pictures.",
            points,
            y_title="validation loss",
            levels=[Level(value=value, text="base, no LoRA") for value in base[:1]],
        )
    yield from _chart(
        "Energy kept by file size",
        "Share of the sum of all squared singular values of the weight changes that is still "
        "there. It is exact, and says nothing of whether the lost part was seen.",
        _points(last, lambda run, row: number_of(row.get("retained_energy"))),
        y_title="energy kept",
    )


def _base_distances(last: Sequence[tuple[RunEvidence, Mapping[str, Any]]]) -> list[float]:
    found = (number_of(row.get("base_picture_difference")) for _, row in last)
    return [value for value in found if value is not None]


def _chart(
    title: str, note: str, points: Sequence[Point], *, y_title: str, levels: Sequence[Level] = ()
) -> Iterator[Chart]:
    svg = size_chart(points, y_title=y_title, levels=levels) if len(points) > 1 else None
    if svg is not None:
        yield Chart(title=title, note=note, svg=svg, legend=NO_LEGEND)


def _points(last: Sequence[tuple[RunEvidence, Mapping[str, Any]]], value_of: Any) -> list[Point]:
    return [
        Point(
            size_bytes=size,
            value=value,
            text=_short(run),
            label=run.label,
            colour=run.colour,
        )
        for run, row in last
        if (size := size_of(run)) and (value := value_of(run, row)) is not None
    ]


def _short(run: RunEvidence) -> str:
    """Return a label without the names of settings: `param=8` is 8."""
    words = [word.rpartition("=")[2] for word in run.label.split()]
    return " ".join(words)[:24]


def _spectra_and_maps(
    sweep: SweepEvidence, resized: Sequence[RunEvidence]
) -> Iterator[tuple[Chart, list[Chart]]]:
    """Yield each source's spectrum, and what every layer kept in each of its files."""
    by_run = _layers(sweep)
    by_source: dict[str, list[RunEvidence]] = {}
    for run in sorted(resized, key=lambda run: -(size_of(run) or 0.0)):
        if by_run.get(run.run.name):
            by_source.setdefault(_source(run), []).append(run)
    for runs in by_source.values():
        svg, legend = spectra.spectrum_chart(by_run[runs[0].run.name])
        if svg is None:
            continue
        name = "" if len(by_source) == 1 else f" of {Path(_sources(runs[0])[0]).name}"
        note = "The median over all layers of a kind, largest singular value = 1. A steep "
        note += "fall means that few directions do the work, and the rest can go."
        spectrum = Chart(title=f"Spectrum of the original{name}", note=note, svg=svg, legend=legend)
        drawn = spectra.energy_map([(_short(run), by_run[run.run.name]) for run in runs])
        title = f"Energy kept by every layer{name}"
        note = "White: all of its energy kept; full colour: none. Point at a cell for numbers."
        maps = [] if drawn is None else [Chart(title=title, note=note, svg=drawn, legend=NO_LEGEND)]
        yield spectrum, maps


def _layers(sweep: SweepEvidence) -> dict[str, list[Mapping[str, Any]]]:
    """Return the records of every resized file's layers after its last epoch."""
    frame = sweep.frames.layers
    if frame.empty or "retained_fro" not in frame:
        return {}
    known = frame[frame["retained_fro"].notna()]
    last = known[known["epoch"] == known.groupby("run")["epoch"].transform("max")]
    found: dict[str, list[Mapping[str, Any]]] = {}
    for record in last.to_dict("records"):
        found.setdefault(str(record["run"]), []).append({str(k): v for k, v in record.items()})
    return found

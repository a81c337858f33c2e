"""Charts of settings: results with intervals beside costs, optimizer state, learning rates."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from optbench.analysis.curves import Points, number
from optbench.analysis.evidence import SweepEvidence
from optbench.analysis.standings import RATES, Setting, Standings, label_of
from optbench.report.charts.chart import Axis, Chart, Key, Level, Line, Row, curves, rows
from optbench.report.charts.styles import Styles, numbered_style
from optbench.report.wording import NONE, bytes_text, seconds_text

AXIS_TITLES: Mapping[str, str] = {
    "validation_objective": "held-out loss minus the base's, plus a quarter of the forgetting",
    "validation_held_out": "held-out loss minus the base model's",
    "validation_training": "validation loss minus the base model's",
    "final_loss": "training loss of the last epoch",
}
_UNLIKE = 1.01  # files' names and times differ by less, and nobody chooses by it


def legend_of(sweep: SweepEvidence, standings: Standings, styles: Styles) -> tuple[Key, ...]:
    """Return an entry for each trained setting, in the order of the runs' styles and labels."""
    keys = [_key(setting.label, setting.runs, styles) for setting in standings.settings]
    known = {run for key in keys for run in key.runs}
    keys += [_key(run.label, (run.name,), styles) for run in sweep.runs if run.name not in known]
    return tuple(keys)


def cost_charts(
    sweep: SweepEvidence, standings: Standings, styles: Styles, *, was_busy: bool
) -> Iterator[Chart]:
    """Yield results with their intervals and costs, and what optimizers keep in memory.

    Args:
        sweep: The trainings.
        standings: How the settings compare.
        styles: The runs', for the colours of settings.
        was_busy: Whether other work ran beside; training times are not shown then.
    """
    states = {
        setting.label: _median_of(sweep, setting, "optimizer_state_bytes")
        for setting in standings.finished
    }
    if standings.is_comparable:
        columns = {
            "seeds": [str(setting.num_seeds) for setting in standings.finished],
            "training time": [
                NONE if was_busy else seconds_text(setting.medians.get("seconds_total"))
                for setting in standings.finished
            ],
            "peak GPU memory": [
                bytes_text(setting.medians.get("peak_memory_bytes")) if setting.has_gpu else NONE
                for setting in standings.finished
            ],
            "optimizer state": [bytes_text(states[s.label]) for s in standings.finished],
            "LoRA file": [bytes_text(s.medians.get("lora_bytes")) for s in standings.finished],
        }
        told = {title: texts for title, texts in columns.items() if {*texts} != {NONE}}
        listed = [
            _row(setting, styles, tuple(texts[place] for texts in told.values()))
            for place, setting in enumerate(standings.finished)
        ]
        is_relative = standings.measure != "final_loss"
        chart = rows(
            "results",
            "Results with their intervals, and what they cost",
            "Lower is better. Bars: 95 % intervals of each setting alone, over seeds and images. "
            "Differences, as in the table, are known better: settings share seeds and images. "
            "A setting without a bar ran with one seed: its place may be luck.",
            axis=Axis(title=AXIS_TITLES[standings.measure]),
            listed=listed,
            columns=tuple(told),
            levels=[Level(value=0.0, text="the base model")] if is_relative else (),
        )
        if chart is not None:
            yield chart
    known = {label: size for label, size in states.items() if size}
    if len(known) > 1 and max(known.values()) > _UNLIKE * min(known.values()):
        chart = rows(
            "optimizer-state",
            "Memory that the optimizer needs",
            "The optimizer's state for all trained weights, in the precision it is kept in. It is "
            "counted, and the same on every machine.",
            axis=Axis(title="optimizer state", unit="bytes"),
            listed=[
                Row(
                    label=setting.label,
                    colour=styles[setting.runs[0]].colour,
                    marker=styles[setting.runs[0]].marker,
                    value=size,
                )
                for setting in standings.finished
                if (size := known.get(setting.label))
            ],
            is_bars=True,
        )
        if chart is not None:
            yield chart
    yield from _rate_charts(standings)


def _rate_charts(standings: Standings) -> Iterator[Chart]:
    """Yield quality over every rate that is varied, a line for each of the other settings."""
    for index, name in enumerate(standings.factors):
        if name not in RATES or not standings.is_comparable:
            continue
        others = standings.factors[:index] + standings.factors[index + 1 :]
        ladders: dict[tuple[str, ...], list[tuple[float, float]]] = {}
        for setting in standings.finished:
            rest = setting.values[:index] + setting.values[index + 1 :]
            try:
                rate = float(setting.values[index])
            except ValueError:
                continue
            if setting.interval is not None and rate > 0:
                ladders.setdefault(rest, []).append((rate, setting.interval.mean))
        lines, keys, lowest = [], [], []
        for number_, (rest, ladder) in enumerate(ladders.items()):
            points: Points = sorted(ladder)
            label = label_of(others, rest)
            style = numbered_style(number_, f"ladder-{number_}")
            lines.append(Line(name=label, points=points))
            keys.append(
                Key(label=label, colour=style.colour, dash=style.dash, marker=style.marker, runs=())
            )
            best = min(range(len(points)), key=lambda place: points[place][1])
            is_edge = len(points) > 1 and best in (0, len(points) - 1)
            lowest.append(f"{label} at {points[best][0]:g}{' (the edge)' if is_edge else ''}")
        chart = curves(
            f"sensitivity-{index + 1}",
            f"Sensitivity to {name}",
            "Means over seeds; lower is better. What is best at the first or the last rate tried "
            f"may be better beyond it, and is not tuned yet. Lowest: {'; '.join(lowest)}.",
            x="fixed",
            x_axis=Axis(title=f"{name}, log scale", is_log=True),
            y=Axis(title=AXIS_TITLES[standings.measure]),
            lines=lines,
            keys=keys,
        )
        if chart is not None:
            yield chart


def _key(label: str, runs: Sequence[str], styles: Styles) -> Key:
    style = styles[runs[0]]
    return Key(
        label=label, colour=style.colour, dash=style.dash, marker=style.marker, runs=tuple(runs)
    )


def _row(setting: Setting, styles: Styles, notes: tuple[str, ...]) -> Row:
    interval, style = setting.interval, styles[setting.runs[0]]
    return Row(
        label=setting.label,
        colour=style.colour,
        marker=style.marker,
        value=interval.mean if interval else setting.mean,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        notes=notes,
    )


def _median_of(sweep: SweepEvidence, setting: Setting, column: str) -> float | None:
    values = [number(run.row.get(column)) for run in sweep.runs if run.name in setting.runs]
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None

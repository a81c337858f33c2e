"""Validation loss over epochs, against the base at the same draws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from optbench.analysis.evidence import SweepEvidence
from optbench.report.charts.line import Axes, Line, line_chart
from optbench.report.charts.training import Chart

_SPLITS: Mapping[str, str] = {"training": "training pictures", "held_out": "held-out pictures"}


def validation_charts(sweep: SweepEvidence) -> Iterator[Chart]:
    """Yield a chart for each kind of pictures that any run was validated on."""
    for split, words in _SPLITS.items():
        lines = []
        for run in sweep.runs:
            points = [
                (float(row["epoch"]), loss - base)
                for row in run.epochs
                if isinstance(loss := row.get(f"validation_loss/{split}"), (int, float))
                and isinstance(base := row.get(f"validation_loss_base/{split}"), (int, float))
            ]
            if points:
                # Every run begins where the base is.
                points.insert(0, (0.0, 0.0))
            lines.append(
                Line(
                    label=run.label,
                    key=run.anchor,
                    colour=run.colour,
                    dash=run.dash,
                    x=[x for x, _ in points],
                    y=[y for _, y in points],
                )
            )
        svg = line_chart(lines, Axes(x_title="epoch", y_title="loss minus the base's"))
        if svg is not None:
            yield Chart(
                title=f"Validation loss against the base, {words}",
                note="Mean over the same pictures, noise and timesteps for every run and epoch, "
                "minus the base's own loss there. Below 0 is better than the base; on held-out "
                "pictures a rise after a fall is overfitting.",
                svg=svg,
            )
    yield from _overfitting(sweep)


def _overfitting(sweep: SweepEvidence) -> Iterator[Chart]:
    """Yield what training pictures gained beyond held-out ones, where both were measured."""
    lines = []
    for run in sweep.runs:
        points = []
        for row in run.epochs:
            gains = [
                base - loss
                for split in ("training", "held_out")
                if isinstance(loss := row.get(f"validation_loss/{split}"), (int, float))
                and isinstance(base := row.get(f"validation_loss_base/{split}"), (int, float))
            ]
            if len(gains) == 2:
                points.append((float(row["epoch"]), gains[0] - gains[1]))
        if points:
            points.insert(0, (0.0, 0.0))
        lines.append(
            Line(
                label=run.label,
                key=run.anchor,
                colour=run.colour,
                dash=run.dash,
                x=[x for x, _ in points],
                y=[y for _, y in points],
            )
        )
    svg = line_chart(lines, Axes(x_title="epoch", y_title="gain on training minus held-out"))
    if svg is not None:
        yield Chart(
            title="Overfitting",
            note="How much more the loss fell on pictures that are trained on than on others. What "
            "rises here is memory of these pictures, not of the character.",
            svg=svg,
        )

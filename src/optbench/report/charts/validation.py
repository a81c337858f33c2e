"""Draw the validation loss over epochs against the base model's at the same draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from optbench.analysis.evidence import SweepEvidence
from optbench.report.charts.line import Axes, Chart, Line, line_chart
from optbench.report.charts.styles import Styles

_SPLITS: Mapping[str, str] = {
    "training": "training images",
    "held_out": "held-out images",
    "ood": "other outfits and places",
    "others": "other subjects",
}


def validation_charts(sweep: SweepEvidence, styles: Styles) -> Iterator[Chart]:
    """Yield a chart for each kind of images that any run was validated on, and of overfitting."""

    def chart(
        title: str, note: str, y_title: str, value_of: Callable[[Mapping[str, Any]], float | None]
    ) -> Iterator[Chart]:
        lines = []
        for run in sweep.runs:
            points = [
                (float(row["epoch"]), value)
                for row in run.epochs
                if (value := value_of(row)) is not None
            ]
            if points:
                points.insert(0, (0.0, 0.0))  # every run begins where the base is
            x, y = [x for x, _ in points], [y for _, y in points]
            lines.append(Line(label=run.label, style=styles[run.name], x=x, y=y))
        svg = line_chart(lines, Axes(x_title="epoch", y_title=y_title))
        if svg is not None:
            yield Chart(title=title, note=note, svg=svg)

    for split, words in _SPLITS.items():
        yield from chart(
            f"Validation loss against the base, {words}",
            "Mean over the same images, noise and timesteps for every run and epoch, "
            "minus the base's own loss there. Below 0 is better than the base; on held-out "
            "images a rise after a fall is overfitting, on other subjects above 0 is forgetting.",
            "loss minus the base's",
            lambda row, split=split: _against_base(row, split),  # type: ignore[misc]
        )

    def overfitting(row: Mapping[str, Any]) -> float | None:
        training, held_out = _against_base(row, "training"), _against_base(row, "held_out")
        return None if training is None or held_out is None else held_out - training

    yield from chart(
        "Overfitting",
        "How much more the loss fell on images that are trained on than on others. What "
        "rises here is memory of these images, not of the character.",
        "gain on training minus held-out",
        overfitting,
    )


def _against_base(row: Mapping[str, Any], split: str) -> float | None:
    loss, base = row.get(f"validation_loss/{split}"), row.get(f"validation_loss_base/{split}")
    if not isinstance(loss, (int, float)) or not isinstance(base, (int, float)):
        return None
    return loss - base

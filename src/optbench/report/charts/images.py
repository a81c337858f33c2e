"""Curves of what is measured on images, against the base model and the training images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from optbench.analysis.curves import Points
from optbench.analysis.evidence import RunEvidence, SweepEvidence
from optbench.metrics import METRICS
from optbench.report.charts.chart import Axis, Chart, Key, Level
from optbench.report.charts.training import run_curves

_TITLES: Mapping[str, str] = {
    "resistance": "Obeys the prompt's outfit rather than a trained one",
    "outfit_leak": "Trained outfits where another was asked for",
    "resemblance": "Likeness to the training images",
    "clip_image": "Likeness to the training images (CLIP-I)",
    "dino_image": "Likeness to the training images (DINO)",
    "clip_text": "Image fits its prompt (CLIP-T)",
    "clipped": "Pixels burnt to black or white",
    "change_from_previous": "Change since the epoch before",
}
_Y_TITLES: Mapping[str, str] = {
    "resistance": "obedience minus leak, -1 to 1",
    "outfit_leak": "probability of a trained outfit",
    "clipped": "share of channel values",
    "change_from_previous": "mean absolute difference, 0 to 1",
}


def image_charts(
    sweep: SweepEvidence, table: pd.DataFrame, settings: Sequence[Key]
) -> Iterator[Chart]:
    """Yield a chart for each measure that says something over epochs.

    Args:
        sweep: The runs.
        table: Their `analysis.metric_table`.
        settings: The legend.
    """
    for metric, title in _TITLES.items():
        rows = table[table["metric"] == metric]
        by_run: dict[str, Points] = {
            str(run): [
                (float(epoch), float(value))
                for epoch, value in zip(part["epoch"], part["value"], strict=True)
            ]
            for run, part in rows.sort_values("epoch").groupby("run")
        }
        meaning = METRICS[metric]
        better = {True: " Higher is better.", False: " Lower is better.", None: ""}
        levels = []
        for column, text in (("base_value", "the base model"), ("training_value", "the goal")):
            values = rows[column].dropna()
            if len(values):
                levels.append(Level(value=float(values.mean()), text=text))

        def points(run: RunEvidence, by_run: Mapping[str, Points] = by_run) -> Points:
            return by_run.get(run.name, [])

        yield from run_curves(
            sweep,
            settings,
            f"image-{metric}",
            title,
            f"Mean over prompts and seeds: {meaning.meaning}.{better[meaning.higher_is_better]}",
            Axis(title=_Y_TITLES.get(metric, meaning.unit)),
            points,
            x="epoch",
            levels=levels,
        )

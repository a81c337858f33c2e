"""Colours, dash patterns and markers: colour is the optimizer, the same in every chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optbench.analysis import shown
from optbench.analysis.curves import colour_and_dash
from optbench.analysis.evidence import SweepEvidence

# Searched for the largest least distance: 13 in CIEDE2000 between any two, as seen with normal
# vision and with each kind of dichromacy (Machado et al. 2009), and 3:1 against white and against
# the dark page. tests/report/charts/test_styles.py measures that. The first differ most.
COLOURS = (
    "#3c48fc",
    "#b43054",
    "#909c0c",
    "#d86ca8",
    "#00a878",
    "#9084fc",
    "#904890",
    "#6c7800",
)
DASHES = ("", "7 3", "2 3", "10 3 2 3", "14 4", "4 2 1 2 1 2")
MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "star")


@dataclass(frozen=True, slots=True)
class Style:
    """How a run is drawn, and the anchor that joins it to its places on the page."""

    anchor: str  # run-1, run-2 ...: safe in HTML whatever the run is called
    colour: str
    dash: str

    @property
    def marker(self) -> str:
        """The shape of its points, one for each dash pattern."""
        return MARKERS[DASHES.index(self.dash)]


Styles = Mapping[str, Style]  # by the run's name


def numbered_style(number: int, anchor: str) -> Style:
    """Return the style of one of many lines: all colours first, then the next dash pattern."""
    return Style(
        anchor,
        COLOURS[number % len(COLOURS)],
        DASHES[number // len(COLOURS) % len(DASHES)],
    )


def run_styles(sweep: SweepEvidence) -> dict[str, Style]:
    """Return every run's style: colour for the optimizer, dashes for what else was varied.

    Where the optimizer was not varied, colour stands for the first setting that was. Seeds of a
    setting look alike. More than eight optimizers, or six other values, begin again from the first.
    """
    rows = {run.name: run.row for run in sorted(sweep.runs, key=lambda run: run.number)}
    anchors = {run.name: f"run-{run.number}" for run in sweep.runs}
    by_run = styles_of(rows, sweep.factors)
    return {name: Style(anchors[name], *by_run[name]) for name in rows}


def styles_of(
    rows: Mapping[str, Mapping[str, Any]], factors: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, str]]:
    """Return each run's colour and dash pattern.

    Args:
        rows: Each run's row of the runs frame, by name.
        factors: What was varied, and its values (`analysis.factors`).
    """
    by_colour, by_dash = colour_and_dash(list(factors))
    if by_colour is None:  # nothing was varied, or the seed alone
        return dict.fromkeys(rows, (COLOURS[0], DASHES[0]))
    colours = {value: place for place, value in enumerate(factors[by_colour])}
    of_runs = {name: shown(row.get(by_colour)) for name, row in rows.items()}
    rests = {name: tuple(shown(row.get(f)) for f in by_dash) for name, row in rows.items()}
    orders = [{value: place for place, value in enumerate(factors[name])} for name in by_dash]
    combinations = sorted(
        set(rests.values()),
        key=lambda rest: [order.get(v, 0) for order, v in zip(orders, rest, strict=True)],
    )
    styles = {}
    for name in rows:
        number = colours.get(of_runs[name], 0)
        alike = combinations
        if len(combinations) > len(DASHES):  # rates of each optimizer's own: count within it
            within = {rests[other] for other in rows if of_runs[other] == of_runs[name]}
            alike = [rest for rest in combinations if rest in within]
        dash = alike.index(rests[name]) + number // len(COLOURS)
        styles[name] = COLOURS[number % len(COLOURS)], DASHES[dash % len(DASHES)]
    return styles

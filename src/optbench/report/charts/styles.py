"""Colours and dash patterns that tell runs apart, on white and on black."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from optbench.analysis import shown
from optbench.analysis.evidence import SweepEvidence

# Told apart also with the common colour blindnesses (after Tol, Okabe-Ito).
COLOURS = (
    "#2f6fd6",
    "#d9541e",
    "#1e9e6a",
    "#b5489a",
    "#c28a00",
    "#2aa5c4",
    "#7a5cd0",
    "#8a8f2a",
    "#d6336c",
    "#6b7a8f",
    "#a0522d",
)
DASHES = ("", "7 3", "2 3", "10 3 2 3", "14 4", "4 2 1 2 1 2")


@dataclass(frozen=True, slots=True)
class Style:
    """How a line is drawn, and the anchor that joins it to its places on the page."""

    anchor: str  # run-1, run-2 ...: safe in HTML whatever the run is called
    colour: str
    dash: str


Styles = Mapping[str, Style]  # by the run's name


def numbered_style(number: int, anchor: str) -> Style:
    """Return the style of one of many lines: all colours first, then the next dash pattern."""
    return Style(
        anchor,
        COLOURS[number % len(COLOURS)],
        DASHES[number // len(COLOURS) % len(DASHES)],
    )


def run_styles(sweep: SweepEvidence) -> dict[str, Style]:
    """Return every run's style, all different as long as there are some.

    Where runs differ in two settings, the colour shows one of them and the dashes the other.
    """
    runs = sorted(sweep.runs, key=lambda run: run.number)
    if len(sweep.factors) == 2:
        factors = list(sweep.factors.items())
        by_colour, by_dash = factors
        if len(by_colour[1]) > len(COLOURS) or len(by_dash[1]) > len(DASHES):
            by_colour, by_dash = by_dash, by_colour
        if len(by_colour[1]) <= len(COLOURS) and len(by_dash[1]) <= len(DASHES):

            def place(value: str, values: tuple[str, ...]) -> int:
                return values.index(value) if value in values else 0

            return {
                run.name: Style(
                    f"run-{run.number}",
                    COLOURS[place(shown(run.row.get(by_colour[0])), by_colour[1])],
                    DASHES[place(shown(run.row.get(by_dash[0])), by_dash[1])],
                )
                for run in runs
            }
    return {run.name: numbered_style(run.number - 1, f"run-{run.number}") for run in runs}

"""How near races come to the best rates, how often they err, and what they spend: evidence.md.

python -m tests.statistics.simulate_races [REPEATS]
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from optbench.analysis.race import RaceDesign, rate_ladder
from tests.statistics.races import DESIGN, SHAPES, SIGMA, Judged, judge, race_of

# Phase 2 alone: every arm at one rate.
_ONE_RATE = dataclasses.replace(DESIGN, rates=(1.0,), most_widenings=0)
_DEMO = (0.0, 11.0, 13.0)


def repeat(
    gaps: Sequence[float], num: int, design: RaceDesign, seed: int = 1, **options: Any
) -> list[Judged]:
    """Return what so many races got right."""
    drawn = np.random.default_rng(seed)
    slack = float(options.pop("slack", 0.0))
    results = []
    for _ in range(num):
        race = race_of(gaps, drawn, design, **options)
        results.append(judge(race, race.run(), slack))
    return results


def percent(hits: Sequence[bool]) -> str:
    """Return a share as whole percents, or with a digit where it is small."""
    share = 100 * float(np.mean(hits))
    return f"{share:.0f}" if share >= 10 or share == 0 else f"{share:.1f}"


def tuning(num: int) -> None:
    """Print what rules of stopping cost, and how near they come to the best rate."""
    print("\ntuning: epochs, regret in sigma (median, 90 %, highest)")
    designs = {
        "9 rates, a third goes on (the default)": DESIGN,
        "... without ties": dataclasses.replace(DESIGN, tie=0.0),
        "... later rungs keep what is within 1 %": dataclasses.replace(DESIGN, near_later=0.01),
        "... within 5 %": dataclasses.replace(DESIGN, near_later=0.05),
        "... exact thirds": dataclasses.replace(DESIGN, near=0.0, near_later=0.0),
        "... keeping a half": dataclasses.replace(DESIGN, eta=2),
        "9 rates, whole runs": dataclasses.replace(DESIGN, rungs=(6,)),
        "5 rates": dataclasses.replace(DESIGN, rates=rate_ladder(0.2, 5, 5)),
        "3 rates: 0.44, 1, 2.25": dataclasses.replace(DESIGN, rates=rate_ladder(0.444, 2.25, 3)),
    }
    for name, design in designs.items():
        cells = []
        for shape in SHAPES:
            results = repeat([0.0, 30.0], num, design, shapes=[shape])
            regrets = np.concatenate([result.regrets for result in results]) / SIGMA
            epochs = np.mean([result.tuning_epochs for result in results])
            cells.append(
                f"{epochs:.1f}: {np.median(regrets):.1f}, {np.quantile(regrets, 0.9):.1f}, "
                f"{regrets.max():.0f}"
            )
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def wide(num: int) -> None:
    """Print what widening the bracket costs and helps."""
    print("\nbest rates up to a factor of 8 away, outside of the bracket: as above, widened %")
    for most in (0, 1, 2):
        design = dataclasses.replace(DESIGN, most_widenings=most)
        results = repeat([0.0, 30.0], num, design, spread=math.log(8))
        regrets = np.concatenate([result.regrets for result in results]) / SIGMA
        print(
            f"| {most} widenings | {np.mean([r.tuning_epochs for r in results]):.1f}: "
            f"{np.median(regrets):.1f}, {np.quantile(regrets, 0.9):.1f}, {regrets.max():.0f} | "
            f"{percent([r.is_widened for r in results])} |",
            flush=True,
        )


def whole(num: int) -> None:
    """Print how often whole races err, and what they spend."""
    print(
        "\nwhole races: tuning epochs (of 54 an arm), runs of phase 2 (of all six seeds), "
        "false worse %, unfair worse %, right single winner %, best lost %"
    )
    for name, gaps, options in (
        ("3: 0, 11, 13 sigma (the demo's)", _DEMO, {}),
        ("3: 0, 11, 13, by 24 images", _DEMO, {"num_images": 24}),
        ("3: 0, 11, 13, one run in ten diverges", _DEMO, {"failing": 0.1}),
        ("3: two within 1 sigma, one 20 behind", (0.0, 1.0, 20.0), {}),
        ("3 all equal", (0.0,) * 3, {"has_equal_curves": True}),
        ("12: 0, 8, then 10 to 50", (0.0, 8.0, *np.linspace(10, 50, 10)), {}),
    ):
        print(row(name, gaps, repeat(gaps, num, DESIGN, **options)), flush=True)


def confirming(num: int) -> None:
    """Print the same of phase 2 alone."""
    print("\nphase 2 alone, every arm at one rate, as above")
    for name, gaps in (
        ("12: leader 8 sigma ahead, the rest spread to 100", (0.0, *np.linspace(8, 100, 11))),
        ("12: three within 0.6 sigma, the rest 5 to 100", (0, 0.3, 0.6, *np.linspace(5, 100, 9))),
        ("12 all equal", (0.0,) * 12),
        ("3 all equal", (0.0,) * 3),
        ("2 all equal", (0.0,) * 2),
        ("3: 0, 11, 13", _DEMO),
        ("2: 0, 11", (0.0, 11.0)),
        (
            "35: five within 1 sigma, the rest to 100",
            (*np.linspace(0, 1, 5), *np.linspace(6, 100, 30)),
        ),
    ):
        results = repeat(gaps, num, _ONE_RATE, has_equal_curves=True)
        print(row(name, gaps, results), flush=True)


def row(name: str, gaps: Sequence[float], results: Sequence[Judged]) -> str:
    """Return a line of the table of whole races."""
    epochs = np.mean([result.tuning_epochs for result in results])
    runs = np.mean([result.confirming_runs for result in results])
    kinds = ("false_worse", "unfair_worse", "right_winner", "lost_best")
    cells = (percent([getattr(result, kind) for result in results]) for kind in kinds)
    return (
        f"| {name} | {epochs:.1f} | {runs:.1f} of {6 * len(gaps)} "
        f"({runs / (6 * len(gaps)) - 1:+.0%}) | {' | '.join(cells)} |"
    )


TABLES = {table.__name__: table for table in (tuning, wide, whole, confirming)}

if __name__ == "__main__":
    print(f"Repeats: {sys.argv[1] if len(sys.argv) > 1 else 400}")
    for name in sys.argv[2:] or TABLES:
        TABLES[name](int(sys.argv[1]) if len(sys.argv) > 1 else 400)

"""How often the report's conclusions are wrong, and what they can see: the table of evidence.md.

    python -m tests.statistics.simulate [REPEATS]

Every figure goes through `rank_outcomes`, whose standings the page puts into words.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

from optbench.analysis import Standings
from optbench.analysis.standings import Setting
from tests.statistics.sweeps import (
    SIGMA,
    Images,
    Sweep,
    covers,
    equal,
    false_claims,
    grid,
    repeats,
    wrong_effects,
)

SETTINGS = (3, 5, 12, 35)
SEEDS = (2, 3, 5, 8, 12)


def share(
    sweep: Sweep,
    num: int,
    holds: Callable[[Standings], bool],
    *,
    noise: str = "normal",
    images: Images | None = None,
) -> float:
    """Return in how many percent of the realizations something holds."""
    hits = sum(holds(s) for s in repeats(sweep, num, 1, noise=noise, images=images))
    return 100 * hits / num


def is_named(standings: Standings) -> bool:
    """Return whether the first setting is named as the single winner."""
    lead = standings.lead
    return standings.conclusion == "clear" and lead is not None and lead.runs[0] == "0-0"


def leader(num_settings: int, num_seeds: int, sigmas: float) -> Sweep:
    """Return a sweep in which the first setting leads all others."""
    _, settings = grid(num_settings)
    return equal(num_settings, num_seeds, means={settings[0]: -sigmas})


def ladder(num_seeds: int) -> Sweep:
    """Return two optimizers that are equal at their best rate; one breaks at the highest."""
    means = {("a", 0.3): 3.0, ("a", 1): 0.0, ("a", 3): 3.0}
    means |= {("b", 0.3): 3.0, ("b", 1): 0.0, ("b", 3): 300.0}
    noises = dict.fromkeys(means, 1.0) | {("b", 3): 30.0}
    factors = ("optimizer", "lr_mult")
    return Sweep(factors=factors, means=means, noises=noises, num_seeds=num_seeds)  # type: ignore[arg-type]


def collapse(num_seeds: int) -> Sweep:
    """Return the 3 x 4 grid, all equal, but that one optimizer collapses at dim 128."""
    gone = ("a", 128)
    return equal(12, num_seeds, means={gone: 300.0}, noises={gone: 30.0})


def is_equal_excluded(sweep: Sweep) -> Callable[[Standings], bool]:
    """Return whether a setting as good as the best is called worse, or its value is."""
    return lambda standings: bool(false_claims(sweep, standings))


def main(num: int) -> None:
    """Print the tables."""
    print(f"Repeats: {num} (35 settings: {num // 3}); percent\n")
    for noise in ("normal", "t3", "outliers", "unlike"):
        print(f"\nany false claim, all equal, {noise}: settings x seeds {SEEDS}")
        for num_settings in SETTINGS:
            cells = []
            for num_seeds in SEEDS:
                sweep = equal(num_settings, num_seeds)
                if noise == "unlike":
                    _, settings = grid(num_settings)
                    some = settings[: max(1, num_settings // 5)]
                    sweep = equal(num_settings, num_seeds, noises=dict.fromkeys(some, 4.0))
                counts = {"claims": 0, "covered": 0}
                times = num // 3 if num_settings == 35 else num
                kind = "normal" if noise == "unlike" else noise
                for standings in repeats(sweep, times, num_seeds, noise=kind):
                    counts["claims"] += bool(false_claims(sweep, standings))
                    counts["covered"] += covers(sweep, standings)
                cells.append(
                    f"{100 * counts['claims'] / times:.1f} ({100 * counts['covered'] / times:.1f})"
                )
            print(f"| {num_settings} | {' | '.join(cells)} |", flush=True)
    print("\nleader named, 12 settings: sigma 3, 4, 5, 8")
    for num_seeds in (2, 3, 5):
        for noise in ("normal", "t3"):
            cells = [
                f"{share(leader(12, num_seeds, d), num // 2, is_named, noise=noise):.0f}"
                for d in (3, 4, 5, 8)
            ]
            print(f"| {num_seeds} | {noise} | {' | '.join(cells)} |", flush=True)
    print(
        "\nseen at the smallest difference that the page says, a pair of the settings (80 wanted)"
    )
    for num_settings, num_seeds in ((3, 3), (12, 2), (12, 3), (12, 5), (35, 3)):
        print(f"| {num_settings} x {num_seeds} | {seen(num_settings, num_seeds, num // 4):.0f} |")
    print("\nequal called worse, (a) ladder with a broken rate (b) one optimizer collapses at 128")
    for make in (ladder, collapse):
        cells = [
            f"{share(make(n), num // 2, is_equal_excluded(make(n))):.1f}" for n in (2, 3, 5, 8)
        ]
        print(f"| {make.__name__} | {' | '.join(cells)} |", flush=True)
    print("\nimages as a sample: any false claim (all intervals hold), 8 and 24 images")
    for kinds in (
        Images(num=8, of_settings=2.1, of_rest=0.5),
        Images(num=24, of_settings=2.1, of_rest=0.5),
        Images(num=24, of_settings=5.6, of_rest=1.0),
        Images(num=8, of_settings=0.0, of_rest=1.0),
    ):
        for num_settings in (2, 3, 12):
            cells = []
            for num_seeds in (2, 3, 5, 8):
                sweep = equal(num_settings, num_seeds)
                results = list(repeats(sweep, num // 2, num_seeds, images=kinds))
                false = np.mean([bool(false_claims(sweep, s)) for s in results])
                held = np.mean([covers(sweep, s) for s in results])
                cells.append(f"{100 * false:.1f} ({100 * held:.1f})")
            row = f"{kinds.num} images, {kinds.of_settings} sigma, {num_settings} settings"
            print(f"| {row} | {' | '.join(cells)} |", flush=True)
    print("\nlooks at 2, 3 and 6 seeds, stopping at the first claim: any false claim")
    for num_settings in SETTINGS:
        print(f"| {num_settings} | {looks(num_settings, num // 4):.1f} |", flush=True)
    drawn = np.random.default_rng(5)
    sweep = equal(12, 3)
    wrong = np.mean([wrong_effects(sweep, sweep.draw(drawn).frames) for _ in range(num // 20)])
    print(f"\ntable of changes, 12 x 3, all equal: any 'lower' or 'higher' {100 * wrong:.1f}")


def seen(num_settings: int, num_seeds: int, num: int) -> float:
    """Return how often a pair of settings, so far apart as the page says, is told apart."""
    size = [s.smallest_difference() or 0.0 for s in repeats(equal(num_settings, num_seeds), 50, 3)]
    sweep = leader(num_settings, num_seeds, float(np.median(size)) / SIGMA)

    def is_seen(standings: Standings) -> bool:
        first, last = (setting_of(standings, run) for run in ("0-0", f"{num_settings - 1}-0"))
        interval = standings.difference(first, last)
        return interval is not None and interval.excludes_zero

    return share(sweep, num, is_seen)


def setting_of(standings: Standings, run: str) -> Setting:
    """Return the setting of a run."""
    return next(setting for setting in standings.settings if run in setting.runs)


def looks(num_settings: int, num: int) -> float:
    """Return how often one of three looks, each with more seeds, makes a false claim."""
    drawn = np.random.default_rng(9)
    hits = 0
    for _ in range(num):
        whole = equal(num_settings, 6).draw(drawn)
        hits += any(
            false_claims(part.sweep, part.standings)
            for num_seeds in (2, 3, 6)
            for part in [whole.first(num_seeds)]
        )
    return 100 * hits / num


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)

"""Phase 2: drop the losers. Finalists run with fresh seeds, and every look may send some home.

Each look has the pooled model of all finalists with all fresh seeds so far, and intervals that hold
together over pairs (studentized range) and over looks (alpha / looks each, Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from optbench.analysis.race.design import RaceDesign, Result, Step
from optbench.analysis.race.verdict import Dropped, Ending, Finalist, Look
from optbench.analysis.stats import Images, TwoWay, fit_two_way

BySeed = Mapping[int, Result]


@dataclass(frozen=True, slots=True)
class Confirmation:
    """Where phase 2 stands."""

    looks: tuple[Look, ...]
    steps: tuple[Step, ...]  # due now
    ending: Ending


def confirm(
    design: RaceDesign,
    finalists: Sequence[Finalist],
    results: Mapping[Finalist, BySeed],
    left: float = math.inf,
) -> Confirmation:
    """Return what the looks saw, and what is due.

    Args:
        design: The race's.
        finalists: Every arm at its best point, and at those that tie with it.
        results: At the end of the runs, by fresh seed.
        left: Of the budget, after tuning.
    """
    alive = list(finalists)
    if not alive:
        return Confirmation((), (), "none_left")
    looks: list[Look] = []
    least, most = design.confirm
    spent = 0.0
    for number, num_seeds in enumerate(range(least, most + 1), start=1):
        seeds = design.fresh_seeds[:num_seeds]
        new = seeds if number == 1 else seeds[-1:]
        needed = [(finalist, seed) for finalist in alive for seed in new]
        spent += sum(design.cost(arm, design.length, finishes=True) for (arm, _), _ in needed)
        if spent > left:
            return Confirmation(tuple(looks), (), "budget")
        due = tuple(
            Step(
                arm=finalist[0],
                point=finalist[1],
                seed=seed,
                until_epoch=design.length,
                phase="confirm",
                reason=f"confirm with fresh seed {seed}",
            )
            for finalist, seed in needed
            if seed not in results.get(finalist, {})
        )
        if due:
            return Confirmation(tuple(looks), due, "running")
        look = _look(design, number, seeds, finalists, alive, results)
        looks.append(look)
        alive = list(look.left)
        if not alive:
            return Confirmation(tuple(looks), (), "none_left")
        if len({arm for arm, _ in alive}) == 1:
            return Confirmation(tuple(looks), (), "one_left")
    return Confirmation(tuple(looks), (), "tied")


def _look(
    design: RaceDesign,
    number: int,
    seeds: tuple[int, ...],
    finalists: Sequence[Finalist],
    alive: Sequence[Finalist],
    results: Mapping[Finalist, BySeed],
) -> Look:
    sound: dict[Finalist, dict[int, Result]] = {}
    failed, broken = set(), set()
    for finalist in finalists:
        of_finalist = {s: r for s in seeds if (r := results.get(finalist, {}).get(s)) is not None}
        if any(not math.isfinite(result.score) for result in of_finalist.values()):
            failed.add(finalist)
        elif any(result.is_broken for result in of_finalist.values()):
            broken.add(finalist)
        known = {s: r for s, r in of_finalist.items() if math.isfinite(r.score)}
        if known:
            sound[finalist] = known
    model = fit(sound, apart=broken, confidence=design.look_confidence)
    usable = [one for one in alive if one not in failed | broken]
    lead = min(usable, key=lambda one: float(model.means[model.place(one)]), default=None)
    dropped, left = [], []
    for finalist in alive:
        against = None
        if lead is not None and finalist != lead and finalist in sound:
            against = model.difference(lead, finalist)
        if finalist in failed or finalist in broken:
            why = "failed" if finalist in failed else "broken"
        elif against is not None and against.low is not None and against.low > 0:
            why = "worse"
        else:
            left.append(finalist)
            continue
        dropped.append(Dropped(finalist=finalist, why=why, lead=lead, against_lead=against))  # type: ignore[arg-type]
    return Look(
        number=number,
        seeds=seeds,
        confidence=design.look_confidence,
        model=model,
        lead=lead,
        dropped=tuple(dropped),
        left=tuple(left),
    )


def fit(
    results: Mapping[Finalist, Mapping[int, Result]],
    *,
    apart: set[Finalist],
    confidence: float,
) -> TwoWay:
    """Return the pooled model of -score, blocks being seeds and images where all have them."""
    values: dict[Hashable, dict[Hashable, float]] = {}
    images: dict[Hashable, dict[Hashable, Images]] = {}
    for finalist, by_seed in results.items():
        values[finalist] = {seed: -result.score for seed, result in by_seed.items()}
        images[finalist] = {seed: result.images for seed, result in by_seed.items()}
    has_images = all(part for of_finalist in images.values() for part in of_finalist.values())
    return fit_two_way(values, images if has_images else None, apart=apart, confidence=confidence)

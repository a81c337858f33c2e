"""Read a race's results from the frames of its sweep: what every run had reached at its rungs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from optbench.analysis.frames import Frames
from optbench.analysis.gate import broken
from optbench.analysis.outcome_model import BROKEN
from optbench.analysis.outcomes import FORGETTING_WEIGHT
from optbench.analysis.race.design import Result
from optbench.analysis.race.record import RaceRecord, RunPlace

_SPLITS = ("held_out", "others")


def read_results(frames: Frames, record: RaceRecord) -> tuple[Result, ...]:
    """Return the results of a race's runs, in the order of their names and epochs.

    An epoch counts where it is a rung and its validation losses are there; what a run that ended
    badly had reached before is among them.
    """
    flaws = {r.run: r.sentence for r in broken(frames) if r.kind != "forgetting"}
    means = _validation(frames.validation)
    results: list[Result] = []
    for row in sorted(frames.runs.to_dict("records"), key=lambda row: str(row["run"])):
        run = str(row["run"])
        place = record.runs.get(run)
        if place is None:
            continue
        by_epoch = means.get(run, {})
        last = int(row["num_epochs"] or 0)
        for epoch, rung in _rungs(record, place, last):
            if epoch not in by_epoch:
                continue
            by_split = by_epoch[epoch]
            gain, added = _mean(by_split.get("held_out")), _mean(by_split.get("others"))
            results.append(
                Result(
                    arm=place.arm,
                    point=place.point,
                    seed=place.seed,
                    epoch=rung,
                    gain=None if gain is None else -gain,
                    forgetting=added,
                    images=_images(by_split),
                    flaw=flaws.get(run, "") if epoch == last and row["status"] == "done" else "",
                )
            )
        if row["status"] in BROKEN:
            results.append(
                Result(
                    arm=place.arm,
                    point=place.point,
                    seed=place.seed,
                    epoch=min(last + 1, record.design.length),
                    failure=row["status"],
                )
            )
    return tuple(results)


def _rungs(record: RaceRecord, place: RunPlace, last: int) -> list[tuple[int, int]]:
    """Return the epochs of a run that are rungs, and of which rung each is the result."""
    design = record.design
    if place.rung is not None:
        return [(last, place.rung)]
    is_own = design.rung_schedule == "own" and place.seed == design.tuning_seed
    rungs = (design.length,) if is_own else design.rungs
    return [(rung, rung) for rung in rungs]


_BySplit = dict[str, dict[str, float]]  # of each image its mean difference to the base


def _validation(validation: pd.DataFrame) -> dict[str, dict[int, _BySplit]]:
    columns = ["run", "epoch", "split", "image", "timestep", "loss", "base_loss"]
    if not len(validation) or not {*columns} <= {*validation.columns}:
        return {}
    rows = validation[validation["split"].isin(_SPLITS)][columns].copy()
    for name in ("epoch", "loss", "base_loss"):
        rows[name] = pd.to_numeric(rows[name], errors="coerce")
    rows["image"] = rows["image"].map(str)
    rows = rows.dropna().drop_duplicates(columns[:5], keep="last")
    rows["difference"] = rows["loss"] - rows["base_loss"]
    means = rows.groupby(["run", "epoch", "split", "image"], sort=True)["difference"].mean()
    by_run: dict[str, dict[int, _BySplit]] = {}
    for (run, epoch, split, image), mean in zip(means.index, means.to_numpy(), strict=True):
        of_epoch = by_run.setdefault(str(run), {}).setdefault(int(epoch), {})
        of_epoch.setdefault(str(split), {})[str(image)] = float(mean)
    return by_run


def _mean(by_image: Mapping[str, float] | None) -> float | None:
    return sum(by_image.values()) / len(by_image) if by_image else None


def _images(by_split: _BySplit) -> dict[str, dict[str, Any]]:
    weights = {"held_out": 1.0, "others": FORGETTING_WEIGHT}
    return {
        split: {image: weights[split] * value for image, value in of_split.items()}
        for split, of_split in by_split.items()
    }

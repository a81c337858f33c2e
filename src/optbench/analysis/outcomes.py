"""Outcomes of finished runs: the number each reached, and what it may be compared with.

Only runs that are done count: in the middle of a schedule a decaying rate has not yet done its
work, and what is best there is often not best at the end (2509.02046).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from optbench.analysis.comparisons import Unlike as Unlike
from optbench.analysis.comparisons import (
    base_condition,
    differing,
    is_missing,
    loss_conditions,
    shown,
)
from optbench.analysis.raced import TUNE
from optbench.analysis.stats import Images
from optbench.analysis.superseded import superseded

# The best evidence first. Validation is the mean of the loss minus the base's own at the same
# place, so 0 is the base alone; all of them are better when lower.
OBJECTIVE = "validation_objective"
FORGETTING_WEIGHT = 0.25  # of the loss added on other subjects, beside that on held-out images
# On the embedded base: the share of pairs of 24 LoRAs, a point or more apart by one rater's eye,
# that a measure orders as the eye did, and its 95 % interval over trainings
# (docs/embedded-base.md).
ORDERED_AS_THE_EYE: Mapping[str, tuple[float, float, float]] = {
    OBJECTIVE: (0.905, 0.80, 0.98),
    "validation_ood": (0.931, 0.86, 0.99),
    "validation_held_out": (0.861, 0.73, 0.97),
    "validation_training": (0.827, 0.66, 0.95),
}
MEASURES: Mapping[str, str] = {
    OBJECTIVE: "held-out loss plus a quarter of the loss added on other subjects",
    "validation_held_out": "validation loss on held-out images",
    "validation_training": "validation loss on training images",
    "final_loss": "training loss of the last epoch",
}
SPEED = "seconds_per_step"
SPLITS: Mapping[str, str] = {
    "held_out": "validation_held_out",
    "ood": "validation_ood",
    "others": "validation_others",
    "training": "validation_training",
}
FORGETTING_PER_GAIN = 0.6  # a LoRA that adds more than this share of its gain to others is broken
# Detail needs little noise, composition much; thirds of the 1000 timesteps.
BANDS: Mapping[str, tuple[int, int]] = {
    "low noise: detail": (0, 333),
    "middle": (333, 667),
    "high noise: composition": (667, 1000),
}
# One image's loss of the base, with the same caption, noise and timestep, is equal to the last
# bits on every machine in one precision, and to the digits of bfloat16 in another.
_SAME_LOSS = 1e-4
_SAME_ROUNDED_LOSS = 2e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The value that one finished run reached by one measure."""

    run: str
    settings: tuple[str, ...]  # of everything varied but the seed, in the order of `varied`
    seed: str
    value: float
    comparable: tuple[tuple[Unlike, str], ...]  # only outcomes equal here may be compared
    # By kind of images, of each image its part: the value is the sum over kinds of their means.
    # Where they are given, images count as a sample of all such images. Empty: the value is whole.
    images: Images = field(default_factory=dict)


def varied(runs: pd.DataFrame) -> list[str]:
    """Return the settings that a sweep varies, without the seed and what only follows."""
    return [name for name in differing(runs) if name != "seed"] if len(runs) else []


def outcomes(runs: pd.DataFrame, validation: pd.DataFrame) -> dict[str, list[Outcome]]:
    """Return by measure the outcomes of the runs that are done and have it; time per step, too.

    Runs that later ones have superseded, with other images under the same name, count nowhere; nor
    do a race's runs of the tuning seed, by which its rates were chosen.
    """
    names = varied(runs)
    old = {(stale.sweep, stale.run) for stale in superseded(runs)}
    last = last_validation(runs, validation)
    places = {column: _places(runs, last, split) for split, column in SPLITS.items()}
    images = {column: _by_image(last, split) for split, column in SPLITS.items()}
    held_out, others = SPLITS["held_out"], SPLITS["others"]
    both = places[held_out].keys() & places[others].keys()
    places[OBJECTIVE] = {run: f"{places[held_out][run]} {places[others][run]}" for run in both}
    images[OBJECTIVE] = {
        run: {**images[held_out][run], **_times(FORGETTING_WEIGHT, images[others][run])}
        for run in both
    }
    by_measure: dict[str, list[Outcome]] = {measure: [] for measure in (*MEASURES, SPEED)}
    for record in runs.to_dict("records"):
        row = {str(name): value for name, value in record.items()}
        if row["status"] != "done" or (row["sweep"], row["run"]) in old:
            continue
        if row.get("race_phase") == TUNE:
            continue
        for measure, of_measure in by_measure.items():
            value: Any = row.get(measure)
            if not isinstance(value, (int, float)) or is_missing(value):
                continue
            comparable: tuple[tuple[Unlike, str], ...] = (base_condition(row),)
            if measure in places:
                place = places[measure].get((row["sweep"], row["run"]), "")
                comparable = (*comparable, ("validation", place))
            elif measure == "final_loss":
                comparable = loss_conditions(row)
            of_measure.append(
                Outcome(
                    run=str(row["run"]),
                    settings=tuple(shown(row.get(name)) for name in names),
                    seed=shown(row.get("seed")),
                    value=float(value),
                    comparable=comparable,
                    images=images.get(measure, {}).get((row["sweep"], row["run"]), {}),
                )
            )
    return by_measure


def unlike(run_outcomes: Sequence[Outcome]) -> tuple[Unlike, ...]:
    """Return in what outcomes differ that must be equal for them to be compared, the causes first.

    Other captions or another resolution are other images, too: these are named alone.
    """
    parts = zip(*(outcome.comparable for outcome in run_outcomes), strict=True)
    kinds = list(dict.fromkeys(part[0][0] for part in parts if len({*part}) > 1))
    if {"resolution", "captions"} & {*kinds} and "images" in kinds:
        kinds.remove("images")
    return tuple(kinds)


def last_validation(runs: pd.DataFrame, validation: pd.DataFrame) -> pd.DataFrame:
    """Return every run's validation rows of its last trained epoch, with `difference` to the base.

    A run whose last epoch is not measured, and a row without numbers, is left out.
    """
    columns = ["sweep", "run", "epoch", "image", "split", "timestep", "loss", "base_loss"]
    if not len(validation) or not set(columns) <= set(validation.columns):
        return pd.DataFrame(columns=[*columns, "difference"])
    rows: pd.DataFrame = validation[columns].copy()
    for name in ("epoch", "timestep", "loss", "base_loss"):
        rows[name] = pd.to_numeric(rows[name], errors="coerce")
    rows["image"] = rows["image"].map(str)
    rows = rows.dropna()
    last = runs.set_index(["sweep", "run"])["num_epochs"]
    of_run = pd.MultiIndex.from_frame(rows[["sweep", "run"]])
    rows = rows[rows["epoch"].to_numpy() == last.reindex(of_run).to_numpy()]
    rows = rows.drop_duplicates(["sweep", "run", "image", "split", "timestep"], keep="last")
    return rows.assign(difference=rows["loss"] - rows["base_loss"])


def with_validation(runs: pd.DataFrame, validation: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with their last epoch's validation loss minus the base's, for each split.

    The gain G is minus `validation_held_out`, the forgetting F `validation_others`; where there
    are both, `validation_objective` is -(G - F/4), lower is better.
    """
    rows = last_validation(runs, validation)
    frame = runs.copy()
    places = pd.MultiIndex.from_frame(runs[["sweep", "run"]]) if len(runs) else None
    for split, column in SPLITS.items():
        means = rows[rows["split"] == split].groupby(["sweep", "run"])["difference"].mean()
        values = None if places is None else means.reindex(places).to_numpy(dtype=float)
        frame[column] = values
    added = frame[SPLITS["others"]].astype(float)
    frame[OBJECTIVE] = frame[SPLITS["held_out"]].astype(float) + FORGETTING_WEIGHT * added
    return frame


def bands(validation: pd.DataFrame) -> pd.DataFrame:
    """Return the mean validation loss of every run, epoch, split and band of noise levels.

    Columns: sweep, run, epoch, split, band, loss, base_loss, difference.
    """
    columns = ["sweep", "run", "epoch", "split", "band", "loss", "base_loss", "difference"]
    if not {"timestep", "loss", "base_loss", "split", "epoch"} <= set(validation.columns):
        return pd.DataFrame(columns=columns)
    rows = validation.copy()
    for name in ("timestep", "loss", "base_loss"):
        rows[name] = pd.to_numeric(rows[name], errors="coerce")
    rows = rows.dropna(subset=["timestep", "loss", "base_loss"])
    edges = [low for low, _ in BANDS.values()]
    rows["band"] = pd.cut(rows["timestep"], [*edges, float("inf")], right=False, labels=list(BANDS))
    rows["band"] = rows["band"].astype(str)
    by_place = rows.groupby(["sweep", "run", "epoch", "split", "band"], sort=False)
    means = by_place[["loss", "base_loss"]].mean().reset_index()
    return means.assign(difference=means["loss"] - means["base_loss"])[columns]


def last_bands(bands: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the `difference` of `bands` after the last trained epoch of each run.

    One row per (sweep, run), one column per (split, band) that any of them was measured in.
    """
    if bands.empty:
        return pd.DataFrame()
    last = runs.set_index(["sweep", "run"])["num_epochs"]
    of_run = pd.MultiIndex.from_frame(bands[["sweep", "run"]])
    rows = bands[bands["epoch"].to_numpy() == last.reindex(of_run).to_numpy()]
    table: pd.DataFrame = rows.pivot(
        index=["sweep", "run"], columns=["split", "band"], values="difference"
    )
    places = [(split, band) for split in SPLITS for band in BANDS]
    return table.reindex(columns=[place for place in places if place in table.columns])


def _places(runs: pd.DataFrame, last: pd.DataFrame, split: str) -> dict[tuple[str, str], str]:
    """Return for each run a key of what it was measured on: images, captions, noise levels.

    Two runs have one key where they have losses at the same images and timesteps, and the base
    model alone has the same losses there: with another caption it has not. Where each seed holds
    out images of its own, that is asked of runs of one seed.
    """
    rows = last[last["split"] == split]
    if not len(rows):
        return {}
    records = {(row["sweep"], row["run"]): row for row in runs.to_dict("records") if row.get("run")}
    keys: dict[tuple[str, str], str] = {}
    distinct: dict[str, list[_Places]] = {}
    for place, of_run in rows.groupby(["sweep", "run"], sort=False):
        sweep, run = place
        of_run = of_run.sort_values(["image", "timestep"])
        hashes = pd.util.hash_pandas_object(of_run[["image", "timestep"]], index=False)
        record = records[sweep, run]
        measured = _Places(
            places=f"{hashes.sum()} {len(of_run)}",
            precision=shown(record.get("train.mixed_precision")),
            base_losses=of_run["base_loss"].to_numpy(dtype=float),
        )
        is_fold = split == "held_out" and record.get("validate.holdout") == "auto"
        of_fold = distinct.setdefault(shown(record.get("seed")) if is_fold else "", [])
        number = next((i for i, other in enumerate(of_fold) if other.agrees(measured)), None)
        if number is None:
            number = len(of_fold)
            of_fold.append(measured)
        keys[str(sweep), str(run)] = str(number)
    return keys


def _by_image(last: pd.DataFrame, split: str) -> dict[tuple[str, str], dict[str, dict[str, float]]]:
    """Return for each run the mean difference of every image, under the name of the split."""
    rows = last[last["split"] == split]
    means = rows.groupby(["sweep", "run", "image"], sort=False)["difference"].mean()
    by_run: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for (sweep, run, image), mean in zip(means.index, means.to_numpy(), strict=True):
        of_run = by_run.setdefault((str(sweep), str(run)), {split: {}})
        of_run[split][str(image)] = float(mean)
    return by_run


@dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    """Where a run has validation losses, and those of the base model alone there."""

    places: str  # a hash of images and timesteps
    precision: str
    base_losses: np.ndarray

    def agrees(self, other: _Places) -> bool:
        slack = _SAME_LOSS if self.precision == other.precision else _SAME_ROUNDED_LOSS
        return self.places == other.places and np.allclose(
            self.base_losses, other.base_losses, rtol=slack, atol=0
        )


def _times(factor: float, images: Images) -> dict[str, dict[str, float]]:
    return {
        kind: {image: factor * value for image, value in of_kind.items()}
        for kind, of_kind in images.items()
    }


def is_forgetful(row: Mapping[str, Any]) -> bool:
    """Return whether a run adds more loss on other subjects than its gain is worth."""
    added, difference = number_of(row, "others"), number_of(row, "held_out")
    if added is None or difference is None:
        return False
    return added > FORGETTING_PER_GAIN * max(0.0, -difference)


def number_of(row: Mapping[str, Any], split: str) -> float | None:
    """Return what a row of the runs frame says of a kind of validation images."""
    value = row.get(SPLITS[split])
    return float(value) if isinstance(value, (int, float)) else None

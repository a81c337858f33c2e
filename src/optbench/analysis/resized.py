"""Losses of resized LoRA files against their original and the base model, draw by draw."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import pandas as pd

from optbench.analysis.comparisons import known_records
from optbench.analysis.frames import Frames
from optbench.analysis.outcomes import SPLITS


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizedLoss:
    """A file's validation loss on one kind of images, and differences at the same draws."""

    loss: float
    against_base: float | None
    against_original: float | None
    num_worse: int  # images on which it is worse than the original
    num_images: int  # on which both were measured


def resized_losses(frames: Frames) -> dict[str, dict[str, ResizedLoss]]:
    """Return every run's losses after its last measured epoch, by run and by kind of images."""
    if frames.validation.empty or "loss" not in frames.validation:
        return {}
    rows = _of_last_epoch(frames.validation)
    for name in ("loss", "base_loss", "original_loss"):
        column = rows[name] if name in rows else pd.Series(None, index=rows.index, dtype=float)
        rows = rows.assign(**{name: pd.to_numeric(column, errors="coerce")})
    losses: dict[str, dict[str, ResizedLoss]] = {}
    for (run, split), part in rows.dropna(subset=["loss"]).groupby(["run", "split"], sort=False):
        if split not in SPLITS:
            continue
        base = (part["loss"] - part["base_loss"])[part["base_loss"] != 0].dropna().tolist()
        against = (part["loss"] - part["original_loss"]).dropna()
        by_image = [group.tolist() for _, group in against.groupby(part["image"], sort=False)]
        ordered = [value for group in by_image for value in group]
        losses.setdefault(str(run), {})[str(split)] = ResizedLoss(
            loss=statistics.fmean(part["loss"].tolist()),
            against_base=statistics.fmean(base) if base else None,
            against_original=statistics.fmean(ordered) if ordered else None,
            num_worse=sum(statistics.fmean(group) > 0 for group in by_image),
            num_images=len(by_image),
        )
    return losses


def resized_layers(frames: Frames) -> dict[str, list[dict[str, object]]]:
    """Return by run the records of every layer of a resized file, after its last epoch."""
    layers = frames.layers
    if layers.empty or "retained_fro" not in layers:
        return {}
    by_run: dict[str, list[dict[str, object]]] = {}
    for record in known_records(_of_last_epoch(layers[layers["retained_fro"].notna()])):
        by_run.setdefault(str(record["run"]), []).append(record)
    return by_run


def _of_last_epoch(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["epoch"] == rows.groupby("run")["epoch"].transform("max")]

"""Curves of training: loss, the difference to other runs, rates, gradient, updates, norms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from optbench import analysis
from optbench.analysis.curves import (
    MIN_SMOOTHING_STEPS,
    SMOOTHING,
    Points,
    band,
    number,
    smooth_points,
)
from optbench.analysis.evidence import RunEvidence, SweepEvidence
from optbench.report.charts.chart import Axis, Chart, Key, Level, Line, curves

_SPLITS: Mapping[str, str] = {
    "held_out": "held-out images",
    "training": "training images",
    "ood": "other outfits and places",
    "others": "other subjects",
}


def training_charts(sweep: SweepEvidence, settings: Sequence[Key]) -> Iterator[Chart]:
    """Yield the charts over steps and epochs that have anything to show."""
    yield from _loss(sweep, settings)
    yield from validation_charts(sweep, settings)
    runs = sweep.runs
    columns = dict.fromkeys(name for run in runs for row in run.steps for name in row)
    for kind, title, note in (
        (
            "effective_lr/",
            "Learning rate in force",
            "What really multiplies the update: for optimizers that estimate their own rate, "
            "d x lr. Recipes scale their updates differently, so equal rates are not equal "
            "progress.",
        ),
        ("lr/", "Learning rate as scheduled", "The rate handed to the optimizer at every step."),
        (
            "update_ratio/",
            "Size of the updates",
            "The norm of one update divided by the norm of the weights, measured now and then. "
            "Equal ratios are steps of equal size, whatever the rates say.",
        ),
    ):
        groups = [name.removeprefix(kind) for name in columns if name.startswith(kind)]
        for place, group in enumerate(groups):
            column = kind + group
            part = _PARTS.get(group, group.replace("_", " "))
            yield from run_curves(
                sweep,
                settings,
                # Records of others may call a group anything, and this becomes a file's name.
                kind.rstrip("/").replace("_", "-")
                + (f"-{group}" if group in _PARTS else f"-{place}"),
                f"{title}, {part}",
                note,
                Axis(
                    title="update / weights" if kind == "update_ratio/" else "learning rate",
                    is_log=True,
                ),
                lambda run, column=column: _column(run, column),  # type: ignore[misc]
            )
    yield from run_curves(
        sweep,
        settings,
        "grad_norm",
        "Gradient norm",
        "Of all trained weights together, before clipping; smoothed like the loss.",
        Axis(title="gradient norm", is_log=True),
        lambda run: _column(run, "grad_norm"),
        is_smoothed=True,
    )
    for column, title in (
        ("norm/average_key_norm", "Size of the LoRA, mean over layers"),
        ("norm/max_key_norm", "Size of the LoRA, largest layer"),
    ):
        yield from run_curves(
            sweep,
            settings,
            column,
            title,
            "The norm of each layer's weight change. What grows on and on is overcooked sooner "
            "or later.",
            Axis(title="norm of the weight change"),
            lambda run, column=column: _epochs(run, column),  # type: ignore[misc]
            x="epoch",
        )
    if any(run.row.get("peak_memory_bytes") for run in runs) and _has_gpu(sweep):
        # Without a GPU it would be that of a process that did much else.
        yield from run_curves(
            sweep,
            settings,
            "peak_memory_bytes",
            "Peak GPU memory",
            "The most that was allocated at once, to the end of each epoch.",
            Axis(title="peak memory", unit="bytes"),
            lambda run: _epochs(run, "peak_memory_bytes"),
            x="epoch",
        )


_PARTS = {"unet": "unet", "text_encoder": "text encoder"}


def _has_gpu(sweep: SweepEvidence) -> bool:
    machines = sweep.frames.machines
    return bool(machines[machines["run"].isin([run.name for run in sweep.runs])]["has_gpu"].any())


def run_curves(
    sweep: SweepEvidence,
    settings: Sequence[Key],
    name: str,
    title: str,
    note: str,
    y: Axis,
    points_of: Callable[[RunEvidence], Points],
    *,
    x: str = "step",
    is_smoothed: bool = False,
    levels: Sequence[Level] = (),
) -> Iterator[Chart]:
    """Yield a chart with a line for each run, and for each setting its mean and range over seeds.

    Values that a log axis cannot show are left out.
    """
    by_run: dict[str, Points] = {}
    lines = []
    for run in sweep.runs:
        points = [(x_, y_) for x_, y_ in points_of(run) if y_ > 0 or not y.is_log]
        by_run[run.name] = smooth_points(points) if is_smoothed else points
        raw = [value for _, value in points] if is_smoothed else ()
        lines.append(Line(name=run.name, points=by_run[run.name], raw=raw))
    bands = {}
    for key in settings:
        of_setting = band({run: by_run[run] for run in key.runs if by_run.get(run)})
        if of_setting is not None:
            bands[key.label] = of_setting
    chart = curves(
        name.replace("/", "-").replace("_", "-"),
        title,
        note,
        x="step" if x == "step" else "epoch",
        y=y,
        lines=lines,
        bands=bands,
        levels=levels,
    )
    if chart is not None:
        yield chart


def _loss(sweep: SweepEvidence, settings: Sequence[Key]) -> Iterator[Chart]:
    runs = sweep.runs
    smoothing = (
        f"Smoothed over 1/{SMOOTHING} of the steps, at least {MIN_SMOOTHING_STEPS} "
        "(exponential moving average)."
    )
    yield from run_curves(
        sweep,
        settings,
        "loss",
        "Training loss",
        f"{smoothing} A lower training loss is not a better image: memorizing lowers it too.",
        Axis(title="training loss"),
        lambda run: _column(run, "loss"),
        is_smoothed=True,
    )
    if len(runs) > 1 and analysis.has_equal_draws(sweep.rows):
        mean = _mean_losses(runs)
        yield from run_curves(
            sweep,
            settings,
            "loss-difference",
            "Training loss against the other runs",
            "Minus the mean of all whole runs at the same step. All runs see the same images, "
            "noise and timesteps there, so this is far less noisy than the loss itself. Below 0 "
            f"is lower than the others. {smoothing}",
            Axis(title="loss minus the mean of all runs"),
            lambda run: [
                (step, loss - mean[step]) for step, loss in _column(run, "loss") if step in mean
            ],
            is_smoothed=True,
            levels=[Level(value=0.0, text="mean of all runs")],
        )


def validation_charts(sweep: SweepEvidence, settings: Sequence[Key]) -> Iterator[Chart]:
    """Yield a chart for each kind of images that any run was validated on, and of overfitting."""
    same = "The same images, noise and timesteps for every run and epoch."

    def gain(row: Mapping[str, Any], split: str) -> float | None:
        loss = number(row.get(f"validation_loss/{split}"))
        base = number(row.get(f"validation_loss_base/{split}"))
        return None if loss is None or base is None else base - loss

    def over_epochs(
        name: str, title: str, note: str, y: str, value_of: Callable[[Mapping[str, Any]], Any]
    ) -> Iterator[Chart]:
        def points(run: RunEvidence) -> Points:
            known = [
                (epoch, float(value))
                for row in run.epochs
                if (epoch := number(row.get("epoch"))) is not None
                if (value := value_of(row)) is not None
            ]
            return [(0.0, 0.0), *known] if known else []  # every run begins where the base is

        yield from run_curves(
            sweep,
            settings,
            name,
            title,
            note,
            Axis(title=y),
            points,
            x="epoch",
            levels=[Level(value=0.0, text="the base model")],
        )

    for split, words in _SPLITS.items():
        if split == "others":
            yield from over_epochs(
                "forgetting",
                f"Forgetting: loss added on {words}",
                f"The loss minus the base model's own. Above 0, the LoRA has spoilt something "
                f"that it was not trained on. {same}",
                "loss added",
                lambda row: None if (value := gain(row, "others")) is None else -value,
            )
        else:
            after = " A fall after a rise is overfitting." if split == "held_out" else ""
            yield from over_epochs(
                f"gain-{split.replace('_', '-')}",
                f"Gain on {words}",
                f"How much lower the loss is than the base model's own: higher is better.{after} "
                f"{same}",
                "loss below the base model's",
                lambda row, split=split: gain(row, split),  # type: ignore[misc]
            )

    def overfitting(row: Mapping[str, Any]) -> float | None:
        training, held_out = gain(row, "training"), gain(row, "held_out")
        return None if training is None or held_out is None else training - held_out

    yield from over_epochs(
        "overfitting",
        "Overfitting: gain on training images minus held-out images",
        "What rises here is memory of the training images, not of the character.",
        "difference of gains",
        overfitting,
    )
    yield from _by_noise_level(sweep, settings)


def _by_noise_level(sweep: SweepEvidence, settings: Sequence[Key]) -> Iterator[Chart]:
    """Yield the gain after the last epoch over noise levels, held-out images before trained."""
    rows = sweep.frames.validation
    if not {"timestep", "loss", "base_loss", "split", "epoch"} <= set(rows.columns):
        return
    last = {run.name: run.row.get("num_epochs") for run in sweep.runs}
    rows = rows[rows["run"].isin(list(last))]
    rows = rows[rows["epoch"].to_numpy() == rows["run"].map(last).to_numpy()]
    split = next((name for name in _SPLITS if (rows["split"] == name).any()), None)
    if split is None:
        return
    rows = rows[rows["split"] == split]
    loss, base, timestep = (
        pd.to_numeric(rows[name], errors="coerce") for name in ("loss", "base_loss", "timestep")
    )
    gains = base - loss
    means = gains.groupby([rows["run"], timestep]).mean().dropna()
    by_run: dict[str, Points] = {
        str(run): [(float(timestep), float(value)) for timestep, value in part.droplevel(0).items()]
        for run, part in means.groupby(level=0)
    }
    bands = {
        key.label: of_setting
        for key in settings
        if (of_setting := band({run: by_run[run] for run in key.runs if run in by_run}))
    }
    chart = curves(
        "gain-by-noise-level",
        f"Gain by noise level, {_SPLITS[split]}",
        "After the last epoch. Low timesteps hold little noise: detail and texture. High ones are "
        "nearly all noise: composition and pose. Below 0 the LoRA is worse than the base model.",
        x="fixed",
        x_axis=Axis(title="timestep (noise level)"),
        y=Axis(title="loss below the base model's"),
        lines=[Line(name=run, points=points) for run, points in by_run.items()],
        bands=bands,
        levels=[Level(value=0.0, text="the base model")],
    )
    if chart is not None:
        yield chart


def _mean_losses(runs: Sequence[RunEvidence]) -> dict[float, float]:
    """Return the mean loss at each step of the runs that got furthest.

    Runs that ended early are left out, or the mean would jump where they end.
    """
    longest = max(len(run.steps) for run in runs)
    columns = [_column(run, "loss") for run in runs if len(run.steps) == longest]
    by_step: dict[float, list[float]] = {}
    for column in columns:
        for step, loss in column:
            by_step.setdefault(step, []).append(loss)
    return {
        step: sum(losses) / len(losses)
        for step, losses in by_step.items()
        if len(losses) == len(columns)
    }


def _column(run: RunEvidence, name: str) -> Points:
    pairs = [(number(row.get("step")), number(row.get(name))) for row in run.steps]
    return [(step, value) for step, value in pairs if step is not None and value is not None]


def _epochs(run: RunEvidence, name: str) -> Points:
    pairs = [(number(row.get("epoch")), number(row.get(name))) for row in run.epochs]
    return [(epoch, value) for epoch, value in pairs if epoch is not None and value is not None]

"""Simulated sweeps as frames, without files, and what the report would say wrongly of them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from optbench.analysis import Frames, Outcome, Standings, effects, find_pairs
from optbench.analysis.comparisons import MEASURED, Unlike
from optbench.analysis.standings import Setting, rank_outcomes

Floats = NDArray[np.float64]
Values = tuple[str | int | float, ...]

SIGMA = 1e-4  # of one run, as measured on held-out images of the embedded base
SEED_SIGMA = 80 * SIGMA  # of a training loss: what a seed moves all settings by
BASE_LOSS = 0.14


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Settings with their true means in units of sigma, below the base; lower is better."""

    factors: tuple[str, ...]
    means: dict[Values, float]
    noises: dict[Values, float]  # relative; 1: sigma
    num_seeds: int

    def draw(
        self, drawn: np.random.Generator, *, noise: str = "normal", images: Images | None = None
    ) -> Realization:
        """Return one realization: training losses, or validation losses of images."""
        S, R = len(self.means), self.num_seeds
        means = np.asarray(list(self.means.values()))
        scale = np.asarray(list(self.noises.values()))
        rest = scale[:, None] * draw(drawn, noise, (S, R))
        if images is None:
            seeds = drawn.standard_normal(R) * SEED_SIGMA / SIGMA
            losses = BASE_LOSS + SIGMA * (means[:, None] + seeds + rest)
            return Realization(sweep=self, losses=losses, by_image=None)
        by_image = images.values(drawn, means, rest) * SIGMA
        return Realization(sweep=self, losses=by_image.mean(axis=2), by_image=by_image)


@dataclass(frozen=True, kw_only=True)
class Realization:
    """What the runs of a sweep reached: (S, R), and by image (S, R, P)."""

    sweep: Sweep
    losses: Floats
    by_image: Floats | None

    @property
    def standings(self) -> Standings:
        """What the report concludes."""
        names, rows, results = self.sweep.factors, [], []
        kind: Unlike = "base"
        for (i, setting), j in itertools.product(
            enumerate(self.sweep.means), range(self.sweep.num_seeds)
        ):
            rows.append(
                {"run": f"{i}-{j}", "status": "done", **dict(zip(names, setting, strict=True))}
            )
            of_images = {}
            if self.by_image is not None:
                of_images = {"held_out": dict(enumerate(self.by_image[i, j].tolist()))}
            results.append(
                Outcome(
                    run=f"{i}-{j}",
                    settings=tuple(map(str, setting)),
                    seed=str(j + 1),
                    value=float(self.losses[i, j]),
                    comparable=((kind, "tiny"),),
                    images=of_images,  # type: ignore[arg-type]
                )
            )
        return rank_outcomes(names, rows, results)

    def first(self, num_seeds: int) -> Realization:
        """Return the same with its first seeds alone."""
        by_image = None if self.by_image is None else self.by_image[:, :num_seeds]
        sweep = dataclasses.replace(self.sweep, num_seeds=num_seeds)
        return Realization(sweep=sweep, losses=self.losses[:, :num_seeds], by_image=by_image)

    @property
    def frames(self) -> Frames:
        """The same as `optbench.load` would return it."""
        losses = self.losses if self.by_image is None else None
        return make_frames(self.sweep.factors, list(self.sweep.means), losses, self.by_image)


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images that are a sample of others: deviations in units of a run's sigma."""

    num: int
    of_settings: float  # of one image and setting, the same for every seed
    of_rest: float  # of one image, setting and seed

    def values(self, drawn: np.random.Generator, means: Floats, rest: Floats) -> Floats:
        """Return values (S, R, P) whose means over images have the deviation 1 over seeds."""
        S, R = rest.shape
        by_image = self.of_settings * drawn.standard_normal((S, 1, self.num))
        alone = self.of_rest * drawn.standard_normal((S, R, self.num))
        common = 20 * drawn.standard_normal((1, 1, self.num)) + drawn.standard_normal((1, R, 1))
        runs = math.sqrt(max(0.0, 1 - self.of_rest**2 / self.num)) * rest
        return means[:, None, None] - 300 + runs[:, :, None] + by_image + alone + common


def draw(drawn: np.random.Generator, noise: str, shape: tuple[int, int]) -> Floats:
    """Return noise of deviation 1: normal, Student's with three degrees, or with outliers."""
    if noise == "t3":
        return drawn.standard_t(3, shape) / math.sqrt(3)
    values = drawn.standard_normal(shape)
    if noise == "outliers":
        values = np.where(drawn.random(shape) < 0.05, 5 * values, values) / math.sqrt(2.2)
    return values


def make_frames(
    factors: Sequence[str],
    settings: Sequence[Values],
    losses: Floats | None,
    by_image: Floats | None = None,
) -> Frames:
    """Return frames as `optbench.load` would, of finished runs with these values.

    Args:
        factors: What is varied, by override name.
        settings: Values of the factors.
        losses: Training losses (S, R), or None for equal ones.
        by_image: Held-out losses minus the base's (S, R, P), or None for none.
    """
    num_seeds = (losses if losses is not None else by_image).shape[1]  # type: ignore[union-attr]
    rows, validation = [], []
    for (i, setting), j in itertools.product(enumerate(settings), range(num_seeds)):
        run = f"run-{i}-{j}"
        row: dict[str, object] = dict.fromkeys(MEASURED)
        row |= {
            "sweep": "s",
            "run": run,
            "kind": "training",
            "status": "done",
            "num_epochs": 1,
            "num_steps": 10,
            "seconds_per_step": 1.0,
            "final_loss": float(losses[i, j]) if losses is not None else BASE_LOSS,
            "base": "tiny",
            "seed": j + 1,
            **dict(zip(factors, setting, strict=True)),
        }
        if by_image is not None:
            row["validation_held_out"] = float(by_image[i, j].mean())
            validation += [
                ("s", run, 1, f"image-{p}", "held_out", 500, BASE_LOSS + value, BASE_LOSS)
                for p, value in enumerate(by_image[i, j].tolist())
            ]
        rows.append(row)
    runs = pd.DataFrame(rows)
    columns = ["sweep", "run", "epoch", "image", "split", "timestep", "loss", "base_loss"]
    nothing = pd.DataFrame()
    machines = runs[["sweep", "run"]].assign(num_cpus=2, has_gpu=False, was_busy=False)
    return Frames(
        runs=runs,
        epochs=nothing,
        steps=nothing,
        layers=nothing,
        validation=pd.DataFrame(validation, columns=columns),
        images=nothing,
        metrics=nothing,
        pairs=nothing,
        scores=nothing,
        votes=nothing,
        machines=machines,
        problems=(),
        root=Path(),
    )


def false_claims(sweep: Sweep, standings: Standings) -> set[str]:
    """Return the kinds of wrong sentences that a page would make of these standings."""
    true = {tuple(map(str, values)): mean for values, mean in sweep.means.items()}

    def of(setting: Setting) -> float:
        return true[setting.values]

    def of_value(index: int, value: object) -> float:
        return min(mean for values, mean in true.items() if values[index] == value)

    wrong: set[str] = set()
    lead = standings.lead
    for setting in standings.settings:
        if lead and standings.verdict(setting) == "worse" and of(setting) <= of(lead):
            wrong.add("worse")
    if standings.conclusion == "clear" and lead:
        others = [of(s) for s in standings.contenders if s is not lead]
        if others and min(others) <= of(lead):
            wrong.add("winner")
    for index, factor in enumerate(standings.by_factor):
        best, *others_of = factor.standings
        for other in others_of:
            if other.is_worse and of_value(index, other.name) <= of_value(index, best.name):
                wrong.add("factor")
    return wrong


def wrong_effects(sweep: Sweep, frames: Frames) -> bool:
    """Return whether the table of changes says "lower" or "higher" of equal settings."""
    table = effects(find_pairs(frames.runs), frames.runs, frames.validation)
    return bool(table["verdict"].isin(["lower", "higher"]).any())


def covers(sweep: Sweep, standings: Standings) -> bool:
    """Return whether all intervals of the page hold their true values: pairs and factors."""
    true = {tuple(map(str, values)): mean * SIGMA for values, mean in sweep.means.items()}
    model = standings.model
    assert model is not None
    means = np.asarray([true[name] for name in model.names])  # type: ignore[index]
    differences = means[None, :] - means[:, None]
    slack = 1e-9 * SIGMA
    is_in = (model.lows - slack <= differences) & (differences <= model.highs + slack)
    if not is_in.all():
        return False
    for index, factor in enumerate(standings.by_factor):
        of_value = {
            s.name: min(mean for values, mean in true.items() if values[index] == s.name)
            for s in factor.standings
        }
        best = of_value[factor.standings[0].name]
        for standing in factor.standings[1:]:
            interval = standing.against_best
            assert interval is not None
            assert interval.low is not None
            assert interval.high is not None
            if not interval.low <= of_value[standing.name] - best <= interval.high:
                return False
    return True


def grid(num_settings: int) -> tuple[tuple[str, ...], list[Values]]:
    """Return factors and settings of sweeps as people make them."""
    if num_settings == 12:
        dims = (16, 32, 64, 128)
        return ("optimizer", "network.dim"), list(itertools.product("abc", dims))
    return ("optimizer",), [(f"o{number}",) for number in range(num_settings)]


def equal(num_settings: int, num_seeds: int, **changes: dict[Values, float]) -> Sweep:
    """Return a sweep of equally good settings; `means` and `noises` by setting change some."""
    factors, settings = grid(num_settings)
    return Sweep(
        factors=factors,
        means=dict.fromkeys(settings, 0.0) | changes.get("means", {}),
        noises=dict.fromkeys(settings, 1.0) | changes.get("noises", {}),
        num_seeds=num_seeds,
    )


def repeats(
    sweep: Sweep, num: int, seed: int, *, noise: str = "normal", images: Images | None = None
) -> Iterator[Standings]:
    """Yield the standings of so many realizations."""
    drawn = np.random.default_rng(seed)
    for _ in range(num):
        yield sweep.draw(drawn, noise=noise, images=images).standings

"""Effect of one change of one setting, over all pairs of runs that differ in nothing else."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from optbench.analysis import stats
from optbench.analysis.comparisons import known_records
from optbench.analysis.outcome_model import failed_settings, fit_outcomes, forgetful_settings
from optbench.analysis.outcomes import SPEED, SPLITS, Outcome, last_validation, outcomes, varied
from optbench.analysis.stats import Interval, TwoWay

_COLUMNS = (
    "sweep",
    "setting",
    "from_value",
    "to_value",
    "measure",
    "num_pairs",
    "num_seeds",
    "mean",
    "median",
    "low",
    "high",
    "num_lower",
    "probability_lower",
    "in_deviations",
    "verdict",
    "depends_on",
)
_NOISE_COLUMNS = (
    "sweep",
    "measure",
    "deviation",
    "degrees",
    "seed_deviation",
    "num_settings",
    "num_runs",
)


def with_intervals(
    pairs: pd.DataFrame, runs: pd.DataFrame, validation: pd.DataFrame
) -> pd.DataFrame:
    """Return the pairs with the difference in validation loss and its interval over images.

    For each split `validation_<split>_difference`, `_low` and `_high`: how unlike two files are on
    such images, whatever another seed would have made of them. Only of runs that are done, and
    measured on the same images and noise levels.
    """
    rows = last_validation(runs, validation)
    is_done = runs.set_index(["sweep", "run"])["status"] == "done"
    frame = pairs.copy()
    for split in SPLITS:
        of_split = rows[rows["split"] == split]
        means = of_split.groupby(["sweep", "run", "image"])["difference"].agg(["mean", "size"])
        by_run: dict[tuple[str, str], dict[str, tuple[float, int]]] = {}
        for (sweep, run, image), mean, size in zip(
            means.index, means["mean"], means["size"], strict=True
        ):
            if is_done.get((sweep, run), False):
                by_run.setdefault((sweep, run), {})[image] = (float(mean), int(size))
        intervals = [
            _over_images(by_run.get((sweep, before)), by_run.get((sweep, after)))
            for sweep, before, after in zip(
                pairs["sweep"], pairs["from_run"], pairs["to_run"], strict=True
            )
        ]
        for index, end in enumerate(("difference", "low", "high")):
            values = [interval[index] for interval in intervals]
            frame[f"validation_{split}_{end}"] = pd.Series(values, index=frame.index, dtype=float)
    return frame


def _over_images(
    before: Mapping[str, tuple[float, int]] | None, after: Mapping[str, tuple[float, int]] | None
) -> tuple[float | None, float | None, float | None]:
    """Return the mean difference and its interval; each run has (mean, number of rows) by image."""
    if not before or not after or before.keys() != after.keys():
        return None, None, None
    if any(before[image][1] != after[image][1] for image in before):
        return None, None, None
    interval = stats.mean_interval([after[image][0] - before[image][0] for image in sorted(before)])
    return interval.mean, interval.low, interval.high


def noise_floor(runs: pd.DataFrame, validation: pd.DataFrame) -> pd.DataFrame:
    """Return for each measure how far luck moves one run: the unit of the differences.

    `deviation` is that of a run with its setting's and its seed's effect taken out, because a
    seed's effect cancels in differences; `seed_deviation` is that of the runs of one setting, and
    what two runs of unlike seeds differ by; of `seconds_per_step` both are of the logarithm. One
    row per sweep and measure that tells luck from settings; `degrees` is how many runs speak of it.
    """
    rows = []
    for sweep, part in runs.groupby("sweep", sort=False):
        names = varied(part)
        failed = failed_settings(part, names)
        forgetful = forgetful_settings(known_records(part), names)
        for measure, run_outcomes in outcomes(part, validation).items():
            model = fit_outcomes(run_outcomes, failed, measure, forgetful=forgetful)
            if model is None:
                continue
            unit = math.log if measure == SPEED else float
            runs_of_settings = [
                [unit(outcome.value) for outcome in run_outcomes if outcome.settings == name]
                for name in model.names
            ]
            noise = stats.pooled_deviation(runs_of_settings)
            if model.deviation is None and noise is None:
                continue
            numbers = len(model.names), sum(map(len, runs_of_settings))
            alone = noise[0] if noise else None
            rows.append((sweep, measure, model.deviation, model.residual_degrees, alone, *numbers))
    return pd.DataFrame(rows, columns=list(_NOISE_COLUMNS))


def effects(pairs: pd.DataFrame, runs: pd.DataFrame, validation: pd.DataFrame) -> pd.DataFrame:
    """Return one row per change of a setting and measure: the difference and how sure it is.

    Differences are `to` minus `from`; of `seconds_per_step` the logarithm of the ratio. They are
    means over all settings that the change was made at, those nobody would use included: explore
    with them. Intervals are means of the intervals that the model of all settings has for each of
    those changes (`stats.fit_two_way`), so they hold together with one another and with the
    verdicts of `rank_settings`. Changes of the seed are the noise floor, not here.
    """
    rows: list[dict[str, Any]] = []
    for sweep, part in runs.groupby("sweep", sort=False):
        changes = pairs[(pairs["sweep"] == sweep) & (pairs["setting"] != "seed")]
        names = varied(part)
        failed = failed_settings(part, names)
        forgetful = forgetful_settings(known_records(part), names)
        for measure, run_outcomes in outcomes(part, validation).items():
            of_run = {outcome.run: outcome for outcome in run_outcomes}
            model = fit_outcomes(run_outcomes, failed, measure, forgetful=forgetful)
            columns = ("setting", "from_value", "to_value", "from_run", "to_run")
            groups: dict[tuple[str, str, str], list[tuple[Outcome, Outcome]]] = {}
            for setting, from_value, to_value, from_run, to_run in zip(
                *(changes[name] for name in columns), strict=True
            ):
                key = str(setting), str(from_value), str(to_value)
                ends = of_run.get(from_run), of_run.get(to_run)
                if ends[0] and ends[1] and ends[0].comparable == ends[1].comparable:
                    groups.setdefault(key, []).append((ends[0], ends[1]))
            for key, of_change in groups.items():
                change = _Change(key=key, measure=measure, ends=of_change)
                rows.append({"sweep": sweep, **_effect(change, names, model)})
    return pd.DataFrame(rows, columns=list(_COLUMNS))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """The pairs of runs that show one change, and their differences in one measure."""

    key: tuple[str, str, str]
    measure: str
    ends: Sequence[tuple[Outcome, Outcome]]

    @property
    def differences(self) -> list[float]:
        if self.measure == SPEED:
            return [math.log(after.value / before.value) for before, after in self.ends]
        return [after.value - before.value for before, after in self.ends]


def _effect(change: _Change, names: Sequence[str], model: TwoWay | None) -> dict[str, Any]:
    intervals = _intervals(change, model)
    values = change.differences
    interval = _mean(list(intervals.values()))
    verdict = "unknown" if interval.low is None else "tied"
    if interval.excludes_zero:
        verdict = "lower" if interval.mean < 0 else "higher"
    num_lower, num_equal = sum(value < 0 for value in values), values.count(0.0)
    deviation = model.deviation if model else None
    return {
        **dict(zip(("setting", "from_value", "to_value"), change.key, strict=True)),
        "measure": change.measure,
        "num_pairs": len(values),
        "num_seeds": len({before.seed for before, _ in change.ends}),
        "mean": interval.mean,
        "median": statistics.median(values),
        "low": interval.low,
        "high": interval.high,
        "num_lower": num_lower,
        "probability_lower": (num_lower + num_equal / 2) / len(values),
        "in_deviations": interval.mean / deviation if deviation else None,
        "verdict": verdict,
        "depends_on": "; ".join(_interactions(intervals, change.key[0], names)),
    }


def _intervals(change: _Change, model: TwoWay | None) -> dict[tuple[str, ...], Interval]:
    """Return the model's interval of every pair of settings that shows a change, by the first."""
    intervals: dict[tuple[str, ...], Interval] = {}
    for (before, after), value in zip(change.ends, change.differences, strict=True):
        if model and before.settings in model.names and after.settings in model.names:
            intervals[before.settings] = model.difference(before.settings, after.settings)
        else:
            intervals.setdefault(
                before.settings,
                Interval(mean=value, low=None, high=None, num_values=2, num_blocks=1),
            )
    return intervals


def _mean(intervals: Sequence[Interval]) -> Interval:
    """Return the mean of intervals that hold together, which holds with them."""
    ends = [(interval.low, interval.high) for interval in intervals]
    low = high = None
    if all(end[0] is not None and end[1] is not None for end in ends):
        low, high = (statistics.fmean(end[at] or 0.0 for end in ends) for at in (0, 1))
    return Interval(
        mean=statistics.fmean(interval.mean for interval in intervals),
        low=low,
        high=high,
        num_values=sum(interval.num_values for interval in intervals),
        num_blocks=min(interval.num_blocks for interval in intervals),
    )


def _interactions(
    intervals: Mapping[tuple[str, ...], Interval], changed: str, names: Sequence[str]
) -> Iterator[str]:
    """Yield what of the other settings the difference depends on, beyond luck.

    The intervals at two values of that setting have nothing in common.
    """
    for index, name in enumerate(names):
        if name == changed:
            continue
        levels: dict[str, list[Interval]] = {}
        for settings, interval in intervals.items():
            levels.setdefault(settings[index], []).append(interval)
        means = {level: _mean(of_level) for level, of_level in levels.items()}
        lows = [mean.low for mean in means.values() if mean.low is not None]
        highs = [mean.high for mean in means.values() if mean.high is not None]
        if lows and max(lows) > min(highs):
            at_levels = ", ".join(f"{mean.mean:+.3g} at {level}" for level, mean in means.items())
            yield f"{name}: {at_levels}"

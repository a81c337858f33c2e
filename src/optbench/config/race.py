"""Read a race from a command line: its arms, its design, and the plan of any of its runs.

An arm is what the race answers about: an optimizer, or a combination of everything that is swept
and not tuned away. The runs of an arm differ in their rate, the nuisance axes and the seed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from omegaconf import DictConfig

from optbench.config.build import RACE, SEEDS, build_group
from optbench.config.composer import parse_override
from optbench.config.identity import on_this_machine, plan_run
from optbench.config.sweep import Expanded
from optbench.errors import ConfigError, Problem
from optbench.lora.initial_weights import ReadWeights
from optbench.records import Dataset
from optbench.schema import BaseOptions, DatasetOptions, RaceOptions
from optbench.training.plan import RunPlan

if TYPE_CHECKING:
    from optbench.analysis.race import RaceDesign, Step

RACE_SWEEPER = "hydra_plugins.optbench_race_sweeper.RaceSweeper"
_RATE = "lr_mult"
# Settings that the race itself gives to its runs, and what to write instead.
_OF_THE_RACE: Mapping[str, tuple[str, str]] = {
    _RATE: ("nothing: a race tunes it for every recipe", "write race.rates=0.2:5:9 instead"),
    SEEDS: (
        "nothing: a race takes fresh seeds as it needs them",
        "write race.confirm=2..6 instead",
    ),
    "launch.until_epoch": (
        "nothing: a race stops its runs itself",
        "write race.rungs=[1,2] instead",
    ),
}
Values = tuple[str, ...]  # of the nuisance axes, in their order


@dataclass(frozen=True, slots=True, kw_only=True)
class RaceEntries:
    """What a race's command line lists, before any run of it is planned."""

    options: RaceOptions
    arms: Mapping[str, tuple[str, ...]]  # the overrides of each arm, without nuisance values
    axes: Mapping[str, tuple[str, ...]]  # the nuisance axes besides the rate, with their values

    def cells(self) -> list[tuple[str, Values]]:
        """Return every arm at every combination of the nuisance values."""
        combinations: list[Values] = [()]
        for values in self.axes.values():
            combinations = [(*some, value) for some in combinations for value in values]
        return [(arm, values) for arm in self.arms for values in combinations]

    def overrides(self, arm: str, values: Values) -> tuple[str, ...]:
        """Return what makes a cell, without rate and seed."""
        given = zip(self.axes, values, strict=True)
        return (*self.arms[arm], *(f"{name}={value}" for name, value in given))

    def first_runs(self) -> list[Expanded]:
        """Return one run of every cell, at the recipe's own rate: all others follow from it."""
        return [
            Expanded(setting=None, overrides=(*self.overrides(*cell), f"{_RATE}=1.0"))
            for cell in self.cells()
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class RacePlan:
    """A race, planned: its design, and who any of its runs is."""

    entries: RaceEntries
    design: RaceDesign
    cells: Mapping[tuple[str, Values], RunPlan]  # one run of each, wherever it is made
    is_local: bool
    _datasets: dict[tuple[DatasetOptions, int], Dataset] = field(default_factory=dict)
    _read: ReadWeights = field(default_factory=dict)
    _bases: dict[tuple[BaseOptions, str], tuple[int, str]] = field(default_factory=dict)

    def overrides(self, step: Step) -> tuple[str, ...]:
        """Return what is launched for a step."""
        words = [
            *self.entries.overrides(step.arm, step.point.values),
            f"{_RATE}={step.point.rate!r}",
            f"seed={step.seed}",
            f"launch.until_epoch={step.until_epoch}",
        ]
        return (*words, *([] if self._renders(step) else ["render.enabled=false"]))

    def run(self, step: Step) -> RunPlan:
        """Return the plan of a step's run."""
        cell = self.cells[step.arm, step.point.values]
        config = cell.config
        is_rendered = config.render.enabled and self._renders(step)
        config = dataclasses.replace(
            config,
            lr_mult=step.point.rate,
            seed=step.seed,
            render=dataclasses.replace(config.render, enabled=is_rendered),
        )
        plan = plan_run(
            config,
            sweep_dir=cell.sweep_dir,
            overrides=self.overrides(step),
            datasets=self._datasets,
            read=self._read,
            bases=self._bases,
        )
        plan = dataclasses.replace(plan, until_epoch=step.until_epoch)
        return on_this_machine(plan) if self.is_local else plan

    def _renders(self, step: Step) -> bool:
        is_shown = step.is_final and step.seed == self.design.fresh_seeds[0]
        return self.entries.options.render == "all" or is_shown


def read_race(
    master: DictConfig,
    lines: Sequence[str],
    expanded: Sequence[Expanded],
    swept: Sequence[str],
    problems: list[Problem],
) -> RaceEntries | None:
    """Return what a race's command line lists; None after noting what is wrong with it.

    Args:
        master: The composed tree.
        lines: The sweep's parameters and the command line's overrides.
        expanded: Every member of the product of what is swept.
        swept: The keys that are swept.
        problems: Everything wrong is added to it.
    """
    wrong: list[Problem] = []
    wrong += _given_by_the_race(lines)
    if master.get(SEEDS, 1) != 1 and not wrong:
        wrong.append(Problem(SEEDS, str(master[SEEDS]), *_OF_THE_RACE[SEEDS]))
    if "seed" in swept:
        wrong.append(
            Problem(
                "seed",
                "several seeds",
                "one, with which the rates are tuned; fresh seeds follow it",
                "write race.confirm=2..6 for the number of fresh seeds",
            )
        )
    options = None
    try:
        options = build_group(RaceOptions, RACE, master)
    except ConfigError as error:
        wrong += error.problems
    if options is not None:
        wrong += [*_check_options(options), *_check_nuisance(options, swept)]
    problems += wrong
    if wrong or options is None:
        return None
    tuned = [key for key in options.nuisance if key != _RATE]
    arms: dict[str, tuple[str, ...]] = {}
    axes: dict[str, dict[str, None]] = {key: {} for key in tuned}
    for run in expanded:
        by_key = {_key(line): line for line in run.overrides}
        for key in tuned:
            axes[key][by_key[key].partition("=")[2]] = None
        rest = tuple(line for line in run.overrides if _key(line) not in tuned)
        name = _arm_name(run.setting, [by_key[key] for key in swept if key in by_key], tuned)
        arms.setdefault(name or str(master.optimizer.name), rest)
    return RaceEntries(
        options=options, arms=arms, axes={key: tuple(values) for key, values in axes.items()}
    )


def plan_race(
    entries: RaceEntries, runs: Sequence[RunPlan], *, is_local: bool
) -> tuple[RacePlan | None, list[Problem]]:
    """Return the race over the planned runs of its cells, or everything that is wrong with it."""
    from optbench.analysis.race import Axis, RaceDesign, rate_ladder, rung_epochs

    cells = dict(zip(entries.cells(), runs, strict=True))
    if problems := [*_check_lengths(cells), *check_losses(runs)]:
        return None, problems
    options, first = entries.options, runs[0]
    length = first.num_epochs
    if any(rung > length for rung in options.rungs):
        return None, [_rung_after_the_end(options, length)]
    low, high, number = options.rates.split(":")
    whole = [int(rung) for rung in options.rungs if rung >= 1]
    shares = [rung for rung in options.rungs if rung < 1]
    least, most = map(int, options.confirm.split(".."))
    seed = first.config.seed
    budget, unit = parse_budget(options.budget)
    design = RaceDesign(
        arms=tuple(entries.arms),
        rates=rate_ladder(float(low), float(high), int(number)),
        rungs=tuple(sorted({*whole, *rung_epochs(length, shares)})),
        nuisance=tuple(Axis(name, values) for name, values in entries.axes.items()),
        rateless=tuple(dict.fromkeys(arm for (arm, _), run in cells.items() if _is_rateless(run))),
        eta=options.eta,
        confirm=(least, most),
        alpha=options.alpha,
        tuning_seed=seed,
        fresh_seeds=tuple(range(seed + 1, seed + 1 + most)),
        budget=budget,
        unit=unit,
    )
    return RacePlan(entries=entries, design=design, cells=cells, is_local=is_local), []


def parse_budget(text: str | None) -> tuple[float | None, Literal["epochs", "hours"]]:
    """Return a budget's number and its unit; minutes are hours."""
    if text is None:
        return None, "epochs"
    if text.endswith("ep"):
        return float(text.removesuffix("ep")), "epochs"
    if text.endswith("min"):
        return float(text.removesuffix("min")) / 60, "hours"
    return float(text.removesuffix("h")), "hours"


def without_effect(overrides: Iterable[str]) -> list[Problem]:
    """Return what is said of a race on a command line that is none."""
    keys = dict.fromkeys(
        key for line in overrides if (key := _key(line)) == RACE or key.startswith(f"{RACE}.")
    )
    return [
        Problem(key, "a setting of a race", "nothing: this is none", "add -m sweep=race")
        for key in keys
    ]


def with_lists(overrides: Sequence[str]) -> list[str]:
    """Return the overrides with a race's lists as lists: `race.rungs=1,2` sweeps over nothing."""
    lists = (f"{RACE}.rungs", f"{RACE}.nuisance")
    return [
        f"{key}=[{value}]" if key in lists and value and value[0] not in "[$" else line
        for line in overrides
        for key, _, value in [line.partition("=")]
    ]


def _key(override: str) -> str:
    return parse_override(override).get_key_element().lstrip("+~")


def _given_by_the_race(overrides: Sequence[str]) -> list[Problem]:
    return [
        Problem(key, line.partition("=")[2], *_OF_THE_RACE[key])
        for line in overrides
        if (key := _key(line)) in _OF_THE_RACE
    ]


def _check_options(options: RaceOptions) -> list[Problem]:
    problems = []
    low, high, number = options.rates.split(":")
    try:
        is_range = 0 < float(low) <= float(high) and int(number) >= 1
        is_range = is_range and (int(number) == 1 or float(low) < float(high))
    except ValueError:
        is_range = False
    if not is_range:
        problems.append(
            Problem(
                "race.rates",
                options.rates,
                "LOW:HIGH:NUMBER with 0 < LOW < HIGH",
                "write race.rates=0.2:5:9",
            )
        )
    least, most = map(int, options.confirm.split(".."))
    if not 2 <= least <= most:
        problems.append(
            Problem(
                "race.confirm",
                options.confirm,
                "LEAST..MOST with a least number of 2: one seed says nothing of luck",
                "write race.confirm=2..6",
            )
        )
    if options.rung_schedule == "own":
        problems.append(
            Problem(
                "race.rung_schedule",
                "own",
                "run: a rung is the run itself, stopped and continued on its whole schedule",
                "leave it out; rungs with a schedule of their own are not built yet",
            )
        )
    return problems


def _check_nuisance(options: RaceOptions, swept: Sequence[str]) -> list[Problem]:
    return [
        Problem(
            "race.nuisance",
            f"{key}, which is not swept",
            "settings with several values on this command line",
            f"give its values, for instance {key}=A,B, or leave it out",
        )
        for key in options.nuisance
        if key != _RATE and key not in swept
    ]


def _arm_name(setting: str | None, lines: Sequence[str], tuned: Sequence[str]) -> str:
    """Return an arm's name: the optimizer's, the listed setting's, and whatever else is swept."""
    words = [setting] if setting is not None else []
    for line in lines:
        key, value = _key(line), line.partition("=")[2]
        if key not in tuned:
            words.append(value if key == "optimizer" else f"{key}={value}")
    return " ".join(words)


def _is_rateless(run: RunPlan) -> bool:
    return run.config.optimizer.traits.lr_role == "automatic"


def _check_lengths(cells: Mapping[tuple[str, Values], RunPlan]) -> list[Problem]:
    lengths = {run.num_epochs for run in cells.values()}
    if len(lengths) == 1:
        return []
    return [
        Problem(
            "train.epochs",
            " and ".join(map(str, sorted(lengths))) + " epochs",
            "as many epochs for all that race, since they stop at the same ones",
            "give one train.epochs, and race the others by a command of their own",
        )
    ]


def check_losses(runs: Sequence[RunPlan]) -> list[Problem]:
    """Return a problem where nothing tells how good a run is on images it was not trained on."""
    if all(
        run.config.validate.enabled
        and (
            run.config.validate.dir is not None or run.held_out is not None and run.held_out.images
        )
        for run in runs
    ):
        return []
    is_off = not all(run.config.validate.enabled for run in runs)
    return [
        Problem(
            "validate",
            "off" if is_off else "no held-out images",
            "images that are not trained on: what is chosen is chosen by their loss",
            "leave validate=off out"
            if is_off
            else "write validate.dir=FOLDER, or leave validate.holdout=none out (12 images and up)",
        )
    ]


def _rung_after_the_end(options: RaceOptions, length: int) -> Problem:
    return Problem(
        "race.rungs",
        f"epoch {max(options.rungs):g}",
        f"epochs before the end of a run, which has {length}",
        "write race.rungs=[1,2], or train longer: train.epochs=6",
    )

"""Read a search from a command line: what is searched, and for which combinations of the rest.

Optuna chooses the values of settings that have an interval. Everything that is listed besides makes
combinations, and each of them has searches of its own: no optimizer is dropped because another
one's rate was found first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import IntervalSweep
from omegaconf import DictConfig, OmegaConf

from optbench.config import sweep as config_sweep
from optbench.config.build import SEEDS, check_value
from optbench.config.composer import parse_override
from optbench.config.sweep import Expanded
from optbench.errors import Problem
from optbench.schema import Count, CountOrZero, Options

OPTUNA_SWEEPER = "hydra_plugins.optbench_optuna_sweeper.OptunaSweeper"
_SIGNIFICANT_DIGITS = 3  # of a proposed value: rates nearer than that are one rate


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions(Options):
    """How Optuna searches (`hydra.sweeper` of `hydra/sweeper=optbench_optuna`)."""

    trials: Count  # of each search
    studies: Count  # searches of each combination
    sampler: Literal["tpe", "quasirandom"]
    startup_trials: CountOrZero
    rungs: tuple[Count, ...]  # epochs after which a trial may be stopped
    draws: CountOrZero  # seed of the sampler
    target: str
    max_batch_size: Count | None
    params: Mapping[str, str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """What one setting may be."""

    low: float
    high: float
    is_log: bool
    is_whole: bool

    def typed(self, value: float) -> str:
        """Return a value of it as an override has it."""
        return str(round(value)) if self.is_whole else f"{value:.{_SIGNIFICANT_DIGITS}g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchEntries:
    """What the command line of a search lists."""

    options: SearchOptions
    combinations: Mapping[str, tuple[str, ...]]  # by name, the overrides that are not searched
    space: Mapping[str, Interval]
    varied: list[str]  # names of everything listed or searched
    seed: int  # the first training seed; study number n has seed + n

    @property
    def num_runs(self) -> int:
        """How many trainings are begun, pruned ones among them."""
        return len(self.combinations) * self.options.studies * self.options.trials

    def examples(self) -> list[Expanded]:
        """Return one run of every combination, at the lower end of what is searched."""
        low = [f"{key}={interval.typed(interval.low)}" for key, interval in self.space.items()]
        return [
            Expanded(setting=None, overrides=(*overrides, *low))
            for overrides in self.combinations.values()
        ]


def read_search(
    loader: ConfigLoader, master: DictConfig, overrides: Sequence[str], problems: list[Problem]
) -> SearchEntries | None:
    """Return what a command line searches; None after noting everything wrong with it.

    Args:
        loader: Hydra's, which knows the options that `glob()` stands for.
        master: The composed tree.
        overrides: The command line's.
        problems: Everything wrong is added to it.
    """
    wrong: list[Problem] = []
    lines = [*config_sweep.sweep_params(master, wrong), *overrides]
    by_key = {parse_override(line).get_key_element().lstrip("+~"): line for line in lines}
    space: dict[str, Interval] = {}
    for key, line in by_key.items():
        value = parse_override(line).value()
        if isinstance(value, IntervalSweep):
            wrong += _check_interval(key, value)
            space[key] = Interval(
                low=float(value.start or 0),
                high=float(value.end or 0),
                is_log="log" in value.tags,
                is_whole=isinstance(value.start, int) and isinstance(value.end, int),
            )
    if not space:
        wrong.append(
            Problem(
                "hydra/sweeper",
                "a search, and no setting with an interval",
                "what to search, and from where to where",
                "write 'lr_mult=tag(log,interval(0.2,5))', or leave hydra/sweeper out",
            )
        )
    rest = [line for key, line in by_key.items() if key not in space]
    expanded, swept = config_sweep.expand(loader, master, rest, wrong)
    if "seed" in swept:
        wrong.append(_seed_is_no_setting(by_key["seed"].partition("=")[2]))
    node = OmegaConf.to_container(master.hydra.sweeper, resolve=True)
    wrong += check_value(SearchOptions, node, "hydra.sweeper")
    problems += wrong
    if wrong or not isinstance(node, dict):
        return None
    values = {str(key): value for key, value in node.items()}
    values["rungs"] = tuple(sorted(set(values["rungs"])))
    combinations = {}
    for run in expanded:
        typed = {
            parse_override(line).get_key_element().lstrip("+~"): line for line in run.overrides
        }
        words = [] if run.setting is None else [run.setting]
        words += [typed[key].partition("=")[2] for key in swept if key in typed]
        combinations[" ".join(words) or str(master.optimizer.name)] = run.overrides
    return SearchEntries(
        options=SearchOptions(target=values.pop("_target_"), **values),
        combinations=combinations,
        space=space,
        varied=[*swept, *space],
        seed=master.seed,
    )


def _check_interval(key: str, value: IntervalSweep) -> list[Problem]:
    if key in ("seed", SEEDS):
        return [_seed_is_no_setting("an interval")]
    low, high = value.start, value.end
    if low is None or high is None or not low < high or ("log" in value.tags and not low > 0):
        return [
            Problem(
                key,
                f"from {low} to {high}",
                "a lower end below the upper one, and above 0 with tag(log,...)",
                f"write '{key}=tag(log,interval(0.2,5))'",
            )
        ]
    return []


def _seed_is_no_setting(given: str) -> Problem:
    return Problem(
        "seed",
        f"{given} in a search, which would choose the luckiest",
        "one seed: what is found is trained with fresh ones",
        "leave it out; hydra.sweeper.studies=3 repeats each search with seeds of its own",
    )

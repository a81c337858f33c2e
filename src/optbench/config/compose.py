"""Compose and check every run of a command line, with nothing written to disk.

Hydra stops at the first problem; here an override that Hydra refuses is noted and left out, and
composing continues, so that everything wrong is reported together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import yaml
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from optbench.config import messages, race, rules, untrusted
from optbench.config import sweep as config_sweep
from optbench.config.build import build_config
from optbench.config.composer import Composer, hydra_session
from optbench.config.identity import on_this_machine, plan_run
from optbench.config.launcher import at_a_time, launcher_options
from optbench.config.quoting import with_quoted_places
from optbench.config.race import RACE_SWEEPER, RaceEntries, RacePlan
from optbench.config.run_rules import Checked, check_device, check_run, check_writable
from optbench.config.search import OPTUNA_SWEEPER, SearchEntries, read_search
from optbench.errors import ConfigError, OptbenchError, Problem
from optbench.lora.initial_weights import ReadWeights
from optbench.records import Dataset
from optbench.schema import BaseOptions, DatasetOptions, LaunchOptions
from optbench.storage import resources
from optbench.training.plan import RunPlan

CONFIG_NAME = "config"
_BASIC_LAUNCHER = f"{BasicLauncher.__module__}.{BasicLauncher.__name__}"
_BASIC_SWEEPER = f"{BasicSweeper.__module__}.{BasicSweeper.__name__}"
LIST_SWEEPER = "hydra_plugins.optbench_list_sweeper.ListSweeper"


class Planned(Protocol):
    """What every kind of run of a command line has."""

    @property
    def overrides(self) -> tuple[str, ...]:
        """What makes it differ from the defaults."""

    @property
    def run_dir(self) -> Path:
        """The folder it has or will have."""


_Run = TypeVar("_Run", bound=Planned)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command(Generic[_Run]):
    """One of the commands that take settings: its primary config, and what its runs are."""

    name: str  # as it is typed behind `optbench`; "" trains
    config_name: str  # a file of conf/
    build: Callable[[DictConfig, tuple[str, ...], str], _Run]  # settings, overrides, sweep's name
    typed: str = ""  # the name of another command that asks for the same runs


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandPlan(Generic[_Run]):
    """Everything a command line is to make."""

    runs: tuple[_Run, ...]
    sweep_dir: Path
    is_complete: bool  # False: a sweeper plugin chooses runs as it goes; `runs` is one example
    # True: the runs are those of a list, or of several seeds: only our own sweeper expands them.
    is_listed: bool
    launch: LaunchOptions | None  # None: a command that makes all its runs in its own process
    is_local: bool  # True: no launcher plugin, the runs are made here
    at_a_time: int | None = None  # runs a launcher plugin makes at a time; None: unknown
    # Not None: a race, whose `runs` are one of each arm, at its own rate.
    raced: RaceEntries | None = None
    search: SearchEntries | None = None  # not None: `runs` are one example of each combination
    race: RacePlan | None = None  # of a training, the same race planned


SweepPlan = CommandPlan[RunPlan]


def flags_first(arguments: Sequence[str]) -> list[str]:
    """Return the arguments as Hydra reads them: flags before overrides, file names in quotes.

    Hydra's parser refuses a flag between overrides; people write -m where it comes to mind.
    """

    def is_override(argument: str) -> bool:
        return not argument.startswith("-") and ("=" in argument or argument.startswith("~"))

    return sorted(with_quoted_places(arguments), key=is_override)


def compose_runs(arguments: Sequence[str], *, command: str = "") -> SweepPlan:
    """Return all trainings of a command line; creates nothing and loads no weights.

    Args:
        arguments: The command line's.
        command: The command that asks, for messages; "" trains.

    Raises:
        ConfigError: With the problems of all runs together.
    """
    # Runs that share a data set, or continue the same LoRA, read it once.
    datasets: dict[tuple[DatasetOptions, int], Dataset] = {}
    read: ReadWeights = {}
    bases: dict[tuple[BaseOptions, str], tuple[int, str]] = {}
    checked = Checked()

    def plan(tree: DictConfig, overrides: tuple[str, ...], folder: str) -> RunPlan:
        config = build_config(tree, read)
        sweep_dir = Path(config.runs_dir) / (config.sweep_name or folder)
        run = plan_run(
            config,
            sweep_dir=sweep_dir,
            overrides=overrides,
            datasets=datasets,
            read=read,
            bases=bases,
        )
        if problems := check_run(run, checked):
            raise ConfigError(*problems)
        return run

    sweep = compose(arguments, Command(name="", config_name=CONFIG_NAME, build=plan, typed=command))
    problems = check_writable("runs_dir", sweep.sweep_dir)
    for config in {run.config.cache_dir: run.config for run in sweep.runs}.values():
        if not Path(config.cache_dir).is_relative_to(config.runs_dir):
            problems += check_writable("cache_dir", Path(config.cache_dir))
    if sweep.is_local:  # a launcher plugin's machine may have what this one lacks
        trains = [run.config.train for run in sweep.runs]
        for device, precision in dict.fromkeys((t.device, t.mixed_precision) for t in trains):
            problems += check_device(device, precision, group="train")
    if problems:
        raise ConfigError(*problems)
    num_runs = len(sweep.runs) if sweep.is_complete else 0
    until_epoch = None if sweep.launch is None else sweep.launch.until_epoch
    runs = [
        dataclasses.replace(run, until_epoch=until_epoch, run_index=index, num_runs=num_runs)
        for index, run in enumerate(sweep.runs)
    ]
    planned_race = None
    if sweep.raced is not None:
        planned_race, problems = race.plan_race(sweep.raced, runs, is_local=sweep.is_local)
        if problems:
            raise ConfigError(*problems)
    if sweep.is_local:
        runs = [on_this_machine(run) for run in runs]
        if problems := _check_together(runs):  # device=auto and device=cpu may be the same here
            raise ConfigError(*problems)
    if sweep.search is not None and (problems := race.check_losses(runs)):
        raise ConfigError(*problems)
    return dataclasses.replace(sweep, runs=tuple(runs), race=planned_race)


def compose(arguments: Sequence[str], command: Command[_Run]) -> CommandPlan[_Run]:
    """Return every run that a command line asks of a command; creates nothing.

    Raises:
        ConfigError: With the problems of all runs together.
    """
    parsed = get_args_parser().parse_args(list(arguments))
    problems = [
        messages.unsupported_flag(flag)
        for flag in ("config_name", "config_path", "experimental_rerun")
        if getattr(parsed, flag) is not None
    ]
    with hydra_session(parsed.config_dir, command.config_name) as hydra:
        overrides = config_sweep.parsable(parsed.overrides, problems)
        overrides = config_sweep.with_quoted_texts(overrides, problems)
        overrides = race.with_lists(overrides)
        overrides = hydra.without_lists(overrides, problems)
        typed = hydra.typed(overrides)
        master, overrides = compose_tree(hydra, overrides, mode=RunMode.MULTIRUN, problems=problems)
        sweep = master.hydra.runtime.choices.get("sweep")
        if sweep and (owner := resources.sweep_commands().get(sweep, command.name)) != command.name:
            raise ConfigError(messages.sweep_of_another_command(sweep, owner))
        num_seeds = config_sweep.num_seeds(master, problems)
        is_multirun = parsed.multirun or master.hydra.mode == RunMode.MULTIRUN or num_seeds > 1
        sweeper = str(master.hydra.sweeper._target_)
        is_complete = sweeper in (_BASIC_SWEEPER, LIST_SWEEPER)
        is_race = is_multirun and sweeper == RACE_SWEEPER
        is_search = is_multirun and sweeper == OPTUNA_SWEEPER
        problems += [] if is_race else race.without_effect(overrides)
        is_listed = bool(config_sweep.listed_settings(master))
        is_basic_typed = "hydra/sweeper=basic" in overrides
        if num_seeds > 1 and (is_basic_typed or not is_complete) and not is_race:
            problems.append(messages.seeds_with_a_sweeper(num_seeds))
        is_expanded = is_multirun and (is_complete or is_race or is_search)
        if is_listed and not (is_expanded and not is_basic_typed):
            problems.append(messages.settings_need_multirun(is_multirun=is_multirun))
        raced, search = None, None
        if is_search:
            search = read_search(hydra.hydra.config_loader, master, overrides, problems)
            expanded, swept = ([], []) if search is None else (search.examples(), search.varied)
        elif is_expanded:
            lines = [*config_sweep.sweep_params(master, problems), *overrides]
            expanded, swept = config_sweep.expand(
                hydra.hydra.config_loader, master, lines, problems
            )
            if is_race:
                raced = race.read_race(master, lines, expanded, swept, problems)
                expanded = expanded if raced is None else raced.first_runs()
        else:
            expanded, swept = config_sweep.only_run(
                overrides, problems, is_multirun=is_multirun, command=command.typed or command.name
            )
        is_local = str(master.hydra.launcher._target_) == _BASIC_LAUNCHER
        launch = launcher_options(master, is_local=is_local, problems=problems)
        of_hydra = [line for line in overrides if config_sweep.is_hydras(line)]
        refused = frozenset(_key_of(problem) for problem in problems)
        folder = sweep or config_sweep.sweep_folder(swept)
        runs = []
        by_setting: dict[str | None, list[Problem]] = {}
        for single in expanded:
            wrong = by_setting.setdefault(single.setting, [])
            lines = [*of_hydra, *single.overrides]
            wrong += hydra.untrusted(lines, typed)
            mistyped = {problem.where: problem for problem in hydra.mistyped(lines)}
            wrong += mistyped.values()
            lines = [
                line for line in lines if not mistyped or not mistyped.keys() & hydra.sets(line)
            ]
            run = _build_run(hydra, command, lines, folder, wrong, refused)
            runs += [] if run is None else [run]
    problems += config_sweep.named_by_setting(by_setting)
    if not problems:
        problems += _check_together(runs)
    if problems:
        raise ConfigError(*rules.without_repeats(problems))
    return CommandPlan(
        runs=tuple(runs),
        sweep_dir=runs[0].run_dir.parent,
        is_complete=is_complete,
        is_listed=(is_listed or num_seeds > 1) and is_complete,
        launch=launch,
        is_local=is_local,
        at_a_time=at_a_time(master),
        raced=raced,
        search=search,
    )


def check_untrusted_targets(arguments: Sequence[str], config_name: str) -> None:
    """Refuse a --config-dir whose files would have Hydra call what is not its own.

    For commands that only show something: Hydra sets up its logging for these, too. What does not
    compose at all is reported by Hydra.

    Raises:
        ConfigError: With everything of the kind.
    """
    parsed = get_args_parser().parse_args(list(arguments))
    if parsed.config_dir is None:
        return
    with hydra_session(parsed.config_dir, config_name) as hydra:
        try:
            tree = hydra.tree(parsed.overrides, RunMode.RUN)
            typed = hydra.typed(parsed.overrides)
        except HydraException:
            return
    if problems := untrusted.check_tree(tree, typed):
        raise ConfigError(*problems)


def compose_tree(
    hydra: Composer,
    overrides: Sequence[str],
    *,
    mode: RunMode = RunMode.RUN,
    problems: list[Problem],
) -> tuple[DictConfig, list[str]]:
    """Return the composed tree and the overrides in it, after noting those Hydra refuses.

    Raises:
        ConfigError: If even without them nothing can be composed: a file is wrong.
    """
    tree, accepted = _compose(lambda lines: hydra.tree(lines, mode), overrides, problems)
    problems += untrusted.check_tree(tree, hydra.typed(accepted))
    return tree, accepted


def _compose(
    compose_lines: Callable[[Sequence[str]], DictConfig],
    overrides: Sequence[str],
    problems: list[Problem],
) -> tuple[DictConfig, list[str]]:
    """Return what overrides compose to and those in it, after noting those Hydra refuses."""
    accepted = list(overrides)
    refused: list[tuple[str, HydraException]] = []
    while True:
        try:
            tree = compose_lines(accepted)
            break
        except HydraException as error:
            wrong = _refused_override(compose_lines, accepted, error)
            if wrong is None:
                raise ConfigError(*problems, messages.broken_file(error)) from error
            refused.append((wrong, error))
            accepted.remove(wrong)
        except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
            raise ConfigError(*problems, messages.unreadable_file(error)) from error
    problems += [messages.explain_refusal(override, error, tree) for override, error in refused]
    return tree, accepted


def _refused_override(
    compose_lines: Callable[[Sequence[str]], DictConfig],
    overrides: Sequence[str],
    error: HydraException,
) -> str | None:
    """Return the override that an error of Hydra's is about; None where it is about a file."""
    if isinstance(error, MissingConfigException):
        for override in overrides:
            group, _, option = override.lstrip("+").partition("=")
            if f"{group.partition('@')[0]}/{option}" == error.missing_cfg_file:
                return override
    named = re.search(r"Could not \w+ (?:to |from )?[^']*'([^']+)'", str(error))
    for override in overrides:
        if named and _key(override) == named[1]:
            return override
    # The error names nothing that was typed (a key inside a value, an interpolation): the override
    # without which the rest composes is the one.
    for override in overrides:
        with contextlib.suppress(HydraException, yaml.YAMLError, OmegaConfBaseException):
            compose_lines([other for other in overrides if other != override])
            return override
    return None


def _build_run(
    hydra: Composer,
    command: Command[_Run],
    overrides: Sequence[str],
    folder: str,
    problems: list[Problem],
    refused: frozenset[str],
) -> _Run | None:
    """Return one run, or None after noting everything wrong with it.

    A wrong override may hide other mistakes: it is left out, and the rest is checked again.
    """
    remaining = list(overrides)
    noted = set(refused)  # keys that have their problem; left out they lack a value, too
    of_run = tuple(line for line in overrides if not config_sweep.is_hydras(line))
    while True:
        tree, _ = _compose(hydra.run_tree, remaining, problems)
        try:
            run = command.build(tree, of_run, folder)
        except OptbenchError as error:
            problems += [problem for problem in error.problems if _key_of(problem) not in noted]
            wrong = {_key_of(problem) for problem in error.problems}
            noted |= wrong
            right = [override for override in remaining if _key(override) not in wrong]
            if right == remaining:
                return None
            remaining = right
        except OSError as error:  # a folder or file that may not be read, or no file's name at all
            problems.append(messages.unreadable_file(error))
            return None
        else:
            return run if len(remaining) == len(overrides) else None


def _key_of(problem: Problem) -> str:
    """Return the key a problem is about; what follows in `where` says more."""
    return problem.where.partition(" ")[0]


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _check_together(runs: Sequence[Planned]) -> list[Problem]:
    """Return what is wrong with the runs as a set: equal ones, or ones in different sweeps."""
    seen: dict[Path, Planned] = {}
    problems = []
    for run in runs:
        if run.run_dir in seen:
            first = " ".join(seen[run.run_dir].overrides)
            problems.append(messages.equal_runs(first, " ".join(run.overrides)))
        seen.setdefault(run.run_dir, run)
    parents = {str(run.run_dir.parent) for run in runs}
    if len(parents) > 1:
        problems.append(messages.several_sweeps(sorted(parents)))
    return problems


_OPTION_NAME = re.compile(r"[A-Za-z0-9_-]+")


def compose_recipe(file: Path) -> DictConfig:
    """Return the tree of a default run with a recipe from any file, at its own rate on SD1.x.

    Raises:
        ConfigError: If the file is not there or is no YAML that Hydra can compose.
    """
    problems: list[Problem] = []
    if not (file.is_file() and file.suffix == ".yaml" and _OPTION_NAME.fullmatch(file.stem)):
        raise ConfigError(
            Problem(
                "the command line",
                f"{file}, which is no such file",
                "a recipe NAME.yaml with letters, digits, _ and - in its name",
                "copy one of conf/optimizer/ and change it",
            )
        )
    with tempfile.TemporaryDirectory() as folder:
        # Hydra looks for optimizer/NAME.yaml; beside it may lie recipes it is based on.
        (Path(folder) / "optimizer").symlink_to(file.parent.resolve())
        with hydra_session(folder, CONFIG_NAME) as hydra:
            overrides = [f"optimizer={file.stem}", "base.lr_scale=1.0", "base.lr_scales=null"]
            tree, _ = compose_tree(hydra, overrides, problems=problems)
    if problems:
        raise ConfigError(*problems)
    return tree

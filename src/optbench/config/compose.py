"""A command line -> every run it asks for, composed and checked, with nothing on disk.

Hydra stops at the first problem; here an override that Hydra refuses is noted and left out, and
composing goes on, so that one look shows everything that is wrong.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from hydra import version
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from optbench.config import messages, rules, untrusted
from optbench.config import sweep as config_sweep
from optbench.config.build import build_config, register_resolvers
from optbench.config.identity import plan_run
from optbench.config.launcher import at_a_time, launcher_options
from optbench.errors import ConfigError, OptbenchError, Problem
from optbench.records import Dataset
from optbench.schema import DatasetOptions, LaunchOptions
from optbench.storage import resources
from optbench.training.plan import RunPlan

CONFIG_NAME = "config"
VERSION_BASE = "1.3"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandPlan(Generic[_Run]):
    """Everything a command line asks for."""

    runs: tuple[_Run, ...]
    sweep_dir: Path
    is_complete: bool  # False: a sweeper plugin chooses the runs while it goes, this is one of them
    is_listed: bool  # True: the runs are those of a list, which only our own sweeper expands
    launch: LaunchOptions | None  # None: a command that makes all its runs in its own process
    is_local: bool  # True: no launcher plugin, the runs are made here
    at_a_time: int | None = None  # runs, by a launcher plugin; None: it does not say


SweepPlan = CommandPlan[RunPlan]


def flags_first(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with all overrides behind the flags.

    Hydra's parser refuses a flag between overrides; people write -m where it comes to mind.
    """
    return sorted(arguments, key=_is_override)


def _is_override(argument: str) -> bool:
    return not argument.startswith("-") and ("=" in argument or argument.startswith("~"))


def compose_runs(arguments: Sequence[str]) -> SweepPlan:
    """Return all trainings of a command line; creates nothing and loads no weights.

    Raises:
        ConfigError: With the problems of all runs together.
    """
    datasets: dict[tuple[DatasetOptions, int], Dataset] = {}  # runs that share one read it once

    def plan(tree: DictConfig, overrides: tuple[str, ...], place: str) -> RunPlan:
        config = build_config(tree)
        sweep_dir = Path(config.runs_dir) / (config.sweep_name or place)
        return plan_run(config, sweep_dir=sweep_dir, overrides=overrides, datasets=datasets)

    asked = compose(arguments, Command(name="", config_name=CONFIG_NAME, build=plan))
    num_runs = len(asked.runs) if asked.is_complete else 0
    runs = [
        dataclasses.replace(run, run_index=index, num_runs=num_runs)
        for index, run in enumerate(asked.runs)
    ]
    return dataclasses.replace(asked, runs=tuple(runs))


def compose(arguments: Sequence[str], command: Command[_Run]) -> CommandPlan[_Run]:
    """Return all runs that a command line asks of a command; creates nothing.

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
        asked = config_sweep.parsable(parsed.overrides, problems)
        asked = config_sweep.with_quoted_texts(asked, problems)
        master, asked = compose_tree(hydra, asked, mode=RunMode.MULTIRUN, problems=problems)
        sweep = master.hydra.runtime.choices.get("sweep")
        if sweep and (owner := resources.sweep_commands().get(sweep, command.name)) != command.name:
            raise ConfigError(messages.sweep_of_another_command(sweep, owner))
        is_multirun = parsed.multirun or master.hydra.mode == RunMode.MULTIRUN
        is_complete = str(master.hydra.sweeper._target_) in (_BASIC_SWEEPER, LIST_SWEEPER)
        is_listed = bool(config_sweep.listed_settings(master))
        is_basic_typed = "hydra/sweeper=basic" in asked
        if is_listed and not (is_multirun and is_complete and not is_basic_typed):
            problems.append(messages.settings_need_multirun(is_multirun=is_multirun))
        swept: list[str] = []
        if is_multirun and is_complete:
            lines = [*config_sweep.sweep_params(master, problems), *asked]
            expanded, swept = config_sweep.expand(
                hydra.hydra.config_loader, master, lines, problems
            )
        else:
            expanded, swept = config_sweep.only_run(asked, problems, is_multirun=is_multirun)
        is_local = str(master.hydra.launcher._target_) == _BASIC_LAUNCHER
        launching = launcher_options(master, is_local=is_local, problems=problems)
        own = [override for override in asked if override.startswith("hydra")]
        refused = frozenset(_about(problem) for problem in problems)
        place = sweep or config_sweep.sweep_folder(swept)
        runs = []
        noted: dict[str | None, list[Problem]] = {}
        for each in expanded:
            here = noted.setdefault(each.setting, [])
            run = _build_run(hydra, command, [*own, *each.overrides], place, here, refused)
            runs += [] if run is None else [run]
    problems += config_sweep.named_by_setting(noted)
    if not problems:
        problems += _check_together(runs)
    if problems:
        raise ConfigError(*rules.without_repeats(problems))
    return CommandPlan(
        runs=tuple(runs),
        sweep_dir=runs[0].run_dir.parent,
        is_complete=is_complete,
        is_listed=is_listed,
        launch=launching,
        is_local=is_local,
        at_a_time=at_a_time(master),
    )


@dataclass(frozen=True, slots=True)
class _Composer:
    """Hydra, and the primary config it composes."""

    hydra: Hydra
    config_name: str

    def tree(self, overrides: Sequence[str], mode: RunMode) -> DictConfig:
        return self.hydra.compose_config(
            config_name=self.config_name,
            overrides=list(overrides),
            run_mode=mode,
            with_log_configuration=False,
            validate_sweep_overrides=False,
        )


@contextlib.contextmanager
def hydra_session(config_dir: str | None, config_name: str) -> Iterator[_Composer]:
    """Return Hydra as `hydra.main` builds it, and leave no trace of it in the process."""
    register_resolvers()
    version.setbase(VERSION_BASE)
    search_path = create_automatic_config_search_path(None, None, str(resources.conf_dir()))
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise ConfigError(messages.no_config_dir(config_dir))
        search_path.prepend(
            provider="command-line",
            path=f"file://{Path(config_dir).resolve()}",
            anchor=SearchPathQuery(provider="schema", path=None),
        )
    GlobalHydra.instance().clear()
    try:
        hydra = Hydra.create_main_hydra2(task_name="optbench", config_search_path=search_path)
        yield _Composer(hydra, config_name)
    finally:
        GlobalHydra.instance().clear()


def check_untrusted_targets(arguments: Sequence[str]) -> None:
    """Refuse a --config-dir whose files would have Hydra call what is not its own.

    For commands that only show something: Hydra sets up its logging for these, too. What cannot
    be composed at all is left to Hydra to say.

    Raises:
        ConfigError: With everything of the kind.
    """
    parsed = get_args_parser().parse_args(list(arguments))
    if parsed.config_dir is None:
        return
    with hydra_session(parsed.config_dir, CONFIG_NAME) as hydra:
        try:
            tree = hydra.tree(parsed.overrides, RunMode.RUN)
        except HydraException:
            return
    if problems := untrusted.check_tree(tree, parsed.overrides):
        raise ConfigError(*problems)


def compose_tree(
    hydra: _Composer,
    overrides: Sequence[str],
    *,
    mode: RunMode = RunMode.RUN,
    problems: list[Problem],
) -> tuple[DictConfig, list[str]]:
    """Return the composed tree and the overrides in it, after noting those Hydra refuses.

    Raises:
        ConfigError: If even without them nothing can be composed: a file is wrong.
    """
    kept = list(overrides)
    refused: list[tuple[str, HydraException]] = []
    while True:
        try:
            tree = hydra.tree(kept, mode)
            break
        except HydraException as error:
            guilty = _guilty(hydra, kept, mode, error)
            if guilty is None:
                raise ConfigError(*problems, messages.broken_file(error)) from error
            refused.append((guilty, error))
            kept.remove(guilty)
    problems += [messages.explain(override, error, tree) for override, error in refused]
    problems += untrusted.check_tree(tree, overrides)
    return tree, kept


def _guilty(
    hydra: _Composer, overrides: Sequence[str], mode: RunMode, error: HydraException
) -> str | None:
    """Return the override that an error is about; without a name in it, by leaving each out."""
    if isinstance(error, MissingConfigException):
        for override in overrides:
            group, _, option = override.lstrip("+").partition("=")
            if f"{group.partition('@')[0]}/{option}" == error.missing_cfg_file:
                return override
    named = re.search(r"Could not \w+ (?:to |from )?[^']*'([^']+)'", str(error))
    for override in overrides:
        if named and _key(override) == named[1]:
            return override
    for override in overrides:
        with contextlib.suppress(HydraException):
            hydra.tree([other for other in overrides if other != override], mode)
            return override
    return None


def _build_run(
    hydra: _Composer,
    command: Command[_Run],
    overrides: Sequence[str],
    place: str,
    problems: list[Problem],
    refused: frozenset[str],
) -> _Run | None:
    """Return one run, or None after noting everything wrong with it.

    What an override got wrong may hide other mistakes: it is left out, and the rest looked at.
    """
    kept = list(overrides)
    named = set(refused)  # keys a problem was already noted for; left out they lack a value
    while True:
        tree, _ = compose_tree(hydra, kept, problems=problems)
        with open_dict(tree):
            del tree["hydra"]
        try:
            own = tuple(override for override in overrides if not override.startswith("hydra"))
            run = command.build(tree, own, place)
        except OptbenchError as error:
            problems += [one for one in error.problems if _about(one) not in named]
            wrong = {_about(one) for one in error.problems}
            named |= wrong
            right = [override for override in kept if _key(override) not in wrong]
            if right == kept:
                return None
            kept = right
            continue
        return run if len(kept) == len(overrides) else None


def _about(problem: Problem) -> str:
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
    """Return the tree of a default run with a recipe from any file; base.lr_scale is 1.

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
            overrides = [f"optimizer={file.stem}", "base.lr_scale=1.0"]
            tree, _ = compose_tree(hydra, overrides, problems=problems)
    if problems:
        raise ConfigError(*problems)
    return tree

"""Hydra's composition, with what many runs of a command line share composed once.

Composing is two steps: Hydra merges the files that the choices of groups name, then sets single
values on the result. Runs of a sweep mostly differ in the second. So the first step's result is
kept for each set of choices, and a copy of it gets the values, by Hydra's own code.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import pickle
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import omegaconf.base
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString
from hydra.errors import ConfigCompositionException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from optbench.config import messages
from optbench.config.build import register_resolvers
from optbench.config.untrusted import (
    Typed,
    check_config_dir,
    check_overrides,
    check_tree,
    leaves,
)
from optbench.errors import ConfigError, Problem
from optbench.optim.arguments import check_kind, check_word
from optbench.storage import resources

VERSION_BASE = "1.3"
# Settings of any name, whose types the schema does not know.
_UNTYPED = re.compile(
    r"optimizer\.(args|group_args)\b|metric\.metrics\.\w+\.(?!_target_)|tracker\.args\b"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Composed:
    """What some choices of groups compose to."""

    whole: DictConfig  # never changed
    of_runs: bytes  # without Hydra's own settings, pickled: read back it is the fastest copy


@dataclass(frozen=True, slots=True)
class Composer:
    """Hydra, and the primary config it composes."""

    hydra: Hydra
    config_name: str
    _by_choices: dict[tuple[str, ...], _Composed] = field(default_factory=dict)
    _problems: dict[tuple[str, ...], list[Problem]] = field(default_factory=dict)
    _is_group: dict[str, bool] = field(default_factory=dict)

    def tree(self, overrides: Sequence[str], mode: RunMode) -> DictConfig:
        """Return what Hydra composes, its own settings under `hydra` included."""
        return self.hydra.compose_config(
            config_name=self.config_name,
            overrides=list(overrides),
            run_mode=mode,
            with_log_configuration=False,
            validate_sweep_overrides=False,
        )

    def run_tree(self, overrides: Sequence[str]) -> DictConfig:
        """Return the tree of one run as `tree` gives it, without Hydra's own settings.

        Raises:
            HydraException: As `tree`.
        """
        parsed = [parse_override(line) for line in overrides]
        if any(override.is_sweep_override() for override in parsed):
            return _without_hydra(self.tree(overrides, RunMode.RUN))
        tree: DictConfig = pickle.loads(self._composed(self._choices(overrides)).of_runs)
        values = [override for override in parsed if self._is_value(override)]
        try:
            ConfigLoaderImpl._apply_overrides_to_config(values, tree)
        except OmegaConfBaseException as error:
            raise ConfigCompositionException from error
        return tree

    def typed(self, overrides: Sequence[str]) -> Typed:
        """Return the single settings among the overrides that a person typed."""
        parsed = [parse_override(line) for line in overrides]
        return Typed.of(override for override in parsed if not self._is_choice(override))

    def untrusted(self, overrides: Sequence[str], typed: Typed) -> list[Problem]:
        """Return what the files of one run would call or look up and may not."""
        choices = self._choices(overrides)
        if choices not in self._problems:
            try:
                self._problems[choices] = check_tree(self._composed(choices).whole, typed)
            except HydraException:
                return []  # said where it is composed
        values = [parse_override(line) for line in overrides]
        values = [override for override in values if self._is_value(override)]
        return self._problems[choices] + check_overrides(values, typed)

    def without_lists(self, overrides: Sequence[str], problems: list[Problem]) -> list[str]:
        """Return the overrides but those that lay files of a group on top of each other."""
        single = []
        for line in overrides:
            override = parse_override(line)
            value = override._value
            values = value.list if isinstance(value, ChoiceSweep) else [value]
            lists = [item for item in values if isinstance(item, list)]
            if lists and self._is_choice(override):
                options = [
                    str(option)
                    for item in values
                    for option in (item if isinstance(item, list) else [item])
                ]
                problems.append(messages.list_of_options(override.key_or_group, line, options))
            else:
                single.append(line)
        return single

    def sets(self, line: str) -> set[str]:
        """Return the keys of the single values that an override sets."""
        override = parse_override(line)
        return {key for key, _ in leaves(override.value(), override.key_or_group, lists=False)}

    def mistyped(self, overrides: Sequence[str]) -> list[Problem]:
        """Return the overrides of another kind than the value they replace, where no schema tells.

        And the bare words that read like another kind, where a key is new.
        """
        try:
            shipped = self._composed(self._choices(overrides)).whole
        except HydraException:
            return []  # said where it is composed
        problems: list[Problem] = []
        for override in map(parse_override, overrides):
            if override.is_delete() or not _UNTYPED.match(override.key_or_group):
                continue
            for where, value in leaves(override.value(), override.key_or_group, lists=False):
                known = _plain(OmegaConf.select(shipped, where, throw_on_missing=False))
                problems += check_kind(where, value, known)
                if known is None and not isinstance(override._value, QuotedString):
                    problems += check_word(where, value)
        return problems

    def _composed(self, choices: tuple[str, ...]) -> _Composed:
        if choices not in self._by_choices:
            whole = self.tree(choices, RunMode.RUN)
            of_runs = pickle.dumps(_without_hydra(copy.deepcopy(whole)))
            self._by_choices[choices] = _Composed(whole=whole, of_runs=of_runs)
        return self._by_choices[choices]

    def _choices(self, overrides: Sequence[str]) -> tuple[str, ...]:
        """Return the overrides that choose files; Hydra's own may change how it composes."""
        return tuple(line for line in overrides if not self._is_value(parse_override(line)))

    def _is_value(self, override: Override) -> bool:
        """Return whether an override only sets a value on what was composed without it."""
        key = override.key_or_group
        is_hydras = key == "hydra" or key.startswith(("hydra.", "hydra/"))
        return not is_hydras and not self._is_choice(override)

    def _is_choice(self, override: Override) -> bool:
        """Return whether an override chooses a file of a group, as Hydra tells."""
        key = override.key_or_group
        if key not in self._is_group:
            loader = self.hydra.config_loader
            assert isinstance(loader, ConfigLoaderImpl)
            _, repository = loader._parse_overrides_and_create_caching_repo(self.config_name, [])
            self._is_group[key] = repository.group_exists(key)
        is_dict = not override.is_sweep_override() and isinstance(override.value(), dict)
        return self._is_group[key] and not is_dict


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _without_hydra(tree: DictConfig) -> DictConfig:
    with open_dict(tree):
        del tree["hydra"]
    return tree


@functools.lru_cache(maxsize=4096)
def parse_override(line: str) -> Override:
    """Return an override by Hydra's grammar; not to be changed."""
    return OverridesParser.create().parse_override(line)


@contextlib.contextmanager
def hydra_session(config_dir: str | None, config_name: str) -> Iterator[Composer]:
    """Return Hydra as `hydra.main` builds it, and leave no trace of it in the process."""
    register_resolvers()
    version.setbase(VERSION_BASE)
    search_path = create_automatic_config_search_path(None, None, str(resources.conf_dir()))
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise ConfigError(messages.no_config_dir(config_dir))
        if problems := check_config_dir(Path(config_dir), resources.primary_configs()):
            raise ConfigError(*problems)
        search_path.prepend(
            provider="command-line",
            path=f"file://{Path(config_dir).resolve()}",
            anchor=SearchPathQuery(provider="schema", path=None),
        )
    GlobalHydra.instance().clear()
    module: Any = omegaconf.base
    parse = module.parse
    try:
        # The same few dozen interpolations are resolved for every run.
        module.parse = functools.lru_cache(maxsize=4096)(parse)
        hydra = Hydra.create_main_hydra2(task_name="optbench", config_search_path=search_path)
        yield Composer(hydra, config_name)
    finally:
        module.parse = parse
        GlobalHydra.instance().clear()

"""Compose a command line of `optbench render` into the plots it asks for, checked.

Nothing here imports torch, so a mistyped command is refused at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from optbench.cli.commands import split_bare_words
from optbench.cli.render.axes import Axis, read_axis
from optbench.cli.render.grid_plan import Plot, check_plot
from optbench.cli.render.sources import find_sources
from optbench.cli.render.wildcards import read_lists
from optbench.config import rules
from optbench.config.build import build_options
from optbench.config.compose import Command, CommandPlan, compose
from optbench.config.quoting import quoted
from optbench.config.run_rules import check_device, check_writable
from optbench.errors import ConfigError, Problem
from optbench.models.files.rules import check_base, check_clip_skip
from optbench.schema import PlotOptions
from optbench.storage.hashing import fingerprint

NAME, CONFIG_NAME = "render", "plot"
CELLS_FOLDER = "cells"  # of the images, in the folder that `dir` names
SIDES = ("x", "y", "z")
_NOT_OF_THE_IMAGES = ("num_threads", "device", "cache_dir", "dir")
_NUM_HASH_DIGITS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PlotPlan:
    """One plot; its status and what it shows lie in `run_dir`."""

    overrides: tuple[str, ...]
    plot: Plot
    run_dir: Path


def with_named_files(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with those that are neither flag nor override as `lora=[...]`."""
    files, others = split_bare_words(arguments)
    if not files:
        return others
    return [*others, f"lora=[{','.join(quoted(file) for file in files)}]"]


def compose_plots(arguments: Sequence[str]) -> CommandPlan[PlotPlan]:
    """Return every plot a command line asks for; makes nothing and loads no weights.

    Raises:
        ConfigError: With the problems of all of them together.
    """
    command = Command(name=NAME, config_name=CONFIG_NAME, build=_plan)
    return compose(with_named_files(arguments), command)


def _plan(tree: DictConfig, overrides: tuple[str, ...], place: str) -> PlotPlan:
    problems: list[Problem] = []
    with open_dict(tree):
        given = {side: _plain(tree.pop(side, None)) for side in SIDES}
        lists_given = _plain(tree.pop("wildcards", None))
        if isinstance(tree.get("lora"), str):
            tree.lora = [tree.lora]
    options = build_options(PlotOptions, tree)
    sides: dict[str, Axis | None] = {side: read_axis(side, given[side], problems) for side in SIDES}
    lists = read_lists(lists_given, options.wildcards_dir, problems)
    plot = Plot(
        options=options,
        sides=tuple(sides.values()),
        lists=lists,
        sources=tuple(find_sources(options.lora, problems)),
    )
    problems += _check_settings(options)
    problems = problems or check_plot(plot)
    if problems:
        raise ConfigError(*rules.without_repeats(problems))
    settings = {
        key: value for key, value in asdict(options).items() if key not in _NOT_OF_THE_IMAGES
    }
    content = {**settings, "sides": given, "wildcards": {key: list(lists[key]) for key in lists}}
    name = fingerprint(content)[:_NUM_HASH_DIGITS]
    return PlotPlan(overrides=overrides, plot=plot, run_dir=Path(options.dir) / "plots" / name)


def _plain(value: Any) -> Any:
    is_container = OmegaConf.is_config(value)
    return OmegaConf.to_container(value, resolve=True) if is_container else value


def _check_settings(options: PlotOptions) -> list[Problem]:
    problems = [
        *check_base(options.base),
        *rules.check_sampler("render.sampler", options.render.sampler),
        *check_device(options.device, options.mixed_precision),
        *check_writable("dir", Path(options.dir)),
    ]
    for prompt in options.prompts.prompts:
        tagless = replace(prompt, text="", negative="")
        single = replace(options.prompts, prompts=(tagless,))
        problems += rules.check_prompts(single)
    if not options.prompts.prompts:
        problems += rules.check_prompts(options.prompts)
    if options.clip_skip is not None:
        problems += check_clip_skip(options.base, options.clip_skip, where="clip_skip")
    if not options.render.enabled:
        key = "render.enabled"
        problems.append(Problem(key, "false", "true: this command renders", f"leave {key} out"))
    return problems

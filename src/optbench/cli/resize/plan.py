"""Plan the files of an `optbench resize` command line, checked before any source is read.

Nothing here imports torch, so a mistyped command is refused at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from optbench.config import rules
from optbench.config.build import build_options
from optbench.config.compose import Command, CommandPlan, compose
from optbench.config.run_rules import check_device, check_writable
from optbench.data import check_dataset_options
from optbench.errors import ConfigError, Problem, without_effect
from optbench.models.files.rules import check_base
from optbench.schema import ResizeOptions
from optbench.storage import hashing
from optbench.storage.rundir import RunDir

NAME = CONFIG_NAME = "resize"
_FILES_SCHEMA = 1  # raise it when equal settings begin to give other files
_NUM_HASH_DIGITS = 8
_MAX_SLUG_LENGTH = 100
ORIGINAL = "original"
# What decides images and losses, and no byte of a file.
_NOT_OF_THE_FILE = (
    *("clip_skip", "base", "dataset", "prompts", "render", "validate"),
    *("device", "mixed_precision"),
)
_USUAL = {"save_precision": "fp16", "compat": "v0.11"}  # what a name does not mention


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizePlan:
    """One resized file, or one per epoch of a run, and the folder it has or will have."""

    overrides: tuple[str, ...]
    options: ResizeOptions
    sources: dict[int | None, tuple[Path, ...]]  # by epoch; None: a file that is no run's
    run_dir: Path
    fingerprint: str  # 16 hex; changes with the sources' bytes and every setting of the files
    original_dir: Path  # of the run that shows the source as it is
    original_fingerprint: str  # changes with the sources' bytes and weights


def plan_resizes(arguments: Sequence[str]) -> CommandPlan[ResizePlan]:
    """Return every file a command line asks for; reads the sources' bytes to name them, no more.

    Raises:
        ConfigError: With the problems of all of them together.
    """
    command = compose(arguments, Command(name=NAME, config_name=CONFIG_NAME, build=_plan))
    if not command.is_complete:
        raise ConfigError(
            Problem(
                "hydra/sweeper",
                "a sweeper that chooses its runs as it goes",
                "values that are known before the first file is read",
                "leave hydra/sweeper out, and list the values: param=2,4,8",
            )
        )
    return command


def _plan(tree: DictConfig, overrides: tuple[str, ...], place: str) -> ResizePlan:
    if not OmegaConf.is_missing(tree, "source") and isinstance(tree.source, str):
        tree.source = [tree.source]
    options = build_options(ResizeOptions, tree)
    options = replace(options, source=tuple(map(_matched, options.source)))
    problems = [
        *_check_rule(options),
        *_check_sources(options),
        *_check_evaluation(options),
        *check_writable("runs_dir", Path(options.runs_dir)),
    ]
    if problems:
        raise ConfigError(*rules.without_repeats(problems))
    paths = tuple(Path(source) for source in options.source)
    sources: dict[int | None, tuple[Path, ...]] = {None: paths}
    if paths[0].is_dir():
        sources = {epoch: (path,) for epoch, path in RunDir(paths[0]).lora_files().items()}
    name = options.sweep_name or (place if place.startswith(NAME) else f"{NAME}-{place}")
    sweep_dir = Path(options.runs_dir) / name
    words, fingerprint = _name(options, sources)
    original_words, original_fingerprint = _original_name(options, sources)
    return ResizePlan(
        overrides=overrides,
        options=options,
        sources=sources,
        run_dir=sweep_dir / _folder_name(words, fingerprint),
        fingerprint=fingerprint,
        original_dir=sweep_dir / _folder_name(original_words, original_fingerprint),
        original_fingerprint=original_fingerprint,
    )


def _matched(source: str) -> str:
    """Return the one path that a pattern stands for; a pattern of none or several stays one."""
    matches = [] if Path(source).exists() else _matches(source)
    return matches[0] if len(matches) == 1 else source


def _matches(pattern: str) -> list[str]:
    root = Path(Path(pattern).anchor)
    is_pattern = any(mark in pattern for mark in "*?[")
    return sorted(map(str, root.glob(str(Path(pattern).relative_to(root))))) if is_pattern else []


def _check_evaluation(options: ResizeOptions) -> list[Problem]:
    """Return what is wrong with the groups that images and losses are made with."""
    problems: list[Problem] = []
    problems += rules.check_validate(options.validate)
    problems += rules.check_sampler("render.sampler", options.render.sampler)
    if options.render.enabled:
        problems += rules.check_prompts(options.prompts)
    if options.validate.enabled:
        problems += check_dataset_options(options.dataset)
    if options.render.enabled or options.validate.enabled:
        problems += check_base(options.base)
        problems += check_device(options.device, options.mixed_precision)
    return problems


def _check_rule(options: ResizeOptions) -> list[Problem]:
    """Return what is impossible or without effect in the settings of size."""
    if options.method != "none":
        is_ratio, value = options.method == "sv_ratio", options.param
        if value is not None and (1 <= value < math.inf if is_ratio else 0 < value <= 1):
            return []
        return [
            Problem(
                "param",
                "null" if value is None else f"{value:g}",
                f"for {options.method} a number {'from 1' if is_ratio else 'above 0, up to 1'}",
                f"write param={5 if is_ratio else 0.9}",
            )
        ]
    problems = []
    if options.new_dim is None:
        problems.append(
            Problem(
                "new_dim",
                "null while method is none",
                "the new dim, or a method that finds one for every layer",
                "write new_dim=32, or method=sv_ratio",
            )
        )
    if options.param is not None:
        problems.append(without_effect("param", options.param, "method is none", "method=sv_ratio"))
    if options.compat == "v0.10":
        problems.append(without_effect("compat", "v0.10", "method is none", "method=sv_ratio"))
    return problems


def _check_sources(options: ResizeOptions) -> list[Problem]:
    problems = []
    is_merge = len(options.source) > 1 or options.weights is not None
    for source in options.source:
        path = Path(source)
        if not path.exists():
            several = _matches(source)
            what = f"which stands for {len(several)}: {', '.join(several)}" if several else ""
            problems.append(_no_source(source, what or "where there is nothing"))
        elif path.is_dir() and not RunDir(path).lora_files():
            problems.append(_no_source(source, "a folder without lora/*-000001.safetensors"))
        elif path.is_dir() and is_merge:
            problems.append(_no_source(source, "a folder, in a merge"))
    if not options.source:
        problems.append(_no_source("[]", "an empty list"))
    if is_merge and len(options.weights or ()) != len(options.source):
        weights = "null" if options.weights is None else f"{len(options.weights)} numbers"
        equal = ",".join(f"{1 / len(options.source):.3g}" for _ in options.source)
        problems.append(
            Problem(
                "weights",
                f"{weights} for {len(options.source)} files",
                "one weight for every file that is merged",
                f"write 'weights=[{equal}]'",
            )
        )
    return problems


def _no_source(source: str, what: str) -> Problem:
    return Problem(
        "source",
        f"{source}, {what}",
        "a LoRA file, a run's folder, or several files to merge",
        "write source=FILE.safetensors, source=runs/SWEEP/RUN, or 'source=[FILE,FILE]' to merge",
    )


def _name(
    options: ResizeOptions, sources: dict[int | None, tuple[Path, ...]]
) -> tuple[list[str], str]:
    """Return the words of a run's name, and what changes with sources and settings as hex."""
    files = [path for paths in sources.values() for path in paths]
    settings = asdict(options)
    for key in ("source", "num_threads", "sweep_name", "runs_dir", "cache_dir", *_NOT_OF_THE_FILE):
        del settings[key]
    content = {
        "schema": _FILES_SCHEMA,
        "sources": hashing.files_fingerprint(files, cache_dir=Path(options.cache_dir)),
        "settings": settings,
    }
    words = [_source_word(options)]
    if options.method != "none":
        words.append(f"{options.method}{options.param:g}")
    if options.new_dim is not None:
        words.append(f"dim{options.new_dim}")
    if options.new_conv_dim is not None:
        words.append(f"conv{options.new_conv_dim}")
    words += [
        str(getattr(options, key))
        for key, usual in _USUAL.items()
        if getattr(options, key) != usual
    ]
    return words, hashing.fingerprint(content)


def _original_name(
    options: ResizeOptions, sources: dict[int | None, tuple[Path, ...]]
) -> tuple[list[str], str]:
    files = [path for paths in sources.values() for path in paths]
    content = {
        "sources": hashing.files_fingerprint(files, cache_dir=Path(options.cache_dir)),
        "weights": options.weights,
    }
    return [ORIGINAL, _source_word(options)], hashing.fingerprint(content)


def _folder_name(words: Sequence[str], fingerprint: str) -> str:
    slug = re.sub(r"[^A-Za-z0-9._+-]", "_", "-".join(words))
    slug = slug[:_MAX_SLUG_LENGTH].lstrip(".") or NAME
    return f"{slug}-{fingerprint[:_NUM_HASH_DIGITS]}"


def _source_word(options: ResizeOptions) -> str:
    stems = [Path(source).name.removesuffix(".safetensors") for source in options.source]
    if options.weights is not None:
        stems = [f"{stem}x{weight:g}" for stem, weight in zip(stems, options.weights, strict=True)]
    return "+".join(stems)

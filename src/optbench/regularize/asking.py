"""A command line of `python -m optbench.regularize` -> the folders to fill, checked before.

Nothing here imports torch, so a mistyped command is refused at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from optbench import checks, rundir
from optbench.basefiles.checking import check_base, check_clip_skip
from optbench.basefiles.reading import base_fingerprint
from optbench.composition import Asked, Command, compose
from optbench.config import build_options
from optbench.errors import ConfigError, Problem
from optbench.options import Prompt, PromptOptions, RegularizeOptions, RenderOptions

NAME = CONFIG_NAME = "regularize"
_STATE_FOLDER = ".regularize"
_SETTINGS_FILE = "settings.json"
_NUM_INDEX_DIGITS = 5
# What decides how a picture looks, besides the base.
_LOOKS = (
    "prompt",
    "negative",
    "width",
    "height",
    "sampler",
    "steps",
    "cfg_scale",
    "clip_skip",
    "seed",
    "mixed_precision",
    "write_captions",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedPictures:
    """One folder of class pictures; its status and settings lie apart, so it holds no more."""

    overrides: tuple[str, ...]
    options: RegularizeOptions
    folder: Path
    run_dir: Path  # of status and settings

    def picture_path(self, index: int) -> Path:
        """Return where picture `index` (from 0) lies; the name ends in its seed."""
        seed = self.options.seed + index
        return self.folder / f"{index + 1:0{_NUM_INDEX_DIGITS}d}-{seed}.png"

    def prompt(self, index: int) -> Prompt:
        """Return what picture `index` shows; several prompts take turns."""
        options = self.options
        return Prompt(
            name="class",
            text=options.prompt[index % len(options.prompt)],
            negative=options.negative,
            width=options.width,
            height=options.height,
        )

    def render_options(self, seeds: Sequence[int]) -> RenderOptions:
        """Return how pictures of these seeds are made."""
        options = self.options
        return RenderOptions(
            enabled=True,
            seeds=tuple(seeds),
            cfg_scale=options.cfg_scale,
            steps=options.steps,
            sampler=options.sampler,
            batch_size=options.batch_size,
            sheet_format="png",
        )

    def missing(self) -> list[int]:
        """Return the pictures that are not there yet."""
        numbers = range(self.options.num_pictures)
        return [index for index in numbers if not self.picture_path(index).is_file()]

    def remember(self) -> None:
        """Write down what the pictures are made with, before the first of them."""
        rundir.write_json(self.run_dir / _SETTINGS_FILE, _looks(self.options))


def compose_pictures(arguments: Sequence[str]) -> Asked[AskedPictures]:
    """Return every folder a command line asks for; makes nothing and loads no weights.

    Raises:
        ConfigError: With the problems of all of them together; also if a folder holds pictures
            that other settings made, for nothing is ever written over.
    """
    return compose(arguments, Command(name=NAME, config_name=CONFIG_NAME, build=_asked))


def _asked(tree: DictConfig, overrides: tuple[str, ...], place: str) -> AskedPictures:
    prompt = tree.prompt
    if isinstance(prompt, str):
        tree.prompt = [prompt]
    options = build_options(RegularizeOptions, tree)
    name = f"{options.repeats}_{options.class_words}"
    root = Path(options.dir)
    asked = AskedPictures(
        overrides=overrides,
        options=options,
        folder=root / name,
        run_dir=root / _STATE_FOLDER / name,
    )
    problems = [
        *check_base(options.base),
        *check_clip_skip(options.base, options.clip_skip, where="clip_skip"),
        *_check_settings(asked),
    ]
    problems = problems or _check_folder(asked)
    if problems:
        raise ConfigError(*checks.without_repeats(problems))
    return asked


def _check_settings(asked: AskedPictures) -> list[Problem]:
    options = asked.options
    problems = [
        Problem(
            found=str(value),
            expected="a whole number from 1",
            where=name,
            fix=f"write {name}={usual}",
        )
        for name, usual in (("repeats", 1), ("num_pictures", 100), ("clip_skip", 1))
        if (value := getattr(options, name)) < 1
    ]
    words = options.class_words
    if not words.strip() or words.strip() != words or set(words) & set("/\\\n\0"):
        problems.append(
            Problem(
                found=repr(words),
                expected="words that can be part of a folder's name",
                where="class_words",
                fix="write class_words=girl",
            )
        )
    if not options.prompt or not all(text.strip() for text in options.prompt):
        problems.append(
            Problem(
                found=str(list(options.prompt)),
                expected="at least one text, and none empty",
                where="prompt",
                fix="write prompt=girl, or leave it out",
            )
        )
    render = asked.render_options([options.seed])
    shape = Prompt(name="class", text="", negative="", width=options.width, height=options.height)
    prompts = PromptOptions(name="class", prompts=(shape,))
    found = [*checks.check_render(render), *checks.check_prompts(prompts)]
    problems += [_as_named_here(one) for one in found if "seeds" not in one.where]
    for text in options.prompt:
        problems += checks.check_prompt_text("prompt", text)
    problems += checks.check_prompt_text("negative", options.negative, is_negative=True)
    return problems + checks.check_seed("seed", options.seed)


def _as_named_here(problem: Problem) -> Problem:
    """Return a problem of render and prompts with this command's shorter keys."""
    where = problem.where.rpartition(".")[2]
    return replace(problem, where=where, fix=problem.fix.replace(problem.where, where))


def _looks(options: RegularizeOptions) -> dict[str, Any]:
    looks = {key: getattr(options, key) for key in _LOOKS}
    base = base_fingerprint(options.base, cache_dir=Path(options.cache_dir))
    return {**looks, "prompt": list(options.prompt), "base": base}


def _check_folder(asked: AskedPictures) -> list[Problem]:
    """Return a problem if the folder holds pictures that these settings did not make."""
    if not asked.folder.is_dir() or not any(asked.folder.iterdir()):
        return []
    state = asked.run_dir / _SETTINGS_FILE
    fix = f"write dir={asked.options.dir}-2, or move the folder away"
    if not state.is_file():
        return [
            Problem(
                found="files that this command did not make",
                expected="an empty folder, or one of its own to go on with",
                where=str(asked.folder),
                fix=fix,
            )
        ]
    known, wanted = rundir.read_json(state), _looks(asked.options)
    changed = [key for key, value in wanted.items() if known.get(key) != value]
    if not changed:
        return []
    shown = ", ".join(
        "another base" if key == "base" else f"{key}={known.get(key)}" for key in changed
    )
    return [
        Problem(
            found=f"pictures made with {shown}",
            expected="the settings they were made with, for nothing is written over",
            where=str(asked.folder),
            fix=fix,
        )
    ]

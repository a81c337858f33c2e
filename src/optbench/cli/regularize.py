"""A command line of `python -m optbench regularize` -> the folders to fill, checked before.

Nothing here imports torch, so a mistyped command is refused at once.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from optbench.cli.train import BAD_INPUT, DONE, NOT_ALL_DONE, STOPPED, asks_for_information
from optbench.config import rules
from optbench.config.build import build_options, register_resolvers
from optbench.config.compose import Command, CommandPlan, compose, flags_first
from optbench.config.messages import print_problems
from optbench.contracts import TextOptions
from optbench.errors import ConfigError, OptbenchError, Problem
from optbench.launch import guard
from optbench.models import load_base
from optbench.models.device import dtype_of, find_device, set_num_threads
from optbench.models.files.facts import base_fingerprint
from optbench.models.files.rules import check_base, check_clip_skip
from optbench.records import Status
from optbench.render.prompts import (
    Halving,
    Painter,
    origin_of,
    parameters_text,
    png_bytes,
    render_prompts,
)
from optbench.schema import Prompt, RegularizeOptions, RenderOptions
from optbench.storage import rundir
from optbench.training.progress import tell

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


def compose_pictures(arguments: Sequence[str]) -> CommandPlan[AskedPictures]:
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
        raise ConfigError(*rules.without_repeats(problems))
    return asked


def _check_settings(asked: AskedPictures) -> list[Problem]:
    options = asked.options
    problems = []
    words = options.class_words
    if not words.strip() or words.strip() != words or set(words) & set("/\\\n\0"):
        problems.append(
            Problem(
                "class_words",
                repr(words),
                "words that can be part of a folder's name",
                "write class_words=girl",
            )
        )
    problems += rules.check_sampler("sampler", options.sampler)
    for text in options.prompt:
        problems += rules.check_prompt_text("prompt", text)
    problems += rules.check_prompt_text("negative", options.negative, is_negative=True)
    return problems


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
                str(asked.folder),
                "files that this command did not make",
                "an empty folder, or one of its own to go on with",
                fix,
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
            str(asked.folder),
            f"pictures made with {shown}",
            "the settings they were made with, for nothing is written over",
            fix,
        )
    ]


def make_pictures(asked: AskedPictures) -> Status:
    """Write every picture that is missing, whole or not at all; return "done".

    Raises:
        ConfigError: If this machine lacks the device, or the device the precision.
        BaseError: If the base cannot be loaded.
    """
    options = asked.options
    missing = asked.missing()
    if missing:
        set_num_threads(options.num_threads)
        device = find_device(options.device, precision=options.mixed_precision)
        base = load_base(options.base, device=device, dtype=dtype_of(options.mixed_precision))
        asked.remember()
        asked.folder.mkdir(parents=True, exist_ok=True)
        size = options.batch_size * len(options.prompt)
        starts = range(0, len(missing), size)
        painter = Halving(base, tell)
        text_options = base.text_options({"clip_skip": options.clip_skip})
        for start in track(starts, description=str(asked.folder)):
            _make(asked, painter, missing[start : start + size], text_options)
    rundir.write_status(asked.run_dir, "done")
    return "done"


def _make(
    asked: AskedPictures, painter: Painter, indices: list[int], text_options: TextOptions
) -> None:
    """Make some pictures, those of one prompt together."""
    options = asked.options
    origin = origin_of(options.base, cache_dir=Path(options.cache_dir))
    by_prompt: dict[int, list[int]] = {}
    for index in indices:
        by_prompt.setdefault(index % len(options.prompt), []).append(index)
    for same in by_prompt.values():
        prompt = asked.prompt(same[0])
        render = asked.render_options([options.seed + index for index in same])
        with torch.inference_mode():
            pictures = render_prompts(
                painter,
                [prompt],
                render,
                epoch=0,
                text_options=text_options,
                is_wanted=lambda cell: True,
            )
            for cell, _, image in pictures:
                text = parameters_text(
                    cell,
                    prompt,
                    render,
                    text_options=text_options,
                    origin=origin,
                )
                path = asked.picture_path(cell.seed - options.seed)
                # The picture is what says "made", so its caption comes first.
                if options.write_captions:
                    rundir.write_atomic(path.with_suffix(".txt"), prompt.text + "\n")
                rundir.write_atomic(path, png_bytes(image, text))


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0 all pictures are made, 1 some are not, 2 bad input, 130 stopped.

    The last line on the standard output is the folder for `dataset.reg_dir`.
    """
    arguments = flags_first(sys.argv[1:] if argv is None else argv)
    if asks_for_information(arguments):
        register_resolvers()
        return guard.call_hydra(arguments, lambda tree: None, config_name=CONFIG_NAME)
    try:
        asked = compose_pictures(arguments)
    except OptbenchError as error:
        print_problems(error.problems, Console(stderr=True, soft_wrap=True, highlight=False))
        return BAD_INPUT
    try:
        for one in asked.runs:
            guard.guard(one.run_dir, functools.partial(_made, one))
    except KeyboardInterrupt:
        print("Stopped. The same command goes on with what is not done.", file=sys.stderr)
        return STOPPED
    return _conclude(asked)


def _made(asked: AskedPictures) -> Status:
    from optbench.cli.regularize import make_pictures

    return make_pictures(asked)


def _conclude(asked: CommandPlan[AskedPictures]) -> int:
    code = DONE
    for one in asked.runs:
        state = rundir.read_status(one.run_dir)
        if state.status != "done":
            print(f"{one.folder}: {state.status}: {state.reason}", file=sys.stderr)
            code = NOT_ALL_DONE
        else:
            print(f"{one.options.num_pictures} pictures in {one.folder}")
    print(asked.runs[0].options.dir)
    return code


if __name__ == "__main__":
    sys.exit(main())

"""`optbench regularize`: class images, made by the base model and never written over.

Nothing here imports torch before an image is made, so a mistyped command is refused at once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from rich.markup import escape
from rich.progress import track

from optbench.cli.command import run_command
from optbench.config import rules
from optbench.config.build import build_options
from optbench.config.compose import Command, CommandPlan, compose
from optbench.config.run_rules import check_device, check_writable
from optbench.errors import ConfigError, DamagedFileError, Problem
from optbench.launch import guard
from optbench.models.files.facts import base_fingerprint
from optbench.models.files.rules import check_base, check_clip_skip
from optbench.records import Status
from optbench.schema import Prompt, RegularizeOptions, RenderOptions
from optbench.storage import disk, files, rundir
from optbench.terminal import errors, say, tell

if TYPE_CHECKING:
    from optbench.contracts import TextOptions
    from optbench.render.prompts import ImageSampler

NAME = CONFIG_NAME = "regularize"
_STATE_FOLDER = ".regularize"
_SETTINGS_FILE = "settings.json"
_NUM_INDEX_DIGITS = 5
# What decides how an image looks, besides the base model.
_IMAGE_SETTINGS = (
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
class ClassImagesPlan:
    """One folder of class images; its status and settings lie apart from them."""

    overrides: tuple[str, ...]
    options: RegularizeOptions
    folder: Path
    run_dir: Path  # of status and settings

    def image_path(self, index: int) -> Path:
        """Return the file of image `index` (from 0); its name ends in its seed."""
        seed = self.options.seed + index
        return self.folder / f"{index + 1:0{_NUM_INDEX_DIGITS}d}-{seed}.png"

    def prompt(self, index: int) -> Prompt:
        """Return the prompt of image `index`; several take turns."""
        options = self.options
        return Prompt(
            name="class",
            text=options.prompt[index % len(options.prompt)],
            negative=options.negative,
            width=options.width,
            height=options.height,
        )

    def render_options(self, seeds: Sequence[int]) -> RenderOptions:
        """Return how images of these seeds are rendered."""
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
        """Return the indices of the images that do not exist yet, whole."""
        return [
            index
            for index in range(self.options.num_pictures)
            if not (path := self.image_path(index)).is_file() or not files.is_intact_png(path)
        ]


def class_image_folders(folder: Path) -> list[Path]:
    """Return the folders of class images that this command made in a folder."""
    states = sorted((folder / _STATE_FOLDER).glob(f"*/{_SETTINGS_FILE}"))
    images = [folder / state.parent.name for state in states]
    return [path for path in images if path.is_dir()]


def main(arguments: Sequence[str]) -> int:
    """Return the exit code; the last line on the standard output is for `dataset.reg_dir`."""
    return run_command(
        NAME,
        arguments,
        config_name=CONFIG_NAME,
        compose=compose_images,
        work=_render_all,
        finish=_finish,
    )


def compose_images(arguments: Sequence[str]) -> CommandPlan[ClassImagesPlan]:
    """Return every folder a command line asks for; renders nothing and loads no weights.

    Raises:
        ConfigError: With the problems of all of them together; also if a folder holds images that
            other settings made, for nothing is ever written over.
    """
    return compose(arguments, Command(name=NAME, config_name=CONFIG_NAME, build=_plan))


def _render_all(plan: CommandPlan[ClassImagesPlan]) -> None:
    for run in plan.runs:
        guard.guard(run.run_dir, functools.partial(render_class_images, run))


def _finish(plan: CommandPlan[ClassImagesPlan]) -> str:
    for run in plan.runs:
        if rundir.read_status(run.run_dir).status == "done":
            say(f"{run.options.num_pictures} images in {run.folder}")
    return plan.runs[0].options.dir


def _plan(tree: DictConfig, overrides: tuple[str, ...], place: str) -> ClassImagesPlan:
    if isinstance(tree.prompt, str):
        tree.prompt = [tree.prompt]
    options = build_options(RegularizeOptions, tree)
    name = f"{options.repeats}_{options.class_words}"
    plan = ClassImagesPlan(
        overrides=overrides,
        options=options,
        folder=Path(options.dir) / name,
        run_dir=Path(options.dir) / _STATE_FOLDER / name,
    )
    problems = [
        *check_base(options.base),
        *check_clip_skip(options.base, options.clip_skip, where="clip_skip"),
        *_check_settings(options),
        *check_device(options.device, options.mixed_precision),
        *check_writable("dir", Path(options.dir)),
    ]
    problems = problems or _check_folder(plan)
    if problems:
        raise ConfigError(*rules.without_repeats(problems))
    return plan


def _check_settings(options: RegularizeOptions) -> list[Problem]:
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
    return problems + rules.check_prompt_text("negative", options.negative, is_negative=True)


def _image_settings(options: RegularizeOptions) -> dict[str, Any]:
    """Return everything that decides how the images look, as it is written beside them."""
    settings = {key: getattr(options, key) for key in _IMAGE_SETTINGS}
    base = base_fingerprint(options.base, cache_dir=Path(options.cache_dir))
    return {**settings, "prompt": list(options.prompt), "base": base}


def _check_folder(plan: ClassImagesPlan) -> list[Problem]:
    """Return a problem if the folder holds images that these settings did not make."""
    if not plan.folder.is_dir() or not any(plan.folder.iterdir()):
        return []
    state = plan.run_dir / _SETTINGS_FILE
    fix = f"write dir={plan.options.dir}-2, or move the folder away"
    if not state.is_file():
        return [
            Problem(
                str(plan.folder),
                "files that this command did not make",
                "an empty folder, or one that this command has begun",
                fix,
            )
        ]
    try:
        before, now = files.read_json(state), _image_settings(plan.options)
    except DamagedFileError as error:
        found = f"images whose settings are lost: {error.problems[0].found} in {state}"
        return [Problem(str(plan.folder), found, "images whose settings are known", fix)]
    changed = [
        "another base model" if key == "base" else f"{key}={before.get(key)}"
        for key, value in now.items()
        if before.get(key) != value
    ]
    if not changed:
        return []
    return [
        Problem(
            str(plan.folder),
            f"images made with {', '.join(changed)}",
            "the settings they were made with, for nothing is written over",
            fix,
        )
    ]


def render_class_images(plan: ClassImagesPlan) -> Status:
    """Write every image that is missing, whole or not at all; return "done".

    Raises:
        ConfigError: If this machine lacks the device, or the device the precision.
        BaseError: If the base model cannot be loaded.
    """
    missing = plan.missing()
    for notice in files.set_aside_damaged_images(plan.folder):
        tell(notice)
    if missing:
        from optbench.models import load_base
        from optbench.models.device import dtype_of, find_device, set_num_threads
        from optbench.render.prompts import OomSafeSampler

        options = plan.options
        set_num_threads(options.num_threads)
        device = find_device(options.device, precision=options.mixed_precision)
        base = load_base(options.base, device=device, dtype=dtype_of(options.mixed_precision))
        # Before the first image, so that another command knows whose they are.
        files.write_json(plan.run_dir / _SETTINGS_FILE, _image_settings(options))
        disk.make_folder(plan.folder)
        sampler = OomSafeSampler(base, tell)
        text_options = base.text_options({"clip_skip": options.clip_skip})
        size = options.batch_size * len(options.prompt)
        for start in track(
            range(0, len(missing), size), description=escape(str(plan.folder)), console=errors()
        ):
            _render_images(plan, sampler, text_options, missing[start : start + size])
    rundir.write_status(plan.run_dir, "done")
    return "done"


def _render_images(
    plan: ClassImagesPlan,
    sampler: ImageSampler,
    text_options: TextOptions,
    indices: Sequence[int],
) -> None:
    """Render some images and write them, those of one prompt together."""
    from optbench.render.prompts import cells_of, origin_of, write_images

    options = plan.options
    origin = origin_of(options.base, cache_dir=Path(options.cache_dir))
    by_prompt: dict[int, list[int]] = {}
    for index in indices:
        by_prompt.setdefault(index % len(options.prompt), []).append(index)
    for same_prompt in by_prompt.values():
        prompt = plan.prompt(same_prompt[0])
        render = plan.render_options([options.seed + index for index in same_prompt])
        paths = {
            cell: plan.image_path(cell.seed - options.seed)
            for cell in cells_of(prompt, render, epoch=0)
        }
        if options.write_captions:
            # An image that exists counts as done, so its caption comes first.
            for path in paths.values():
                files.write_atomic(path.with_suffix(".txt"), prompt.text + "\n")
        write_images(
            sampler, [prompt], render, paths, epoch=0, text_options=text_options, origin=origin
        )

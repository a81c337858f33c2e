"""Render the images of a plot that are missing, each with its LoRA files, and draw its sheets."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.progress import track

from optbench.cli.render.grid_plan import ImageSpec, Page, Plot, pages
from optbench.cli.render.plan import CELLS_FOLDER, PlotPlan
from optbench.contracts import BaseModel
from optbench.errors import ConfigError, Problem, is_out_of_memory
from optbench.lora.adapters.apply import (
    AdapterFile,
    applied,
    check_adapters,
    misfits,
    read_clip_skip,
)
from optbench.models import load_base
from optbench.models.device import dtype_of, find_device, set_num_threads
from optbench.models.files.facts import base_fingerprint
from optbench.models.files.families import FAMILIES
from optbench.models.files.rules import check_clip_skip
from optbench.models.text.prompt_grammar import LoraTag
from optbench.models.text.tokens import is_repaired
from optbench.records import Status
from optbench.render import sheet as render_sheet
from optbench.render.notices import font_notices, grammar_notices
from optbench.render.prompts import (
    OomSafeSampler,
    cells_of,
    origin_of,
    write_images,
)
from optbench.schema import PlotOptions
from optbench.storage import files, hashing, rundir
from optbench.terminal import errors, tell

_CELLS_SCHEMA = 2  # raise it when equal settings begin to give other images
_CLEANING_SCHEMA = 1  # of prompts that CLIP's cleaning changes, and of no others
_NUM_HASH_DIGITS = 12
_CELL_PX = 384
_MAX_ROWS = 40  # of one sheet
_MAX_TEXTS = 4  # above it


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedImage:
    """One image and the file it has or will have."""

    spec: ImageSpec
    path: Path

    @property
    def group(self) -> tuple[object, ...]:
        """What images that are sampled together share: all but the seed."""
        spec = self.spec
        return (spec.loras, spec.prompt, spec.cfg_scale, spec.steps, spec.sampler, spec.clip_skip)


def check_files(plot: Plot) -> None:
    """Read every LoRA file that the plot needs once.

    Raises:
        OptbenchError: With everything that is wrong with any of them, together.
    """
    specs = _image_specs(pages(plot))
    lora_files = {file: None for spec in specs for _, file, _ in spec.loras}
    check_adapters(list(lora_files))
    if any(spec.clip_skip is None for spec in specs):
        clip_skip_of(list(lora_files), plot.options)


def clip_skip_of(lora_files: Iterable[Path], options: PlotOptions) -> int:
    """Return the clip skip that files were trained with; 1 for a family that ignores it.

    Raises:
        ConfigError: If they say several, or one that the text encoder has not.
    """
    family = FAMILIES.get(options.base.family)
    if family is not None and not family.obeys_clip_skip:
        return 1
    by_file = {file: read_clip_skip(file) for file in lora_files}
    problems = [
        replace(problem, fix="write clip_skip=1, or 2 for most anime checkpoints")
        for file, skip in by_file.items()
        for problem in check_clip_skip(options.base, skip, where=f"{file} (ss_clip_skip)")
    ]
    skips = sorted({*by_file.values()} or {1})
    if len(skips) > 1 and not problems:
        problems = [
            Problem(
                "clip_skip",
                f"LoRA files that say {' and '.join(map(str, skips))}",
                "one, so that their images differ by nothing else",
                f"write clip_skip={skips[-1]}",
            )
        ]
    if problems:
        raise ConfigError(*problems)
    return skips[-1]


def make_plot(plan: PlotPlan) -> Status:
    """Write every image that is missing, and the sheets; return "done".

    Raises:
        ConfigError: If a LoRA does not fit the base model, or this machine lacks the device.
        BaseError: If the base model cannot be loaded.
    """
    plot = plan.plot
    options = plot.options
    for notice in grammar_notices(sorted({spec.prompt.text for spec in _image_specs(pages(plot))})):
        tell(notice)
    for notice in font_notices(
        [source.name for source in plot.sources]
        + [
            text
            for spec in _image_specs(pages(plot))
            for text in (spec.prompt.text, spec.prompt.name)
        ]
    ):
        tell(notice)
    lora_files = {file: None for spec in _image_specs(pages(plot)) for _, file, _ in spec.loras}
    for notice in itertools.chain.from_iterable(AdapterFile(file).notices for file in lora_files):
        tell(notice)
    planned = _planned_images(plot)
    for notice in files.set_aside_damaged_images(Path(options.dir) / CELLS_FOLDER):
        tell(notice)
    missing = [image for image in planned.values() if not image.path.is_file()]
    notes: dict[Path, str] = {}
    if missing:
        set_num_threads(options.num_threads)
        device = find_device(options.device, precision=options.mixed_precision)
        base = load_base(options.base, device=device, dtype=dtype_of(options.mixed_precision))
        targets = base.lora_targets()
        problems = [
            problem
            for file in {file: None for image in missing for _, file, _ in image.spec.loras}
            for problem in misfits(targets, AdapterFile(file), base=base.name)
        ]
        if problems:
            raise ConfigError(*problems)
        notes = _render(plot, base, missing)
    _draw_sheets(plan, planned, notes)
    rundir.write_status(plan.run_dir, "done")
    return "done"


def _image_specs(sheets: Iterable[Page]) -> list[ImageSpec]:
    specs = (spec for page in sheets for _, row in page.rows for spec in row)
    return [spec for spec in dict.fromkeys(specs) if not spec.missing]


def _planned_images(plot: Plot) -> dict[ImageSpec, PlannedImage]:
    """Return the file of every image; its name ends in a hash of all that decides the image."""
    options = plot.options
    cache_dir = Path(options.cache_dir)
    base = base_fingerprint(options.base, cache_dir=cache_dir)
    specs = _image_specs(pages(plot))
    lora_files = {file for spec in specs for _, file, _ in spec.loras}
    is_given = all(spec.clip_skip is not None for spec in specs)
    files_clip_skip = 1 if is_given else clip_skip_of(lora_files, options)
    planned = {}
    for spec in specs:
        clip_skip = files_clip_skip if spec.clip_skip is None else spec.clip_skip
        resolved = replace(spec, clip_skip=clip_skip)
        loras = [
            [hashing.files_fingerprint([file], cache_dir=cache_dir), strength]
            for _, file, strength in spec.loras
        ]
        content = {
            "schema": _CELLS_SCHEMA,
            "base": [base, options.base.family, options.base.v_parameterization],
            "dtype": options.mixed_precision,
            **asdict(resolved),
            "prompt": {**asdict(spec.prompt), "name": ""},
            "loras": loras,
        }
        if is_repaired(spec.prompt.text) or is_repaired(spec.prompt.negative):
            content["cleaning"] = _CLEANING_SCHEMA
        prompt = spec.prompt
        digest = hashing.fingerprint(content)[:_NUM_HASH_DIGITS]
        name = f"{prompt.name}-{prompt.width}x{prompt.height}-s{spec.seed}-{digest}.png"
        planned[spec] = PlannedImage(spec=resolved, path=Path(options.dir) / CELLS_FOLDER / name)
    return planned


def _render(plot: Plot, base: BaseModel, missing: Sequence[PlannedImage]) -> dict[Path, str]:
    """Render images, those of one LoRA together; return why some could not be rendered, by file."""
    options = plot.options
    sampler = OomSafeSampler(base, tell)
    origin = origin_of(options.base, cache_dir=Path(options.cache_dir))
    groups: dict[tuple[object, ...], list[PlannedImage]] = {}
    for image in sorted(
        missing, key=lambda image: [(str(lora[1]), lora[2]) for lora in image.spec.loras]
    ):
        groups.setdefault(image.group, []).append(image)
    batches = []
    for group in groups.values():
        # Equal settings may stand at several places; the file is rendered once.
        unique = list({image.path: image for image in group}.values())
        size = options.render.batch_size
        batches += [unique[start : start + size] for start in range(0, len(unique), size)]
    notes: dict[Path, str] = {}
    current: object = None
    with contextlib.ExitStack() as stack:
        for batch in track(batches, description="images", console=errors()):
            loras = batch[0].spec.loras
            if loras != current:
                stack.close()
                adapters = [(AdapterFile(file), strength) for _, file, strength in loras]
                stack.enter_context(applied(base.lora_targets(), adapters))
                current = loras
            spec = batch[0].spec
            seeds = tuple(image.spec.seed for image in batch)
            tags = tuple(LoraTag(name=name, strength=strength) for name, _, strength in loras)
            settings = replace(
                options.render,
                cfg_scale=spec.cfg_scale,
                steps=spec.steps,
                sampler=spec.sampler,
                seeds=seeds,
            )
            cells = cells_of(spec.prompt, settings, epoch=0)
            try:
                write_images(
                    sampler,
                    [spec.prompt],
                    settings,
                    {cell: image.path for cell, image in zip(cells, batch, strict=True)},
                    epoch=0,
                    text_options=base.text_options({"clip_skip": spec.clip_skip}),
                    origin=replace(origin, loras=tags),
                )
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                notes |= {image.path: "out of memory" for image in batch}
    return notes


def _draw_sheets(
    plan: PlotPlan, planned: dict[ImageSpec, PlannedImage], notes: dict[Path, str]
) -> None:
    """Draw every page and write down which image stands where."""
    folder = Path(plan.plot.options.dir) / "sheets" / plan.run_dir.name
    sheet_format = plan.plot.options.render.sheet_format
    written = []
    sheets = [part for page in pages(plan.plot) for part in _parted(page)]
    for number, page in enumerate(track(sheets, description="sheets", console=errors()), start=1):
        first = page.rows[0][1][0].prompt
        rows = []
        for title, specs in page.rows:
            tiles = []
            for spec in specs:
                path = planned[spec].path if spec in planned else None
                note = spec.missing if path is None else notes.get(path, "not rendered")
                exists = path is not None and path.is_file()
                tiles.append(render_sheet.Tile(path=path if exists else None, note=note))
                written.append([page.title, title, path.name if exists and path else note])
            rows.append(render_sheet.Row(title=title, tiles=tuple(tiles)))
        sheet = render_sheet.SheetPlan(
            title=page.title,
            text=_text(page),
            columns=page.columns,
            rows=tuple(rows),
            size_px=(first.width, first.height),
            cell_height_px=_CELL_PX,
        )
        word = "".join(
            letter if letter.isascii() and letter.isalnum() else "_" for letter in page.title
        )
        render_sheet.write_sheet(folder / f"{number:03d}-{word[:60]}.{sheet_format}", sheet)
    files.write_json(plan.run_dir / "plot.json", {"pictures": written})


def _text(page: Page) -> str:
    """Return the text that a page shows; of several prompts each with its name, if they are few."""
    texts: dict[str, str] = {}
    for spec in (spec for _, row in page.rows for spec in row):
        texts.setdefault(spec.prompt.name, spec.prompt.text)  # the first, where words are replaced
    if len(texts) == 1:
        return next(iter(texts.values()))
    named = [f"{name}: {text}" for name, text in texts.items()]
    return " / ".join(named) if len(named) <= _MAX_TEXTS else ""


def _parted(page: Page) -> list[Page]:
    """Return a page's rows on as many sheets as they need to be seen."""
    starts = range(0, len(page.rows), _MAX_ROWS)
    if len(starts) == 1:
        return [page]
    return [
        replace(
            page,
            title=f"{page.title}, rows {start + 1} to {min(start + _MAX_ROWS, len(page.rows))}",
            rows=page.rows[start : start + _MAX_ROWS],
        )
        for start in starts
    ]

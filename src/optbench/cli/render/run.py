"""The pictures of a plot that are missing, each from its LoRA files, and then its sheets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from optbench.cli.render.grid_plan import Page, Plot, Shot, pages
from optbench.cli.render.plan import PlotPlan
from optbench.contracts import BaseModel, SampleRequest, TextOptions
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
from optbench.models.text.prompt_grammar import LoraTag
from optbench.records import Cell, Status
from optbench.render import sheet as render_sheet
from optbench.render.notices import font_notices, grammar_notices
from optbench.render.prompts import (
    Halving,
    Origin,
    origin_of,
    parameters_text,
    png_bytes,
)
from optbench.storage import hashing, rundir
from optbench.training.progress import tell

_CELLS_SCHEMA = 2  # raise it when equal settings begin to give other pictures
_NUM_HASH_DIGITS = 12
_CELL_PX = 384
_MAX_ROWS = 40  # of one sheet
_MAX_TEXTS = 4  # above it


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placed:
    """One picture and the file it has or will have."""

    shot: Shot
    path: Path

    @property
    def group(self) -> tuple[object, ...]:
        """What pictures that are made together share: all but the seed."""
        shot = self.shot
        return (shot.loras, shot.prompt, shot.cfg_scale, shot.steps, shot.sampler, shot.clip_skip)


def check_files(plot: Plot) -> None:
    """Read every LoRA file that the plot needs once.

    Raises:
        OptbenchError: With everything that is wrong with any of them, together.
    """
    shots = _shots(pages(plot))
    files = {file: None for shot in shots for _, file, _ in shot.loras}
    check_adapters(list(files))
    skips = {read_clip_skip(file) for file in files}
    if len(skips) > 1 and any(shot.clip_skip is None for shot in shots):
        raise ConfigError(
            Problem(
                "clip_skip",
                f"LoRA files that say {' and '.join(map(str, sorted(skips)))}",
                "one, so that their pictures differ by nothing else",
                f"write clip_skip={max(skips)}",
            )
        )


def make_plot(asked: PlotPlan) -> Status:
    """Write every picture that is missing, and the sheets; return "done".

    Raises:
        ConfigError: If a LoRA does not fit the base, or this machine lacks the device.
        BaseError: If the base cannot be loaded.
    """
    plot = asked.plot
    options = plot.options
    for notice in grammar_notices(sorted({one.prompt.text for one in _shots(pages(plot))})):
        tell(notice)
    for notice in font_notices(
        [source.name for source in plot.sources]
        + [text for one in _shots(pages(plot)) for text in (one.prompt.text, one.prompt.name)]
    ):
        tell(notice)
    placed = _placed(plot)
    missing = [one for one in placed.values() if not one.path.is_file()]
    notes: dict[Path, str] = {}
    if missing:
        set_num_threads(options.num_threads)
        device = find_device(options.device, precision=options.mixed_precision)
        base = load_base(options.base, device=device, dtype=dtype_of(options.mixed_precision))
        _check_fit(base, missing)
        notes = _render(plot, base, missing)
    _draw_sheets(asked, placed, notes)
    rundir.write_status(asked.run_dir, "done")
    return "done"


def _shots(found: Iterable[Page]) -> list[Shot]:
    every = (shot for page in found for _, row in page.rows for shot in row)
    return [shot for shot in dict.fromkeys(every) if not shot.missing]


def _placed(plot: Plot) -> dict[Shot, _Placed]:
    """Return where every picture lies; the name ends in a hash of all that decides it."""
    options = plot.options
    cache_dir = Path(options.cache_dir)
    base = base_fingerprint(options.base, cache_dir=cache_dir)
    shots = _shots(pages(plot))
    files = {file for shot in shots for _, file, _ in shot.loras}
    skips = {read_clip_skip(file) for file in files} or {1}
    found = {}
    for shot in shots:
        clip_skip = max(skips) if shot.clip_skip is None else shot.clip_skip
        settled = replace(shot, clip_skip=clip_skip)
        loras = [
            [hashing.files_fingerprint([file], cache_dir=cache_dir), strength]
            for _, file, strength in shot.loras
        ]
        content = {
            "schema": _CELLS_SCHEMA,
            "base": [base, options.base.family, options.base.v_parameterization],
            "dtype": options.mixed_precision,
            **asdict(settled),
            "prompt": {**asdict(shot.prompt), "name": ""},
            "loras": loras,
        }
        prompt = shot.prompt
        mark = hashing.fingerprint(content)[:_NUM_HASH_DIGITS]
        name = f"{prompt.name}-{prompt.width}x{prompt.height}-s{shot.seed}-{mark}.png"
        found[shot] = _Placed(shot=settled, path=Path(options.dir) / "cells" / name)
    return found


def _check_fit(base: BaseModel, missing: Sequence[_Placed]) -> None:
    targets = base.lora_targets()
    files = {file: None for one in missing for _, file, _ in one.shot.loras}
    problems = [
        problem for file in files for problem in misfits(targets, AdapterFile(file), base=base.name)
    ]
    if problems:
        raise ConfigError(*problems)


def _render(plot: Plot, base: BaseModel, missing: Sequence[_Placed]) -> dict[Path, str]:
    """Make pictures, those of one LoRA together; return why some could not be made."""
    options = plot.options
    painter = Halving(base, tell)
    origin = origin_of(options.base, cache_dir=Path(options.cache_dir))
    groups: dict[tuple[object, ...], list[_Placed]] = {}
    for one in sorted(
        missing, key=lambda one: [(str(lora[1]), lora[2]) for lora in one.shot.loras]
    ):
        groups.setdefault(one.group, []).append(one)
    batches = []
    for group in groups.values():
        # Equal settings may stand at several places; the file is made once.
        unique = list({one.path: one for one in group}.values())
        size = options.render.batch_size
        batches += [unique[start : start + size] for start in range(0, len(unique), size)]
    notes: dict[Path, str] = {}
    current: object = None
    with contextlib.ExitStack() as stack:
        for batch in track(batches, description="pictures", console=Console(stderr=True)):
            loras = batch[0].shot.loras
            if loras != current:
                stack.close()
                adapters = [(AdapterFile(file), strength) for _, file, strength in loras]
                stack.enter_context(applied(base.lora_targets(), adapters))
                current = loras
            text_options = base.text_options({"clip_skip": batch[0].shot.clip_skip})
            try:
                _make(painter, origin, plot, batch, text_options)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                notes |= {one.path: "out of memory" for one in batch}
    return notes


def _make(
    painter: Halving,
    origin: Origin,
    plot: Plot,
    batch: Sequence[_Placed],
    text_options: TextOptions,
) -> None:
    shot = batch[0].shot
    request = SampleRequest(
        text=shot.prompt.text,
        negative=shot.prompt.negative,
        seeds=tuple(one.shot.seed for one in batch),
        width=shot.prompt.width,
        height=shot.prompt.height,
        cfg_scale=shot.cfg_scale,
        steps=shot.steps,
        sampler=shot.sampler,
        text_options=text_options,
    )
    with torch.inference_mode():
        images = painter.sample(request)
    tags = tuple(LoraTag(name=name, strength=strength) for name, _, strength in shot.loras)
    looks = replace(
        plot.options.render, cfg_scale=shot.cfg_scale, steps=shot.steps, sampler=shot.sampler
    )
    for one, image in zip(batch, images, strict=True):
        prompt = one.shot.prompt
        cell = Cell(
            prompt=prompt.name,
            width=prompt.width,
            height=prompt.height,
            seed=one.shot.seed,
            epoch=0,
        )
        text = parameters_text(
            cell, prompt, looks, text_options=text_options, origin=replace(origin, loras=tags)
        )
        rundir.write_atomic(one.path, png_bytes(image, text))


def _draw_sheets(
    asked: PlotPlan, placed: dict[Shot, _Placed], notes: dict[Path, str]
) -> list[Path]:
    """Draw every page and write down which picture stands where."""
    folder = Path(asked.plot.options.dir) / "sheets" / asked.run_dir.name
    sheet_format = asked.plot.options.render.sheet_format
    found, written = [], []
    every = [part for page in pages(asked.plot) for part in _parted(page)]
    for number, page in enumerate(
        track(every, description="sheets", console=Console(stderr=True)), start=1
    ):
        first = page.rows[0][1][0].prompt
        rows = []
        for title, shots in page.rows:
            tiles = []
            for shot in shots:
                path = placed[shot].path if shot in placed else None
                note = shot.missing if path is None else notes.get(path, "not rendered")
                is_there = path is not None and path.is_file()
                tiles.append(render_sheet.Tile(path=path if is_there else None, note=note))
                written.append([page.title, title, path.name if is_there and path else note])
            rows.append(render_sheet.Row(title=title, tiles=tuple(tiles)))
        plan = render_sheet.SheetPlan(
            title=page.title,
            text=_text(page),
            columns=page.columns,
            rows=tuple(rows),
            size_px=(first.width, first.height),
            cell_height_px=_CELL_PX,
        )
        sheet = render_sheet.write_sheet(
            folder / f"{number:03d}-{_word(page.title)}.{sheet_format}", plan
        )
        found.append(sheet.path)
    rundir.write_json(asked.run_dir / "plot.json", {"pictures": written})
    return found


def _text(page: Page) -> str:
    """Return the text that a page shows; of several prompts each with its name, if they are few."""
    texts: dict[str, str] = {}
    for shot in (one for _, row in page.rows for one in row):
        texts.setdefault(shot.prompt.name, shot.prompt.text)  # the first, where words are replaced
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


def _word(title: str) -> str:
    kept = [letter if letter.isascii() and letter.isalnum() else "_" for letter in title]
    return "".join(kept)[:60]

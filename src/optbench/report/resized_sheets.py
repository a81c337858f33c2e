"""Sheets of resized LoRAs: columns are files, the original leftmost, with their sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optbench import grid, results
from optbench.options import Prompt
from optbench.records import Cell
from optbench.report.evidence import RunEvidence
from optbench.report.sheets import ShownSheet, shown_sheet
from optbench.report.wording import bytes_text

_MAX_COLUMNS = 6  # of one sheet, the original included
_CELL_PX = 420


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSheets:
    """One prompt after every epoch: sheets whose first column is the original."""

    prompt: Prompt
    anchor: str
    epochs: tuple[tuple[int, tuple[ShownSheet, ...]], ...]


def last_record(run: RunEvidence) -> Mapping[str, Any]:
    """Return a run's record of its last epoch, empty where it has none."""
    return run.epochs[-1] if run.epochs else {}


def size_of(run: RunEvidence) -> float | None:
    """Return how many bytes a run's file has, of an original those of its source."""
    found = number_of(last_record(run).get("lora_bytes"))
    return number_of(run.row.get("lora_bytes")) if found is None else found


def number_of(value: Any) -> float | None:
    """Return a value that is a number, None for anything else."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and value == value else None


def resized_sheets(columns: Sequence[RunEvidence], report_dir: Path) -> Iterator[PromptSheets]:
    """Yield every prompt's sheets; the runs are columns in this order, the original first."""
    prompts = {prompt.name: prompt for run in columns for prompt in run.prompts}
    shown = [run for run in columns if run.prompts and (run.run.path / "images").is_dir()]
    resized = [run for run in shown if run.kind == results.RESIZE]
    if not resized:
        return
    epochs = sorted({int(row["epoch"]) for run in resized for row in run.epochs})
    for number, (name, prompt) in enumerate(prompts.items(), start=1):
        found = []
        for epoch in epochs:
            plans = _plans(shown, prompt, epoch=epoch, seeds=resized[0].seeds)
            folder = report_dir / "sheets" / f"epoch-{epoch:04d}"
            written = [
                grid.write_sheet(folder / f"resized-{name}-{part}.png", plan)
                for part, plan in enumerate(plans, start=1)
            ]
            sheets = tuple(shown_sheet(sheet, prompt, report_dir) for sheet in written)
            found.append((epoch, sheets))
        yield PromptSheets(prompt=prompt, anchor=f"resized-{number}", epochs=tuple(found))


def _plans(
    runs: Sequence[RunEvidence],
    prompt: Prompt,
    *,
    epoch: int,
    seeds: Sequence[int],
) -> Iterator[grid.SheetPlan]:
    """Yield sheets with columns that fit a page; the original is the first of every one."""
    first, *others = [(run, epoch, _title(run, epoch)) for run in runs]
    base = next((run for run in runs if run.run.images_dir(0).is_dir()), None)
    if base is not None:
        others.append((base, 0, "base, no LoRA\n0 B"))
    num_sheets = -(-len(others) // (_MAX_COLUMNS - 1)) or 1
    width = -(-len(others) // num_sheets)
    for start in range(0, max(1, len(others)), width or 1):
        columns = [first, *others[start : start + width]]
        rows = tuple(
            grid.Row(
                title=f"seed {seed}",
                tiles=tuple(_tile(run, prompt, seed=seed, epoch=at) for run, at, _ in columns),
            )
            for seed in seeds
        )
        yield grid.SheetPlan(
            title=f"prompt {prompt.name}: {first[2].partition(chr(10))[0]} and what was made of it",
            text=prompt.text,
            columns=tuple(title for _, _, title in columns),
            rows=rows,
            size_px=(prompt.width, prompt.height),
            cell_height_px=_CELL_PX,
        )


def _title(run: RunEvidence, epoch: int) -> str:
    """Return a column's title, and under it how large the file of that epoch is."""
    row = next((one for one in run.epochs if one.get("epoch") == epoch), {})
    size = number_of(row.get("lora_bytes")) or size_of(run)
    return f"{run.label}\n{bytes_text(size)}"


def _tile(run: RunEvidence, prompt: Prompt, *, seed: int, epoch: int) -> grid.Tile:
    cell = Cell(
        prompt=prompt.name, width=prompt.width, height=prompt.height, seed=seed, epoch=epoch
    )
    path = run.run.image_path(cell)
    if path.is_file():
        return grid.Tile(path=path)
    note = "not rendered" if run.row["status"] == "done" else f"{run.status}: {run.reason}"
    return grid.Tile(path=None, note=note.partition("\n")[0])

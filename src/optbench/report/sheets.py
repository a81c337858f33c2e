"""The sheets a page shows, drawn where missing or out of date, with a link on every picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optbench import analysis
from optbench.analysis.evidence import RunEvidence, SweepEvidence
from optbench.render import sheet as render_sheet
from optbench.report.links import address
from optbench.schema import Prompt, SheetFormat

_BASE = "base, no LoRA"
# A sheet decodes every picture at its full size, at 15 to 25 ms each, and a viewer shows the same.
_MAX_PICTURES = 1600  # that sheets of all epochs may hold; above it only the last epoch has some
_MAX_PICTURES_OF_AN_EPOCH = 2400  # above it there are none
_MAX_ROWS = 48  # of one sheet: a longer one is no picture that anything opens well


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """One picture in a sheet, as percentages of the sheet, and where it is at full size."""

    address: str
    title: str
    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSheet:
    """One sheet as the page shows it; addresses are relative to the report's folder."""

    address: str
    prompt: Prompt
    width_px: int
    height_px: int
    spots: tuple[Spot, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochSheets:
    """All prompts after one epoch, every run a row."""

    epoch: int
    sheets: tuple[ShownSheet, ...]


def draw_run_sheets(runs: Sequence[RunEvidence]) -> None:
    """Draw the runs' own sheets where they are missing or out of date.

    A finished run has drawn its own; of very many runs those of killed ones are left out.
    """
    if sum(_num_pictures(run, run.num_epochs_asked + 1) for run in runs) > _MAX_PICTURES:
        return
    for run in runs:
        if not run.seeds or not _epochs_with_pictures([run]):
            continue
        for prompt in run.prompts:
            render_sheet.run_sheet(
                run.run,
                prompt,
                seeds=run.seeds,
                num_epochs=run.num_epochs_asked,
                sheet_format=_format_of(run, prompt),
            )


def _format_of(run: RunEvidence, prompt: Prompt) -> SheetFormat:
    """Return what the run's sheet is: what the run itself has drawn stays."""
    return "webp" if (run.run.sheets_dir / f"{prompt.name}.webp").is_file() else "png"


def epoch_sheets(sweep: SweepEvidence, report_dir: Path) -> list[EpochSheets]:
    """Return the sheets that compare the runs, for every epoch that has pictures of any run.

    Of a large sweep only the last epoch has sheets, of a huge one none; see `left_out`.
    """
    found = []
    prompts = _all_prompts(sweep.runs)
    seeds = tuple(dict.fromkeys(seed for run in sweep.runs for seed in run.seeds))
    bases, runs = _base_runs(sweep.runs), by_settings(sweep)
    for epoch in _drawn_epochs(sweep):
        sheets = []
        for name, prompt in prompts.items():
            rows = _rows(bases, name, epoch=0, has_base_titles=True)
            if epoch > 0:
                rows += _rows(runs, name, epoch=epoch)
            if not seeds:
                continue
            for part, start in enumerate(range(0, len(rows), _MAX_ROWS), start=1):
                folder = report_dir / "sheets" / f"epoch-{epoch:04d}"
                sheet = render_sheet.epoch_sheet(
                    (folder if part == 1 else folder / f"part-{part}") / f"{name}.png",
                    rows[start : start + _MAX_ROWS],
                    seeds=seeds,
                    title=f"prompt {name}, {_epoch_title(epoch)}, one row per run",
                )
                sheets.append(shown_sheet(sheet, prompt, report_dir))
        if sheets:
            found.append(EpochSheets(epoch=epoch, sheets=tuple(sheets)))
    return found


def left_out(sweep: SweepEvidence) -> str:
    """Return which sheets are not drawn because there would be too many, or nothing."""
    epochs = _shown_epochs(sweep)
    drawn = _drawn_epochs(sweep)
    if len(drawn) == len(epochs):
        return ""
    if not drawn:
        return "There are too many pictures for sheets; the viewer shows them all."
    return (
        f"Sheets are drawn of epoch {drawn[0]} only: those of all {len(epochs)} epochs would hold "
        f"more than {_MAX_PICTURES} pictures. The viewer shows them all."
    )


def _drawn_epochs(sweep: SweepEvidence) -> list[int]:
    epochs = _shown_epochs(sweep)
    of_one = sum(_num_pictures(run, 1) for run in sweep.runs)
    if of_one > _MAX_PICTURES_OF_AN_EPOCH:
        return []
    return epochs if of_one * len(epochs) <= _MAX_PICTURES else epochs[-1:]


def _shown_epochs(sweep: SweepEvidence) -> list[int]:
    epochs = _epochs_with_pictures(sweep.runs)
    return [epoch for epoch in epochs if epoch > 0] or epochs


def _num_pictures(run: RunEvidence, num_epochs: int) -> int:
    return len(run.prompts) * len(run.seeds) * num_epochs


def _epoch_title(epoch: int) -> str:
    return f"after epoch {epoch}" if epoch else "before training"


def by_settings(sweep: SweepEvidence) -> list[RunEvidence]:
    """Return the runs ordered by what was varied, so that measured times never reorder them."""

    def key(run: RunEvidence) -> tuple[list[int], str]:
        places = []
        for name, values in sweep.factors.items():
            value = analysis.shown(run.row.get(name))
            places.append(values.index(value) if value in values else len(values))
        return places, run.run.name

    return sorted(sweep.runs, key=key)


def _rows(
    runs: Sequence[RunEvidence], name: str, *, epoch: int, has_base_titles: bool = False
) -> list[render_sheet.SheetRun]:
    """Return a row per run that was asked to render a prompt."""
    titles = {}
    for run in runs:
        base = _BASE if len(runs) == 1 else f"{run.base_name}, no LoRA"
        titles[run.anchor] = base if has_base_titles else run.label
    return [
        render_sheet.SheetRun(run=run.run, epoch=epoch, title=titles[run.anchor], prompt=prompt)
        for run in runs
        for prompt in run.prompts
        if prompt.name == name
    ]


def _all_prompts(runs: Sequence[RunEvidence]) -> dict[str, Prompt]:
    found: dict[str, Prompt] = {}
    for run in runs:
        for prompt in run.prompts:
            found.setdefault(prompt.name, prompt)
    return found


def _base_runs(runs: Sequence[RunEvidence]) -> list[RunEvidence]:
    """Return one run per base that has pictures of the base alone."""
    found: dict[str, RunEvidence] = {}
    for run in runs:
        if 0 in _epochs_with_pictures([run]):
            found.setdefault(run.base_name, run)
    return list(found.values())


def _epochs_with_pictures(runs: Sequence[RunEvidence]) -> list[int]:
    epochs: set[int] = set()
    for run in runs:
        for folder in (run.run.path / "images").glob("epoch-*"):
            number = folder.name.removeprefix("epoch-")
            if number.isdecimal() and next(folder.glob("*.png"), None):
                epochs.add(int(number))
    return sorted(epochs)


def shown_sheet(sheet: render_sheet.Sheet, prompt: Prompt, report_dir: Path) -> ShownSheet:
    """Return a written sheet as a page in `report_dir` shows it."""
    across, down = 100 / sheet.width_px, 100 / sheet.height_px
    return ShownSheet(
        address=address(sheet.path, report_dir),
        prompt=prompt,
        width_px=sheet.width_px,
        height_px=sheet.height_px,
        spots=tuple(
            Spot(
                address=address(picture.path, report_dir),
                title=f"{picture.row}, {picture.column}: full size",
                left=picture.box[0] * across,
                top=picture.box[1] * down,
                width=picture.box[2] * across,
                height=picture.box[3] * down,
            )
            for picture in sheet.pictures
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSheets:
    """One prompt after every epoch; sheets of very many rows come in parts."""

    prompt: Prompt
    epochs: tuple[tuple[int, tuple[ShownSheet, ...]], ...]


def by_prompt(found: Sequence[EpochSheets]) -> list[PromptSheets]:
    """Return the same sheets under their prompts, so that one picks a prompt, then an epoch."""
    prompts: dict[str, dict[int, list[ShownSheet]]] = {}
    for epoch in found:
        for sheet in epoch.sheets:
            prompts.setdefault(sheet.prompt.name, {}).setdefault(epoch.epoch, []).append(sheet)
    return [
        PromptSheets(
            prompt=next(iter(shown.values()))[0].prompt,
            epochs=tuple((epoch, tuple(parts)) for epoch, parts in shown.items()),
        )
        for shown in prompts.values()
    ]

"""Draw the contact sheets that a page shows where they are missing or out of date."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optbench import analysis
from optbench.analysis.evidence import RunEvidence, SweepEvidence
from optbench.render import sheet as render_sheet
from optbench.report.links import address
from optbench.schema import Prompt

_BASE = "base, no LoRA"
# A sheet decodes every image at its full size, at 15 to 25 ms each, and a viewer shows the same.
_MAX_IMAGES = 1600  # that sheets of all epochs may hold; above it only the last epoch has some
_MAX_IMAGES_OF_AN_EPOCH = 2400  # above it there are none
_MAX_ROWS = 48  # of one sheet: a longer one is no image that anything opens well


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """One image in a sheet, as percentages of the sheet, and where it is at full size."""

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
class PromptSheets:
    """One prompt after every epoch; sheets of very many rows or columns come in parts."""

    prompt: Prompt
    anchor: str
    epochs: tuple[tuple[int, tuple[ShownSheet, ...]], ...]


def draw_run_sheets(runs: Sequence[RunEvidence]) -> None:
    """Draw the runs' own sheets where they are missing or out of date.

    A finished run has drawn its own; of very many runs those of killed ones are left out.
    """
    if sum(_num_images(run, run.num_epochs_planned + 1) for run in runs) > _MAX_IMAGES:
        return
    for run in runs:
        if not run.seeds or not _epochs_with_images([run]):
            continue
        for prompt in run.prompts:
            render_sheet.run_sheet(
                run.run,
                prompt,
                seeds=run.seeds,
                num_epochs=run.num_epochs_planned,
                # What the run itself has drawn stays.
                sheet_format="webp"
                if (run.run.sheets_dir / f"{prompt.name}.webp").is_file()
                else "png",
            )


def epoch_sheets(sweep: SweepEvidence, report_dir: Path) -> list[PromptSheets]:
    """Return by prompt the sheets that compare the runs, of every epoch that has images of any run.

    Of a large sweep only the last epoch has sheets, of a huge one none; see `left_out`.
    """
    prompts: dict[str, Prompt] = {}
    for run in sweep.runs:
        for prompt in run.prompts:
            prompts.setdefault(prompt.name, prompt)
    seeds = tuple(dict.fromkeys(seed for run in sweep.runs for seed in run.seeds))
    if not seeds:
        return []
    bases: dict[str, RunEvidence] = {}
    for run in sweep.runs:
        if 0 in _epochs_with_images([run]):
            bases.setdefault(run.base_name, run)
    base_titles = {run.name: f"{run.base_name}, no LoRA" for run in bases.values()}
    if len(bases) == 1:
        base_titles = dict.fromkeys(base_titles, _BASE)
    base_runs, runs = list(bases.values()), by_settings(sweep)
    titles = {run.name: run.label for run in runs}
    by_prompt: dict[str, dict[int, tuple[ShownSheet, ...]]] = {}
    for epoch in _drawn_epochs(sweep):
        for name, prompt in prompts.items():
            rows = _rows(base_runs, base_titles, name, epoch=0)
            if epoch > 0:
                rows += _rows(runs, titles, name, epoch=epoch)
            when = f"after epoch {epoch}" if epoch else "before training"
            folder = report_dir / "sheets" / f"epoch-{epoch:04d}"
            parts = [
                render_sheet.epoch_sheet(
                    (folder if part == 1 else folder / f"part-{part}") / f"{name}.png",
                    rows[start : start + _MAX_ROWS],
                    seeds=seeds,
                    title=f"prompt {name}, {when}, one row per run",
                )
                for part, start in enumerate(range(0, len(rows), _MAX_ROWS), start=1)
            ]
            if parts:
                shown_sheets = tuple(shown_sheet(sheet, prompt, report_dir) for sheet in parts)
                by_prompt.setdefault(name, {})[epoch] = shown_sheets
    return [
        PromptSheets(prompt=prompts[name], anchor=f"sheet-{number}", epochs=tuple(by_epoch.items()))
        for number, (name, by_epoch) in enumerate(by_prompt.items(), start=1)
    ]


def remove_others(report_dir: Path, shown: Iterable[PromptSheets]) -> None:
    """Remove the sheets of epochs and prompts that are gone: they would pass for these runs'."""
    kept = {
        sheet.address for of_prompt in shown for _, parts in of_prompt.epochs for sheet in parts
    }
    for path in (report_dir / "sheets").glob("epoch-*/**/*.png"):
        if address(path, report_dir) not in kept:
            path.unlink()
    for folder in sorted((report_dir / "sheets").glob("epoch-*/**/"), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()


def _rows(
    runs: Sequence[RunEvidence], titles: Mapping[str, str], name: str, *, epoch: int
) -> list[render_sheet.SheetRun]:
    """Return a row per run that was to render a prompt."""
    return [
        render_sheet.SheetRun(run=run.run, epoch=epoch, title=titles[run.name], prompt=prompt)
        for run in runs
        for prompt in run.prompts
        if prompt.name == name
    ]


def left_out(sweep: SweepEvidence) -> str:
    """Return which sheets are not drawn because there would be too many, or nothing."""
    epochs = _shown_epochs(sweep)
    drawn_epochs = _drawn_epochs(sweep)
    if len(drawn_epochs) == len(epochs):
        return ""
    if not drawn_epochs:
        return "There are too many images for sheets; the viewer shows them all."
    return (
        f"Sheets are drawn of epoch {drawn_epochs[0]} only: those of all {len(epochs)} epochs "
        f"would hold more than {_MAX_IMAGES} images. The viewer shows them all."
    )


def _drawn_epochs(sweep: SweepEvidence) -> list[int]:
    epochs = _shown_epochs(sweep)
    of_epoch = sum(_num_images(run, 1) for run in sweep.runs)
    if of_epoch > _MAX_IMAGES_OF_AN_EPOCH:
        return []
    return epochs if of_epoch * len(epochs) <= _MAX_IMAGES else epochs[-1:]


def _shown_epochs(sweep: SweepEvidence) -> list[int]:
    epochs = _epochs_with_images(sweep.runs)
    return [epoch for epoch in epochs if epoch > 0] or epochs


def _num_images(run: RunEvidence, num_epochs: int) -> int:
    return len(run.prompts) * len(run.seeds) * num_epochs


def by_settings(sweep: SweepEvidence) -> list[RunEvidence]:
    """Return the runs ordered by what was varied, so that measured times never reorder them."""

    def key(run: RunEvidence) -> tuple[list[int], str]:
        places = []
        for name, values in sweep.factors.items():
            value = analysis.shown(run.row.get(name))
            places.append(values.index(value) if value in values else len(values))
        return places, run.name

    return sorted(sweep.runs, key=key)


def _epochs_with_images(runs: Sequence[RunEvidence]) -> list[int]:
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
                address=address(image.path, report_dir),
                title=f"{image.row}, {image.column}: full size",
                left=image.box[0] * across,
                top=image.box[1] * down,
                width=image.box[2] * across,
                height=image.box[3] * down,
            )
            for image in sheet.pictures
        ),
    )

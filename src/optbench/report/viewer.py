"""Write report/data.js: everything the page's viewer shows, as one value a classic script assigns.

Images are not listed one by one: every run has, for every epoch, one letter for each shot (a
prompt at a size with a seed), and the path follows from those names.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optbench import analysis
from optbench.analysis.evidence import RunEvidence, SweepEvidence
from optbench.analysis.standings import Setting
from optbench.records import Cell
from optbench.render import thumbnails
from optbench.report.charts.chart import Chart
from optbench.report.charts.styles import Style, Styles
from optbench.report.links import address
from optbench.report.nearest import nearest_images
from optbench.report.provenance_section import split_settings
from optbench.report.sheets import by_settings
from optbench.report.viewer_numbers import Shot, make_numbers
from optbench.storage.disk import read_text
from optbench.storage.files import write_atomic
from optbench.storage.nested import section

SCHEMA = 2  # of data.js; raise it when viewer.js could not read older files
_ID = re.compile(r"[0-9a-f]{32}")
_SHOWN, _DAMAGED, _ABSENT = "1", "x", "0"
_MAX_REASON = 2000
_MAX_PLANNED_EPOCHS = 1000  # a config may say anything


@dataclass(frozen=True, slots=True, kw_only=True)
class _Images:
    """The images on disk: of each run and epoch which shots, and whether they can be shown."""

    shots: tuple[Shot, ...]
    epochs: tuple[int, ...]
    letters: Mapping[str, Mapping[int, str]]  # run -> epoch -> a letter for each shot
    num_pictures: int


def write_data(
    sweep: SweepEvidence,
    styles: Styles,
    report_dir: Path,
    *,
    title: str,
    settings: Sequence[Setting],
    curves: Sequence[Chart],
) -> int:
    """Return how many images the viewer can show, after writing what it reads.

    Small copies that are missing or out of date are made first.

    Args:
        sweep: The runs.
        styles: How they are drawn.
        report_dir: The page's folder.
        title: The page's.
        settings: What people vote on.
        curves: The charts that the viewer shows of the selected image's run.
    """
    # Seeds that only say how sure a loss is render nothing, and would be rows of empty cells.
    with_images = {str(name) for name in sweep.frames.images["run"]}
    runs = [
        run
        for run in by_settings(sweep)
        if run.name in with_images or section(run.config, "render").get("enabled") is not False
    ] or by_settings(sweep)
    images = _find_images(sweep, runs)
    # Runs may differ in a prompt's text.
    texts = [(p.name, p.text, p.negative) for run in runs for p in run.prompts]
    prompts = {key: place for place, key in enumerate(dict.fromkeys(texts))}
    bases = list(dict.fromkeys(run.base_name for run in runs))
    _, own_settings = split_settings(runs)
    # People vote on settings; resized LoRAs alone, which no setting has, are voted on one by one.
    of_run = {name: setting.label for setting in settings for name in setting.runs} or {
        run.name: run.label for run in runs
    }
    labels = list(dict.fromkeys(of_run.values()))
    data = {
        "schema": SCHEMA,
        "id": report_id(report_dir),
        "name": sweep.path.resolve().name,
        "title": title,
        "factors": [
            {"name": name, "values": list(values)} for name, values in sweep.factors.items()
        ],
        "epochs": images.epochs,
        "prompts": [
            {"name": name, "text": text, "negative": negative} for name, text, negative in prompts
        ],
        "shots": [
            {"prompt": prompt, "width": width, "height": height, "seed": seed}
            for prompt, width, height, seed in images.shots
        ],
        "bases": bases,
        "settings": labels,
        "runs": [
            {
                **_run_facts(run, styles[run.name], report_dir),
                "base": bases.index(run.base_name),
                "setting": labels.index(of_run[run.name]) if run.name in of_run else None,
                "own": {fact.name: fact.value for fact in own_settings[run.name]},
                "values": [analysis.shown(run.row.get(name)) for name in sweep.factors],
                "prompts": [
                    prompts[prompt.name, prompt.text, prompt.negative] for prompt in run.prompts
                ],
                "pictures": images.letters.get(run.name, {}),
            }
            for run in runs
        ],
        "nearest": nearest_images(sweep, runs, images.shots, report_dir),
        "numbers": make_numbers(sweep, runs, images.shots),
        "curves": [{"name": chart.name, "title": chart.title} for chart in curves],
    }
    # ASCII only, so that it reads the same whatever a browser takes for the file's encoding.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    write_atomic(report_dir / "data.js", f"window.optbenchReport={text};\n")
    return images.num_pictures


def report_id(report_dir: Path) -> str:
    """Return what tells this report from all others: random, and the same after every rebuild.

    A browser stores scores and votes under it. All pages from disk share one store, and folders of
    equal names are common.
    """
    path = report_dir / "id"
    try:
        identity = read_text(path).strip()
    except (OSError, ValueError):
        identity = ""
    if not _ID.fullmatch(identity):
        identity = secrets.token_hex(16)
        write_atomic(path, f"{identity}\n")
    return identity


def _find_images(sweep: SweepEvidence, runs: Sequence[RunEvidence]) -> _Images:
    """Return what lies on disk, with small copies made of what has none yet."""
    by_name = {run.name: run for run in runs}
    images: list[tuple[str, int, Shot, Path]] = []
    for row in sweep.frames.images.to_dict("records"):
        shot = str(row["prompt"]), int(row["width"]), int(row["height"]), int(row["seed"])
        prompt, width, height, seed = shot
        cell = Cell(prompt=prompt, width=width, height=height, seed=seed, epoch=int(row["epoch"]))
        path = by_name[str(row["run"])].run.image_path(cell)
        if path == sweep.frames.root / str(row["path"]):  # else: epoch-1 for epoch-0001
            images.append((str(row["run"]), cell.epoch, shot, path))
    thumbnails.make_thumbnails(path for *_, path in images)
    # As the configs list them, images still to come included; those that no config names last.
    planned = dict.fromkeys(
        (prompt.name, prompt.width, prompt.height, seed)
        for run in runs
        for prompt in run.prompts
        for seed in run.seeds
    )
    shots = (*planned, *sorted({shot for _, _, shot, _ in images} - planned.keys()))
    places = {shot: index for index, shot in enumerate(shots)}
    letters: dict[str, dict[int, list[str]]] = {}
    for name, epoch, shot, path in images:
        of_epoch = letters.setdefault(name, {}).setdefault(epoch, [_ABSENT] * len(shots))
        of_epoch[places[shot]] = _SHOWN if thumbnails.has_thumbnail(path) else _DAMAGED
    epochs = tuple(sorted({epoch for _, epoch, _, _ in images}))
    if epochs:  # with those still to come of unfinished runs
        to_come = [run.num_epochs_planned for run in runs if run.row["status"] != "done"]
        num_epochs = min(max(to_come, default=0), _MAX_PLANNED_EPOCHS)
        epochs = tuple(sorted({*epochs, *range(1, num_epochs + 1)}))
    return _Images(
        shots=shots,
        epochs=epochs,
        letters={
            name: {epoch: "".join(of_shots) for epoch, of_shots in sorted(epochs.items())}
            for name, epochs in letters.items()
        },
        num_pictures=len(images),
    )


def _run_facts(run: RunEvidence, style: Style, report_dir: Path) -> dict[str, Any]:
    lora = sorted(run.run.lora_dir.glob("*.safetensors")) if run.run.lora_dir.is_dir() else []
    sheets = [
        run.run.sheets_dir / f"{name}.png"
        for name in dict.fromkeys(prompt.name for prompt in run.prompts)
    ]
    image_key = run.row.get("image_key")
    render = section(run.config, "render")
    words = {"steps": "Steps", "sampler": "Sampler", "cfg_scale": "CFG scale"}
    return {
        "name": run.name,
        # Scores and votes carry it: they are of these images, not of later ones in their place.
        "imageKey": image_key if isinstance(image_key, str) else None,
        "folder": address(run.run.path, report_dir),
        "render": ", ".join(
            f"{word}: {render[name]}" for name, word in words.items() if render.get(name)
        ),
        "anchor": style.anchor,
        "label": run.label,
        "kind": run.kind,
        "status": str(run.row["status"]),
        "reason": run.reason[:_MAX_REASON],
        "colour": style.colour,
        "dash": style.dash,
        "epochSteps": [
            [int(row["epoch"]), int(row["step"])]
            for row in run.epochs
            if all(isinstance(row.get(name), (int, float)) for name in ("epoch", "step"))
        ],
        "lora": [path.name for path in lora],
        "sheets": [path.name for path in sheets if path.is_file()],
    }

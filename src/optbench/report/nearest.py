"""The training image that is nearest to each rendered one, by copy distance, for the viewer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from optbench.analysis import is_missing
from optbench.analysis.evidence import RunEvidence, SweepEvidence
from optbench.report.goal import shows_training_images, small_copy, training_images
from optbench.report.viewer_numbers import Shot

_FOLDER = "nearest"  # in the report's own
_METRIC = "copy_distance"


def nearest_images(
    sweep: SweepEvidence, runs: Sequence[RunEvidence], shots: Sequence[Shot], report_dir: Path
) -> dict[str, Any] | None:
    """Return small copies of the nearest training images, and which one is whose; None without any.

    `of` has for each run `{epoch: [a place in images or null for each shot]}`. None too where
    training images are not to be shown (`report.goal=false`); copies made before are removed then.
    """
    folder = report_dir / _FOLDER
    table = sweep.frames.metrics
    names: dict[str, int] = {}
    images: list[dict[str, Any]] = []
    paths: dict[str, Path] = {}
    if shows_training_images(sweep):
        paths = {path.name: path for path in reversed(training_images(sweep))}
    of_runs: list[dict[int, list[int | None]]] = [{} for _ in runs]
    run_places = {run.name: place for place, run in enumerate(runs)}
    shot_places = {shot: place for place, shot in enumerate(shots)}
    copies: set[Path] = set()
    for row in table[table["metric"] == _METRIC].to_dict("records") if paths else ():
        run = run_places.get(str(row["run"]))
        shot = shot_places.get((row["prompt"], row["width"], row["height"], row["seed"]))
        name = row.get("detail")
        if run is None or shot is None or is_missing(name) or str(name) not in paths:
            continue
        if str(name) not in names:
            copy = small_copy(paths[str(name)], folder)
            if copy is None:
                continue
            copies.add(copy)
            names[str(name)] = len(images)
            with Image.open(copy) as image:
                width, height = image.size
            images.append(
                {
                    "name": str(name),
                    "address": f"./{_FOLDER}/{copy.name}",
                    "width": width,
                    "height": height,
                }
            )
        of_epoch = of_runs[run].setdefault(int(row["epoch"]), [None] * len(shots))
        of_epoch[shot] = names[str(name)]
    for path in folder.glob("*.webp") if folder.is_dir() else ():
        if path not in copies:
            path.unlink(missing_ok=True)
    return {"images": images, "of": of_runs} if images else None

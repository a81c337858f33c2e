"""One HTML file in which others vote on a sweep's images; it sends nothing and returns one file."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from optbench.analysis import TRAINING, no_runs
from optbench.analysis.evidence import read_sweep
from optbench.analysis.standings import rank_settings
from optbench.errors import DatasetError, Problem
from optbench.report.inline import content_policy, json_text, static_text
from optbench.report.viewer import SCHEMA, report_id
from optbench.report.viewer_numbers import Shot
from optbench.storage.images import opened_rendered

_TEMPLATES = Path(__file__).parent / "templates"
_SCRIPTS = (
    "viewer_model.js",
    "viewer_scores.js",
    "viewer_score_form.js",
    "viewer_preference.js",
    "viewer_vote.js",
    "vote_page.js",  # starts it, so it comes last
)
_QUALITY = 82  # of WebP
_MAX_SIDE_PX = 1024
_MAX_IMAGES = 600  # a page of more is too large to send


def vote_page(sweep_dir: Path) -> str:
    """Return the page: every finished setting's last images inside as WebP, no weights, no paths.

    Its votes carry the report's id and the images' keys, so `optbench report` counts the JSON file
    that it returns once that lies in `scores` beside the runs. Names of settings are shown only at
    the end of a vote; they do stand in the file, for whoever reads its source.

    Raises:
        DatasetError: If there are no two settings with images of one prompt and seed.
    """
    if not sweep_dir.is_dir():
        raise no_runs(sweep_dir)
    sweep = read_sweep(sweep_dir)
    trainings = sweep.only(TRAINING)
    settings = [setting for setting in rank_settings(sweep.frames).settings if setting.runs]
    of_run = {name: place for place, setting in enumerate(settings) for name in setting.runs}
    by_name = {run.name: run for run in trainings.runs if run.name in of_run}
    table = sweep.frames.images
    table = table[(table["epoch"] > 0) & table["run"].isin(by_name)]
    last_epochs = {
        str(name): int(epoch) for name, epoch in table.groupby("run")["epoch"].max().items()
    }
    paths: dict[tuple[str, Shot], Path] = {}
    for row in table.to_dict("records"):
        if row["epoch"] == last_epochs[row["run"]]:
            shot = str(row["prompt"]), int(row["width"]), int(row["height"]), int(row["seed"])
            paths[str(row["run"]), shot] = sweep.frames.root / str(row["path"])
    shots = list(dict.fromkeys(shot for _, shot in paths))
    shown: dict[Shot, set[int]] = {}
    for name, shot in paths:
        shown.setdefault(shot, set()).add(of_run[name])
    if not any(len(of_shot) > 1 for of_shot in shown.values()):
        raise DatasetError(
            Problem(
                str(sweep_dir),
                "no two settings with images of the same prompt and seed",
                "two, to vote between",
                "train and render another setting first",
            )
        )
    images: dict[str, dict[int, str]] = {}
    every = -(-len(paths) // _MAX_IMAGES)  # of too many images some prompts and seeds are left out
    places = {shot: place for place, shot in enumerate(shots[::every])}
    for (name, shot), path in paths.items():
        if shot in places and (content := _webp(path)) is not None:
            images.setdefault(name, {})[places[shot]] = content
    runs = [run for run in trainings.runs if run.name in images]
    texts = list(dict.fromkeys((p.name, p.text, p.negative) for run in runs for p in run.prompts))
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "id": report_id(sweep_dir / "report"),
        "name": sweep_dir.resolve().name,
        "factors": [],
        "epochs": sorted({last_epochs[run.name] for run in runs}),
        "prompts": [
            {"name": name, "text": text, "negative": negative} for name, text, negative in texts
        ],
        "shots": [
            {"prompt": prompt, "width": width, "height": height, "seed": seed}
            for prompt, width, height, seed in places
        ],
        "bases": ["base"],
        "settings": [setting.label for setting in settings],
        "runs": [
            {
                "name": run.name,
                "imageKey": key if isinstance(key := run.row.get("image_key"), str) else None,
                "label": run.label,
                "values": [],
                "base": 0,
                "setting": of_run[run.name],
                "prompts": [texts.index((p.name, p.text, p.negative)) for p in run.prompts],
                "pictures": {
                    last_epochs[run.name]: "".join(
                        "1" if place in images[run.name] else "0" for place in places.values()
                    )
                },
            }
            for run in runs
        ],
        "numbers": [],
        "curves": [],
        "images": images,
    }
    script = static_text(*_SCRIPTS)
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("vote.html.j2").render(
        name=data["name"],
        data=json_text(data),
        num_settings=len({run["setting"] for run in data["runs"]}),
        policy=Markup(content_policy((script,), is_alone=True)),
        style=Markup(static_text("page.css", "viewer.css")),
        script=Markup(script),
    )


def _webp(path: Path) -> str | None:
    """Return an image as the text of an address; None for one that cannot be read."""
    buffer = io.BytesIO()
    try:
        with opened_rendered(path) as image:
            pixels = image.convert("RGB")
        pixels.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX), Image.Resampling.LANCZOS)
        pixels.save(buffer, "WEBP", quality=_QUALITY, method=4)  # without what a PNG says of itself
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    return base64.b64encode(buffer.getvalue()).decode()

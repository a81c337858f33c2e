"""Write TensorBoard's event files: scalars, images, sheets, and settings beside final numbers.

Written between epochs, never within a step; made anew when a run goes on, so nothing is doubled.
"""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optbench.storage import files
from optbench.storage.images import opened_rendered
from optbench.storage.rundir import RunDir

_PICTURE_PX = 256  # the height of an image in a row of an epoch
_SHEET_PX = 2048  # the longer side of a sheet
_END_PREFIX = "final/"
_LONGEST_TEXT = 80
_NOT_FINAL = ("epoch", "step")
# Beside everything else, places and texts would make a table nobody can read.
_HPARAM_GROUPS = ("base", "dataset", "network", "optimizer", "lr_scheduler", "train", "loss")
_HPARAM_KEYS = ("seed", "lr_mult")


def write_scalars(folder: Path, rows: Iterable[Mapping[str, float | int]]) -> None:
    """Append one event file with every number of every row, placed at the row's `step`."""
    rows = list(rows)
    if not rows:
        return
    from torch.utils.tensorboard.summary import scalar  # a second to import, once per process

    events = [
        (scalar(name, value), int(row["step"]))
        for row in rows
        for name, value in row.items()
        if name not in ("step", "epoch") and value is not None
    ]
    _write_events(folder, events)


def rewrite_scalars(folder: Path, rows: Iterable[Mapping[str, float | int]]) -> None:
    """Replace all event files by one with these rows: a killed run may have left other ones."""
    shutil.rmtree(folder, ignore_errors=True)
    write_scalars(folder, rows)


def write_pictures(run: RunDir, steps: Mapping[int, int]) -> None:
    """Append the images of some epochs, a row of seeds for each prompt, at each epoch's step.

    `steps` has the step by epoch; what was not rendered is left out.
    """
    rows_by_name = {
        (name, step): row
        for epoch, step in steps.items()
        for name, row in _rows(run.images_dir(epoch)).items()
    }
    if not rows_by_name:
        return
    from torch.utils.tensorboard.summary import image

    events = [
        (image(f"pictures/{name}", row, dataformats="HWC"), step)
        for (name, step), row in rows_by_name.items()
    ]
    _write_events(run.tensorboard_dir, events)


def write_end(run: RunDir, config: Mapping[str, Any]) -> None:
    """Append the run's sheets, and its settings beside its final numbers (the tab HPARAMS)."""
    epochs = files.read_rows(run.epochs_path)
    if not epochs:
        return
    from torch.utils.tensorboard.summary import hparams, image, scalar

    last = epochs[-1]
    final = {
        f"{_END_PREFIX}{name}": float(value)
        for name, value in last.items()
        if name not in _NOT_FINAL and isinstance(value, (int, float))
    }
    final[f"{_END_PREFIX}seconds_train"] = sum(row.get("seconds_train") or 0 for row in epochs)
    step = last["step"]
    events = []
    for path in sorted(run.sheets_dir.glob("*.png")):
        with opened_rendered(path) as picture:
            small = picture.convert("RGB")
        small.thumbnail((_SHEET_PX, _SHEET_PX))
        events.append((image(f"sheets/{path.stem}", np.asarray(small), dataformats="HWC"), step))
    events += [(summary, 0) for summary in hparams(_hparams(config), final)]
    events += [(scalar(name, value), step) for name, value in final.items()]
    _write_events(run.tensorboard_dir, events)


def _write_events(folder: Path, summaries: Iterable[tuple[Any, int]]) -> None:
    """Write summaries, each with its step, as one event file, whole or not at all.

    Not by SummaryWriter: it writes in a thread, in which a full disk is a traceback and no error.
    """
    from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
    from tensorboard.summary.writer.record_writer import (  # type: ignore[import-untyped]
        RecordWriter,
    )

    content = io.BytesIO()
    records = RecordWriter(content)
    now = time.time()
    records.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
    for summary, step in summaries:
        event = Event(wall_time=time.time(), step=step, summary=summary)
        records.write(event.SerializeToString())
    # TensorBoard reads the files of a folder in the order of their names.
    number = len(list(folder.glob("events.out.tfevents.*")))
    name = f"events.out.tfevents.{int(now):010d}.{number:06d}"
    files.write_atomic(folder / name, content.getvalue())


def _hparams(config: Mapping[str, Any]) -> dict[str, str | float | bool]:
    """Return what affects the weights, by override name; the groups' own names first."""
    settings: dict[str, str | float | bool] = {}
    for group in _HPARAM_GROUPS:
        for key, value in config[group].items():
            if isinstance(value, (str, int, float)) and len(str(value)) <= _LONGEST_TEXT:
                settings[group if key == "name" else f"{group}.{key}"] = value
    return {**settings, **{key: config[key] for key in _HPARAM_KEYS}}


def _rows(folder: Path) -> dict[str, NDArray[np.uint8]]:
    """Return, for each prompt and size, its images side by side, made small."""
    images: dict[str, list[NDArray[np.uint8]]] = {}
    for path in sorted(folder.glob("*.png")):
        name, seed, _ = path.stem.rpartition("-s")
        if seed:
            with opened_rendered(path) as image:
                width = max(1, image.width * _PICTURE_PX // image.height)
                small = image.convert("RGB").resize((width, _PICTURE_PX))
            images.setdefault(name, []).append(np.asarray(small))
    return {name: np.concatenate(parts, axis=1) for name, parts in images.items()}

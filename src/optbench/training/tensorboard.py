"""Write TensorBoard's event files: scalars, images, sheets, and settings beside final numbers.

Written between epochs, never within a step; made anew when a run goes on, so nothing is doubled.
"""

from __future__ import annotations

import io
import shutil
import statistics
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optbench.storage import files
from optbench.storage.images import opened_rendered
from optbench.storage.nested import flatten
from optbench.storage.rundir import METRICS_NAME, RunDir

_PICTURE_PX = 256  # the height of an image in a row of an epoch
_SHEET_PX = 2048  # the longer side of a sheet
_END_PREFIX = "final/"
_LONGEST_TEXT = 80
_NOT_FINAL = ("epoch", "step")
# TensorBoard shows a handful of columns: these, and what the command line changed.
_HPARAMS = ("optimizer", "network.dim", "lr_mult", "seed")
_HPARAM_GROUPS = ("base", "dataset", "network", "optimizer", "lr_scheduler", "train", "loss")
_METRICS_FILE = "events.out.tfevents.0000000000.metrics"


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


def write_metrics(run: RunDir) -> None:
    """Write the run's numbers of images as scalars, the mean of each epoch, in place of older ones.

    They are measured after the training, at the steps of epochs that are over.
    """
    steps = {row["epoch"]: row["step"] for row in files.read_rows(run.epochs_path)}
    values: dict[tuple[str, int], list[float]] = {}
    for row in files.read_rows(run.path / METRICS_NAME):
        value, step = row.get("value"), steps.get(row.get("epoch"))
        if step is not None and isinstance(value, (int, float)):
            values.setdefault((str(row["metric"]), step), []).append(float(value))
    if not values:
        return
    from torch.utils.tensorboard.summary import scalar

    events = [
        (scalar(f"images/{metric}", statistics.fmean(of_epoch)), step)
        for (metric, step), of_epoch in sorted(values.items(), key=lambda item: item[0][1])
    ]
    _write_events(run.tensorboard_dir, events, name=_METRICS_FILE)


def write_end(run: RunDir, config: Mapping[str, Any], changed: Iterable[str] = ()) -> None:
    """Append the run's sheets, and its settings beside its final numbers (the tab HPARAMS).

    Args:
        run: The run.
        config: Its settings, nested.
        changed: The settings that the command line changed: what is swept is among them.
    """
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
    events += [(summary, 0) for summary in hparams(_hparams(config, changed), final)]
    events += [(scalar(name, value), step) for name, value in final.items()]
    _write_events(run.tensorboard_dir, events)


def _write_events(
    folder: Path, summaries: Iterable[tuple[Any, int]], *, name: str | None = None
) -> None:
    """Write summaries, each with its step, as one event file, whole or not at all.

    Its name is the next one, or `name`.

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
    if name is None:
        # TensorBoard reads the files of a folder in the order of their names.
        number = len(list(folder.glob("events.out.tfevents.*")))
        name = f"events.out.tfevents.{int(now):010d}.{number:06d}"
    files.write_atomic(folder / name, content.getvalue())


def _hparams(config: Mapping[str, Any], changed: Iterable[str]) -> dict[str, str | float | bool]:
    """Return the settings that tell runs apart, by override name."""
    of_groups = tuple(f"{group}." for group in _HPARAM_GROUPS)
    settings = {
        key.removesuffix(".name"): value
        for key, value in flatten(config).items()
        if isinstance(value, (str, int, float)) and len(str(value)) <= _LONGEST_TEXT
    }
    keys = [key for key in changed if key.startswith(of_groups) or key in _HPARAM_GROUPS]
    return {key: settings[key] for key in dict.fromkeys((*_HPARAMS, *keys)) if key in settings}


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
